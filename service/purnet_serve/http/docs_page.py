"""`/docs`: the OpenAPI document as a page for people, made here.

It needs no network, no script and no file beside it, so it works on a machine without internet and
under the strictest content security policy.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-top: 1px solid #8888; margin-top: 2.5rem; padding-top: 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border: 1px solid #8888; padding: .3rem .6rem; text-align: left; vertical-align: top }
code { font: 90% ui-monospace, monospace; overflow-wrap: break-word }
td:first-child { white-space: nowrap }
:root { color-scheme: light dark }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_Document = dict[str, Any]


def docs_page(document: Callable[[], _Document]) -> Callable[[Request], HTMLResponse]:
    """The endpoint of `/docs`; `document` gives the OpenAPI document."""

    def docs(_: Request) -> HTMLResponse:
        return HTMLResponse(render(document()), headers=_HEADERS)

    return docs


def render(document: _Document) -> str:
    """The page for an OpenAPI 3.1 document: every operation, parameter, response and schema."""
    info = document["info"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    listed = [
        f"<li><a href='#{_anchor(method, path)}'><code>{method} {escape(path)}</code></a> "
        f"{_prose(operation.get('summary', ''))}</li>"
        for method, path, operation in operations
    ]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{_prose(info.get('summary', ''))} For programs the same is at "
        "<a href='openapi.json'><code>openapi.json</code></a>.</p>",
        f"<ul>{''.join(listed)}</ul>",
        *(_operation(*operation) for operation in operations),
        *(_schema(name, one) for name, one in document["components"]["schemas"].items()),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>"
    )


def _operation(method: str, path: str, operation: _Document) -> str:
    """The section of one operation."""
    parts = [
        f"<h2 id='{_anchor(method, path)}'><code>{method} {escape(path)}</code></h2>",
        f"<p>{_described(operation)}</p>",
    ]
    if parameters := operation.get("parameters"):
        names = ("name", "in", "values", "meaning")
        cells = [
            (_code(one["name"]), one["in"], _type(one["schema"]), _described(one))
            for one in parameters
        ]
        parts.append(_table("Parameters", names, cells))
    if body := operation.get("requestBody"):
        contents = [(_code(kind), _body(one["schema"])) for kind, one in body["content"].items()]
        parts.append(_table("Body", ("media type", "content"), contents))
    answers: list[tuple[str, ...]] = []
    headers: _Document = {}
    for status, response in operation["responses"].items():
        kinds = _lines(map(_code, response.get("content", ())))
        codes = _lines(map(_code, _error_codes(response)))
        answers.append((_code(status), _described(response), kinds, codes))
        headers |= response.get("headers", {})
    parts.append(_table("Answers", ("status", "meaning", "media type", "error codes"), answers))
    if headers:
        described = [
            (_code(name), _described(one), _code(one["example"])) for name, one in headers.items()
        ]
        parts.append(_table("Headers of the answer", ("name", "meaning", "example"), described))
    return "".join(parts)


def _schema(name: str, schema: _Document) -> str:
    required = schema.get("required", ())
    rows = (
        (_code(field), _type(one), "yes" if field in required else "no", _described(one))
        for field, one in schema["properties"].items()
    )
    return (
        f"<h2 id='schema-{escape(name)}'>{escape(name)}</h2>{_described(schema)}"
        f"{_table('Members', ('name', 'values', 'always', 'meaning'), rows)}"
    )


def _body(schema: _Document) -> str:
    fields = [
        f"field {_code(name)}: {_described(one)} {_type(one)}"
        for name, one in schema.get("properties", {}).items()
    ]
    return _lines([_described(schema), *fields])


def _error_codes(response: _Document) -> list[str]:
    return [
        code for one in response.get("content", {}).values() for code in one.get("examples", ())
    ]


def _type(schema: _Document) -> str:
    """What values a schema allows, in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f"<a href='#schema-{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        words = ", ".join(map(_code, schema["enum"]))
    elif schema.get("type") == "array":
        words = f"list of {_type(schema['items'])}"
    else:
        words = escape(str(schema.get("format") or schema.get("type") or "any"))
    if "maximum" in schema:
        words += f", {schema['minimum']} to {schema['maximum']}"
    elif "minimum" in schema:
        words += f", at least {schema['minimum']}"
    if schema.get("default") is not None:
        words += f"; by default {_code(schema['default'])}"
    return words


def _described(schema: _Document) -> str:
    return _prose(schema.get("description", ""))


def _table(caption: str, names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h3>{caption}</h3><table><tr>{head}</tr>{body}</table>"


def _anchor(method: str, path: str) -> str:
    return escape(f"{method.lower()}{path.replace('/', '-')}")


def _lines(parts: Iterable[str]) -> str:
    return "<br>".join(part for part in parts if part)


def _code(value: object) -> str:
    return f"<code>{escape(str(value))}</code>"


def _prose(text: str) -> str:
    """Escaped text in which words between backticks are code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
