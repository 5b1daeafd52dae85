from __future__ import annotations

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from purnet.errors import EvaluationError
from purnet.evaluation.comparison import compare, print_comparison, read_baseline
from purnet.evaluation.report import Report, ScoredImage, SetResult, to_json
from purnet.evaluation.scoring import ImageSet, saved_maps, score


@pytest.fixture
def images(disk) -> ImageSet:
    return saved_maps(disk.predictions, disk.truth, resize=False)


@pytest.fixture
def result(images) -> SetResult:
    return score(images, None)


@pytest.fixture
def saved(result, tmp_path) -> Path:
    path = tmp_path / "baseline.json"
    path.write_text(to_json(Report(maps="maps", sets=[result])))
    return path


def with_mae(result: SetResult, **mae: float) -> SetResult:
    """The set with the images of these names and errors alone; other scores are ½."""
    scored = [
        ScoredImage(stem=stem, mae=value, weighted_f=0.5, s_measure=0.5)
        for stem, value in mae.items()
    ]
    return result.model_copy(update={"scored": scored})


def test_the_difference_is_of_the_images_that_both_have(result):
    ours = with_mae(result, a=0.1, b=0.2, c=0.6, only_here=0.9)
    before = with_mae(result, c=0.3, a=0.2, b=0.2, only_there=0.0)
    images, differences = compare(ours, before)
    assert images == 3
    mae = differences["mae"]
    assert mae.baseline == pytest.approx((0.2 + 0.2 + 0.3) / 3)
    assert mae.mean == pytest.approx((-0.1 + 0.0 + 0.3) / 3)
    # The sample's standard deviation of -.1, 0, .3 over the root of 3.
    assert mae.standard_error == pytest.approx(0.12018504)
    assert differences["s_measure"].mean == differences["s_measure"].standard_error == 0


def test_one_image_has_no_standard_error(result):
    _, differences = compare(with_mae(result, a=0.1), with_mae(result, a=0.2))
    assert np.isnan(differences["mae"].standard_error)
    report = Report(maps="maps", sets=[with_mae(result, a=0.1)])
    out = StringIO()
    baseline = {result.name: with_mae(result, a=0.2)}
    print_comparison(report, baseline, Console(file=out, width=80))
    assert "nan" not in out.getvalue()


def test_nothing_in_common_is_an_error(result):
    with pytest.raises(EvaluationError, match="No image of mask was scored in both"):
        compare(with_mae(result, a=0.1), with_mae(result, b=0.1))


def test_a_report_that_was_written_is_read(saved, images, result):
    assert read_baseline(saved, [images]) == {result.name: result}


@pytest.mark.parametrize("content", ["", "{}", '{"maps": "m", "sets": [], "more": 1}', "\x00"])
def test_another_file_is_refused(tmp_path, images, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=r"is not a report that --json wrote"):
        read_baseline(path, [images])


def test_a_file_that_is_not_there_is_refused(tmp_path, images):
    with pytest.raises(EvaluationError, match=r"cannot be read: No such file"):
        read_baseline(tmp_path / "none.json", [images])


def test_a_report_of_another_set_or_of_other_images_is_refused(tmp_path, images, result):
    path = tmp_path / "baseline.json"
    path.write_text(to_json(Report(maps="m", sets=[result.model_copy(update={"name": "ECSSD"})])))
    with pytest.raises(EvaluationError, match=r"no scores of mask, but of: ECSSD"):
        read_baseline(path, [images])
    path.write_text(to_json(Report(maps="m", sets=[with_mae(result, other=0.1)])))
    with pytest.raises(EvaluationError, match=r"scores of other images of mask"):
        read_baseline(path, [images])
