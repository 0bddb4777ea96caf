"""Label files of YOLO to boxes in pixels; images are 80 wide and 60 high, and boxes are worked out by hand."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.annotations import Tables
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.files.decoding import upright
from model.data.formats.reading import read_split
from model.data.images import load_sample
from model.data.layout import split_files
from tests.data_folders import picture, text

NAMES = "names: [cat, dog]\n"


def data_set(root: Path, *labels: str | None, yaml: str = NAMES) -> Path:
    """Images 1.jpg, 2.jpg, ... with these label files; None has none."""
    text(root / "data.yaml", "train: images\n" + yaml)
    for place, lines in enumerate(labels, start=1):
        picture(root / "images" / f"{place}.jpg")
        if lines is not None:
            text(root / "labels" / f"{place}.txt", lines)
    return root


def read(root: Path) -> Tables:
    return read_split(split_files(root, "train"))


def message(root: Path) -> str:
    with pytest.raises(DataError) as error:
        read_coco(root, "train")
    return str(error.value)


def test_centre_boxes_in_fractions_become_pixels(tmp_path: Path) -> None:
    tables = read(data_set(tmp_path, "1 0.5 0.5 0.25 0.5\n0 0.125 0.1 0.25 0.2\n", "", "0 0.75 0.75 0.5 0.5"))
    assert tables.annotations.boxes.tolist() == [
        [30, 15, 20, 30],  # 80 * (0.5 - 0.125), 60 * (0.5 - 0.25), 80 * 0.25, 60 * 0.5
        [0, 0, 20, 12],
        [40, 30, 40, 30],
    ]
    assert tables.annotations.areas.tolist() == [600, 240, 1200]
    assert tables.annotations.category_ids.tolist() == [1, 0, 0]
    assert tables.annotations.image_ids.tolist() == [1, 1, 3]
    assert tables.annotations.ids.tolist() == [1, 2, 3]
    assert not tables.annotations.crowds.any()
    assert (tables.images.ids.tolist(), tables.images.names) == ([1, 2, 3], ["1.jpg", "2.jpg", "3.jpg"])
    assert tables.images.sizes.tolist() == [[60, 80]] * 3
    assert (tables.categories, tables.notes) == ({0: "cat", 1: "dog"}, ())


def test_what_is_read_reaches_a_training(tmp_path: Path) -> None:
    data = read_coco(data_set(tmp_path, "1 0.5 0.5 0.25 0.5\n"), "train")
    assert (data.boxes(0).tolist(), data.labels(0).tolist()) == ([[30, 15, 50, 45]], [1])


def test_an_image_without_label_file_has_no_objects_and_is_told_of(tmp_path: Path) -> None:
    tables = read(data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n", None))
    assert tables.annotations.image_ids.tolist() == [1]
    assert tables.notes == ("1 of 2 images have no label file: they have no objects",)


def test_polygons_and_oriented_boxes_become_the_boxes_around_them(tmp_path: Path) -> None:
    triangle, turned = "0 0.25 0.5 0.5 0.25 0.75 0.5\n", "1 0.5 0.2 0.75 0.5 0.5 0.8 0.25 0.5\n"
    tables = read(data_set(tmp_path, triangle + turned))
    np.testing.assert_allclose(tables.annotations.boxes, [[20, 15, 40, 15], [20, 12, 40, 36]], atol=1e-12)
    assert tables.notes == (
        "1 polygons are read as the boxes around them",
        "1 shapes of four corners (oriented boxes) are read as the upright boxes around them",
    )


def test_of_a_pose_the_box_is_read(tmp_path: Path) -> None:
    line = "0 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2\n"
    tables = read(data_set(tmp_path, line, yaml="kpt_shape: [2, 3]\n" + NAMES))
    assert tables.annotations.boxes.tolist() == [[20, 15, 40, 30]]
    # Without kpt_shape the same numbers are five corners.
    assert read(data_set(tmp_path, line)).annotations.boxes.tolist() != [[20, 15, 40, 30]]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("0.93", "1 lines end in a sixth number, which is taken for a confidence and ignored"),
        ("0.93 2", "1 lines end in a confidence and the number of a tracked object, which are ignored"),
    ],
)
def test_what_follows_a_box_is_told_of(tmp_path: Path, end: str, told: str) -> None:
    tables = read(data_set(tmp_path, f"0 0.5 0.5 0.5 0.5 {end}\n"))
    assert tables.annotations.boxes.tolist() == [[20, 15, 40, 30]]
    assert tables.notes == (told,)


def test_the_first_tracked_object_is_no_triangle_where_others_are_tracked(tmp_path: Path) -> None:
    first = "0 0.5 0.5 0.5 0.5 0.9 1\n"
    alone = read(data_set(tmp_path, first))
    np.testing.assert_allclose(alone.annotations.boxes, [[40, 30, 0.4 * 80, 30]])  # corners at 0.5 to 0.9, 0.5 to 1
    tables = read(data_set(tmp_path, first, "0 0.5 0.5 0.5 0.5 0.9 2\n"))
    assert tables.annotations.boxes.tolist() == [[20, 15, 40, 30]] * 2
    assert tables.notes == ("2 lines end in a confidence and the number of a tracked object, which are ignored",)


@pytest.mark.parametrize("end", ["1.5708", "90", "-0.5", "nan"])
def test_an_angle_is_not_taken_for_a_confidence(tmp_path: Path, end: str) -> None:
    said = message(data_set(tmp_path, f"0 0.5 0.5 0.5 0.5 {end}\n"))
    assert "whose sixth number is no confidence from 0 to 1; if it is an angle" in said


def test_class_numbers_may_be_decimals_and_files_may_come_from_windows(tmp_path: Path) -> None:
    root = data_set(tmp_path, "1.0 0.5 0.5 0.5 0.5\r\n\r\n")
    file = root / "labels" / "1.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(root).annotations.category_ids.tolist() == [1]


@pytest.mark.parametrize(
    "line",
    ["cat 0.5 0.5 0.5 0.5", "0 0.5 0.5 0.5", "0,0.5,0.5,0.5,0.5", "-1 0 0 1 1", "0.5 0 0 1 1", "0 1 2 3 4 5 6 7"],
)
def test_a_line_that_is_none_of_yolos_is_named(tmp_path: Path, line: str) -> None:
    said = message(data_set(tmp_path, f"0 0.5 0.5 0.5 0.5\n{line}\n"))
    assert f"{tmp_path}/labels/1.txt: line 2 is {line!r}, expected a class number from 0 and a box" in said


def test_a_class_beyond_the_names_is_a_fault_of_its_line(tmp_path: Path) -> None:
    said = message(data_set(tmp_path, "1 0.5 0.5 0.5 0.5\n\n2 0.5 0.5 0.5 0.5\n"))
    where = f"{tmp_path}/labels/1.txt, line 3"
    assert f"annotations of unknown categories (1): annotation 2 (image 1, category 2 in {where})" in said


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 3.0 0.5 0.5 0.5", "boxes that leave their image by more than a pixel"),
        ("0 0.5 0.5 0 0.5", "boxes of zero or negative size"),
        ("0 0.5 nan 0.5 0.5", "boxes that are not four finite numbers"),
        ("0 0.5 inf 0.5 0.5", "boxes that are not four finite numbers"),
    ],
)
def test_a_faulty_box_is_shown_as_its_line_has_it(tmp_path: Path, line: str, kind: str) -> None:
    root = data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n" * 2, line)
    shown = [float(word) for word in line.split()[1:]]
    assert f"{kind} (1): annotation 3 (image 2, bbox {shown} in {tmp_path}/labels/2.txt, line 1)" in message(root)
    assert len(read_coco(root, "train", faults="quarantine").annotation_ids) == 2


def test_boxes_that_look_like_pixels_are_refused(tmp_path: Path) -> None:
    said = message(data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n" + "0 40 30 20 10\n" * 2))
    assert said.startswith(f"{tmp_path}: 2 of 3 boxes are far outside of 0 to 1, the first is [40.0, 30.0, 20.0, 10.0]")
    assert "they look like pixels" in said


@pytest.mark.parametrize(("height", "width"), [(60, 80), (64, 64)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_are_of_the_picture_as_people_see_it(tmp_path: Path, orientation: int, height: int, width: int) -> None:
    root = data_set(tmp_path, "0 0.125 0.25 0.25 0.5\n")  # the left quarter of the upper half
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = root / "images" / "1.png"
    (root / "images" / "1.jpg").unlink()
    Image.fromarray(pixels).save(file, exif=exif)
    seen = np.asarray(upright(file))
    data = read_coco(root, "train")
    sample = load_sample(data, 0, min(seen.shape[:2]), max(seen.shape[:2]), flip=False)
    left, top, right, bottom = map(int, sample.boxes[0].tolist())
    found = sample.image[:, top:bottom, left:right].permute(1, 2, 0).numpy()
    drawn = seen[: seen.shape[0] // 2, : seen.shape[1] // 4]
    assert np.array_equal(np.sort(found, axis=None), np.sort(drawn, axis=None))
    # Where the sides say so, the picture itself is turned, and otherwise its boxes are.
    if orientation >= 5 and height != width:
        assert data.sizes.tolist() == [[width, height]] and np.array_equal(found, drawn)
    elif orientation > 1:
        assert "1 are read as stored, to which their boxes were turned" in data.notes[0]


def test_images_that_are_missing_or_broken_are_faults_that_a_quarantine_leaves_out(tmp_path: Path) -> None:
    root = data_set(tmp_path, *["0 0.5 0.5 0.5 0.5\n"] * 3, yaml="")
    text(root / "data.yaml", "train: train.txt\n" + NAMES)
    text(root / "train.txt", "".join(f"images/{place}.jpg\n" for place in (1, 2, 3)))
    (root / "images" / "2.jpg").unlink()
    text(root / "images" / "3.jpg", "no image")
    said = message(root)
    assert "images missing (1): image 2 (2.jpg" in said
    assert f"images that do not decode (1): image 3 ({root}/images/3.jpg" in said
    left = read_coco(root, "train", faults="quarantine")
    assert left.file_names == ["1.jpg"]


@pytest.mark.parametrize("listed", ["1.JPG", "1.png", "ONE.jpg"])
def test_an_image_of_a_list_is_the_file_that_is_evidently_meant(tmp_path: Path, listed: str) -> None:
    name = "one" if listed == "ONE.jpg" else "1"
    picture(tmp_path / "images" / f"{name}.jpg")
    text(tmp_path / "labels" / f"{name}.txt", "0 0.5 0.5 0.5 0.5\n")
    text(tmp_path / "data.yaml", "train: train.txt\n" + NAMES)
    text(tmp_path / "train.txt", f"images/{listed}\n")
    data = read_coco(tmp_path, "train")
    assert (data.file_names, data.boxes(0).tolist()) == ([f"{name}.jpg"], [[20, 15, 60, 45]])
    assert data.notes == (
        f"1 of 1 images lie under other names than the annotations have, and were found in {tmp_path}/images: such as "
        f"{listed!r} at '{name}.jpg'",
    )


def test_a_picture_over_pillows_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses what is over twice as large: 4800 pixels
    data = read_coco(root, "train")
    assert (data.sizes.tolist(), data.boxes(0).tolist()) == ([[60, 80]], [[20, 15, 60, 45]])
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("file", ["images/1.jpg", "labels/1.txt"])
@pytest.mark.parametrize("target", ["/nowhere/1", "{}"])
def test_a_link_to_nothing_is_named_as_such(tmp_path: Path, file: str, target: str) -> None:
    place = data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n") / file
    place.unlink()
    place.symlink_to(target.format(place))  # a link to itself leads nowhere either
    assert f"{place} is a link to {target.format(place)}, where nothing is; restore that" in message(tmp_path)


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("nc: 3\n" + NAMES, "nc is 3, and there are 2 names; correct either"),
        ("names: {0: cat, 2: dog}\n", r"names numbers its classes \[0, 2\], expected 0 to 1"),
        ("names: {a: cat}\n", "expected a name for each class number from 0"),
        ("names: cat\n", "names is 'cat', expected a list of class names"),
        ("names: []\n", "there is nothing to detect: it names no class"),
        ("names: [cat, '']\n", "class 1 has no name; give it one"),
        ("kpt_shape: [a, 3]\n" + NAMES, r"kpt_shape is \['a', '3'\], expected two numbers"),
    ],
)
def test_class_names_that_do_not_fit_are_told(tmp_path: Path, yaml: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}/data.yaml: .*{reason}"):
        read(data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n", yaml=yaml))


def test_class_names_are_read_from_lists_mappings_and_lines(tmp_path: Path) -> None:
    box = "0 0.5 0.5 0.5 0.5\n"
    expected = {0: "no", 1: "dog"}
    assert read(data_set(tmp_path / "a", box, yaml="nc: 2\nnames: [no, dog]\n")).categories == expected
    assert read(data_set(tmp_path / "b", box, yaml="names:\n  1: dog\n  0: no\n")).categories == expected
    root = data_set(tmp_path / "c", box)
    (root / "data.yaml").unlink()
    text(root / "classes.txt", "no\r\ndog\n\n")
    assert read_split(split_files(root, "all")).categories == expected


def test_class_names_in_an_older_encoding_are_told(tmp_path: Path) -> None:
    root = data_set(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt: not UTF-8 at byte 3, in b'caf"):
        read_split(split_files(root, "all"))


def test_a_changed_label_or_image_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_CACHE", str(tmp_path / "cache"))
    root = data_set(tmp_path / "data", "0 0.5 0.5 0.5 0.5\n")
    label, image = root / "labels" / "1.txt", root / "images" / "1.jpg"

    def settle(*files: Path) -> None:
        for file in files:
            os.utime(file, (time.time() - 60,) * 2)

    settle(root / "data.yaml", label, image)
    first = read_coco(root, "train", check_images=False)
    assert first.file is not None and read_coco(root, "train", check_images=False).file == first.file
    text(label, "1 0.5 0.5 0.5 0.5\n")
    settle(label)
    second = read_coco(root, "train", check_images=False)
    assert second.labels(0).tolist() == [1]
    picture(image, 30, 80)
    settle(image)
    assert read_coco(root, "train", check_images=False).boxes(0).tolist() == [[20, 7.5, 60, 22.5]]


@pytest.mark.parametrize(
    ("lines", "form"),
    [
        (["0 0.1 0.1 0.5 0.6", "0 0.4 0.3 0.9 0.8", "0 0.0 0.2 0.3 0.9"], "like corners"),
        (["0 0.1 0.1 0.5 0.3", "0 0.05 0.7 0.4 0.3", "0 0 0 0.3 0.2"], "as if x and y were the upper left corner"),
    ],
)
def test_boxes_of_another_form_are_refused_by_a_quarantine_as_well(tmp_path: Path, lines: list[str], form: str) -> None:
    picture(tmp_path / "1.jpg")
    text(tmp_path / "classes.txt", "cat")
    text(tmp_path / "1.txt", "\n".join(lines))
    with pytest.raises(DataError, match=f"boxes look {form}"):
        read_coco(tmp_path, "all", faults="quarantine")
    # A box or two that leave their image are faults like others.
    text(tmp_path / "1.txt", "\n".join([lines[0], *["0 0.5 0.5 0.2 0.2"] * 9]))
    assert len(read_coco(tmp_path, "all", faults="quarantine").faults) == 1


def test_a_class_beyond_64_bits_and_a_folder_in_the_place_of_a_label_file_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "1.jpg")
    text(tmp_path / "classes.txt", "cat")
    label = text(tmp_path / "1.txt", "1e30 0.5 0.5 0.2 0.2")
    with pytest.raises(DataError, match=r"line 1 is '1e30 0\.5"):
        read_coco(tmp_path, "all")
    label.unlink()
    label.mkdir()
    with pytest.raises(DataError, match="is a folder, expected a text file of labels"):
        read_coco(tmp_path, "all")
