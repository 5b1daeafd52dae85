from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("ray")

from purnet_serve.inference.ray.metrics import REPLICA, ReplicaMetrics
from purnet_serve.observability.inference_metrics import InferenceMetrics
from purnet_serve.observability.labels import DispatchReason, FailureKind
from purnet_serve.observability.process_metrics import watch_process

CONFIGURATION = Path(__file__).parents[4] / "docker" / "prometheus.yml"
WAIT_S = 30


@dataclass
class FakeRay:
    """Keeps what the gauges were set to, as Ray does: a series is never deleted."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)

    def gauge(self, name, text, tag_keys):
        assert name not in {known for known, _ in self.values}, f"{name} is made twice"
        ray = self

        class Gauge:
            def set(self, value, tags):
                assert set(tags) == set(tag_keys), f"{name} has the keys {tag_keys}"
                assert all(isinstance(tag, str) for tag in tags.values())
                ray.values[name, frozenset(tags.items())] = value

        return Gauge()

    def __call__(self, series, /, **labels):
        return self.values[series, frozenset({REPLICA: "a1", **labels}.items())]


@pytest.fixture
def ray():
    return FakeRay()


@pytest.fixture
def metrics(ray):
    return ReplicaMetrics("a1", make_gauge=ray.gauge)


def test_every_series_of_a_local_service_is_published_with_its_labels(metrics, ray):
    registry = CollectorRegistry()
    InferenceMetrics(registry)
    watch_process(registry)
    local = {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    metrics.publish()
    published = {
        (name, frozenset(pair for pair in labels if pair[0] != REPLICA))
        for name, labels in ray.values
    }
    assert published == local
    assert not any(name.endswith("_created") for name, _ in published)


def test_counts_sums_and_zeros_are_exact(metrics, ray):
    metrics.inference.executed(DispatchReason.FULL, [0.25, 0.5, 0.5], 0.125)
    metrics.publish()
    assert ray("purnet_batches_total", reason="full") == 1
    assert ray("purnet_batches_total", reason="waited") == 0
    assert ray("purnet_batch_size_sum") == 3
    assert ray("purnet_batch_size_bucket", le="2.0") == 0
    assert ray("purnet_batch_size_bucket", le="4.0") == 1
    assert ray("purnet_queue_wait_seconds_sum") == 1.25
    assert ray("purnet_queue_wait_seconds_bucket", le="+Inf") == 3


def test_gauges_are_read_when_they_are_published(metrics, ray):
    depth = [3.0]
    metrics.inference.watch(
        queued=lambda: depth[0], in_flight=lambda: 5, oldest_s=lambda: 1.5, capacity=256
    )
    metrics.publish()
    assert ray("purnet_queue_depth") == 3
    depth[0] = 4.0
    metrics.publish()
    assert ray("purnet_queue_depth") == 4
    assert ray("process_resident_memory_bytes") > 0


def test_the_model_before_a_reload_is_none_any_more(metrics, ray):
    for name in ("first", "second"):
        metrics.inference.model(name=name, sha256="0" * 64, engine="fake", input_size=320)
        metrics.publish()
    labels = {"sha256": "0" * 64, "engine": "fake", "input_size": "320"}
    assert ray("purnet_model_info", name="first", **labels) == 0
    assert ray("purnet_model_info", name="second", **labels) == 1


def test_the_thread_publishes_at_once_and_at_the_end_and_survives_an_error(metrics, ray, caplog):
    failed = threading.Event()

    def depth():
        if not failed.is_set():
            failed.set()
            raise RuntimeError("dictionary changed size during iteration")
        return 7.0

    metrics.inference.watch(queued=depth, in_flight=lambda: 5, oldest_s=lambda: 0, capacity=1)
    metrics.start()
    assert failed.wait(WAIT_S)
    metrics.inference.failed(FailureKind.HANG)
    metrics.stop()
    assert ray("purnet_queue_depth") == 7
    assert ray("purnet_failures_total", kind="hang") == 1
    assert "metrics not published" in caplog.text


def test_prometheus_gives_every_series_the_name_and_labels_it_has_locally(metrics, ray):
    jobs = {
        job["job_name"]: job for job in yaml.safe_load(CONFIGURATION.read_text())["scrape_configs"]
    }
    *_, drop = jobs["ray"]["metric_relabel_configs"]
    assert drop["action"] == "labeldrop"
    metrics.publish()
    ours = {label for _, labels in ray.values for label, _ in labels}
    assert {label for label in ours if re.fullmatch(drop["regex"], label)} == {REPLICA}
