"""`purnet predict`: photos and folders of photos -> masks or cutouts. Imports nothing heavy.

Where the answers come from is up to `run`'s caller: a predictor here, or a service elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Annotated

import typer

from purnet.cli.errors import reported_errors
from purnet.errors import ModelError
from purnet.io import is_folder

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from purnet.imaging import UInt8Array
    from purnet.inference.predictor import Predictor

STANDARD = Path("-")
"""Standard input among the photos, standard output as the target."""

_MAX_NAMED = 10
"""Entries of folders listed as not taken before the rest is counted."""

Report = Callable[[Path, Exception | None], None]
"""Called for every photo that is done, or failed with an error."""

Answer = bytes | Exception
"""The encoded mask or cutout of a photo, or why there is none."""

Answers = Callable[[Sequence[Path]], Iterator[Answer]]
"""Gives each photo's answer, in order. Raises `ModelError` when there can be none at all."""

Photos = Annotated[
    list[Path],
    typer.Argument(
        help="Photos, or folders of photos; - is standard input.", metavar="PHOTO|FOLDER|-..."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Folder the masks are written into; for one photo, also a .png file. - is "
        "standard output, the default for standard input.",
    ),
]
WithCutout = Annotated[
    bool, typer.Option("--cutout", help="Write the object on transparent ground, not its mask.")
]
Recursive = Annotated[
    bool,
    typer.Option("--recursive", "-r", help="Take subfolders too, and make the same in OUT."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip photos whose output is there.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights to predict with. Default: those this package ships.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def predict(
    photos: Photos,
    out: Out = None,
    *,
    with_cutout: WithCutout = False,
    recursive: Recursive = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
) -> None:
    """Find the salient object in photos: writes OUT/STEM.png for each, of the photo's own size.

    A mask is 8-bit grey, 255 where the object is. Fails before any work where an output exists,
    unless --resume or --overwrite is given; a photo is never overwritten. Files in a folder that
    are no photos are listed. Exits 1 when a photo could not be read; it is named and the rest is
    done.
    """
    answers = answers_here(checkpoint, device=device, with_cutout=with_cutout)
    run(photos, out, answers, recursive=recursive, resume=resume, overwrite=overwrite)


def run(
    photos: Sequence[Path],
    out: Path | None,
    answers: Answers,
    *,
    recursive: bool,
    resume: bool,
    overwrite: bool,
) -> None:
    """The command, wherever the answers come from: plan, ask, write, and say how it went."""
    from rich.console import Console
    from rich.progress import Progress

    if resume and overwrite:
        raise typer.BadParameter("give either --resume or --overwrite.")
    if out is None and photos != [STANDARD]:
        raise typer.BadParameter("name where masks go: --out OUT.")
    out = STANDARD if out is None else out
    console = Console(stderr=True)
    with reported_errors(extra="torch"):
        work = plan(photos, out, recursive=recursive, resume=resume, overwrite=overwrite)
        if STANDARD in work.targets.values() and sys.stdout.isatty():
            raise ModelError("standard output is a terminal: redirect it, or name a file by --out")
        _print_not_taken(work.not_taken, console)
        with Progress(console=console) as progress:
            task = progress.add_task("photos", total=len(work.targets))

            def report(source: Path, error: Exception | None) -> None:
                progress.advance(task)
                if error is not None:
                    name = "standard input" if source == STANDARD else source
                    progress.console.print(f"{name}: {error}", markup=False, soft_wrap=True)

            # Nothing is loaded for nothing.
            asked = answers([*work.targets]) if work.targets else iter(())
            failed = write_all(asked, work.targets, report)
    done = f"{len(work.targets) - len(failed)} of {len(work.targets)} written to {out}"
    if work.done:
        done += f"; {work.done} were there"
    console.print(done, markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


@dataclass(slots=True)
class Plan:
    """What is to be done."""

    targets: dict[Path, Path] = field(default_factory=dict)
    """Photos, and the file each mask is written to."""
    not_taken: list[tuple[Path, str]] = field(default_factory=list)
    """Entries of folders that are passed over, and why."""
    done: int = 0
    """Photos left out because their output is there."""


def plan(
    inputs: Sequence[Path],
    out: Path,
    *,
    recursive: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Plan:
    """Photos and where their masks go: `OUT/<stem>.png`, or OUT itself for one photo and a `.png`.

    Raises `ModelError`, before any work, for an input that does not exist, a folder without photos,
    two photos with one target, a target that is there (see `predict`), and one that is a photo or
    lies beside the photos, where it may be one.
    """
    work = Plan()
    sources: dict[Path, Path] = {}  # by target
    one_file = _names_a_file(inputs, out)
    for source, name in _photos(inputs, out, work.not_taken, recursive=recursive):
        target = out if one_file else out / name.parent / f"{name.stem}.png"
        if sources.setdefault(target, source) != source:
            raise ModelError(f"{sources[target]} and {source} would both be written to {target}")
    # Not `Path.resolve`, which fails on a link to itself.
    photos = {os.path.realpath(source) for source in sources.values()}
    folders = {os.path.dirname(photo) for photo in photos}  # noqa: PTH120
    for target, source in sources.items():
        if target == STANDARD:
            work.targets[source] = target
            continue
        place = os.path.realpath(target)
        if place in photos:
            raise ModelError(
                f"{target} would be overwritten by the mask of {source}; choose another --out"
            )
        is_there = os.path.lexists(target)
        if is_there and os.path.realpath(target.parent) in folders:
            raise ModelError(
                f"{target} is there already, beside the photos, and would be overwritten by the "
                f"mask of {source}; choose another --out or move it"
            )
        if is_there and resume:
            work.done += 1
        elif is_there and not overwrite:
            raise ModelError(
                f"{target} is there already: give --resume to skip it or --overwrite to replace it"
            )
        else:
            work.targets[source] = target
    return work


def answers_here(checkpoint: Path | None, *, device: str, with_cutout: bool) -> Answers:
    """Answers computed in this process; the weights are loaded when the first one is asked for."""

    def answers(sources: Sequence[Path]) -> Iterator[Answer]:
        from purnet.inference.factory import load

        predictor = load(checkpoint, device=device)
        return predicted(predictor, sources, with_cutout=with_cutout)

    return answers


def predicted(
    predictor: Predictor, sources: Sequence[Path], *, with_cutout: bool
) -> Iterator[Answer]:
    """Each photo's mask or cutout as PNG, or the error of one that cannot be read or computed."""
    from PIL import Image

    from purnet.imaging import encode_png, read_pixels

    for source in sources:
        try:
            photo = sys.stdin.buffer.read() if source == STANDARD else source
            mask = predictor.predict_pixels(read_pixels(photo, predictor.input_size))
            answer: Answer = encode_png(_cut_out(photo, mask) if with_cutout else mask)
        except (OSError, ValueError, Image.DecompressionBombError, ModelError) as error:
            answer = error
        yield answer


def write_answer(png: bytes, target: Path) -> OSError | None:
    """Write one PNG to a file or to standard output; returns why it could not be written."""
    from purnet.io import write_atomically

    try:
        if target == STANDARD:
            sys.stdout.buffer.write(png)
            sys.stdout.buffer.flush()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, partial(Path.write_bytes, data=png))
    except OSError as error:
        return error
    return None


def write_all(answers: Iterator[Answer], targets: dict[Path, Path], report: Report) -> list[Path]:
    """Write every mask, or every cutout; return the photos that failed.

    A photo without an answer, or whose answer cannot be written, is reported and passed over.
    """
    failed = []
    for (source, target), answer in zip(targets.items(), answers, strict=True):
        error = answer if isinstance(answer, Exception) else write_answer(answer, target)
        if error is not None:
            failed.append(source)
        report(source, error)
    return failed


def _cut_out(photo: bytes | Path, mask: UInt8Array) -> Image.Image:
    """The photo at its own size, decoded in full, with its mask as alpha."""
    from PIL import Image

    from purnet.imaging import cutout, open_image

    return cutout(open_image(photo, keep_alpha=True), Image.fromarray(mask))


def _print_not_taken(not_taken: list[tuple[Path, str]], console: Console) -> None:
    for path, reason in not_taken[:_MAX_NAMED]:
        console.print(f"not taken: {path}: {reason}", markup=False, soft_wrap=True)
    if len(not_taken) > _MAX_NAMED:
        console.print(f"not taken: {len(not_taken) - _MAX_NAMED} more")


def _names_a_file(inputs: Sequence[Path], out: Path) -> bool:
    """Whether OUT is the file of a single mask. Raises `ModelError` where it cannot be."""
    from purnet.imaging import IMAGE_SUFFIXES

    suffix = out.suffix.lower()
    if out != STANDARD and (suffix not in IMAGE_SUFFIXES or is_folder(out)):
        return False
    if len(inputs) > 1 or is_folder(inputs[0]):
        raise ModelError(f"{out} is one file, for one photo; name a folder by --out")
    if out != STANDARD and suffix != ".png":
        raise ModelError(f"{out}: masks are written as PNG; name a .png file or a folder")
    return True


def _photos(
    inputs: Sequence[Path], out: Path, not_taken: list[tuple[Path, str]], *, recursive: bool
) -> Iterator[tuple[Path, Path]]:
    """Every photo, with its name below the input folder it lies in."""
    for path in inputs:
        try:
            is_folder = path != STANDARD and S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelError(f"there is no file or folder {path}") from error
        except OSError:  # reported with the photos that cannot be read
            is_folder = False
        if not is_folder:
            yield path, Path("standard input" if path == STANDARD else path.name)
            continue
        photos = list(_photos_in(path, out, not_taken, recursive=recursive))
        if not photos:
            raise ModelError(f"there are no photos in the folder {path}")
        yield from ((photo, photo.relative_to(path)) for photo in photos)


def _photos_in(
    folder: Path, out: Path, not_taken: list[tuple[Path, str]], *, recursive: bool
) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"the folder {folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        reason = _reason_against(entry, out, recursive=recursive)
        if reason is not None:
            not_taken.append((entry, reason))
        elif entry.is_dir():
            yield from _photos_in(entry, out, not_taken, recursive=True)
        else:
            yield entry


def _reason_against(entry: Path, out: Path, *, recursive: bool) -> str | None:
    """Why an entry of a folder is neither taken for a photo nor looked into, or None."""
    from purnet.imaging import IMAGE_SUFFIXES

    if entry.name.startswith("."):
        return "it is hidden"
    try:
        mode = entry.stat().st_mode
    except OSError:  # a broken link, say: reported with the photos that cannot be read
        mode = 0
    if S_ISDIR(mode):
        if not recursive:
            return "it is a folder; --recursive takes those too"
        if entry.is_symlink():
            return "it is a link to a folder"
        return "it is the folder of the masks" if entry.resolve() == out.resolve() else None
    if entry.suffix.lower() not in IMAGE_SUFFIXES:
        return "its name is not that of a photo"
    # A pipe would be waited on.
    return None if mode == 0 or S_ISREG(mode) else "it is not a regular file"
