"""`/`: a page on which people try the service; its files are in `purnet_serve/page`.

It is plain HTML, CSS and JavaScript modules as the browser takes them. Its policy allows nothing
from elsewhere, and no script or style but those files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from html import escape
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from purnet_serve.errors import NotFoundError

_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its tag each time
    "Content-Security-Policy": "; ".join(_POLICY),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "webp": "image/webp",
}
_START = "index.html"


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def page_routes(root_path: str) -> list[Route]:
    """The routes of the page and its files; `root_path` is the prefix of a proxy, or empty.

    The files are read at the first request, in a thread: the endpoints are plain functions.
    """

    @cache
    def load() -> dict[str, _File]:
        return _read(root_path)

    def start(request: Request) -> Response:
        return _answer(request, load()[_START])

    def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name == _START or name not in load():
            raise NotFoundError("There is nothing at this path; see /docs.")
        return _answer(request, load()[name])

    return [_route("/", start), _route("/page/{name}", part)]


def _route(path: str, endpoint: Callable[[Request], Response]) -> Route:
    return Route(path, endpoint, methods=["GET"], include_in_schema=False)


def _read(root_path: str) -> dict[str, _File]:
    """Every file of the page by its name. Links are relative unless there is a prefix.

    With a prefix they begin with it, so that the page works at `/prefix` as at `/prefix/`.
    """
    root = escape(f"{root_path}/" if root_path else "").encode()
    found = {}
    for file in files("purnet_serve").joinpath("page").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is None:
            continue
        content = file.read_bytes()
        if file.name == _START:
            content = content.replace(b"{root}", root)
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        found[file.name] = _File(content, media_type, etag)
    return found


def _answer(request: Request, file: _File) -> Response:
    headers = _HEADERS | {"ETag": file.etag}
    if _names(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


def _names(if_none_match: str, etag: str) -> bool:
    """Whether the header names this tag; a proxy that compressed the answer made it a weak one."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in tags or "*" in tags
