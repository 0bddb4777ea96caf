"""Data written in another format and read again: the same boxes, and what each format cannot say."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.testing import assert_close

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.formats.convert import Written, convert
from model.data.formats.writing import write_coco
from model.data.images import load_sample
from model.data.split import CocoData
from tests.conftest import MakeCoco
from tests.data_folders import coco_json, picture

BOXES = [[10.25, 20.1, 30.3, 15.7], [0, 0, 80, 60], [79, 59, 1, 1]]
ROWS: list[dict[str, Any]] = [
    {"id": 7, "image_id": 2, "category_id": 8, "bbox": BOXES[0]},
    {"id": 8, "image_id": 2, "category_id": 3, "bbox": BOXES[1], "area": 100.5},
    {"id": 9, "image_id": 3, "category_id": 8, "bbox": BOXES[2], "iscrowd": 1},
]


@pytest.fixture
def source(make_coco: MakeCoco) -> Path:
    """Splits train, of three images, and val, of one of the same name."""
    root = make_coco(ROWS, sizes=[(60, 80)] * 3)
    picture(root / "val" / "1.jpg")
    categories = [{"id": 8, "name": "cat: a"}, {"id": 3, "name": "dog"}]
    coco_json(root / "annotations" / "instances_val.json", ["1.jpg"], categories=categories, annotations=[])
    file = root / "annotations" / "instances_train.json"
    file.write_text(file.read_text().replace('"cat"', '"cat: a"'))
    return root


def converted(source: Path, out: Path, form: Written, **options: Any) -> list[str]:
    said: list[str] = []
    convert(source, out, form, said.append, **options)
    return said


def names(data: CocoData) -> list[str]:
    return [name.rsplit("/", 1)[-1] for name in data.file_names]


def test_coco_comes_back_whole(source: Path, tmp_path: Path) -> None:
    said = converted(source, tmp_path / "out", "coco")
    assert said == ["train: 3 images, 3 boxes", "val: 1 images, 0 boxes"]
    for split in ("train", "val"):
        before, after = read_coco(source, split), read_coco(tmp_path / "out", split)
        assert after.fingerprint == before.fingerprint
    assert after.folder == tmp_path / "out" / "val"


@pytest.mark.parametrize("form", ["coco", "yolo", "voc"])
def test_names_that_lead_into_another_folder_of_the_data_are_written_below_it(tmp_path: Path, form: Written) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for split in ("train", "val"):
        picture(root / "images" / f"{split}.jpg")
        coco_json(root / "annotations" / f"{split}.json", [f"../images/{split}.jpg"])
    converted(root, out, form)
    for split in ("train", "val"):
        before, after = read_coco(root, split), read_coco(out, split)
        assert names(after) == names(before) == [f"{split}.jpg"]
        np.testing.assert_allclose(after.annotation_boxes, before.annotation_boxes, atol=1e-9, rtol=0)


def test_what_is_written_is_open_to_whom_the_umask_says(source: Path, tmp_path: Path) -> None:
    for mask, mode in ((0o002, 0o775), (0o077, 0o700)):
        before = os.umask(mask)
        try:
            converted(source, tmp_path / f"{mode:o}", "coco")
        finally:
            os.umask(before)
        assert (tmp_path / f"{mode:o}").stat().st_mode & 0o777 == mode
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_yolo_and_back_gives_the_same_boxes_less_crowds(source: Path, tmp_path: Path) -> None:
    said = converted(source, tmp_path / "yolo", "yolo")
    assert "train: 1 crowds are left out, which YOLO cannot tell from objects" in said
    converted(tmp_path / "yolo" / "data.yaml", tmp_path / "coco", "coco")
    before = read_coco(source, "train")
    for root in (tmp_path / "yolo", tmp_path / "coco"):
        after = read_coco(root, "train")
        np.testing.assert_allclose(after.annotation_boxes, before.annotation_boxes[:2], atol=1e-9, rtol=0)
        assert after.annotation_labels.tolist() == before.annotation_labels[:2].tolist() == [1, 0]
        assert (after.category_names, names(after)) == (("dog", "cat: a"), ["1.jpg", "2.jpg", "3.jpg"])
        np.testing.assert_allclose(after.annotation_areas, [30.3 * 15.7, 4800])  # of the mask, 100.5, nothing is left
    assert (tmp_path / "yolo" / "labels" / "train" / "1.txt").read_text() == ""
    assert (tmp_path / "yolo" / "labels" / "train" / "2.txt").read_text() == (
        # (10.25 + 30.3 / 2) / 80, (20.1 + 15.7 / 2) / 60, 30.3 / 80, 15.7 / 60
        "1 0.3175 0.465833333333 0.37875 0.261666666667\n0 0.5 0.5 1 1\n"
    )


def test_voc_and_back_gives_the_same_boxes_and_crowds(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class 'cat: a' cannot be written to a line of labelmap\.txt"):
        converted(source, tmp_path / "voc", "voc")
    assert not (tmp_path / "voc").exists()
    for file in (source / "annotations").iterdir():
        file.write_text(file.read_text().replace("cat: a", "<cat> & co"))
    said = converted(source, tmp_path / "voc", "voc")
    assert said[2:] == [
        "ids and the areas of masks are not part of the format",
        "crowds are marked as difficult objects",
    ]
    converted(tmp_path / "voc", tmp_path / "coco", "coco")
    before = read_coco(source, "train")
    for root in (tmp_path / "voc", tmp_path / "coco"):
        after = read_coco(root, "train")
        np.testing.assert_allclose(after.annotation_boxes, before.annotation_boxes, atol=1e-9, rtol=0)
        assert after.annotation_labels.tolist() == before.annotation_labels.tolist()
        assert after.annotation_crowds.tolist() == [False, False, True]
        assert (after.category_names, names(after)) == (("dog", "<cat> & co"), ["1.jpg", "2.jpg", "3.jpg"])
        assert len(read_coco(root, "val")) == 1


@pytest.mark.parametrize("name", ["background", "# hash", "bell\x07", "two\u2028lines", "next\x85line"])
def test_a_class_that_a_format_would_lose_is_refused_or_comes_back(source: Path, tmp_path: Path, name: str) -> None:
    for file in (source / "annotations").iterdir():
        file.write_text(file.read_text().replace('"cat: a"', json.dumps(name)))
    with pytest.raises(DataError, match=re.escape(f"class {name!r} cannot be written to a line of labelmap.txt")):
        converted(source, tmp_path / "voc", "voc")
    converted(source, tmp_path / "yolo", "yolo")
    assert read_coco(tmp_path / "yolo", "train").category_names == ("dog", name)


def test_images_are_the_same_files_unless_copied(source: Path, tmp_path: Path) -> None:
    image = source / "train" / "1.jpg"
    converted(source, tmp_path / "linked", "yolo")
    converted(source, tmp_path / "copied", "yolo", copy=True)
    linked, copied = (tmp_path / folder / "images" / "train" / "1.jpg" for folder in ("linked", "copied"))
    assert os.path.samefile(image, linked)
    assert not os.path.samefile(image, copied) and copied.read_bytes() == image.read_bytes()


def test_where_links_are_impossible_images_are_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    converted(source, tmp_path / "out", "coco")
    assert len(read_coco(tmp_path / "out", "train")) == 3


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match=f"{out}: exists already, and nothing is overwritten; name another folder"):
        converted(source, out, "coco")
    assert (out / "mine.txt").read_text() == "kept"
    (source / "train" / "1.jpg").unlink()
    with pytest.raises(DataError, match="images missing"):
        converted(source, tmp_path / "other", "coco")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"annotations", "out", "train", "val"}


def test_images_that_yolos_readers_would_turn_are_written_as_their_boxes_lie(
    make_coco: MakeCoco, tmp_path: Path
) -> None:
    boxes = [{"id": id, "image_id": id, "category_id": 3, "bbox": [1, 2, 20, 10], "area": 200} for id in (1, 2, 3)]
    sizes = [(60, 80), (80, 60), (60, 80)]  # stored are 60 x 80: the second is annotated as people see it
    root = make_coco(boxes, sizes=sizes)
    picture(root / "val" / "1.jpg")
    categories = [{"id": 8, "name": "cat"}, {"id": 3, "name": "dog"}]
    coco_json(root / "annotations" / "instances_val.json", ["1.jpg"], categories=categories, annotations=[])
    exif = Image.Exif()
    exif[0x0112] = 6
    for id in (1, 2):
        Image.new("RGB", (80, 60), (id, 0, 0)).save(root / "train" / f"{id}.jpg", exif=exif)
    told: list[str] = []
    convert(root, tmp_path / "yolo", "yolo", told.append)
    assert any(text.startswith("train: 1 images were written anew, without the EXIF orientation") for text in told)
    data, before = read_coco(tmp_path / "yolo", "train"), read_coco(root, "train")
    for index in range(3):
        old, new = (load_sample(one, index, 60, 80, flip=False) for one in (before, data))
        assert new.size == old.size and (new.image.int() - old.image.int()).abs().max() <= 2
        assert_close(new.boxes, old.boxes)


def test_data_of_one_split_are_written_as_train_and_val(tmp_path: Path) -> None:
    names = [f"{place}.jpg" for place in range(10)]
    for name in names:
        picture(tmp_path / "data" / "images" / name)
    coco_json(tmp_path / "data" / "photos.json", names)
    for form in ("coco", "yolo", "voc"):
        converted(tmp_path / "data", tmp_path / form, form)
        assert [len(read_coco(tmp_path / form, split)) for split in ("train", "val")] == [8, 2]


def test_what_a_format_cannot_hold_is_refused(make_coco: MakeCoco, tmp_path: Path) -> None:
    images = [{"id": id, "file_name": f"a.{kind}", "height": 60, "width": 80} for id, kind in ((1, "jpg"), (2, "png"))]
    root = make_coco(images=images)
    picture(root / "val" / "1.jpg")
    categories = [{"id": 8, "name": "cat"}, {"id": 3, "name": "dog"}]
    val = coco_json(root / "annotations" / "instances_val.json", ["1.jpg"], categories=categories, annotations=[])
    for form in ("yolo", "voc"):
        with pytest.raises(DataError, match=r"a\.jpg and a\.png would share one label file; rename either"):
            converted(root, tmp_path / "out", form)
    val.rename(root / "annotations" / "instances_train.json")
    picture(root / "train" / "1.jpg")
    coco_json(root / "annotations" / "instances_valid.json", ["1.jpg"])
    with pytest.raises(DataError, match="its splits have different categories"):
        converted(root, tmp_path / "out", "coco")


def test_no_writer_leaves_its_folder(source: Path, tmp_path: Path) -> None:
    data = replace(read_coco(source, "val"), names=np.array([b"../1.jpg"]))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"image \.\./1\.jpg leads out of its folder"):
        write_coco(tmp_path / "out", {"val": data}, lambda *_: None)


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_photographs_come_back_with_the_same_boxes(photos_root: Path, tmp_path: Path, form: Written) -> None:
    source = photos_root / "aquarium"
    converted(source, tmp_path / form, form, copy=True)
    for split, num_boxes in (("train", 3323), ("val", 909)):
        before, after = read_coco(source, split), read_coco(tmp_path / form, split)
        assert len(after.annotation_boxes) == num_boxes
        np.testing.assert_allclose(after.annotation_boxes, before.annotation_boxes, atol=1e-9, rtol=0)
        # The file's areas have two decimals.
        np.testing.assert_allclose(after.annotation_areas, before.annotation_areas, atol=0.0051, rtol=0)
        assert np.array_equal(after.annotation_labels, before.annotation_labels)
        assert np.array_equal(after.sizes, before.sizes)
        assert (names(after), after.category_names) == (before.file_names, before.category_names)


def test_names_that_readers_would_lose_are_refused_or_written_where_they_look(tmp_path: Path) -> None:
    root = tmp_path / "data"
    shown = ["images/1.jpg", "x/images/2.jpg", "3.jpg"]
    for split in ("train", "val"):
        for name in shown:
            picture(root / split / name)
        coco_json(root / "annotations" / f"instances_{split}.json", shown)
    forms: tuple[Written, ...] = ("coco", "yolo", "voc")
    for form in forms:
        converted(root, tmp_path / form, form)
        data = read_coco(tmp_path / form, "train")
        assert_close(sorted(data.annotation_boxes[:, 0].tolist()), [1.0, 2.0, 3.0])
    # A file without suffix, one that is hidden, and one of two images: labels of none would be found.
    picture(root / "train" / "1.jpg").rename(root / "train" / "1")
    picture(root / "train" / ".2.jpg")
    for names, told in (
        (["1"], "1 would be passed over"),
        ([".2.jpg"], "2.jpg would be"),
        (["3.jpg"] * 2, "3.jpg, and"),
    ):
        coco_json(root / "annotations" / "instances_train.json", names)
        converted(root, tmp_path / f"of-{told[0]}", "coco")
        with pytest.raises(DataError, match=told):
            converted(root, tmp_path / "out", "yolo")
    for split in ("train", "val"):
        coco_json(
            root / "annotations" / f"instances_{split}.json",
            ["3.jpg"],
            categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}],
        )
    with pytest.raises(DataError, match="class 'cat' is listed twice, which VOC would join"):
        converted(root, tmp_path / "out", "voc")
