"""Every setting, typed, with its unit and its reason. Read once: flag > environment > default."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from purnet_serve.setting_values import Devices, Formats, Origins, Resources

DAY_S = 86_400
"""No duration is longer; a larger number was meant in other units."""
MIB = 1024 * 1024

API_KEY_VARIABLE = "PURNET_API_KEY"
"""What `purnet predict --url` reads its key from; no setting of the service."""


class Settings(BaseSettings):
    """The service's settings; each is read from `PURNET_<NAME>` when no flag gives it.

    The table in docs/settings.md is generated from the descriptions below.
    """

    model_config = SettingsConfigDict(
        env_prefix="PURNET_",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    # --- where
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 picks a free one.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Moves `/metrics` to this port and a thread of its own, which answers even "
        "while the event loop is stuck; by default it is on the main port.",
    )
    root_path: str = Field(
        "",
        pattern=r"^(/[^/?#]+)*$",
        description="Path prefix under which a proxy publishes the service, e.g. `/purnet`.",
    )
    cors_origins: Origins = Field(
        (),
        description="Origins, comma-separated, whose pages may call the service from a browser; by "
        "default none but its own.",
    )
    page: bool = Field(True, description="Serve the web page at `/`; `off` removes it.")
    log_format: Literal["json", "text"] = Field(
        "json", description="`json`: one object a line; `text`: for a person at a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )

    # --- model
    checkpoint: Path | None = Field(
        None, description="Checkpoint to serve; by default the weights this package ships."
    )
    device: Devices = Field(
        "auto",
        description="`auto`, `cpu`, `cuda` or a list such as `cuda:0,cuda:1`: one worker each.",
    )

    # --- limits of uploads and requests
    api_keys_file: Path | None = Field(
        None,
        description="File with the sha256 (hex) of one API key a line, read again on SIGHUP; by "
        "default no key is asked for.",
    )
    formats: Formats = Field(
        ("jpeg", "png", "webp", "avif", "heif"),
        description="Image formats that are taken, comma-separated, of `jpeg`, `png`, `webp`, "
        "`avif`, `heif`, `gif`, `bmp` and `tiff`; phones and web pages send the first five.",
    )
    max_body_bytes: int = Field(
        32 * MIB, ge=1, description="Largest body in bytes: a good photo of 50 megapixels."
    )
    max_pixels: int = Field(
        8192 * 6144,
        ge=1,
        description="Most pixels an image may have, by its header: bounds what a decode costs. "
        "The default is the largest that phones of 50 megapixels make.",
    )
    max_side: int = Field(
        16_384, ge=1, description="Longest side in pixels: nothing a camera makes is longer."
    )
    reduced_jpeg: bool = Field(
        True,
        description="Decode JPEGs of at least four times the model's input side at reduced scale: "
        "half of the time and less memory. Masks differ by 0.3/255 on average from those of a full "
        "decode, and score the same.",
    )
    max_pixel_bytes: int = Field(
        1024 * MIB,
        ge=1,
        description="Bytes of decoded pixels in all threads at one time; huge images wait for each "
        "other, and one that takes more than this is decoded alone.",
    )
    rembg_api: bool = Field(
        True, description="Whether `/api/remove` answers as the HTTP API of rembg does."
    )
    removebg_api: bool = Field(
        True, description="Whether `/v1.0/removebg` answers as the API of remove.bg does."
    )
    fetch_urls: bool = Field(
        False,
        description="Lets `/api/remove` and `/v1.0/removebg` fetch photos from https URLs on the "
        "public internet.",
    )
    fetch_timeout_s: float = Field(
        10.0, gt=0, le=DAY_S, description="Seconds a photo at a URL may take to arrive."
    )
    max_requests_in_flight: int = Field(
        128,
        ge=1,
        description="Requests admitted at one time, which bounds memory; more get 429. How long "
        "they wait is bounded by the time they have.",
    )
    max_bytes_in_flight: int = Field(
        512 * MIB,
        ge=1,
        description="Bytes of uploads held at one time; more get 429. At least `max_body_bytes`.",
    )
    max_answer_bytes: int = Field(
        256 * MIB,
        ge=1,
        description="Bytes of answers held for slow readers before the next one is encoded.",
    )
    upload_timeout_s: float = Field(
        20.0, gt=0, le=DAY_S, description="Seconds a body may take to arrive; then 408."
    )
    timeout_s: float = Field(
        30.0,
        gt=0,
        le=DAY_S,
        description="Seconds from arrival to answer without `X-Timeout-Ms`; then 504.",
    )
    target_latency_s: float = Field(
        5.0,
        gt=0,
        le=DAY_S,
        description="Seconds within which requests without `X-Timeout-Ms` are to be answered: one "
        "that would take longer gets 429. At least three times what one takes that has the service "
        "for itself. Requests whose `X-Timeout-Ms` is longer than this leave half of the service "
        "to the others.",
    )
    max_timeout_s: float = Field(
        60.0, ge=0.1, le=DAY_S, description="Most seconds a client may ask for with `X-Timeout-Ms`."
    )
    send_timeout_s: float = Field(
        60.0,
        gt=0,
        le=DAY_S,
        description="Seconds a client may take to read its whole answer; then it is cut off.",
    )
    retry_after_s: int = Field(
        1,
        ge=1,
        description="Seconds in `Retry-After` of 503, and of 429 but for `would_be_late`, whose "
        "value is measured.",
    )
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="Threads that decode uploads; by default a quarter of the CPUs, 2 to 8.",
    )
    encode_threads: int | None = Field(
        None, ge=1, description="Threads that encode answers; by default as many as decode."
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=DAY_S,
        description="Seconds between SIGTERM and closing the listener, for balancers to notice.",
    )
    drain_s: float = Field(
        25.0,
        ge=0,
        le=DAY_S,
        description="Seconds accepted requests get to finish after that; the rest get 503.",
    )

    # --- queue and workers
    max_batch: int = Field(
        16,
        ge=1,
        le=256,
        description="Most images in one batch. At the start the service measures which sizes up to "
        "this pay on the device and uses no larger ones: on most CPUs single images, several at "
        "the same time. More images raise the latency of the first one and the memory; when memory "
        "runs out, the service lowers the number by itself.",
    )
    batch_wait_s: float = Field(
        0.002,
        ge=0,
        le=1,
        description="Seconds a queued image may be held back for others that are being decoded, "
        "where batches pay; about what a round trip to the worker costs. Without effect on Ray: a "
        "replica does not know what is being decoded.",
    )
    engine_threads: int | None = Field(
        None,
        ge=1,
        description="Threads of each worker's engine; by default the CPUs (affinity and cgroup "
        "quota) shared among the workers.",
    )
    load_timeout_s: float = Field(
        300.0,
        gt=0,
        le=DAY_S,
        description="Seconds a worker may take to load, check itself and warm up.",
    )
    watchdog_s: float | None = Field(
        None,
        gt=0,
        le=DAY_S,
        description="Seconds of one batch after which its worker counts as hung; by default the "
        "larger of 5 and 20 times the slowest batch of the warm-up.",
    )
    health_check_s: float = Field(
        30.0,
        gt=0,
        le=DAY_S,
        description="Seconds without work after which a worker is sent a test image, so that a "
        "lost device is noticed before a client's image is sent to it. On Ray every 10 s, by Ray "
        "itself, if this is longer.",
    )

    # --- where the workers run
    backend: Literal["local", "ray"] = Field(
        "local",
        description="`local`: workers of this process; `ray`: model replicas on a Ray cluster, "
        "which servers share. Settings that begin with `ray_` are for the latter.",
    )
    ray_address: str | None = Field(
        None,
        pattern=r"^(auto|[^/\s]+:\d+)$",
        description="Host and port of the cluster's head, or `auto` for the one that this machine "
        "belongs to; by default a Ray of its own is started and ended with the service.",
    )
    ray_app: str = Field(
        "purnet", min_length=1, description="Name of the application in Ray Serve."
    )
    ray_deploy: bool = Field(
        True,
        description="Whether a server deploys the application where there is none, or one of other "
        "settings. What a config file deployed is never replaced; off, a server waits for it.",
    )
    ray_min_replicas: int = Field(
        1, ge=1, description="Model replicas; the fewest if `ray_max_replicas` is larger."
    )
    ray_max_replicas: int | None = Field(
        None, ge=1, description="Most model replicas; by default their number does not change."
    )
    ray_target_in_flight: float = Field(
        4.0,
        gt=0,
        description="Images that a replica should hold on average, waiting ones included: with "
        "more or fewer, replicas are added or removed.",
    )
    ray_upscale_delay_s: float = Field(
        10.0, ge=0, le=DAY_S, description="Seconds of more images before replicas are added."
    )
    ray_downscale_delay_s: float = Field(
        300.0, ge=0, le=DAY_S, description="Seconds of fewer images before replicas are removed."
    )
    ray_max_in_flight: int = Field(
        64,
        ge=1,
        description="Images that a replica holds at most; more wait at the servers. At least what "
        "its device computes at the same time.",
    )
    ray_max_queued: int = Field(
        128, ge=1, description="Images that wait at a server for a replica; more get 429."
    )
    ray_cpus: float = Field(
        1.0,
        ge=0,
        description="Processors that Ray reserves for a replica, and threads of its engine unless "
        "`engine_threads` says otherwise.",
    )
    ray_gpus: float = Field(
        0.0,
        ge=0,
        le=1,
        description="GPUs, or a part of one, of a replica, which then computes there; without, on "
        "processors.",
    )
    ray_resources: Resources = Field(
        {},
        description="Custom resources that a replica takes of its node, as a JSON object such as "
        '`{"model_node": 1}`; they place replicas.',
    )
    ray_surge_percent: int = Field(
        25,
        ge=0,
        le=100,
        description="Part of the replicas, in percent and rounded up, that are started before old "
        "ones are stopped when all are replaced. 0 where the cluster has no room for one more.",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise ValueError("max_bytes_in_flight is below max_body_bytes: no upload would fit")
        if self.max_timeout_s < self.timeout_s:
            raise ValueError("max_timeout_s is below timeout_s")
        devices = ["cuda:0" if device == "cuda" else device for device in self.device.split(",")]
        if len(set(devices)) < len(devices):
            raise ValueError(f"{self.device} names a device twice; there is one worker on each")
        if self.backend == "ray" and len(devices) > 1:
            raise ValueError("a model replica on Ray has one device; set ray_min_replicas")
        if self.backend == "local" and self.ray_address is not None:
            raise ValueError("ray_address is of no use to the service unless backend is ray")
        if self.ray_gpus and self.device == "cpu":
            raise ValueError("ray_gpus are of no use to the device cpu")
        if self.backend == "ray" and self.device.startswith("cuda") and not self.ray_gpus:
            raise ValueError("a model replica on Ray has a GPU only if ray_gpus says so")
        least, most = self.ray_min_replicas, self.ray_max_replicas
        if most is not None and most < least:
            raise ValueError("ray_max_replicas is below ray_min_replicas")
        if most not in (None, least) and self.ray_target_in_flight > self.ray_max_in_flight:
            raise ValueError("ray_target_in_flight is above ray_max_in_flight: nothing would scale")
        return self


def environment_name(field: str) -> str:
    """The environment variable a setting is read from."""
    return f"{Settings.model_config['env_prefix']}{field}".upper()


def unknown_variables(environment: Iterable[str]) -> dict[str, str | None]:
    """Variables with our prefix that are no setting, each with the setting it may be meant for.

    They are no error: Kubernetes sets such names by itself for a service called `purnet`.
    """
    prefix = environment_name("")
    unknown: dict[str, str | None] = {}
    for name in sorted(environment):
        field = name.removeprefix(prefix).lower()
        if name == API_KEY_VARIABLE:
            continue
        if name.startswith(prefix) and field not in Settings.model_fields:
            close = get_close_matches(field, Settings.model_fields, 1)
            unknown[name] = environment_name(close[0]) if close else None
    return unknown
