"""The generator against a real socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web
from benchmarks.peers import generator
from benchmarks.peers.arrivals import poisson
from benchmarks.peers.generator import Load, Request, Target

PNG = b"\x89PNG\r\n\x1a\n"
ANSWERS = {b"good": (200, PNG), b"full": (503, b""), b"text": (200, b"Hello")}
STATUSES = ["200", "503", "no PNG"]


def run(load: Load, paths, *, form: bool = False) -> list[Request]:
    """Offer a load to a server that answers by what it gets."""

    over = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        if form:
            assert b'name="model"' in body
            assert request.content_type == "multipart/form-data"
        if b"hang" in body:
            await over.wait()
        status, content = next(ANSWERS[kind] for kind in ANSWERS if kind in body)
        return web.Response(status=status, body=content)

    async def both() -> list[Request]:
        application = web.Application()
        application.router.add_post("/mask", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        target = Target(
            f"http://127.0.0.1:{port}/mask", {}, "file" if form else None, {"model": "u2netp"}
        )
        try:
            return await generator.run(replace(load, target=target, photos=paths))
        finally:
            over.set()
            await runner.cleanup()

    return asyncio.run(both())


@pytest.fixture
def paths(tmp_path):
    made = []
    for kind in ANSWERS:
        (tmp_path / kind.decode()).write_bytes(kind)
        made.append(tmp_path / kind.decode())
    return made


def load(**more) -> Load:
    target = Target("", {}, None, {})
    fields = {"target": target, "photos": [], "ramp_s": 0.0, "seconds": 0.2, "seed": "a"}
    return Load(**(fields | {"clients": None, "rate": None, "timeout_s": 60.0} | more))


@pytest.mark.parametrize("form", [False, True], ids=["body", "form"])
def test_every_planned_request_is_sent_and_told(paths, form):
    offered = load(rate=100.0)
    requests = run(offered, paths, form=form)
    planned = {each.due_s: STATUSES[each.photo] for each in poisson(100.0, 0.2, len(paths), "a")}
    assert {request.due_s: request.status for request in requests} == planned
    assert set(planned.values()) == set(STATUSES)
    assert all(request.answered_s >= request.due_s for request in requests)
    assert all(request.sent_late_s >= 0 for request in requests)


def test_nobody_waits_for_longer_than_the_timeout(tmp_path):
    (tmp_path / "photo").write_bytes(b"hang good")
    requests = run(load(rate=50.0, timeout_s=0.01), [tmp_path / "photo"])
    assert requests
    assert {request.status for request in requests} == {"gave up"}


def test_a_client_asks_again_when_it_is_answered(paths):
    requests = run(load(clients=2), paths[:1])
    assert {request.status for request in requests} == {"200"}
    starts = sorted(request.due_s for request in requests)
    ends = sorted(request.answered_s for request in requests)
    # Two at a time: the third begins no earlier than the first has ended.
    assert all(start >= end for start, end in zip(starts[2:], ends, strict=False))


def test_a_server_that_is_gone_is_told(paths):
    target = Target("http://127.0.0.1:1/mask", {}, None, {})
    requests = asyncio.run(generator.run(Load(target, paths[:1], None, 50.0, 0.0, 0.2, 60.0, "a")))
    assert requests
    assert {request.status for request in requests} == {"ClientConnectorError"}
