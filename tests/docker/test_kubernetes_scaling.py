"""What Prometheus reads of the pods, and how many of them the load makes."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import KUBERNETES, ROOT, Build, selects, settings_of

from purnet_serve.observability.http_metrics import Metrics

OVERLAYS = ("cpu", "gpu", "ray")
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_prometheus_finds_the_pods_under_the_job_of_the_alerts(
    manifests: Build, overlay: str
) -> None:
    built = manifests(overlay)
    monitor = built.one("ServiceMonitor")["spec"]
    services = [
        service
        for service in built.of("Service")
        if selects(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    ]
    (service,) = services
    (endpoint,) = monitor["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    job = service["metadata"]["labels"][monitor["jobLabel"]]
    alerts = json.dumps(built.one("PrometheusRule", "purnet-alerts"))
    recording = json.dumps(built.one("PrometheusRule", "purnet-recording"))
    assert set(re.findall(r'job=\\"(\w+)\\"', alerts + recording)) == {job}
    assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])
    # And may read them, alone.
    policy = built.one("NetworkPolicy", "purnet-metrics")["spec"]
    (pods,) = (pod for pod in built.pods() if pod == built.one("Deployment")["spec"]["template"])
    assert selects(service["spec"]["selector"], pods["metadata"]["labels"])
    assert selects(policy["podSelector"]["matchLabels"], pods["metadata"]["labels"])
    assert policy["ingress"] == [{"from": [MONITORING], "ports": [{"port": "metrics"}]}]


def test_what_is_generated_is_up_to_date() -> None:
    for path, text in runpy.run_path(str(KUBERNETES / "make_manifests.py"))["manifests"]().items():
        assert path.read_text() == text, "run `make docs`"


def test_rules_and_alerts_are_those_of_compose(manifests: Build) -> None:
    for name in ("recording", "alerts"):
        spec = manifests("cpu").one("PrometheusRule", f"purnet-{name}")["spec"]
        assert spec == yaml.safe_load((ROOT / "docker" / f"{name}.yml").read_text())


def test_the_dashboard_is_that_of_compose(manifests: Build) -> None:
    found = manifests("cpu").one("ConfigMap", "purnet-dashboard")
    file = ROOT / "docker" / "grafana" / "dashboards" / "purnet.json"
    assert json.loads(found["data"]["purnet.json"]) == json.loads(file.read_text())
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
    # `kubectl apply` keeps a copy in an annotation, which may have so many bytes.
    assert len(json.dumps(found)) < 262_144


def adapter_rules() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = yaml.safe_load(
        (KUBERNETES / "prometheus" / "adapter-values.yaml").read_text()
    )["rules"]["custom"]
    return rules


def asked_of_prometheus(rule: dict[str, Any], series: str) -> str:
    """What the adapter would ask for the pods a and b of the namespace."""
    query: str = rule["metricsQuery"]
    for template, value in {
        "<<.Series>>": series,
        "<<.LabelMatchers>>": 'namespace="purnet",pod=~"a|b"',
        "<<.GroupBy>>": "pod",
    }.items():
        assert template in query
        query = query.replace(template, value)
    return query


@pytest.mark.parametrize("overlay", ["base", *OVERLAYS])
def test_pods_are_counted_in_one_place(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    deployment = built.one("Deployment", "purnet")
    autoscalers = built.of("HorizontalPodAutoscaler")
    if overlay == "base":
        assert not autoscalers
        assert deployment["spec"]["replicas"] >= 2
        return
    (autoscaler,) = (found["spec"] for found in autoscalers)
    assert "replicas" not in deployment["spec"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    # With one pod, an emptied node would mean an interruption.
    assert 2 <= autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def test_the_autoscaler_asks_for_what_the_adapter_gives(manifests: Build) -> None:
    built = manifests("cpu")
    metrics = built.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    (asked,) = (metric["pods"] for metric in metrics if metric["type"] == "Pods")
    (rule,) = (rule for rule in adapter_rules() if rule["name"]["as"] == asked["metric"]["name"])
    series = rule["seriesQuery"].partition("{")[0]
    assert series in {family.name for family in Metrics().registry.collect()}
    settings = settings_of(built.environment(built.server()[1]))
    # Requests are refused from the target on: pods have to be added before.
    assert 0 < float(asked["target"]["averageValue"]) < settings.target_latency_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_processors_are_measured_of_the_service_alone(manifests: Build, overlay: str) -> None:
    built = manifests(overlay)
    metrics = built.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    (used,) = (found["containerResource"] for found in metrics if "containerResource" in found)
    container = built.server()[1]
    assert used["container"] == container["name"]
    assert used["name"] in container["resources"]["requests"]


def test_the_adapter_s_query_gives_a_minute_s_mean_of_each_pod(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    (rule,) = adapter_rules()
    series = rule["seriesQuery"].partition("{")[0]
    assert set(rule["resources"]["overrides"]) == set(re.findall(r"(\w+)!=", rule["seriesQuery"]))
    labels = 'namespace="purnet",pod="{}",instance="{}"'
    test = {
        "interval": "10s",
        "input_series": [
            {"series": f"{series}{{{labels.format('a', 1)}}}", "values": "0x5 4x5"},
            {"series": f"{series}{{{labels.format('b', 2)}}}", "values": "2x11"},
        ],
        "promql_expr_test": [
            {
                "expr": asked_of_prometheus(rule, series),
                "eval_time": "115s",
                "exp_samples": [
                    {"labels": '{pod="a"}', "value": 4},
                    {"labels": '{pod="b"}', "value": 2},
                ],
            },
            {
                "expr": asked_of_prometheus(rule, series),
                "eval_time": "85s",
                "exp_samples": [
                    {"labels": '{pod="a"}', "value": 2},
                    {"labels": '{pod="b"}', "value": 2},
                ],
            },
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "10s", "tests": [test]}))
    command = [program("promtool"), "test", "rules", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
