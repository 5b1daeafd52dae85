"""The command `purnet`: serve, health and config here; `purnet.cli` works on files.

`predict` of this package replaces that of `purnet.cli`: it also sends photos to a service.

Heavy imports stay inside the commands: `purnet health` runs every few seconds in a container.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from purnet.cli.app import app as model_commands
from purnet_serve.cli.predict import predict

if TYPE_CHECKING:
    from purnet_serve.inference.backend import Backend
    from purnet_serve.observability.inference_metrics import InferenceMetrics
    from purnet_serve.settings import Settings

app = typer.Typer(
    name="purnet",
    help="Find the salient object of a photo: serve, predict, train, evaluate.",
    no_args_is_help=True,
)
app.add_typer(model_commands)
# Of two commands of one name, the one that was added last counts.
with_url = typer.Typer()
with_url.command()(predict)
app.add_typer(with_url)

HEALTH_TIMEOUT_S = 5.0

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; see `purnet config`."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"purnet {version('purnet-serve')}")
        raise typer.Exit


@app.callback()
def purnet(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Find the salient object of a photo: serve, predict, train, evaluate."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0 picks a free one [8000].")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint to serve [the shipped weights].")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, or a list like cuda:0,cuda:1 [auto].")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Where the model runs: local, or ray (a cluster) [local].")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Head of the Ray cluster, HOST:PORT or auto [a Ray of its own]."),
    ] = None,
    more: Set = None,
) -> None:
    """Serve masks over HTTP until SIGTERM or Ctrl-C.

    Every setting is also read from the environment as PURNET_<NAME>; a flag wins.
    """
    flags = {"host": host, "port": port, "checkpoint": checkpoint, "device": device}
    flags |= {"backend": backend, "ray_address": address}
    settings = _settings({name: value for name, value in flags.items() if value is not None}, more)

    from purnet_serve.errors import OperatorError
    from purnet_serve.http.server import run
    from purnet_serve.observability.http_metrics import Metrics
    from purnet_serve.observability.logging import configure_logging
    from purnet_serve.settings import unknown_variables

    configure_logging(settings)
    log = logging.getLogger("purnet_serve")
    for variable, meant in unknown_variables(os.environ).items():
        log.warning("unknown setting", extra={"variable": variable, "meant": meant})
    metrics = Metrics()
    try:
        run(settings, _backend(settings, metrics.inference), metrics, _announce)
    except OperatorError as error:
        _fail(str(error), code=1)


@app.command()
def ray_config(more: Set = None) -> None:
    """Write the config file of the model replicas for `serve deploy`, or KubeRay's RayService."""
    import yaml

    from purnet_serve.inference.ray.application import config_file

    typer.echo(
        yaml.safe_dump(config_file(_settings({"backend": "ray"}, more)), sort_keys=False), nl=False
    )


@app.command()
def health(
    url: Annotated[
        str | None, typer.Option(help="Where the service listens [this machine, by the settings].")
    ] = None,
) -> None:
    """Ask a running service whether it is ready; exit 0 when it is."""
    import http.client
    import json
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener()
    if url is None:
        # The service of this machine, whatever proxy its environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        from purnet_serve.urls import local_url

        settings = _settings({}, None)
        url = local_url(settings.host, settings.port)
    if not url.startswith(("http://", "https://")):
        _fail("the address must begin with http:// or https://", code=2)
    ready = f"{url.rstrip('/')}/readyz"
    try:
        with opener.open(ready, timeout=HEALTH_TIMEOUT_S) as answer:
            typer.echo(json.load(answer)["status"])
    except urllib.error.HTTPError as error:
        with error:
            _fail(error.read().decode(errors="replace"), code=1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        _fail(f"no answer from {url}: {error}", code=1)
    except (KeyError, TypeError):
        _fail(f"what answers at {url} is not PurNet Serve", code=1)


@app.command()
def config(more: Set = None) -> None:
    """Show every setting as it is in effect, as lines of an env file."""
    import json

    from purnet_serve.http.context import memory_ceiling_bytes
    from purnet_serve.settings import MIB, environment_name

    settings = _settings({}, more)
    most = memory_ceiling_bytes(settings) // MIB
    typer.echo(f"# memory of the API process: at most {most} MiB; the workers come on top")
    for name, value in settings.model_dump(mode="json").items():
        shown = ",".join(value) if isinstance(value, list) else "" if value is None else value
        if isinstance(value, dict):
            shown = json.dumps(value)
        typer.echo(f"{environment_name(name)}={shown}")


def _backend(settings: Settings, metrics: InferenceMetrics) -> Backend:
    from purnet_serve.inference.local import PREDICTOR, LocalBackend

    if settings.backend == "local":
        return LocalBackend(settings, metrics)
    from purnet_serve.inference.ray.backend import RayBackend

    if settings.ray_address is None:
        # Ray reads it when it is imported. A Ray of one machine then listens on loopback, but for
        # the ports of replicas.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        from purnet_serve.inference.ray.cluster import RayTier
    except ModuleNotFoundError as error:
        _fail(f"{error}; install it with: pip install 'purnet-serve[ray]'", code=1)
    return RayBackend(settings, metrics, RayTier(settings, PREDICTOR))


def _settings(flags: dict[str, object], more: list[str] | None) -> Settings:
    """Settings from flags, then the environment. Exits with 2 and a line for each bad value."""
    from difflib import get_close_matches

    from pydantic import ValidationError

    from purnet_serve.settings import Settings

    for item in more or []:
        name, equals, value = item.partition("=")
        if not equals:
            _fail(f"--set takes NAME=VALUE, not {item!r}", code=2)
        flags[name.removeprefix("PURNET_").lower().replace("-", "_")] = value
    try:
        return Settings(**flags)  # type: ignore[arg-type]
    except ValidationError as error:
        known = ", ".join(Settings.model_fields)
        lines = []
        for bad in error.errors():
            name = ".".join(map(str, bad["loc"])) or "settings"
            reason = bad["msg"].removeprefix("Value error, ")
            if bad["type"] == "extra_forbidden":
                close = get_close_matches(name, Settings.model_fields, 1)
                meant = f"; did you mean {close[0]}?" if close else "."
                reason = f"there is no such setting{meant} There are {known}."
            lines.append(f"{name}: {reason}")
        _fail("\n".join(lines), code=2)


def _announce(url: str) -> None:
    import purnet

    photo, here = Path(purnet.__file__).parent / "weights" / "self_check.png", Path.cwd()
    photo = photo.relative_to(here) if photo.is_relative_to(here) else photo
    typer.echo(f"PurNet is ready at {url} — its documentation is at {url}/docs")
    typer.echo(f"Try: curl -F image=@{photo} {url}/v1/mask -o mask.png")


def _fail(message: str, *, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
