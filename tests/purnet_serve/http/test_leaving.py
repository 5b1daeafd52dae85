"""Between the signal and the end of the listener: not ready, but requests are still taken."""

from __future__ import annotations

import signal

import httpx
from photos import encoded, scene
from service_process import fake_service


def test_requests_are_taken_until_balancers_have_noticed() -> None:
    with fake_service(PURNET_DRAIN_DELAY_S="1000") as (service, url):
        service.signal(signal.SIGTERM)
        service.await_line("draining", service.errors)
        assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 503
        answer = httpx.post(f"{url}/v1/mask", content=encoded(scene()), trust_env=False)
        assert answer.status_code == 200
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
