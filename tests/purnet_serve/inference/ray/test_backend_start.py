"""How a server joins a cluster: what it deploys, what it leaves alone, and how a start fails."""

from __future__ import annotations

from typing import Any

import pytest
from fake_tier import model, state
from ray_backend import Harness

from purnet_serve.errors import NotReadyError, StartupError
from purnet_serve.inference.ray.backend import GRACE_S, MIN_REFRESH_S, REFRESH_S
from purnet_serve.inference.ray.messages import PROTOCOL
from purnet_serve.inference.ray.tier import AppStatus, UnreachableError

FAILED = AppStatus(
    failed=True,
    message="Traceback ...\npurnet_serve.errors.StartupError: There is no device cuda:7 here.\n",
)
OTHER_VERSION: dict[str, Any] = {"protocol": PROTOCOL + 1, "deployed": "something older"}


def test_what_is_not_there_is_deployed_once(harness: Harness) -> None:
    harness.tier.after_deploy = []
    waiting = harness.start()
    assert not waiting.done()
    assert harness.backend.unready_reason() == "The model is being loaded."
    assert harness.backend.model is None
    harness.tier.states = [state()]
    harness.loop.advance(MIN_REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 1
    assert harness.backend.model == model()
    assert harness.backend.unready_reason() is None
    assert harness.value("purnet_ready") == 1


@pytest.mark.parametrize("deployed", [None, "what this server would deploy"])
def test_what_runs_as_it_should_or_from_a_config_file_is_left_alone(
    harness: Harness, deployed: str | None
) -> None:
    harness.tier.app = AppStatus(failed=False)
    harness.tier.states = [state(deployed=deployed)]
    assert harness.start().done()
    assert harness.tier.deployments == 0


@pytest.mark.parametrize("found", [state(deployed="other settings"), OTHER_VERSION])
def test_what_was_deployed_with_other_settings_or_by_another_version_is_replaced_once(
    harness: Harness, found: Any
) -> None:
    harness.tier.app = AppStatus(failed=False)
    harness.tier.states = [found]
    harness.tier.after_deploy = [found, found]
    waiting = harness.start()
    assert harness.tier.deployments == 1
    harness.tier.states = [state()]
    harness.loop.advance(MIN_REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 1


def test_what_ray_serve_is_about_to_deploy_is_waited_for(harness: Harness) -> None:
    harness.tier.app = AppStatus(failed=False)
    harness.tier.importing = True
    waiting = harness.start()
    harness.loop.advance(10 * MIN_REFRESH_S)
    assert not waiting.done()
    harness.tier.importing, harness.tier.states = False, [state(deployed=None)]
    harness.loop.advance(MIN_REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 0


def test_a_deployment_that_failed_before_is_tried_again_once(harness: Harness) -> None:
    harness.tier.app = FAILED
    harness.tier.after_deploy = []
    harness.tier.deployed_as = FAILED
    waiting = harness.start()
    assert harness.tier.deployments == 1
    error = waiting.exception()
    assert isinstance(error, StartupError)
    assert str(error) == "There is no device cuda:7 here."
    assert harness.backend.unready_reason() == "There is no device cuda:7 here."


def test_a_cluster_that_is_not_there_ends_the_start(harness: Harness) -> None:
    harness.tier.refuses = StartupError("no Ray cluster at host:6379")
    assert harness.start().exception() is harness.tier.refuses


def test_a_start_that_goes_wrong_in_an_unknown_way_ends_too(harness: Harness) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    harness.tier.app = AppStatus(failed=False)
    harness.tier.attach = fail  # type: ignore[method-assign]
    assert isinstance(harness.start().exception(), StartupError)


def test_a_cluster_that_does_not_answer_for_a_moment_is_asked_again(harness: Harness) -> None:
    harness.tier.unreached = UnreachableError("try again")
    waiting = harness.start()
    harness.loop.advance(GRACE_S - 1)
    assert not waiting.done()
    harness.tier.unreached = None
    harness.loop.advance(1)
    assert waiting.done()
    waiting.result()


def test_a_cluster_that_does_not_answer_for_long_ends_the_start(harness: Harness) -> None:
    harness.tier.unreached = UnreachableError("gone")
    waiting = harness.start()
    harness.loop.advance(GRACE_S + 1)
    assert str(waiting.exception()) == "The cluster does not answer: gone"


@pytest.mark.parametrize("failed", [False, True])
def test_what_a_config_file_deployed_is_never_replaced(harness: Harness, failed: bool) -> None:
    harness.tier.app = AppStatus(failed=failed, from_file=True, message="No module named model")
    waiting = harness.start()
    harness.loop.advance(2 * GRACE_S)
    assert not waiting.done()
    assert "No module named model" in (harness.backend.unready_reason() or "")
    harness.tier.app = AppStatus(failed=False, from_file=True)
    harness.tier.states = [state(deployed=None)]
    harness.loop.advance(MIN_REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 0


@pytest.mark.parametrize("found", [None, FAILED, AppStatus(failed=False, running=True)])
def test_a_server_that_may_not_deploy_waits_for_who_does(found: AppStatus | None) -> None:
    harness = Harness(ray_deploy=False)
    harness.tier.app = found
    waiting = harness.start()
    harness.loop.advance(2 * GRACE_S)
    assert not waiting.done()
    if found is None:
        assert "Nothing is deployed yet." in (harness.backend.unready_reason() or "")
    harness.tier.app = AppStatus(failed=False, running=True)
    harness.tier.states = [state(deployed="other settings")]
    harness.loop.advance(MIN_REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 0
    harness.close()


def test_while_nothing_comes_up_the_reason_is_ray_serves(harness: Harness) -> None:
    harness.tier.after_deploy = []
    message = "Traceback ...\nNo node has 64 CPUs.\n"
    harness.tier.deployed_as = AppStatus(failed=False, message=message)
    waiting = harness.start()
    assert harness.backend.unready_reason() == "The model is being loaded. No node has 64 CPUs."
    waiting.cancel()


def test_old_replicas_answer_while_new_ones_come_up(harness: Harness) -> None:
    old = state("a", deployed="other settings")
    harness.tier.app = AppStatus(failed=False, running=True)
    harness.tier.states = harness.tier.after_deploy = [old]
    waiting = harness.start()
    harness.loop.advance(2 * GRACE_S)
    assert not waiting.done(), "it has deployed, and nothing of that answers"
    assert harness.backend.unready_reason() is None
    harness.tier.states = [old, state("b")]
    harness.loop.advance(MIN_REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 1


def test_a_deployment_that_fails_is_no_good_start_though_old_replicas_answer(
    harness: Harness,
) -> None:
    old = state("a", deployed="other settings")
    harness.tier.app = AppStatus(failed=False, running=True)
    harness.tier.states = harness.tier.after_deploy = [old]
    harness.tier.deployed_as = FAILED
    assert str(harness.start().exception()) == "There is no device cuda:7 here."


def test_an_update_to_these_settings_that_goes_on_is_left_alone(harness: Harness) -> None:
    harness.tier.app = AppStatus(failed=False)
    harness.tier.states = [state("a", deployed="other settings"), state("b")]
    assert harness.start().done()
    assert harness.tier.deployments == 0


def test_what_another_server_deployed_afterwards_is_used(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    harness.tier.after_deploy = [state(deployed="yet other settings")]
    harness.tier.deployed_as = AppStatus(failed=False, running=True)
    waiting = harness.start()
    assert not waiting.done(), "Ray Serve may be about to end them"
    harness.loop.advance(REFRESH_S)
    assert waiting.done()
    assert harness.tier.deployments == 1
    assert "another server" in caplog.text


def test_before_the_start_nothing_is_predicted(harness: Harness) -> None:
    assert harness.backend.unready_reason() == "The service is starting."
    assert isinstance(harness.send().exception(), NotReadyError)


def test_an_application_that_is_deleted_while_it_starts_ends_the_start(harness: Harness) -> None:
    harness.tier.after_deploy = []
    waiting = harness.start()
    assert not waiting.done()
    harness.tier.app = None
    harness.loop.advance(MIN_REFRESH_S)
    assert "deleted" in str(waiting.exception())
    assert harness.tier.deployments == 1
