"""What an evaluation found, as it is written to JSON."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from purnet.data.pairs import NAMED_SETS
from purnet.evaluation.metrics import METRICS, PREPARATION, SetScore
from purnet.evaluation.published import KEYS, PUBLISHED, SOURCE


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ScoredImage(_Value):
    """Scores of one image, for those who want to look at it."""

    stem: str
    mae: float
    weighted_f: float
    s_measure: float


class LeftOut(_Value):
    """A file that was not scored."""

    file: str
    reason: str


class SetResult(_Value):
    """One data set, scored."""

    name: str
    """The paper's name of the set where it has one, else its folder's."""
    folder: str
    images: int
    metrics: dict[str, float]
    """By the keys of `Report.conventions`."""
    precision: list[float]
    """At thresholds 0..255."""
    recall: list[float]
    """At thresholds 0..255."""
    scored: list[ScoredImage]
    empty_truths: int = 0
    """Scored images whose truth has nothing salient."""
    missing: list[str]
    """Stems that have a truth but no prediction."""
    left_out: list[LeftOut]
    published_images: int | None
    """How many images the set has as published; None for a set without a name."""
    published: dict[str, dict[str, float]]
    """The paper's numbers by backbone; empty for a set it does not report."""

    @property
    def title(self) -> str:
        """Name and number of images, with a remark on what makes the scores mean something else.

        That is a copy that is not the published one, and truths that are all empty.
        """
        title = f"{self.name}: {self.images} images"
        if self.published_images not in {None, self.images}:
            title += f" of the {self.published_images} published"
        if self.empty_truths == self.images:
            title += ", and nothing is salient in any truth"
        return title

    @property
    def complete(self) -> bool:
        """Whether every image of the set was scored."""
        return not self.missing and not self.left_out

    @classmethod
    def of(
        cls,
        name: str,
        folder: Path,
        score: SetScore,
        scored: list[ScoredImage],
        *,
        empty_truths: int,
        missing: list[str],
        left_out: list[tuple[Path, str]],
    ) -> SetResult:
        """Put a set's score together with what the paper says of it."""
        return cls(
            name=name,
            folder=str(folder),
            images=len(scored),
            metrics=score.metrics,
            precision=score.precision,
            recall=score.recall,
            scored=scored,
            empty_truths=empty_truths,
            missing=missing,
            left_out=[LeftOut(file=str(path), reason=reason) for path, reason in left_out],
            published_images=NAMED_SETS[name].images if name in NAMED_SETS else None,
            published={
                backbone: dict(zip(KEYS, table[name], strict=True))
                for backbone, table in PUBLISHED.items()
                if name in table
            },
        )


class Report(_Value):
    """A run of `purnet evaluate`."""

    maps: str
    """Where the saliency maps came from: a folder, or the model's name, digest and device."""
    sets: list[SetResult]
    preparation: str = PREPARATION
    conventions: dict[str, str] = {metric.key: metric.convention for metric in METRICS}
    published_source: str = SOURCE
