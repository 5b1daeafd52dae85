"""The tensors' names in the authors' released network, translated to ours and back.

Their `stage1.pth` holds the purificatory pyramid alone; `stage2.pth` and `stage3.pth` share one
layout with all three pyramids. Their levels count from 1, finest first, and each is a numbered
copy; ours are lists. Prefixes name the pyramids: none is purification, `oa_` promotion
("object attention"), `ea_` rectification ("error attention"). A head or a chain of blocks is one
flat list of layers there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

VARIANT = "purnet-resnet50"
"""The variant that computes what their ResNet-50 network does."""

WRAPPER = "module."
"""What `nn.DataParallel` puts before every name."""

LEVELS = range(1, 6)
LAYERS = 3  # convolution, batch normalisation and activation of one block


def has_attention(names: Collection[str]) -> bool:
    """Whether these names, wrapped or not, are of stage 2 or 3."""
    return any(name.removeprefix(WRAPPER).startswith(("oa_", "ea_")) for name in names)


def ours(name: str) -> str:
    """Their name of a tensor, wrapped or not -> ours; a name they do not have stays as it is."""
    return _translate(name.removeprefix(WRAPPER), _OURS) or name


def theirs(name: str) -> str:
    """Our name of a tensor -> theirs; a name that has none stays as it is."""
    return _translate(name, _THEIRS) or name


def _translate(name: str, prefixes: Mapping[str, str]) -> str | None:
    for end, sign in enumerate(name):
        if sign == "." and name[:end] in prefixes:
            return prefixes[name[:end]] + name[end:]
    return None


def _prefixes() -> Iterator[tuple[str, str]]:
    yield "layer0", "backbone.stem"
    for stage in range(1, 5):
        yield f"layer{stage}", f"backbone.stages.{stage - 1}"
    for theirs, part in {"": "purification", "oa_": "promotion", "ea_": "rectification"}.items():
        yield from _pyramid(theirs, f"{part}.pyramid")
    for level in LEVELS:
        branch = f"branches.{level - 1}"
        yield f"feature_upscore{level}_2", f"purification.{branch}.refine"
        yield from _head(f"predict{level}", f"purification.{branch}.head")
        yield from _head(f"oa_predict{level}", f"promotion.{branch}.head")
        for head, kind in ((f"ea_{{}}{level}_g", "object"), (f"ea_e_{{}}{level}_e", "error")):
            yield from _blocks(
                head.format("pre_predict"), f"rectification.{branch}.{kind}_features", 3
            )
            yield from _head(head.format("predict"), f"rectification.{branch}.{kind}_head")


def _pyramid(theirs: str, pyramid: str) -> Iterator[tuple[str, str]]:
    for level in LEVELS:
        yield f"{theirs}convert{level}", f"{pyramid}.laterals.{level - 1}"
    for level in LEVELS[1:]:  # from this level to the one before it
        descent = f"{pyramid}.descents.{level - 2}"
        yield from _blocks(f"{theirs}feature_upscore{level}", descent, 1)
        yield f"{theirs}feature_upscore{level}.{LAYERS}", f"{descent}.1"


def _blocks(theirs: str, blocks: str, count: int) -> Iterator[tuple[str, str]]:
    for index in range(count * LAYERS):
        yield f"{theirs}.{index}", f"{blocks}.{index // LAYERS}.{index % LAYERS}"


def _head(theirs: str, head: str) -> Iterator[tuple[str, str]]:
    yield from _blocks(theirs, f"{head}.blocks", 2)
    yield f"{theirs}.6", f"{head}.logits"
    # Rectification's upsampling is no layer of its heads.
    separate = theirs.startswith("ea_")
    yield f"{theirs}_upscore" if separate else f"{theirs}.7", f"{head}.upsample"


_OURS = dict(_prefixes())
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
