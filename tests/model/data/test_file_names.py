"""Images under names as other systems and tools write them: the evident file is read and told, no other ever."""

import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data import file_names
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.images import load_sample
from model.data.split import CocoData
from tests.data_folders import text

Make = Callable[[Sequence[str], Sequence[str]], Path]
NFD = unicodedata.normalize("NFD", "Möwe.jpg")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that writes a data set whose annotations name some files, while others lie in its folder."""

    def write(names: Sequence[str], files: Sequence[str]) -> Path:
        root = tmp_path / "data"
        for place, file in enumerate(files):
            path = root / "train" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((60, 80, 3), place, dtype=np.uint8)).save(path, "jpeg")
        images = [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names, 1)]
        rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 40]} for i in range(1, len(names) + 1)]
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
        return root

    return write


def read(root: Path) -> CocoData:
    return read_coco(root, "train")


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(root)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sub\\im0.jpg", "im0.jpg"),
        ("sub\\im0.jpg", "sub/im0.jpg"),
        ("C:\\Users\\me\\export\\im0.jpg", "im0.jpg"),
        ("\\\\server\\share\\im0.jpg", "im0.jpg"),
        ("im%200.jpg", "im 0.jpg"),
        ("im 0.jpg", "im%200.jpg"),
        ("M%C3%B6we.jpg", "Möwe.jpg"),
        ("Möwe.jpg", NFD),
        (NFD, "Möwe.jpg"),
        ("images/im0.jpg", "im0.jpg"),
        ("train/images/im0.jpg", "images/im0.jpg"),
        ("im0.jpg", "images/im0.jpg"),
        ("/data/export/im0.jpg", "im0.jpg"),
        ("/data/export/im0.jpg", "images/im0.jpg"),
        ("https://example.org/a/b/im0.jpg?X-Key=a/b&v=1#x", "images/im0.jpg"),
        ("file:///home/me/im%200.jpg", "im 0.jpg"),
        ("s3://bucket/set/im0.jpg", "im0.jpg"),
        ("http://[no-host/im0.jpg", "im0.jpg"),
        ("../im0.jpg", "im0.jpg"),
        ("../../train/im0.jpg", "im0.jpg"),
        ("IM0.JPG", "im0.jpg"),
        ("Images/IM0.jpg", "images/im0.JPG"),
        ("im0.png", "im0.jpg"),
        ("im0", "im0.jpeg"),
        (" im0.jpg", "im0.jpg"),
    ],
)
def test_the_evident_file_is_read_and_told(make: Make, name: str, file: str) -> None:
    data = read(make([name, "other.jpg"], [file, "other.jpg"]))
    assert data.file_names == [file, "other.jpg"]
    assert load_sample(data, 0, 60, 80, False).image.max() <= 2
    (note,) = data.notes
    assert note == (
        f"1 of 2 images lie under other names than the annotations have, and were found in {data.folder}: such as "
        f"{name!r} at {file!r}"
    )


@pytest.mark.parametrize(
    "name", ["im0.jpg", "./im0.jpg", "sub/../im0.jpg", "../train/im0.jpg", "im%200.jpg", "a\\b.jpg"]
)
def test_a_name_that_is_a_file_as_it_is_written_is_left_alone(make: Make, name: str) -> None:
    root = make([name], ["sub/x.jpg", name])
    data = read(root)
    assert (data.file_names, data.notes) == ([name], ())


def test_a_file_of_another_folder_of_the_data_is_read_where_the_name_leads_there(make: Make) -> None:
    root = make(["../images/im0.jpg"], ["../images/im0.jpg", "im1.jpg"])
    assert read(root).file_names == ["../images/im0.jpg"]


@pytest.mark.parametrize("form", ["{folder}/secret.jpg", "../../outside/secret.jpg", "./../../outside/secret.jpg"])
def test_no_file_outside_the_data_folder_is_ever_read(make: Make, tmp_path: Path, form: str) -> None:
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "outside" / "secret.jpg")
    name = form.format(folder=tmp_path / "outside")
    message = refused(make([name], ["im0.jpg"]))
    folder = tmp_path / "data" / "train"
    assert f"images missing (1): image 1 ({name}, looked for in {folder}; the name leads out of the data" in message
    with pytest.raises(DataError, match="the name leads out of the data folder, where no file is read"):
        read_coco(tmp_path / "data", "train", check_images=False)
    with pytest.raises(DataError, match="no image is left of 1"):
        read_coco(tmp_path / "data", "train", faults="quarantine")


def test_columns_that_nobody_checked_open_no_file_outside(make: Make) -> None:
    data = read(make(["im0.jpg"], ["im0.jpg"]))
    for name in (b"../../outside/secret.jpg", b"/etc/passwd", b".."):
        with pytest.raises(DataError, match=r"image 1: .* leads out of .*; mend its name"):
            replace(data, names=np.array([name])).path(0)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["x/im0.jpg"], ["a/im0.jpg", "b/im0.jpg"]),  # which of both?
        (["/x/im0.jpg"], ["a/im0.jpg", "b/im0.jpg"]),
        (["a/im0.jpg"], ["b/im0.jpg"]),  # another folder's image of this name
        (["a/im0.jpg", "b/im0.jpg"], ["im0.jpg"]),  # one file is not two images
        (["/x/a/im0.jpg", "/x/b/im0.jpg"], ["im0.jpg"]),
        (["im0.png", "im0.jpg"], ["im0.jpg"]),  # another image's file
        (["IM0.jpg"], ["im0.jpg", "Im0.jpg"]),
        (["im0.png"], ["im0.jpg", "im0.webp"]),
        (["im0.jpg", "im1.jpg"], ["im0.png", "im1.jpg"]),  # a mask
        (["/x/im0.jpg", "/x/im1.jpg"], ["im0.png", "im1.jpg"]),
        (["/x/a/im0.jpg", "/x/b/im1.jpg"], ["b/im0.jpg", "b/im1.jpg", "a/im2.jpg"]),  # a frame of another camera
        (["/x/a/im0.jpg", "/x/b/im1.jpg"], ["b/im0.jpg", "b/im1.jpg"]),  # also where no frame of its own is left
        (["a/im0.jpg", "b/im1.jpg"], ["im0.jpg", "b/im1.jpg", "a/im2.jpg"]),
        (["/x/s/a/im0.jpg", "/x/t/a/im1.jpg"], ["t/a/im0.jpg", "t/a/im1.jpg", "s/a/im2.jpg"]),
    ],
)
def test_a_file_that_is_not_the_evident_one_is_a_hint_and_not_read(
    make: Make, names: list[str], files: list[str]
) -> None:
    message = refused(make(names, files))
    assert f"image 1 ({names[0]}, looked for in " in message
    assert "; there is " in message


def test_the_right_one_of_several_files_is_told_by_its_folders(make: Make) -> None:
    names = ["/export/a/im0.jpg", "/export/b/im0.jpg"]
    assert read(make(names, ["b/im0.jpg", "a/im0.jpg"])).file_names == ["a/im0.jpg", "b/im0.jpg"]


def test_a_lost_frame_takes_none_of_another_folder_along(make: Make) -> None:
    root = make(["/x/a/im0.jpg", "/x/b/im0.jpg"], ["a/im0.jpg", "b/im1.jpg"])
    for _ in range(2):
        data = read_coco(root, "train", faults="quarantine")
        assert (data.file_names, [fault.image_id for fault in data.faults]) == (["a/im0.jpg"], [2])
        shutil.rmtree(root / "train" / "b", ignore_errors=True)


def test_a_set_that_was_converted_to_another_kind_of_image_is_found(make: Make) -> None:
    root = make(["im0.jpg", "im1.jpg", "im2.png"], ["im0.png", "im1.png", "im2.png"])
    assert read(root).file_names == ["im0.png", "im1.png", "im2.png"]


def test_the_work_for_each_image_does_not_grow_with_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def as_written(part: str) -> str:
        compared.append(part)
        return part

    monkeypatch.setattr(file_names, "_LEVELS", (as_written,))

    def work(num_folders: int) -> float:
        frames = [f"seq{place}/{frame}.jpg" for place in range(num_folders) for frame in range(5)]
        for frame in frames:
            text(tmp_path / frame)
        compared.clear()
        assert len(file_names.find_renamed(tmp_path, tmp_path, [f"/x/{frame}" for frame in frames]).names) == len(
            frames
        )
        return len(compared) / len(frames)

    assert work(4) >= work(16)


def test_a_missing_name_is_told_whole_with_the_nearest_file_that_no_other_image_has(make: Make) -> None:
    root = make(["cam1/frame_0001.jpg", "cam1/frame_0002.jpg"], ["cam1/frame_0001.jpg", "frame-0002_final.jpg"])
    folder = root / "train"
    assert refused(root).splitlines()[1] == (
        f"  images missing (1): image 2 (cam1/frame_0002.jpg, looked for in {folder}; the nearest is "
        f"{folder / 'frame-0002_final.jpg'})"
    )


def test_a_missing_file_in_another_folder_of_the_data_is_named(make: Make) -> None:
    root = make(["im0.jpg"], ["im1.jpg", "../val/im0.jpg"])
    assert f"; there is {root / 'val' / 'im0.jpg'})" in refused(root)


def test_a_file_on_the_disk_that_is_no_utf8_is_passed_over(make: Make) -> None:
    root = make(["café.jpg"], ["im1.jpg"])
    try:
        Image.new("RGB", (80, 60)).save(os.fsdecode(os.fsencode(root / "train") + b"/caf\xe9.jpg"))
    except OSError:
        pytest.skip("this disk takes no such name")
    message = refused(root)
    assert "image 1 (café.jpg, looked for in" in message
    message.encode()  # can be printed


def test_a_quarantine_leaves_out_only_what_is_not_found(make: Make) -> None:
    root = make(["IM0.jpg", "gone.jpg"], ["im0.jpg"])
    data = read_coco(root, "train", faults="quarantine")
    assert data.file_names == ["im0.jpg"]
    assert [fault.image_id for fault in data.faults] == [2]
    assert len(data.notes) == 1


def test_what_is_found_follows_the_disk_although_the_annotations_are_cached(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    root = make(["IM0.jpg", "im1.jpg"], ["im0.jpg", "im1.jpg"])
    then = time.time() - 60
    os.utime(root / "annotations" / "instances_train.json", (then, then))
    for _ in range(2):
        data = read(root)
        assert data.file is not None
        assert data.file_names == ["im0.jpg", "im1.jpg"]
    fingerprint = data.fingerprint
    (root / "train" / "im0.jpg").rename(root / "train" / "IM0.jpg")
    data = read(root)
    assert (data.file_names, data.notes) == (["IM0.jpg", "im1.jpg"], ())
    assert data.fingerprint != fingerprint
    (root / "train" / "IM0.jpg").rename(root / "train" / "IM0.JPEG")
    assert read_coco(root, "train", check_images=False).file_names == ["IM0.JPEG", "im1.jpg"]
    (root / "train" / "IM0.JPEG").unlink()
    assert "image 1 (IM0.jpg, looked for in" in refused(root)


def test_a_file_that_several_images_name_is_told(make: Make) -> None:
    (note,) = read(make(["im0.jpg", "im1.jpg", "im0.jpg"], ["im0.jpg", "im1.jpg"])).notes
    assert note == "files that several images name, each with objects of its own: im0.jpg"
