"""Open Images' CSV files, as published and as FiftyOne downloads them."""

from pathlib import Path

import pytest

from model.data.faults import DataError
from model.data.layouts.open_images import find_open_images
from tests.data_folders import picture, text

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"


def test_published_files_are_found_with_the_folders_of_their_splits(tmp_path: Path) -> None:
    for split, file in (
        ("train", "oidv6-train-annotations-bbox.csv"),
        ("validation", "validation-annotations-bbox.csv"),
    ):
        text(tmp_path / file, HEAD)
        picture(tmp_path / split / "a.jpg")
    text(tmp_path / "class-descriptions-boxable.csv", "/m/01,Cat\n")
    text(tmp_path / "train-images.csv", "ImageID,URL\n")
    found = find_open_images(tmp_path)
    assert {name: (split.images, split.listed) for name, split in found.items()} == {
        "train": (tmp_path / "train", ("a.jpg",)),
        "val": (tmp_path / "validation", ("a.jpg",)),
    }
    assert [file.name for file in found["val"].annotations] == [
        "validation-annotations-bbox.csv",
        "oidv6-train-annotations-bbox.csv",
        "class-descriptions-boxable.csv",
    ]


def test_fiftyones_folders_are_found(tmp_path: Path) -> None:
    text(tmp_path / "train" / "labels" / "detections.csv", HEAD)
    picture(tmp_path / "train" / "data" / "a.jpg")
    text(tmp_path / "train" / "metadata" / "classes.csv", "/m/01,Cat\n")
    found = find_open_images(tmp_path)["train"]
    assert (found.images, len(found.annotations)) == (tmp_path / "train" / "data", 2)


def test_datumaros_folders_are_found(tmp_path: Path) -> None:
    text(tmp_path / "annotations" / "val-annotations-bbox.csv", HEAD)
    text(tmp_path / "annotations" / "class-descriptions.csv", "/m/01,Cat\n")
    picture(tmp_path / "images" / "val" / "a.jpg")
    found = find_open_images(tmp_path)["val"]
    assert (found.images, len(found.annotations)) == (tmp_path / "images" / "val", 2)


def test_images_that_are_nowhere_are_told(tmp_path: Path) -> None:
    file = text(tmp_path / "train-annotations-bbox.csv", HEAD)
    with pytest.raises(DataError, match=f"{file}: its images are nowhere; looked in"):
        find_open_images(tmp_path)
    assert find_open_images(text(tmp_path / "other.csv", "a,b\n1,2\n")) == {}


def test_a_damaged_file_is_not_passed_over_for_another_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        picture(tmp_path / split / "1.jpg")
    text(tmp_path / "train-annotations-bbox.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\n1,/m/01,0.1,0.2,0.1,0.9\n")
    for damage in ("", "ImageID,Label"):
        text(tmp_path / "validation-annotations-bbox.csv", damage)
        with pytest.raises(
            DataError, match=r"validation-annotations-bbox\.csv: is called like the boxes of Open Images"
        ):
            find_open_images(tmp_path)
