"""`purnet serve --backend ray` without an address: a Ray of its own, on this machine alone."""

from __future__ import annotations

import ipaddress
import signal

import psutil
import pytest
from service_process import running

START_S = 240.0

pytestmark = pytest.mark.slow


def test_what_it_starts_listens_on_loopback_but_for_replicas_and_ends_with_it() -> None:
    command = ["-c", "from purnet_serve.cli import app; app()", "serve", "--backend", "ray"]
    with running(command, PURNET_PORT="0") as service:
        service.await_line("ready at http://", service.lines, START_S)
        processes = psutil.Process(service.process.pid).children(recursive=True)
        processes.append(psutil.Process(service.process.pid))
        open_to_all = {process.name() for process in processes if not _only_on_loopback(process)}
        assert len(open_to_all) == 1, open_to_all
        assert open_to_all.pop().startswith("ray::ServeRepli")
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        assert not [line for line in service.errors if "SIGTERM received" in line]
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def _only_on_loopback(process: psutil.Process) -> bool:
    try:
        found = process.net_connections("inet")
    except psutil.NoSuchProcess:
        return True
    hosts = [one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN]
    return all(ipaddress.ip_address(host.removeprefix("::ffff:")).is_loopback for host in hosts)
