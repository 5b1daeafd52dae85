"""Rules, alerts and dashboard: correct by Prometheus' own tools, and true of a running service."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from fake_backend import FakeBackend
from photos import encoded, scene
from prometheus import Query, Relay, prometheus
from service_process import ServiceProcess, running, started

from purnet_serve.http.app import create_app
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "purnet.json").read_text())
GUIDE = (ROOT / "docs" / "operating.md").read_text()


def rules(name: str) -> list[dict[str, str]]:
    groups = yaml.safe_load((DOCKER / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED = {rule["record"]: rule["expr"] for rule in rules("recording.yml")}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def promtool(program: Callable[[str], str], *arguments: str) -> None:
    command = [program("promtool"), *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_configuration_is_valid(program: Callable[[str], str]) -> None:
    promtool(program, "check", "config", "docker/prometheus.yml")
    promtool(program, "check", "rules", "docker/recording.yml", "docker/alerts.yml")


def test_alerts_fire_for_what_they_are_there_for(program: Callable[[str], str]) -> None:
    promtool(program, "test", "rules", "tests/docker/alerts.test.yml")


def test_every_alert_is_tested_to_fire() -> None:
    tests = yaml.safe_load((ROOT / "tests" / "docker" / "alerts.test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == set(ALERTS)


def test_every_alert_leads_to_its_section_in_the_guide() -> None:
    anchors = {
        heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", GUIDE, re.M)
    }
    for name, alert in ALERTS.items():
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (file, anchor) == ("docs/operating.md", name.lower())
        assert anchor in anchors, f"docs/operating.md has no section {name}"


def test_rules_and_panels_count_every_route_that_takes_a_photo() -> None:
    service = create_app(Settings(), FakeBackend(), Metrics()).state.service
    paths = {path for _, path in service.photo_routes}
    asked = [*RECORDED.values(), *(one["expr"] for panel in PANELS for one in panel["targets"])]
    routes = [route for expr in asked for route in re.findall(r'route[^"]*"([^"]+)"', expr)]
    assert len(routes) >= 10
    assert all(set(route.split("|")) == paths for route in routes)


def test_panels_have_ids_and_names_of_their_own_and_explain_themselves() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert all(panel["description"] for panel in PANELS)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        across = range(grid["x"], grid["x"] + grid["w"])
        cells = {(x, y) for x in across for y in range(grid["y"], grid["y"] + grid["h"])}
        assert across.stop <= 24
        assert not taken & cells, panel["title"]
        taken |= cells


def test_grafana_is_told_where_everything_lies() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "purnet.yml").read_text())[
        "providers"
    ]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert source["url"] == "http://prometheus:9090"
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    mounts = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


OPEN_RAY = {"RAY_AUTH_MODE": "disabled"}
"""Whether there is a token depends on the user's home."""
RAY_START_S = 240.0
"""A head with its dashboard is a dozen processes."""


@dataclass(frozen=True)
class Watched:
    """A running service, and where a Ray cluster lists its nodes if that is where the model is."""

    process: ServiceProcess
    ray_nodes: Path | None = None


@pytest.fixture(scope="module", params=["local", pytest.param("on Ray", marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest) -> Iterator[Watched]:
    """The service with its shipped weights on the CPU, metrics on a port of their own."""
    command = ["-c", "from purnet_serve.cli import app; app()", "serve", "--device", "cpu"]
    environment = {"PURNET_PORT": "0", "PURNET_METRICS_PORT": "0", **OPEN_RAY}
    with ExitStack() as stack:
        nodes = None
        if request.param == "on Ray":
            address, nodes = stack.enter_context(ray_head())
            command += ["--backend", "ray", "--address", address]
        process = stack.enter_context(running(command, **environment))
        process.await_line("ready at http://", process.lines, RAY_START_S)
        yield Watched(process, nodes)


@contextmanager
def ray_head() -> Iterator[tuple[str, Path]]:
    """A Ray cluster of one node: its address, and the file that names its nodes to Prometheus."""
    # Names of sockets are in this folder, and may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *("--port=0", "--dashboard-port=0", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--temp-dir={folder}", "--object-store-memory=100000000"),
            '--system-config={"metrics_report_interval_ms": 1000}',
        ]
        paths = os.pathsep.join(str(ROOT / place) for place in ("model", "service"))
        with started(command, {**os.environ, **OPEN_RAY, "PYTHONPATH": paths}) as head:
            line = head.await_line("--address=", head.lines, RAY_START_S)
            yield line.split("'")[1], Path(folder) / "prom_metrics_service_discovery.json"
            head.signal(signal.SIGTERM)  # which ends all of its processes
            head.wait()


@pytest.fixture(scope="module")
def query(
    service: Watched,
    require: Callable[[object, str], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Query]:
    """Prometheus, once it has scraped the service before and after photos were posted."""
    program = shutil.which("prometheus")
    require(program, "prometheus is not installed")
    process = service.process
    url = re.findall(r"http://[\d.:]+", process.await_line("ready at", process.lines))[0]
    (port,) = (line["port"] for line in process.logs if line["event"] == "metrics")
    relay = Relay(f"http://127.0.0.1:{port}/metrics")
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        relay.serving() as relayed,
        prometheus(program or "", DOCKER, relayed, folder, service.ray_nodes) as asked,
    ):
        relay.wait(2)
        put_under_load(url)
        # The one that is being answered now began before the last photo; the next holds them all,
        # and was stored before the one after it began.
        relay.wait(3)
        if service.ray_nodes is not None:
            # Ray passes on what replicas count a second or two later.
            scrapes = 0
            while not asked('sum(purnet_executions_total{outcome="mask"}) >= 24'):
                scrapes += 1
                assert scrapes < 60, "Prometheus does not see the replica's masks"
                relay.wait(1)
        yield asked


def put_under_load(url: str) -> None:
    photo = encoded(scene(640, 480), "JPEG")
    uploads = [photo] * 24 + [photo[:1000], b"no image", b""]
    with (
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        answers = threads.map(lambda upload: client.post("/v1/mask", content=upload), uploads)
        statuses = [answer.status_code for answer in answers]
    assert statuses == [200] * 24 + [422, 415, 400]


def spelled_out(expression: str) -> str:
    """An expression with every recorded one in it replaced by what it stands for."""
    for name, meaning in RECORDED.items():
        expression = expression.replace(name, f"({meaning})")
    return (
        expression if not any(name in expression for name in RECORDED) else spelled_out(expression)
    )


def test_rules_and_alerts_are_loaded(query: Query) -> None:
    assert query.rules() == {*RECORDED, *ALERTS}


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_recorded_has_a_series(query: Query, name: str) -> None:
    assert query(spelled_out(RECORDED[name]))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_watches_a_series_that_exists(query: Query, name: str) -> None:
    asked, compared = re.subn(r" ([<>]) ", r" \1 bool ", ALERTS[name]["expr"])
    assert compared == 1, "an alert is one comparison"
    found = query(spelled_out(asked))
    assert found
    assert all(series["value"][1] in ("0", "1") for series in found)


@pytest.mark.parametrize(
    ("title", "expression"),
    [
        pytest.param(panel["title"], target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in PANELS
        for target in panel["targets"]
    ],
)
def test_a_panel_shows_a_series(query: Query, title: str, expression: str) -> None:
    asked = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in asked
    assert query(asked), title


def test_the_masks_are_counted(query: Query) -> None:
    (found,) = query('sum(purnet_requests_total{route="/v1/mask",status="200"})')
    assert found["value"][1] == "24"
    (masks,) = query('sum by (job) (purnet_executions_total{outcome="mask"})')
    assert masks["value"][1] == "24", "health checks, which Ray makes too, are no images"


@pytest.mark.parametrize("service", [pytest.param("on Ray", marks=pytest.mark.slow)], indirect=True)
def test_a_replica_on_ray_has_the_names_and_labels_of_a_local_service(query: Query) -> None:
    server, replica = sorted(
        query("purnet_ready"), key=lambda series: "/" in series["metric"]["instance"]
    )
    assert set(replica["metric"]) == set(server["metric"]) == {"__name__", "instance", "job"}
    (memory,) = query('process_resident_memory_bytes{instance=~".+/.+",job="purnet"}')
    assert memory["metric"]["instance"] == replica["metric"]["instance"]
    assert not query('{__name__=~"ray_.+"}')
