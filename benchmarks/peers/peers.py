"""The peers as data: how each is started, asked and told of a deadline.

Not here: Triton and OpenVINO Model Server, which no package registry has, and TorchServe, which is
no longer maintained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.peers.environments import U2NETP


@dataclass(frozen=True)
class Peer:
    """Commands, environments and headers are formatted with `server.template_values`.

    What begins with `deadline_` is added with `--tuning deadline`: what the framework itself offers
    against answers that come too late.
    """

    name: str
    environment: str
    command: tuple[str, ...]
    settings: str
    """What differs from the framework's defaults, for the report."""
    deadline_settings: str
    packages: tuple[str, ...]
    """Those whose versions the report gives."""
    path: str = "/mask"
    env: Mapping[str, str] = field(default_factory=dict)
    form_file: str | None = None
    """Name of the photo in a form; None where the body is the photo."""
    form_fields: Mapping[str, str] = field(default_factory=dict)
    same_network: bool = True
    batches: bool = False
    deadline_args: tuple[str, ...] = ()
    deadline_env: Mapping[str, str] = field(default_factory=dict)
    deadline_headers: Mapping[str, str] = field(default_factory=dict)


_SERVERS = "benchmarks.peers.servers"
_ENGINE = ("openvino", "numpy", "pillow")
_LIMITS = {"PEER_DEADLINE_S": "{deadline_s}", "PEER_MAX_WAITING": "{waiting}"}

_PURNET = Peer(
    "purnet",
    "purnet",
    ("{bin}/purnet", "serve", "--port", "{port}"),
    settings="defaults, but log level warning",
    deadline_settings="header `X-Timeout-Ms`",
    packages=("fastapi", "uvicorn", *_ENGINE),
    path="/v1/mask",
    env={"PURNET_LOG_LEVEL": "warning"},
    deadline_headers={"X-Timeout-Ms": "{deadline_ms}"},
)

_BASELINE = replace(
    _PURNET,
    name="baseline",
    environment="baseline",
    settings="an older commit of ours with today's weights; defaults, but log level warning",
    # Its own weights are older too, and their masks would not be equal.
    env={
        **_PURNET.env,
        "PURNET_CHECKPOINT": "{root}/model/purnet/weights/purnet-lite0-gc-openvino",
    },
)

_FASTAPI = Peer(
    "fastapi",
    "fastapi",
    (
        *("{bin}/uvicorn", f"{_SERVERS}.fastapi_server:app", "--host", "127.0.0.1"),
        *("--port", "{port}", "--no-access-log", "--log-level", "warning"),
    ),
    settings="one uvicorn process with uvloop and httptools, a pool of processors + 1 threads, one "
    "model compiled for THROUGHPUT, no batches",
    deadline_settings="503 above a limit on requests in flight",
    packages=("fastapi", "uvicorn", "uvloop", "httptools", *_ENGINE),
    deadline_env=_LIMITS,
)

_LITSERVE = Peer(
    "litserve",
    "litserve",
    ("{bin}/python", "-m", f"{_SERVERS}.litserve_server"),
    settings="batches of 8 or 5 ms, a worker for each processor, fast_queue (ZeroMQ), timeout 30 s",
    deadline_settings="`timeout` of half the deadline: it is looked at before a batch, not after",
    packages=("litserve", "fastapi", "uvicorn", *_ENGINE),
    batches=True,
    deadline_env=_LIMITS,
)

_BENTOML = Peer(
    "bentoml",
    "bentoml",
    (
        *("{bin}/bentoml", "serve", f"{_SERVERS}.bentoml_service:Mask", "--working-dir", "{root}"),
        *("--host", "127.0.0.1", "--port", "{port}"),
    ),
    settings="two Services, adaptive batches of 8, a batching worker for each processor, uvloop, "
    "timeouts 60 s, no access log, a connection between them that lasts",
    deadline_settings="`timeout` and `max_latency_ms` of the deadline, `max_concurrency`",
    packages=("bentoml", "uvicorn", "uvloop", *_ENGINE),
    env={"BENTOML_HOME": "{work}/bentoml", "BENTOML_DO_NOT_TRACK": "True"},
    batches=True,
    deadline_env=_LIMITS,
)

_RAY = Peer(
    "ray",
    "ray",
    ("{bin}/python", "-m", f"{_SERVERS}.ray_server"),
    settings="@serve.batch of 8 or 5 ms, a replica for each processor, max_ongoing_requests 32, no "
    "access log, RAY_SERVE_THROUGHPUT_OPTIMIZED and HAProxy",
    deadline_settings="`request_timeout_s`, and `max_ongoing_requests` with a queue of one",
    packages=("ray", "uvicorn", *_ENGINE),
    env={
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "{processors}",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # 5 are too few for a start on one processor
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its node is 127.0.0.1, not the host's address
        "PEER_FOLDER": "{work}/ray",
    },
    batches=True,
    deadline_env=_LIMITS,
)

_MOSEC = Peer(
    "mosec",
    "mosec",
    (
        *("{bin}/python", "-m", f"{_SERVERS}.mosec_server", "--address", "127.0.0.1"),
        *("--port", "{port}", "--log-level", "warning"),
    ),
    settings="a process to decode, one to infer (batches of 8 or 5 ms) and one to encode for each "
    "processor; its timeout of 3 s",
    deadline_settings="`--timeout` of the deadline, `--capacity` for each queue",
    packages=("mosec", *_ENGINE),
    batches=True,
    deadline_args=("--timeout", "{deadline_ms}", "--capacity", "{waiting_each}"),
    deadline_env=_LIMITS,
)

_REMBG = Peer(
    "rembg",
    "rembg",
    (
        *("{bin}/rembg", "s", "--host", "127.0.0.1", "--port", "{port}"),
        *("--log_level", "warning", "--threads", "{threads}", "--no-ui"),
    ),
    settings="a network of its own, u2netp by ONNX Runtime, and its own codec; no page, processors "
    "+ 1 threads, OMP_NUM_THREADS = processors",
    deadline_settings="nothing",
    packages=("rembg", "onnxruntime", "fastapi", "uvicorn", "numpy", "pillow"),
    path="/api/remove",
    env={
        "U2NET_HOME": "{work}/" + U2NETP.partition("/")[0],
        "OMP_NUM_THREADS": "{processors}",
        "BROWSER": "true",  # it would open one
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    },
    form_file="file",
    form_fields={"model": "u2netp", "om": "true"},
    same_network=False,
)


def _single(peer: Peer) -> Peer:
    """The same framework without batches, which on a CPU may be its better setting."""
    return replace(
        peer,
        name=f"{peer.name}-single",
        settings=f"as {peer.name}, but batches of 1 that wait for nothing",
        env={**peer.env, "PEER_MAX_BATCH": "1"},
        batches=False,
    )


_BATCHING = (_LITSERVE, _BENTOML, _RAY, _MOSEC)

PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (_PURNET, _BASELINE, _FASTAPI, *_BATCHING, *map(_single, _BATCHING), _REMBG)
}
OURS = _PURNET.name
