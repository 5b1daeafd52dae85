"""A real Prometheus that scrapes a service, and says when it has done so again."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml
from service_process import started

WAIT_S = 60.0


@dataclass
class Relay:
    """Stands between Prometheus and the service's metrics, and counts the scrapes."""

    metrics_url: str
    scrapes: int = 0
    _moved: threading.Condition = field(default_factory=threading.Condition)

    def scraped(self) -> None:
        with self._moved:
            self.scrapes += 1
            self._moved.notify_all()

    def wait(self, more: int) -> None:
        """Return after so many more scrapes have been answered."""
        with self._moved:
            wanted = self.scrapes + more
            assert self._moved.wait_for(lambda: self.scrapes >= wanted, WAIT_S), "nobody scrapes"

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Answer on a free port, which is given."""
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                accept = {"Accept": self.headers["Accept"]}
                answer = httpx.get(relay.metrics_url, headers=accept, trust_env=False)
                self.send_response(answer.status_code)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)
                relay.scraped()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def configuration(project: Path, scraped_port: int, ray_nodes: Path | None) -> str:
    """The project's own configuration, but for where and how often it scrapes.

    `ray_nodes` is the file in which a Ray cluster lists its nodes.
    """
    document = yaml.safe_load((project / "prometheus.yml").read_text())
    document["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    document["rule_files"] = [str(project / name) for name in document["rule_files"]]
    jobs = {job["job_name"]: job for job in document["scrape_configs"]}
    service = {
        "job_name": "purnet",
        "static_configs": [{"targets": [f"127.0.0.1:{scraped_port}"]}],
    }
    document["scrape_configs"] = [service]
    if ray_nodes is not None:
        jobs["ray"]["file_sd_configs"] = [{"files": [str(ray_nodes)], "refresh_interval": "1s"}]
        document["scrape_configs"].append(jobs["ray"])
    return yaml.safe_dump(document)


@contextmanager
def prometheus(
    program: str, project: Path, scraped_port: int, folder: Path, ray_nodes: Path | None = None
) -> Iterator[Query]:
    """Run Prometheus with the project's configuration until the context ends."""
    (folder / "prometheus.yml").write_text(configuration(project, scraped_port, ray_nodes))
    port = _free_port()
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with started(command, None) as process:
        process.await_line("Server is ready", process.errors)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield Query(client)


@dataclass(frozen=True)
class Query:
    """Prometheus' HTTP API."""

    client: httpx.Client

    def __call__(self, expression: str) -> list[dict[str, Any]]:
        """The series an expression has now. Fails for one Prometheus does not understand."""
        answer = self.client.post("/api/v1/query", data={"query": expression})
        document = answer.json()
        assert document["status"] == "success", f"{expression}: {document}"
        found = document["data"]["result"]
        assert isinstance(found, list)
        return found

    def rules(self) -> set[str]:
        """Names of the rules and alerts it evaluates."""
        groups = self.client.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"] for group in groups for rule in group["rules"]}


def _free_port() -> int:
    """Prometheus does not tell which port it got when it is asked to find one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
