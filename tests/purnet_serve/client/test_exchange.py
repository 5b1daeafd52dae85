"""When a request is sent again, on a clock that the test moves; nothing is sent here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest

from purnet_serve.client import (
    BusyError,
    DeadlineError,
    NoAnswerError,
    PurNetError,
    RequestError,
    RetryPolicy,
    ServerError,
)
from purnet_serve.client.exchange import AttemptResult, Done, Request, Send, Wait, exchange

REQUEST = Request("POST", "/v1/mask", {}, b"photo")


def refusal(status: int, code: str = "too_many_requests", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={"code": code, "detail": "Told so."}, headers=sent)


def broken() -> httpx.TransportError:
    return httpx.ConnectError("refused")


class Run:
    """Answers a request step by step; each attempt takes `attempt_s`, each wait its time."""

    def __init__(self, policy: RetryPolicy, attempt_s: float = 0.0) -> None:
        self.now = 100.0
        self.sent: list[Send] = []
        self.waits: list[float] = []
        self.attempt_s = attempt_s
        exact = replace(policy, jitter=lambda: 1.0)
        self.steps = exchange(REQUEST, lambda answer: answer.text, exact, lambda: self.now)

    def to_the_end(self, *came: AttemptResult) -> str:
        answers = iter(came)
        given: AttemptResult = None
        while True:
            step = self.steps.send(given)
            if isinstance(step, Done):
                return step.result
            given = None
            if isinstance(step, Wait):
                self.waits.append(step.seconds)
                self.now += step.seconds
            else:
                self.sent.append(step)
                self.now += self.attempt_s
                given = next(answers)


OK = httpx.Response(200, text="mask")


@pytest.mark.parametrize("failed", [refusal(429), refusal(503, "draining"), broken()])
def test_what_may_succeed_later_is_sent_again(failed: AttemptResult) -> None:
    run = Run(RetryPolicy(first_wait_s=0.5))
    assert run.to_the_end(failed, failed, OK) == "mask"
    assert run.waits == [0.5, 1.0]


def test_retry_after_is_the_least_that_is_waited() -> None:
    run = Run(RetryPolicy(first_wait_s=0.5))
    assert run.to_the_end(refusal(429, retry_after="3"), refusal(503, retry_after="0"), OK)
    assert run.waits == [3.0, 1.0]


def test_waits_double_up_to_the_longest() -> None:
    run = Run(RetryPolicy(first_wait_s=1.0, longest_wait_s=3.0))
    run.to_the_end(*[broken()] * 4, OK)
    assert run.waits == [1.0, 2.0, 3.0, 3.0]


def test_clients_that_were_refused_together_come_back_apart() -> None:
    policy = RetryPolicy(first_wait_s=0.5)
    waits = {policy.wait_s(0, 10.0) for _ in range(100)}
    assert len(waits) > 50
    assert 10.0 <= min(waits) < max(waits) <= 13.0
    assert RetryPolicy(jitter=lambda: 1.2).wait_s(0, 10.0) == pytest.approx(12.0)


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "²", "soon"])
def test_a_retry_after_that_is_no_number_counts_as_none(value: str) -> None:
    headers = [(b"retry-after", value.encode())]
    run = Run(RetryPolicy(first_wait_s=0.5))
    run.to_the_end(httpx.Response(429, headers=headers), OK)
    assert run.waits == [0.5]


@pytest.mark.parametrize(("failed", "kind"), [(refusal(429), BusyError), (broken(), NoAnswerError)])
def test_retries_are_counted(failed: AttemptResult, kind: type[PurNetError]) -> None:
    run = Run(RetryPolicy(retries=2))
    with pytest.raises(kind):
        run.to_the_end(*[failed] * 3)
    assert len(run.sent) == 3


def test_nothing_is_waited_for_in_vain() -> None:
    """A wait that ends after the deadline is not begun: the refusal is raised at once."""
    run = Run(RetryPolicy(timeout_s=5.0))
    with pytest.raises(BusyError) as raised:
        run.to_the_end(refusal(429, retry_after="60"))
    assert (run.waits, raised.value.retry_after_s) == ([], 60.0)


@pytest.mark.parametrize("status", [400, 403, 404, 413, 415, 422, 500, 502, 504])
def test_any_other_refusal_is_final(status: int) -> None:
    run = Run(RetryPolicy())
    with pytest.raises(PurNetError) as raised:
        run.to_the_end(refusal(status, retry_after="0"))
    assert (raised.value.status, len(run.sent)) == (status, 1)


def test_each_attempt_is_told_the_time_that_is_left() -> None:
    run = Run(RetryPolicy(timeout_s=10.0, first_wait_s=1.0), attempt_s=2.0)
    run.to_the_end(refusal(503), refusal(503), OK)
    assert [step.headers["X-Timeout-Ms"] for step in run.sent] == ["10000", "7000", "3000"]
    assert [step.timeout.read for step in run.sent] == [12.0, 9.0, 5.0]
    assert [step.timeout.connect for step in run.sent] == [5.0, 5.0, 3.0]


def test_no_service_is_asked_for_more_time_than_it_takes() -> None:
    run = Run(RetryPolicy(timeout_s=300.0))
    run.to_the_end(OK)
    assert run.sent[0].headers["X-Timeout-Ms"] == "60000"


def test_a_service_that_gives_less_time_is_asked_for_its_own() -> None:
    run = Run(RetryPolicy())
    problem = {"code": "bad_parameter", "detail": "Too much.", "parameter": "X-Timeout-Ms"}
    assert run.to_the_end(httpx.Response(400, json=problem), OK) == "mask"
    assert ["X-Timeout-Ms" in step.headers for step in run.sent] == [True, False]
    with pytest.raises(RequestError):
        Run(RetryPolicy()).to_the_end(*[httpx.Response(400, json=problem)] * 2)


def test_an_answer_that_cannot_be_decoded_is_none() -> None:
    with pytest.raises(NoAnswerError):
        Run(RetryPolicy(retries=0)).to_the_end(httpx.DecodingError("broken gzip"))


def test_the_time_ends_here_too() -> None:
    run = Run(RetryPolicy(timeout_s=3.0, first_wait_s=0.5), attempt_s=2.45)
    with pytest.raises(NoAnswerError):
        run.to_the_end(broken())
    with pytest.raises(DeadlineError) as raised:
        Run(RetryPolicy(timeout_s=3.0)).to_the_end(httpx.ReadTimeout("slow"))
    assert (raised.value.code, raised.value.status) == ("deadline", None)


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "[]", '{"code": 7}', "{}"])
def test_an_error_page_of_something_else_is_told_by_its_status(body: str) -> None:
    with pytest.raises(ServerError, match="The answer was HTTP 502") as raised:
        Run(RetryPolicy()).to_the_end(httpx.Response(502, text=body))
    told: Any = raised.value
    assert (told.code, told.request_id) == ("no_purnet", None)
