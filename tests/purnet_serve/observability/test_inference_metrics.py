from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import DispatchReason, FailureKind, Outcome, TicketLocation


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    return InferenceMetrics(registry)


@pytest.mark.parametrize(
    ("series", "label", "words"),
    [
        ("purnet_batches_total", "reason", DispatchReason),
        ("purnet_executions_total", "outcome", Outcome),
        ("purnet_expired_total", "place", TicketLocation),
        ("purnet_cancelled_total", "place", TicketLocation),
        ("purnet_failures_total", "kind", FailureKind),
        ("purnet_health_checks_total", "result", ("ok", "failed")),
        ("purnet_reloads_total", "result", ("ok", "failed")),
    ],
)
def test_every_label_is_there_from_the_start(metrics, registry, series, label, words):
    for word in words:
        assert registry.get_sample_value(series, {label: str(word)}) == 0


def test_the_queue_is_read_when_it_is_scraped_from_any_thread(metrics, registry):
    metrics.watch(queued=lambda: 3, in_flight=lambda: 5, oldest_s=lambda: 1.5, capacity=256)
    pages: list[bytes] = []
    scraper = threading.Thread(target=lambda: pages.append(generate_latest(registry)))
    scraper.start()
    scraper.join(30)
    for line in (
        b"purnet_queue_depth 3.0",
        b"purnet_queue_in_flight 5.0",
        b"purnet_queue_capacity 256.0",
        b"purnet_queue_oldest_seconds 1.5",
    ):
        assert line in pages[0]


def test_a_new_model_replaces_the_old_one(metrics, registry):
    for name in ("first", "second"):
        metrics.model(name=name, sha256="0" * 64, engine="fake", input_size=320)
    page = generate_latest(registry)
    assert b'name="second"' in page
    assert b'name="first"' not in page


def test_state_and_build(metrics, registry):
    metrics.ready(True)
    assert registry.get_sample_value("purnet_ready") == 1
    assert registry.get_sample_value("purnet_draining") == 0
    assert b"purnet_build_info{" in generate_latest(registry)


def test_a_service_that_drains_is_not_ready_any_more(metrics, registry):
    metrics.ready(True)
    metrics.begin_draining()
    metrics.ready(True)
    assert registry.get_sample_value("purnet_ready") == 0
    assert registry.get_sample_value("purnet_draining") == 1
