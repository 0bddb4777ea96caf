"""COCO's JSON as exporters lay it out: where its images are."""

import re
from pathlib import Path

import pytest

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.layout import find_layout
from model.data.layouts.coco import find_coco
from tests.data_folders import coco_json, picture, text


def boxes(root: Path, split: str) -> list[list[float]]:
    """Of the images' only objects, every image being opened."""
    data = read_coco(root, split)
    return data.annotation_boxes.tolist()


@pytest.mark.parametrize(
    ("annotations", "images", "name", "split"),
    [
        ("annotations/instances_train.json", "train", "1.jpg", "train"),
        ("annotations/instances_train.json", "images/train", "1.jpg", "train"),
        ("annotations/instances_train.json", "images", "train/1.jpg", "train"),
        ("annotations/instances_default.json", "images", "1.jpg", "default"),  # CVAT
        ("annotations/instances_default.json", "images/default", "1.jpg", "default"),  # CVAT
        ("annotations/instances_valid.json", "val", "1.jpg", "valid"),
        ("train/_annotations.coco.json", "train", "1.jpg", "train"),  # Roboflow
        ("_annotations.coco.json", "", "1.jpg", "all"),  # Roboflow, without splits
        ("result.json", "", "images/1.jpg", "all"),  # Label Studio
        ("result.json", "images", "1.jpg", "all"),  # Label Studio
        ("result.json", "images", r"images\1.jpg", "all"),  # Label Studio on Windows
        ("via_project_3May2024_coco.json", "", "1.jpg", "via_project_3May2024_coco"),  # VIA
        ("labels.json", "data", "1.jpg", "all"),  # FiftyOne
        ("train/labels.json", "train/data", "1.jpg", "train"),  # FiftyOne
        ("annotations/train.json", "train", "1.jpg", "train"),
        ("annotations/coco_train2017_v2.json", "train2017", "1.jpg", "train2017"),
        ("my_photos.json", "photos", "photos/1.jpg", "my_photos"),
    ],
)
def test_an_exporters_layout_is_found(tmp_path: Path, annotations: str, images: str, name: str, split: str) -> None:
    root = tmp_path / "data"
    inner = name if images in ("", "images") and "/" in name else name.replace("\\", "/").rsplit("/", 1)[-1]
    picture(root / ("" if images == "photos" else images) / (name if images == "photos" else inner))
    coco_json(root / annotations, [name])
    splits = find_coco(root)
    assert list(splits) == [split]
    assert splits[split].annotations == (root / annotations,)
    assert read_coco(root, split, check_images=False).path(0).is_file()
    if "\\" not in name:
        assert boxes(root, split) == [[1, 2, 20, 30]]


def test_a_folder_of_images_that_two_splits_share_is_that_of_both(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg")
    picture(tmp_path / "images" / "2.jpg")
    for split, name in (("train", "1.jpg"), ("val", "2.jpg")):
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", [name])
    assert {split.images for split in find_coco(tmp_path).values()} == {tmp_path / "images"}


def test_names_decide_between_two_folders(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "other.jpg")
    picture(tmp_path / "images" / "1.jpg")
    coco_json(tmp_path / "annotations" / "train.json", ["1.jpg"])
    assert find_coco(tmp_path)["train"].images == tmp_path / "images"


def test_files_of_another_task_or_form_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "train2017" / "1.jpg")
    for kind in ("instances", "captions", "person_keypoints"):
        coco_json(tmp_path / "annotations" / f"{kind}_train2017.json", ["1.jpg"])
    text(tmp_path / "config.json", '{"images": 3, "annotations": "none"}')
    text(tmp_path / "results.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4]}]')
    text(tmp_path / "empty.json")
    assert list(find_coco(tmp_path)) == ["train2017"]
    (tmp_path / "annotations" / "instances_train2017.json").unlink()
    keypoints = tmp_path / "annotations" / "person_keypoints_train2017.json"
    assert find_coco(tmp_path)["train2017"].annotations == (keypoints,)
    keypoints.unlink()
    assert find_coco(tmp_path) == {}


@pytest.mark.parametrize(
    ("named", "slip", "splits"),
    [
        ("val", "instance_train.json", ["val", "train"]),
        ("val2017", "train2017_v2.json", ["val2017", "train2017"]),
        ("train", "train_small.json", ["train"]),  # of a split that is there
        ("val", "person_keypoints_train.json", ["val"]),
    ],
)
def test_a_slip_in_a_files_name_does_not_hide_its_split(
    tmp_path: Path, named: str, slip: str, splits: list[str]
) -> None:
    picture(tmp_path / "images" / "1.jpg")
    for name in (f"instances_{named}.json", slip):
        coco_json(tmp_path / "annotations" / name, ["1.jpg"])
    text(tmp_path / "annotations" / "test_log.json", '{"loss": 1}')
    assert list(find_coco(tmp_path)) == splits


def test_a_json_file_for_each_image_is_not_coco(tmp_path: Path) -> None:
    for place in range(51):
        coco_json(tmp_path / f"{place}.json", [f"{place}.jpg"])
    assert find_coco(tmp_path) == {}


def test_images_that_are_nowhere_are_told_with_the_places_looked_at(tmp_path: Path) -> None:
    file = coco_json(tmp_path / "photos.json", ["/home/else/1.jpg"])
    with pytest.raises(DataError) as error:
        find_coco(tmp_path)
    assert f"{file}: its images are nowhere (the first is '/home/else/1.jpg'); looked in {tmp_path}" in str(error.value)


def test_a_name_with_folders_of_another_machine_is_looked_for_by_its_end(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg")
    coco_json(tmp_path / "photos.json", ["/home/else/1.jpg"])
    assert find_coco(tmp_path)["photos"].images == tmp_path / "images"


@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
@pytest.mark.parametrize("folder", ["images", "imgs"])
@pytest.mark.parametrize(
    "form", ["{root}/{folder}/{name}", "{root}/{folder}/cam1/{name}", "/home/else/{folder}/{name}", "{name}"]
)
def test_images_are_found_in_a_folder_of_any_name_however_they_are_named(
    tmp_path: Path, splits: tuple[str, ...], folder: str, form: str
) -> None:
    for split in splits:
        name = form.format(root=tmp_path, folder=folder, name=f"{split}.jpg")
        file = picture(tmp_path / folder / name.rpartition(f"{folder}/")[2])
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", [name])
        assert read_coco(tmp_path, split).path(0) == file


@pytest.mark.parametrize("splits", [("all",), ("train", "val")])
def test_images_are_found_where_the_first_ones_are_lost(tmp_path: Path, splits: tuple[str, ...]) -> None:
    names = [f"{place}.jpg" for place in range(30)]
    for name in names[6:]:
        picture(tmp_path / "images" / name)
    for split in splits:
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", names)
    assert read_coco(tmp_path, splits[0], faults="quarantine").file_names == names[6:]


def test_images_outside_of_the_data_folder_are_not_taken(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg")
    coco_json(tmp_path / "data" / "photos.json", ["1.jpg"])
    with pytest.raises(DataError, match="its images are nowhere"):
        find_coco(tmp_path / "data")
    # A file in annotations/ stands for the folder that holds both.
    coco_json(tmp_path / "annotations" / "photos.json", ["1.jpg"])
    found = find_coco(tmp_path / "annotations" / "photos.json")
    assert found["photos"].images == tmp_path / "images"


WHOLE = '{"images": [{"id": 1, "file_name": "1.jpg", "height": 60, "width": 80}], "annotations": [], "categories": []}'


@pytest.mark.parametrize("damage", [WHOLE[:40], "", "version https://git-lfs.github.com/spec/v1", "<html>404</html>"])
@pytest.mark.parametrize(
    "files",
    [
        ("annotations/instances_train.json", "annotations/instances_val.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("train.json", "val.json"),
    ],
)
def test_a_damaged_file_is_not_passed_over_for_the_shares_of_another(
    tmp_path: Path, files: tuple[str, str], damage: str
) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "1.jpg")
    sound, damaged = (tmp_path / file for file in files)
    for one, other in ((sound, damaged), (damaged, sound)):
        coco_json(one, ["1.jpg"])
        text(other, damage)
        assert {split.share for split in find_layout(tmp_path).splits.values()} == {None}
        split = next(name for name, found in find_coco(tmp_path).items() if found.annotations == (other,))
        with pytest.raises(DataError, match=f"{re.escape(str(other))}: not JSON"):
            read_coco(tmp_path, split)


def test_a_file_called_like_a_split_that_is_no_coco_is_told_of(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    coco_json(tmp_path / "train.json", ["1.jpg"])
    text(tmp_path / "val.json", '{"file": "1.jpg"}\n{"file": "2.jpg"}\n')
    assert find_coco(tmp_path)["train"].notes == (
        f"{tmp_path / 'val.json'}: is not COCO, whose lists are 'images' and 'annotations': left out",
    )


def test_a_damaged_log_of_another_kind_does_not_stand_for_a_split(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    text(tmp_path / "train_log.json")
    assert find_coco(tmp_path) == {}
    coco_json(tmp_path / "train.json", ["1.jpg"])
    assert list(find_coco(tmp_path)) == ["train"]


def test_images_in_folders_that_one_file_does_not_name_are_found(tmp_path: Path) -> None:
    for split, name in (("first", "1.jpg"), ("second", "2.jpg")):
        picture(tmp_path / split / name)
    coco_json(tmp_path / "annotations.json", ["1.jpg", "2.jpg"])
    assert read_coco(tmp_path, "all").file_names == ["first/1.jpg", "second/2.jpg"]


def test_masks_of_the_same_names_are_not_taken_for_images(tmp_path: Path) -> None:
    for folder in ("depth", "images", "masks"):
        picture(tmp_path / folder / "1.jpg")
    file = coco_json(tmp_path / "annotations.json", ["1.jpg"])
    assert find_coco(tmp_path)["all"].images == tmp_path / "images"
    file.rename(tmp_path / "train.json")
    for folder in ("train_depth", "train_images"):
        picture(tmp_path / folder / "1.jpg")
    with pytest.raises(
        DataError, match=r"its images may be those of .*train_depth or .*train_images or .*images, which have"
    ):
        find_coco(tmp_path)
    picture(tmp_path / "train" / "1.jpg")
    assert find_coco(tmp_path)["train"].images == tmp_path / "train"
