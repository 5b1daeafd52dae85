"""How addresses are written: as browsers send an origin, and as this machine reaches a service."""

from __future__ import annotations

from urllib.parse import urlsplit


def browser_origin(text: str) -> str:
    """The origin meant by `text` as browsers send it: scheme, host, and port if not the default.

    Raises `ValueError` when no origin can be made of it.
    """
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:
        host, port = "", None
    if not host or "*" in host:
        raise ValueError(f"{text!r} is no origin; write each as https://name, or * alone for all")
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a service that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
