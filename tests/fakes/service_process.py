"""A service in a process of its own, ended with the test whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PYTHONPATH = os.pathsep.join(str(ROOT / place) for place in ("model", "service", "tests/fakes"))
"""Where another process finds what this one imports, the fakes among it."""
START_S = 60.0
END_S = 60.0


@dataclass
class ServiceProcess:
    """`lines` are those of standard output, `logs` the JSON objects of standard error."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    _moved: threading.Condition = field(default_factory=threading.Condition)

    def read(self, stream: Any, into: list[str]) -> None:
        for line in stream:
            with self._moved:
                into.append(line.rstrip("\n"))
                self._moved.notify_all()

    def await_line(self, text: str, among: list[str], within_s: float = START_S) -> str:
        """The first line with this text, once it was printed."""
        with self._moved:
            found = self._moved.wait_for(
                lambda: any(text in line for line in among) or self.process.poll() is not None,
                within_s,
            )
        hits = [line for line in among if text in line]
        assert found, f"no line with {text!r} within {within_s} s: {self.lines} {self.errors}"
        assert hits, f"ended without {text!r}: {self.lines} {self.errors}"
        return hits[0]

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.errors if line.startswith("{")]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(END_S)


@contextmanager
def running(
    arguments: list[str], *, popen: dict[str, Any] | None = None, **environment: str
) -> Iterator[ServiceProcess]:
    """Run `python ARGUMENTS` with PURNET_* variables; killed at the end if it still lives."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PURNET_")}
    # However busy the machine is, it is not what decides whether a request is accepted.
    patient = {"PURNET_TARGET_LATENCY_S": "60"}
    variables = {**inherited, "PYTHONPATH": PYTHONPATH, **patient, **environment}
    with started([sys.executable, *arguments], variables, **popen or {}) as service:
        yield service


@contextmanager
def started(
    command: list[str], environment: dict[str, str] | None, **popen: Any
) -> Iterator[ServiceProcess]:
    """Run a command, its output read line by line; killed at the end if it still lives."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, **popen
    )
    service = ServiceProcess(process)
    readers = [
        threading.Thread(target=service.read, args=(process.stdout, service.lines)),
        threading.Thread(target=service.read, args=(process.stderr, service.errors)),
    ]
    for reader in readers:
        reader.start()
    try:
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(END_S)
        for reader in readers:
            reader.join(END_S)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def fake_service(
    *, popen: dict[str, Any] | None = None, **environment: str
) -> Iterator[tuple[ServiceProcess, str]]:
    """`serve_fake.py` on a free port, and its address once it is ready."""
    script = str(Path(__file__).parent / "serve_fake.py")
    with running([script], popen=popen, PURNET_PORT="0", **environment) as service:
        yield service, service.await_line("http://", service.lines)
