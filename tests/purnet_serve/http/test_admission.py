from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import pytest
from admitted import admit
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from purnet_serve.errors import (
    ApiKeysError,
    BodyTooLargeError,
    BusyError,
    DrainingError,
    KeyMissingError,
    KeyUnknownError,
    NotReadyError,
    TooManyBytesError,
)
from purnet_serve.http.admission import Admission
from purnet_serve.http.api_keys import ApiKeys, offered_key
from purnet_serve.http.request import RequestContext
from purnet_serve.settings import Settings


def admission(**settings: int) -> Admission:
    return Admission(Settings(**settings), lambda: None)  # type: ignore[arg-type]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_without_a_file_no_key_is_asked_for() -> None:
    keys = ApiKeys(None)
    keys.load()
    keys.check(None)
    keys.check("anything")


def test_known_keys_are_accepted_and_others_are_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{digest('one')}\n\n{digest('two').upper()}\n")
    keys = ApiKeys(file)
    with pytest.raises(KeyUnknownError):
        keys.check("one")  # not loaded yet: closed, not open
    keys.load()
    for key in ("one", "two"):
        keys.check(key)
    for key in ("three", digest("one"), "one ", "\xff"):
        with pytest.raises(KeyUnknownError):
            keys.check(key)
    for missing in (None, ""):
        with pytest.raises(KeyMissingError):
            keys.check(missing)


def test_a_key_in_utf_8_is_known_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(digest("schlüssel"))
    keys = ApiKeys(file)
    keys.load()
    sent = Headers(raw=[(b"x-api-key", "schlüssel".encode())])
    keys.check(offered_key(sent))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_keys_are_read_as_editors_on_any_system_save_them(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# für uns\r\n{digest('one')}\r\n", encoding=encoding)
    keys = ApiKeys(file)
    keys.load()
    keys.check("one")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32", "latin-1"])
def test_keys_in_another_encoding_are_refused_in_one_sentence(
    tmp_path: Path, encoding: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# für uns\n{digest('one')}\n", encoding=encoding)
    with pytest.raises(ApiKeysError) as refused:
        ApiKeys(file).load()
    assert str(refused.value) == f"{file} is not text; save it as UTF-8"


@pytest.mark.parametrize("content", ["one\n", "", "# none\n", digest("x")[:-1], "\xff"])
def test_a_file_of_something_else_is_refused_and_the_old_keys_stay(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(digest("one"))
    keys = ApiKeys(file)
    keys.load()
    file.write_text(content, encoding="latin-1")
    with pytest.raises(ApiKeysError):
        keys.load()
    keys.check("one")
    file.unlink()
    with pytest.raises(ApiKeysError, match="cannot read"):
        keys.load()
    file.write_text(digest("two"))
    keys.load()
    with pytest.raises(KeyUnknownError):
        keys.check("one")


def test_limits_are_counted_and_given_back_once() -> None:
    limits = admission(max_requests_in_flight=2, max_body_bytes=60, max_bytes_in_flight=100)
    first, second = admit(limits, 60), admit(limits, 40)
    with pytest.raises(BusyError) as busy:
        admit(limits, 0)
    assert type(busy.value) is BusyError
    limits.resize(second, 10)
    limits.release(second)
    limits.release(second)
    assert (limits.requests, limits.bytes) == (1, 60)
    with pytest.raises(TooManyBytesError):
        admit(limits, None)
    with pytest.raises(TooManyBytesError):
        admit(limits, 61)
    limits.resize(first, 0)
    with pytest.raises(BodyTooLargeError):
        admit(limits, 61)
    limits.release(first)
    assert (limits.requests, limits.bytes) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 80), st.booleans()), max_size=60))
def test_bytes_in_flight_never_pass_the_limit(steps: list[tuple[int, bool]]) -> None:
    limits = admission(max_requests_in_flight=5, max_body_bytes=60, max_bytes_in_flight=100)
    held: list[RequestContext] = []
    for size, let_go in steps:
        if let_go and held:
            limits.release(held.pop(0))
            continue
        with suppress(BusyError, BodyTooLargeError):
            held.append(admit(limits, size))
        assert limits.requests == len(held) <= 5
        assert limits.bytes == sum(request.upload_bytes for request in held) <= 100
    for request in held:
        limits.release(request)
    assert (limits.requests, limits.bytes) == (0, 0)


def test_draining_is_reported_before_readiness() -> None:
    reason: list[str | None] = ["loading"]
    limits = Admission(Settings(), lambda: reason[0])
    assert isinstance(limits.admission_error(), NotReadyError)
    reason[0] = None
    assert limits.admission_error() is None
    limits.stop_admitting()
    assert isinstance(limits.admission_error(), DrainingError)
