"""The model tier that is a deployment on a Ray cluster.

Everything of a server that imports Ray is here. Calls of Ray that block run in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ray
from grpc import StatusCode
from grpc.aio import AioRpcError
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayActorError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.schema import APIType, ServeInstanceDetails

from purnet_serve.errors import InternalError, StartupError
from purnet_serve.inference.ray.application import build_for_serve, deployed_digest
from purnet_serve.inference.ray.messages import PROTOCOL, Message
from purnet_serve.inference.ray.tier import (
    AppStatus,
    NoReplicaError,
    ReplicaLostError,
    TierFullError,
    UnreachableError,
)
from purnet_serve.settings import Settings

OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray that is started here. Pixels and masks do not go through its object store."""
REACH_S = 10.0
"""Seconds in which the head of a cluster must take a connection."""
STARTED_S = 30.0
"""Seconds that the end of a service waits for a Ray that is being started here, to end it too."""
HANDLE_S = 5.0
"""Seconds for a handle to end its threads."""
DESCRIBE_S = 5.0
"""Seconds that each replica may take to say how it is."""
REFUSED = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.PERMISSION_DENIED,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.UNAUTHENTICATED,
    StatusCode.UNIMPLEMENTED,
)
"""How gRPC says that a replica is there and takes no such call; another would not either. Ray
answers RESOURCE_EXHAUSTED for messages beyond a size, not for a full replica."""

log = logging.getLogger("purnet_serve.inference.ray")


class RayTier:
    """A `ModelTier`: the deployment of `application.py`."""

    def __init__(self, settings: Settings, factory: str) -> None:
        self._settings = settings
        self._factory = factory
        self._connecting: asyncio.Future[None] | None = None
        self._left = threading.Event()
        self._connected = False
        """Whether this joined the cluster, and so is to leave it."""
        self._handle: Any = None
        self._predict: Any = None

    async def connect(self) -> None:
        """Join the cluster at `ray_address`, or start one on this machine."""
        self._connecting = _in_daemon_thread(self._connect, self._left)
        # Cancelling this does not end the thread, and `close` may have to wait for it.
        await asyncio.shield(self._connecting)

    def _connect(self) -> None:
        loggers = [logging.getLogger(name) for name in ("ray", "ray.serve")]
        for logger in loggers:
            # To the handlers of this process, as lines of its own format.
            logger.handlers.clear()
            logger.propagate = True
            # Joining warns of what is meant to be so.
            logger.setLevel(logging.ERROR)
        address = self._settings.ray_address
        options: dict[str, Any] = {"address": address, "namespace": "purnet"}
        if address is None:
            options |= {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
        if ray.is_initialized():  # by whoever made this backend; it stays theirs
            return
        try:
            if address not in (None, "auto"):
                # Ray would try for minutes, and say much meanwhile.
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
            ray.init(log_to_driver=False, configure_logging=False, **options)
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            where = "cannot start Ray" if address is None else f"no Ray cluster at {address}"
            raise StartupError(f"{where}: {error}") from error
        self._connected = True
        for logger in loggers:
            logger.setLevel(logging.WARNING)

    async def status(self) -> AppStatus | None:
        """What Ray Serve says of the application."""
        return await asyncio.to_thread(self._status)

    def _status(self) -> AppStatus | None:
        try:
            # `serve.status` is made of the same, without who deployed.
            client = _get_global_client(raise_if_no_controller_running=False)
            if client is None:
                return None
            details = ServeInstanceDetails(**client.get_serve_details())
        except Exception as error:  # Ray raises many kinds, some of gRPC
            raise UnreachableError(str(error)) from error
        app = details.applications.get(self._settings.ray_app)
        if app is None or app.status.value in ("DELETING", "NOT_STARTED"):
            return None
        parts = [app.message, *(one.message for one in app.deployments.values())]
        return AppStatus(
            failed=app.status.value == "DEPLOY_FAILED",
            running=app.status.value == "RUNNING",
            from_file=app.source is APIType.DECLARATIVE,
            message=" ".join(part for part in parts if part),
        )

    @property
    def digest(self) -> str:
        """Of what `deploy` would deploy."""
        return deployed_digest(self._settings, self._factory)

    async def deploy(self, *, failed: bool = False) -> None:
        """Deploy the application; Ray Serve replaces replicas one after another."""
        await asyncio.to_thread(self._deploy, failed)

    def _deploy(self, failed: bool) -> None:
        version = self.digest
        try:
            now = self._status()
            if now is not None and (now.from_file or (failed and not now.failed)):
                return  # Somebody else has deployed meanwhile.
            if failed and now is not None:
                # What failed is tried again as another version, the same one for every server.
                version += hashlib.sha256(now.message.encode()).hexdigest()
            app = build_for_serve(self._settings, self._factory, version)
            target = serve.RunTarget(app, name=self._settings.ray_app, route_prefix=None)
            try:
                serve.start(proxy_location="Disabled")
            except ActorAlreadyExistsError:
                # Another server has started Ray Serve at this moment.
                serve.start(proxy_location="Disabled")
            serve.run_many([target], wait_for_applications_running=False)
        except Exception as error:  # as above
            raise StartupError(f"cannot deploy to Ray: {error}") from error
        log.info("deployed", extra={"app": self._settings.ray_app})

    async def attach(self) -> None:
        """Get a handle. Pixels and masks go over gRPC between server and replica.

        Ray's object store takes a multiple of the processor time: docs/scaling.md.
        """
        await asyncio.to_thread(self._attach)

    def _attach(self) -> None:
        try:
            handle = serve.get_app_handle(self._settings.ray_app)
            self._handle = handle.options(_by_reference=False)
            self._predict = self._handle.options(method_name="predict", stream=True)
        except RayServeException as error:
            # Ray Serve still imports what it is to deploy.
            raise NoReplicaError(str(error)) from error
        except Exception as error:  # as above
            raise UnreachableError(str(error)) from error

    async def predict(self, left_s: float, pixels: bytes) -> Message:
        """Send an image to the less busy of two replicas, as Ray Serve's router chooses them."""
        stream = self._predict.remote(PROTOCOL, left_s, pixels)
        try:
            answer: Message = await anext(stream)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                # The replica's server cancelled it, at its end.
                raise ReplicaLostError("The replica ended.") from None
            stream.cancel()
            raise
        except AioRpcError as error:
            if error.code() in REFUSED:
                log.exception("call refused")
                raise InternalError("The model replica does not take the call.") from error
            raise ReplicaLostError(f"The replica was lost: {error.code().name}.") from error
        except (RayActorError, ReplicaUnavailableError, StopAsyncIteration) as error:
            raise ReplicaLostError(f"The replica was lost: {type(error).__name__}.") from error
        except BackPressureError as error:
            raise TierFullError(str(error)) from error
        except DeploymentUnavailableError as error:
            raise NoReplicaError(error.message) from error
        except Exception as error:  # what the replica's code raised
            log.exception("replica failed")
            raise InternalError("The model replica failed.") from error
        return answer

    async def describe(self) -> list[dict[str, Any]]:
        """Ask every running replica at once; one that is silent hides no other."""
        with _errors_of_replicas():
            answers = await asyncio.to_thread(self._describe)
        found = [answer for answer in answers if not isinstance(answer, BaseException)]
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors and not found:
            raise UnreachableError(f"{len(errors)} replicas do not say how they are: {errors[0]!r}")
        if errors:
            log.warning("replicas silent", extra={"silent": len(errors), "reason": repr(errors[0])})
        return found

    def _describe(self) -> list[Any]:
        # Of Ray's two ways to wait, this one has a limit for each replica.
        answers: list[Any] = self._handle.broadcast("describe").results(
            timeout_s=DESCRIBE_S, return_exceptions=True
        )
        return answers

    async def reload(self, sha256: str | None, *, all_replicas: bool) -> list[dict[str, Any]]:
        """One replica, or all at once: each loads beside what it runs and swaps between batches."""
        timeout_s = 2 * self._settings.load_timeout_s
        with _errors_of_replicas():
            if not all_replicas:
                async with asyncio.timeout(timeout_s):
                    return [await self._handle.options(method_name="reload").remote(sha256)]
            asked = self._handle.broadcast("reload", sha256)
            answers: list[dict[str, Any]] = await asked.results_async(timeout_s=timeout_s)
            return answers

    async def close(self) -> None:
        """Disconnect. The application stays, for other servers, unless Ray was started here.

        Ray tries for minutes to join a cluster that does not answer; nothing waits for that.
        """
        if self._connecting is not None and self._settings.ray_address is None:
            # Its processes would outlive this one.
            await asyncio.wait([self._connecting], timeout=STARTED_S)
        for handle in (self._handle, self._predict):
            if handle is not None:
                # Or its threads would go on to report to the cluster after the end.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HANDLE_S):
                        await handle.shutdown_async()
        if self._connected:
            await asyncio.to_thread(ray.shutdown)
        self._left.set()


@contextlib.contextmanager
def _errors_of_replicas() -> Iterator[None]:
    """What Ray raises where replicas are asked, as the two errors of a `ModelTier`."""
    try:
        yield
    except DeploymentUnavailableError as error:
        raise NoReplicaError(error.message) from error
    except Exception as error:  # Ray raises many kinds, some of gRPC
        raise UnreachableError(str(error)) from error


def _in_daemon_thread(call: Callable[[], None], until: threading.Event) -> asyncio.Future[None]:
    """Run `call` in a thread that keeps neither the event loop nor the process from ending.

    Those of `asyncio.to_thread` do both. The thread lives on until the event: Ray's processes ask
    Linux for a signal when their parent ends (PR_SET_PDEATHSIG), and their parent is the thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            # Whoever waited may be gone.
            future.exception()

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, error)
        until.wait()

    threading.Thread(target=run, name="ray-connect", daemon=True).start()
    return future
