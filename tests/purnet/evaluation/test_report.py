from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from purnet.evaluation.metrics import METRICS, PREPARATION
from purnet.evaluation.plots import (
    CELL_PIXELS,
    PLOT_PIXELS,
    failures,
    ranked,
    sheet_size,
    write_report,
)
from purnet.evaluation.report import (
    COLUMNS,
    IMAGES,
    PUBLISHED,
    Report,
    ScoredImage,
    canonical_name,
    print_report,
    to_json,
    to_markdown,
)
from purnet.evaluation.scoring import saved_maps, score


@pytest.fixture
def report(disk) -> Report:
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    return Report(maps="maps", sets=[score(images, None)])


@pytest.fixture
def published_report(disk, tmp_path) -> Report:
    """Scores of a set of the paper: its own truth as maps."""
    truth = disk.dataset.rename(tmp_path / "ECSSD") / "mask"
    images = saved_maps(truth, truth.parent, resize=False)
    return Report(maps="truth", sets=[score(images, None)])


def printed(report: Report, width: int = 200) -> str:
    out = StringIO()
    print_report(report, Console(file=out, width=width))
    return out.getvalue()


def pictures(stem: str) -> tuple[Image.Image | None, Image.Image, Image.Image]:
    return None, Image.new("L", (40, 30), 255), Image.new("L", (30, 40), 100)


def test_every_number_is_printed_with_its_convention(report):
    text = printed(report)
    assert PREPARATION in text
    for metric in METRICS:
        label = f"{metric.label} {'↓' if metric.better == 'lower' else '↑'} "
        number, convention = (
            line for line in text.splitlines() if line.strip("│ ").startswith(label)
        )
        assert f"{report.sets[0].metrics[metric.key]:.4f}" in number
        assert metric.convention in convention


def test_published_numbers_stand_beside_ours(published_report):
    text = printed(published_report)
    assert "PurNet ResNet-50" in text
    assert "PurNet: as published" in text
    assert "IEEE Transactions on Image Processing" in text
    line = next(line for line in text.splitlines() if "MAE" in line)
    assert [part.strip() for part in line.split("│")[2:5]] == ["0.0000", "0.035", "0.040"]


def test_a_terminal_of_80_columns_is_wide_enough(published_report):
    lines = printed(published_report, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("PurNet VGG-16" in line for line in lines)
    conventions = lines[-20:]
    assert sum(len(line.split()) <= 2 for line in conventions) <= 2


def test_a_copy_of_another_size_than_published_is_remarked_on(published_report):
    assert "ECSSD: 3 images of the 1000 published" in printed(published_report)
    assert "## ECSSD: 3 images of the 1000 published" in to_markdown(
        published_report, ["sheet.png"]
    )
    whole = published_report.sets[0].model_copy(update={"images": 1000})
    assert whole.title == "ECSSD: 1000 images"


def test_a_set_that_is_not_in_the_paper_has_no_published_columns(report):
    assert "as published" not in printed(report).lower()


def test_what_was_not_scored_is_named_and_a_long_list_cut_short(report):
    missing = [f"photo{number:02d}" for number in range(12)]
    cut = report.sets[0].model_copy(update={"missing": missing})
    text = printed(report.model_copy(update={"sets": [cut]}))
    assert "Not scored in mask: 12" in text
    assert "photo09: no prediction" in text
    assert "photo10" not in text
    assert "and 2 more" in text


def test_truths_without_anything_salient_are_named(report):
    empty = report.sets[0].model_copy(update={"empty_truths": ["night"]})
    text = printed(report.model_copy(update={"sets": [empty]}))
    assert "Scored, but nothing is salient in the truth: 1" in text
    assert "  night" in text


def test_markup_in_file_names_is_printed_as_it_is(report):
    odd = report.sets[0].model_copy(update={"missing": ["[red]a"], "name": "[b]set"})
    text = printed(report.model_copy(update={"sets": [odd]}))
    assert "[red]a: no prediction" in text
    assert "[b]set: 3 images" in text


def test_json_reads_back_as_the_same_report(report):
    assert Report.model_validate_json(to_json(report)) == report
    plain = json.loads(to_json(report))
    assert plain["sets"][0]["metrics"]["mae"] == report.sets[0].metrics["mae"]
    assert set(plain["conventions"]) == set(plain["sets"][0]["metrics"])
    assert len(plain["sets"][0]["precision"]) == 256


def test_the_report_folder_holds_text_and_pictures_that_decode(published_report, tmp_path):
    folder = tmp_path / "new" / "report"
    written = write_report(published_report, folder, {"ECSSD": pictures})
    assert sorted(path.name for path in written) == sorted(path.name for path in folder.iterdir())
    for name, size in (
        ("precision-recall.png", PLOT_PIXELS),
        ("ECSSD-contact-sheet.png", sheet_size()),
    ):
        with Image.open(folder / name) as image:
            image.load()
            assert image.size == size
    assert Report.model_validate_json((folder / "report.json").read_text()) == published_report
    text = (folder / "report.md").read_text()
    assert "](ECSSD-contact-sheet.png)" in text
    assert "](precision-recall.png)" in text


def test_the_contact_sheet_shows_truth_and_map_in_their_own_shape(report, tmp_path):
    write_report(report, tmp_path, {"mask": pictures})
    with Image.open(tmp_path / "mask-contact-sheet.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}
        assert {(255, 255, 255), (128, 128, 128), (100, 100, 100)} <= colours
        left, top = 8 + CELL_PIXELS[0] + 8, 8 + 2 * 22
        truth = sheet.crop((left, top, left + CELL_PIXELS[0], top + CELL_PIXELS[1]))
        assert truth.convert("L").getextrema() == (255, 255)


def test_markdown_tables_have_one_width_and_escaped_bars(published_report):
    rows = [
        line
        for line in to_markdown(published_report, ["sheet.png"]).splitlines()
        if line.startswith("|")
    ]
    assert len(rows) == 2 + len(METRICS)
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}
    assert "mean of \\|map - truth\\|" in rows[2]


def test_markdown_names_what_was_not_scored(report):
    cut = report.sets[0].model_copy(update={"missing": ["a"]})
    assert "- `a`: no prediction" in to_markdown(
        report.model_copy(update={"sets": [cut]}), ["sheet.png"]
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 40])
def test_best_median_and_worst_share_no_image(count):
    scored = [
        ScoredImage(stem=f"{number:02d}", mae=0, weighted_f=0, s_measure=number / 100)
        for number in range(count)
    ]
    groups = ranked(scored)
    stems = [image.stem for images in groups.values() for image in images]
    assert len(stems) == len(set(stems)) <= 9
    assert groups["best"][0].stem == f"{count - 1:02d}"
    if count > 1:
        assert groups["worst"][0].stem == "00"
    if count == 40:
        assert [image.stem for image in groups["median"]] == ["21", "20", "19"]


def test_failures_are_those_of_the_largest_mae():
    scored = [
        ScoredImage(stem=f"{number:02d}", mae=number / 100, weighted_f=0, s_measure=0)
        for number in range(9)
    ]
    rows = failures(scored, 4)
    assert [[image.stem for image in row] for row in rows.values()] == [["08", "07", "06"], ["05"]]


def test_softness_of_maps_and_truths_is_reported(disk):
    soft = np.array(Image.open(disk.predictions / "good.png"))
    soft[:15] = 120
    Image.fromarray(soft).save(disk.predictions / "good.png")
    (result,) = [score(saved_maps(disk.predictions, disk.truth, resize=False), None)]
    assert result.soft == pytest.approx(0.5 / 3)
    assert result.truth_soft == 0
    said = "26 to 229 of 255: 16.7% of the maps, 0.0% of the truths"
    report = Report(maps="maps", sets=[result])
    assert said in printed(report)
    assert said in to_markdown(report, ["sheet.png"])


def test_both_backbones_report_the_six_named_sets_in_order():
    assert list(PUBLISHED) == ["ResNet-50", "VGG-16"]
    for table in PUBLISHED.values():
        assert list(table) == list(IMAGES)


def test_the_columns_are_metrics_of_ours():
    assert set(COLUMNS) <= {metric.key for metric in METRICS}


def test_resnet_is_better_than_vgg_everywhere():
    for name, (mae, *others) in PUBLISHED["ResNet-50"].items():
        vgg_mae, *vgg_others = PUBLISHED["VGG-16"][name]
        assert mae < vgg_mae
        assert all(ours > theirs for ours, theirs in zip(others, vgg_others, strict=True))


@pytest.mark.parametrize("name", IMAGES)
def test_names_are_recognised_in_any_spelling(name):
    assert canonical_name(name.lower().replace("-", "_")) == name
    assert canonical_name("sod226") is None
