from __future__ import annotations

import pytest
from pydantic import ValidationError

from purnet_serve.settings import Settings, unknown_variables
from purnet_serve.urls import local_url


def test_flag_then_environment_then_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().port == 8000
    monkeypatch.setenv("PURNET_PORT", "9001")
    assert Settings().port == 9001
    assert Settings(port=9002).port == 9002


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURNET_METRICS_PORT", "")
    monkeypatch.setenv("PURNET_CHECKPOINT", "")
    assert (Settings().metrics_port, Settings().checkpoint) == (None, None)


def test_unknown_variables_are_named_with_the_setting_they_may_mean() -> None:
    environment = {"PURNET_PORT": "1", "PURNET_MAX_BACH": "2", "PURNET_QUITE_ELSE": "", "PATH": ""}
    assert unknown_variables(environment) == {
        "PURNET_MAX_BACH": "PURNET_MAX_BATCH",
        "PURNET_QUITE_ELSE": None,
    }


def test_formats_may_have_their_other_names_and_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().formats == ("jpeg", "png", "webp", "avif", "heif")
    monkeypatch.setenv("PURNET_FORMATS", "JPG, heic,tif, heif")
    assert Settings().formats == ("jpeg", "heif", "tiff")


@pytest.mark.parametrize("formats", [",", "jpeg,exe", ()])
def test_formats_that_are_none_are_refused(formats: object) -> None:
    with pytest.raises(ValidationError):
        Settings(formats=formats)  # type: ignore[arg-type]


def test_photos_of_50_megapixels_are_within_the_default_limits() -> None:
    settings = Settings()
    for width, height in ((8160, 6120), (8160, 6144), (8192, 6144)):
        assert width * height <= settings.max_pixels
        assert width <= settings.max_side
    assert settings.max_body_bytes >= 30_000_000


def test_lists_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURNET_CORS_ORIGINS", "https://a.example, https://b.example")
    assert Settings().cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    "origin",
    [
        "*", "null", "http://localhost:3000", "https://[::1]:8443", "https://xn--bcher-kva.example",
        "chrome-extension://abcdefghijklmnopabcdefghijklmnop", "http://a.example:443",
    ],
)  # fmt: skip
def test_origins_as_browsers_send_them_are_taken(origin: str) -> None:
    assert Settings(cors_origins=origin).cors_origins == (origin,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("origins", "right"),
    [
        ("https://a.example/", "'https://a.example'"),
        ("https://a.example/page?x=1#y", "'https://a.example'"),
        ("a.example", "'https://a.example'"),
        ("localhost:3000", "'https://localhost:3000'"),
        ("HTTPS://A.example", "'https://a.example'"),
        ("https://a.example:443", "'https://a.example'"),
        ("http://a.example:80", "'http://a.example'"),
        ("https://bücher.example", "'https://xn--bcher-kva.example'"),
        ("https://user@a.example", "'https://a.example'"),
        ("https://fine.example, https://b.example/", "'https://b.example'"),
        ('["https://a.example", "https://b.example"]', "https://a.example,https://b.example"),
        ('"https://a.example"', "https://a.example"),
        ("https://*.a.example", "no origin"),
        ("https://", "no origin"),
        ("https://a.example:port", "no origin"),
    ],
)
def test_an_origin_that_matches_no_page_is_refused_with_the_right_spelling(
    monkeypatch: pytest.MonkeyPatch, origins: str, right: str
) -> None:
    monkeypatch.setenv("PURNET_CORS_ORIGINS", origins)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert right in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    "values",
    [
        {"port": 70_000},
        {"device": "gpu"},
        {"device": "cuda:1,cuda:1"},
        {"device": "cuda,cuda:0"},
        {"max_timeout_s": float("inf")},
        {"max_body_bytes": 2, "max_bytes_in_flight": 1},
        {"timeout_s": 61},
        {"root_path": "no-slash"},
        {"nonsense": 1},
    ],
)
def test_impossible_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("box.example", "http://box.example:1"),
    ],
)
def test_the_address_this_machine_uses(host: str, url: str) -> None:
    assert local_url(host, 1) == url
