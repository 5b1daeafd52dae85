from __future__ import annotations

import json

import pytest

from purnet_serve.errors import (
    BusyError,
    DeadlineError,
    DrainingError,
    KeyMissingError,
    ParameterError,
    all_errors,
)
from purnet_serve.http.problem_details import problem, problem_document


def test_members_without_a_value_are_left_out() -> None:
    document = problem_document(DeadlineError("Over.", limit=0.5), "id")
    assert document == {
        "type": "urn:purnet-serve:problem:deadline",
        "title": "Deadline passed",
        "status": 504,
        "detail": "Over.",
        "code": "deadline",
        "request_id": "id",
        "limit": 0.5,
    }


def test_a_limit_of_zero_is_a_value() -> None:
    assert problem_document(BusyError("Full.", limit=0), "id")["limit"] == 0


def test_a_parameter_is_named() -> None:
    document = problem_document(ParameterError("size", "No.", actual="big"), "id")
    assert (document["parameter"], document["actual"]) == ("size", "big")


@pytest.mark.parametrize("seconds", [None, 7])
def test_retry_after_is_always_there_where_it_helps(seconds: int | None) -> None:
    for error in (BusyError("Full.", retry_after_s=seconds), DrainingError("Bye.")):
        answer = problem(error, "id")
        expected = seconds if isinstance(error, BusyError) and seconds else 1
        assert answer.headers["retry-after"] == str(expected)
    assert "retry-after" not in problem(DeadlineError("Over."), "id").headers


def test_401_says_how_to_authenticate() -> None:
    assert problem(KeyMissingError("Key?"), "id").headers["www-authenticate"] == "Bearer"


def test_every_error_makes_a_document_and_never_closes_the_connection() -> None:
    for kind in all_errors():
        error = ParameterError("p", "d") if kind is ParameterError else kind("d")
        answer = problem(error, "id", {"Allow": "POST"})
        assert answer.status_code == kind.status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["allow"] == "POST"
        assert "connection" not in answer.headers
        assert json.loads(bytes(answer.body))["code"] == kind.code
