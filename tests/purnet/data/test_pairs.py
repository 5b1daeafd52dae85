"""Layouts built as tiny trees of real image files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folders import lock
from photos import unknown_pixel_format
from PIL import ExifTags, Image

from purnet.data.pairs import LAYOUTS, Layout, find_pairs
from purnet.errors import DatasetError

SIZE = (6, 4)


def write_pairs(folder: Path, layout: Layout, stems: tuple[str, ...] = ("a", "b")) -> None:
    for stem in stems:
        photo = folder / layout.image / f"{stem}.jpg"
        mask = folder / layout.mask / f"{stem}.png"
        for path, mode in ((photo, "RGB"), (mask, "L")):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, SIZE).save(path)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_is_paired_by_stem(tmp_path, layout):
    write_pairs(tmp_path, layout, ("b", "a"))
    found = find_pairs(tmp_path)
    assert found.layout == layout
    assert found.folder == tmp_path
    assert [pair.stem for pair in found.pairs] == ["a", "b"]
    assert found.pairs[0].image == tmp_path / layout.image / "a.jpg"
    assert found.pairs[0].mask == tmp_path / layout.mask / "a.png"
    assert found.skipped == []


def test_upper_and_lower_case_of_folders_and_suffixes_do_not_matter(tmp_path):
    write_pairs(tmp_path, Layout("Image", "GroundTruth"))
    photo = tmp_path / "Image" / "a.jpg"
    photo.rename(photo.with_suffix(".JPG"))
    found = find_pairs(tmp_path)
    assert found.layout == Layout("image", "groundtruth")
    assert len(found.pairs) == 2


def test_a_folder_doubled_by_its_archive_is_looked_into(tmp_path):
    write_pairs(
        tmp_path,
        Layout("DUT-OMRON-image/DUT-OMRON-image", "DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG"),
    )
    assert [pair.stem for pair in find_pairs(tmp_path).pairs] == ["a", "b"]


def test_files_without_partner_are_skipped_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    (tmp_path / "mask" / "a.png").unlink()
    Image.new("L", SIZE).save(tmp_path / "mask" / "c.png")
    found = find_pairs(tmp_path)
    assert [pair.stem for pair in found.pairs] == ["b"]
    assert found.skipped == [
        (tmp_path / "image" / "a.jpg", "has no mask"),
        (tmp_path / "mask" / "c.png", "has no image"),
    ]


def test_a_mask_in_which_nothing_is_salient_is_kept_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    Image.new("L", SIZE, 1).save(tmp_path / "mask" / "b.png")  # of 0 and 1: all of it is salient
    found = find_pairs(tmp_path)
    assert [pair.stem for pair in found.pairs] == ["a", "b"]
    assert found.empty == [tmp_path / "mask" / "a.png"]


def test_a_truncated_photo_is_skipped_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    photo = tmp_path / "image" / "a.jpg"
    photo.write_bytes(photo.read_bytes()[:-4])
    found = find_pairs(tmp_path)
    assert [pair.stem for pair in found.pairs] == ["b"]
    [(path, reason)] = found.skipped
    assert path == photo
    assert "the JPEG image is cut short" in reason


def test_a_file_that_pillow_fails_on_in_its_own_way_is_skipped_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    photo = tmp_path / "image" / "a.jpg"
    photo.write_bytes(unknown_pixel_format())
    [(path, reason)] = find_pairs(tmp_path).skipped
    assert path == photo
    assert "the image is broken" in reason


def test_a_text_file_called_png_is_skipped_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    (tmp_path / "mask" / "b.png").write_text("not a mask")
    [(path, reason)] = find_pairs(tmp_path).skipped
    assert path == tmp_path / "mask" / "b.png"
    assert "cannot identify" in reason


def test_a_cutout_in_place_of_a_mask_is_skipped_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    cutout = tmp_path / "mask" / "a.png"
    Image.new("RGBA", SIZE, (200, 100, 50, 0)).save(cutout)
    [(path, reason)] = find_pairs(tmp_path).skipped
    assert path == cutout
    assert "is a cutout and not a mask" in reason


def test_a_mask_of_another_size_is_skipped_with_both_sizes(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    Image.new("L", (5, 4)).save(tmp_path / "mask" / "a.png")
    assert find_pairs(tmp_path).skipped == [
        (tmp_path / "mask" / "a.png", "is 5x4, its image is 6x4"),
    ]


def test_sizes_are_compared_as_displayed(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn
    Image.new("RGB", (4, 6)).save(tmp_path / "image" / "a.jpg", exif=exif)
    assert find_pairs(tmp_path).skipped == []


def test_a_second_photo_of_the_same_stem_is_skipped_and_named(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    Image.new("RGB", SIZE).save(tmp_path / "image" / "a.png")
    found = find_pairs(tmp_path)
    assert len(found.pairs) == 2
    assert found.skipped == [(tmp_path / "image" / "a.png", "has the same stem as a.jpg")]


def test_a_name_that_is_not_utf_8_is_skipped_and_named_as_it_can_be_printed(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    for file in (tmp_path / "image" / "a.jpg", tmp_path / "mask" / "a.png"):
        file.rename(file.with_name(os.fsdecode(b"\xe9" + file.suffix.encode())))
    found = find_pairs(tmp_path)
    assert len(found.pairs) == 1
    assert found.skipped == [
        (tmp_path / "image" / r"\xe9.jpg", "has a name that is not UTF-8"),
        (tmp_path / "mask" / r"\xe9.png", "has a name that is not UTF-8"),
    ]


def test_an_accent_may_be_a_letter_of_its_own(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"), ("caf\u00e9",))
    mask = tmp_path / "mask" / "caf\u00e9.png"
    mask.rename(mask.with_name("cafe\u0301.png"))
    assert [pair.stem for pair in find_pairs(tmp_path).pairs] == ["caf\u00e9"]


def test_other_files_are_ignored(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    (tmp_path / "image" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "image" / "._a.jpg").write_bytes(b"x")
    assert find_pairs(tmp_path).skipped == []


def test_a_link_to_itself_is_no_photo(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"))
    photo = tmp_path / "image" / "a.jpg"
    photo.unlink()
    photo.symlink_to(photo)
    assert find_pairs(tmp_path).skipped == [(tmp_path / "mask" / "a.png", "has no image")]


@pytest.mark.parametrize("place", [".", "image", "mask"])
def test_a_data_set_that_cannot_be_read_is_an_error_that_says_so(tmp_path, monkeypatch, place):
    write_pairs(tmp_path, Layout("image", "mask"))
    lock(tmp_path / place, monkeypatch)
    with pytest.raises(DatasetError, match=r"cannot be read: Permission denied\.$") as refused:
        find_pairs(tmp_path)
    assert str(tmp_path / place) in str(refused.value)


def test_an_unknown_layout_names_the_known_ones(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"image/ \+ mask/.*DUTS-TR-Image/ \+ DUTS-TR-Mask/"):
        find_pairs(tmp_path)


def test_a_layout_without_one_usable_pair_is_an_error_that_says_why(tmp_path):
    write_pairs(tmp_path, Layout("imgs", "gt"), ("a",))
    (tmp_path / "gt" / "a.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"layout imgs/ \+ gt/ but no usable pair: a.png cannot"):
        find_pairs(tmp_path)


def test_a_file_that_is_not_kept_is_passed_over_whatever_is_wrong_with_it(tmp_path):
    write_pairs(tmp_path, Layout("image", "mask"), ("a", "b", "c", "d"))
    (tmp_path / "image" / "b.jpg").write_bytes(b"broken")
    (tmp_path / "image" / "c.jpg").unlink()
    (tmp_path / "mask" / "d.png").unlink()
    Image.new("RGB", SIZE).save(tmp_path / "image" / "d.png")
    found = find_pairs(tmp_path, keep=lambda stem: stem == "a")
    assert [pair.stem for pair in found.pairs] == ["a"]
    assert found.skipped == []
    with pytest.raises(DatasetError, match="hold no file that is asked for"):
        find_pairs(tmp_path, keep=lambda _stem: False)


def test_empty_folders_are_an_error(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "mask").mkdir()
    with pytest.raises(DatasetError, match="its folders are empty"):
        find_pairs(tmp_path)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="is not a folder"):
        find_pairs(tmp_path / "nowhere")
