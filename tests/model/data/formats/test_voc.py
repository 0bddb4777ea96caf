"""Pascal VOC's XML to boxes; images are 80 wide and 60 high, and boxes are worked out by hand."""

from pathlib import Path
from typing import Any

import pytest

from model.data.annotations import Tables
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.formats.reading import read_split
from model.data.formats.voc import read_xml
from model.data.layout import split_files
from tests.data_folders import picture, text, voc_xml

CAT = ("cat", (10, 20, 30, 50))


def data_set(root: Path, *files: str) -> Path:
    """Images 1.jpg, 2.jpg, ... with these XML files."""
    for place, content in enumerate(files, start=1):
        picture(root / f"{place}.jpg")
        text(root / f"{place}.xml", content)
    return root


def read(root: Path) -> Tables:
    return read_split(split_files(root, "all"))


def message(root: Path) -> str:
    with pytest.raises(DataError) as error:
        read_coco(root, "all")
    return str(error.value)


def test_corners_are_the_edges_of_the_box_that_was_drawn(tmp_path: Path) -> None:
    root = data_set(tmp_path, voc_xml([CAT, ("ant", (0.5, 0, 80, 60))]), voc_xml([]), voc_xml([CAT]))
    tables = read(root)
    assert tables.annotations.boxes.tolist() == [[10, 20, 20, 30], [0.5, 0, 79.5, 60], [10, 20, 20, 30]]
    assert tables.annotations.image_ids.tolist() == [1, 1, 3]
    assert tables.categories == {1: "ant", 2: "cat"}
    assert tables.annotations.category_ids.tolist() == [2, 1, 2]
    assert (tables.images.names, tables.images.sizes.tolist()) == (["1.jpg", "2.jpg", "3.jpg"], [[60, 80]] * 3)
    assert not tables.annotations.crowds.any()
    assert tables.notes == ()


def test_pixels_of_the_devkit_are_counted_from_1_and_the_last_one_belongs_to_the_box(tmp_path: Path) -> None:
    devkit = voc_xml([("cat", (1, 1, 80, 60)), CAT], database="The VOC2007 Database")
    tables = read(data_set(tmp_path, devkit, voc_xml([CAT])))
    # The whole image is 1 to 80 and 1 to 60; columns 10 to 30 are 21 pixels, from the edge at 9.
    assert tables.annotations.boxes.tolist() == [[0, 0, 80, 60], [9, 19, 21, 31], [10, 20, 20, 30]]
    assert tables.notes == ("1 of 2 XML files are of VOC's devkit: their pixels are counted from 1",)


def test_difficult_objects_are_crowds_neither_learnt_nor_scored(tmp_path: Path) -> None:
    hard = voc_xml([CAT], more="<difficult>1</difficult>")
    root = data_set(tmp_path, voc_xml([CAT], more="<difficult>0</difficult>"), hard)
    assert read(root).annotations.crowds.tolist() == [False, True]
    assert read(root).notes == ("1 objects marked difficult are read as crowds: not learnt, and not scored",)
    data = read_coco(root, "all")
    assert [len(data.boxes(place)) for place in (0, 1)] == [1, 0]


def test_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    for place, name in enumerate(("dog", "ant"), start=1):
        picture(tmp_path / "JPEGImages" / f"{place}.jpg")
        text(tmp_path / "Annotations" / f"{place}.xml", voc_xml([(name, (1, 2, 3, 4))]))
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "1\n")
    text(tmp_path / "ImageSets" / "Main" / "val.txt", "2\n")
    train, val = (read_split(split_files(tmp_path, split)) for split in ("train", "val"))
    assert train.categories == val.categories == {1: "ant", 2: "dog"}
    assert (train.annotations.category_ids.tolist(), val.annotations.category_ids.tolist()) == ([2], [1])
    text(tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nzebra:1,2,3::\ndog:4,5,6::\n")
    assert read_split(split_files(tmp_path, "train")).categories == {1: "zebra", 2: "dog", 3: "ant"}


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    tables = read(data_set(tmp_path, voc_xml([CAT], more=part)))
    assert tables.annotations.boxes.tolist() == [[10, 20, 20, 30]]
    assert tables.categories == {1: "cat"}


@pytest.mark.parametrize("size", [None, (0, 0), ("", ""), ("x", 80)])
def test_a_size_that_is_not_said_is_that_of_the_image(tmp_path: Path, size: Any) -> None:
    tables = read(data_set(tmp_path, voc_xml([CAT], size=size), voc_xml([CAT])))
    assert tables.images.sizes.tolist() == [[60, 80]] * 2


def test_a_size_that_is_not_said_is_that_of_the_file_that_is_evidently_meant(tmp_path: Path) -> None:
    picture(tmp_path / "IMG_1.jpg")
    text(tmp_path / "1.xml", voc_xml([CAT], size=None, filename="img_1.jpg"))
    data = read_coco(tmp_path, "all")
    assert (data.file_names, data.sizes.tolist()) == (["IMG_1.jpg"], [[60, 80]])


def test_a_size_that_is_not_the_images_is_a_fault(tmp_path: Path) -> None:
    said = message(data_set(tmp_path, voc_xml([CAT], size=(80, 60))))
    assert "images of another size than annotated (1)" in said


def test_an_image_is_the_one_called_like_its_xml_file_or_else_the_one_that_it_names(tmp_path: Path) -> None:
    root = data_set(tmp_path, voc_xml([CAT], filename="renamed since.jpg"))
    assert read(root).images.names == ["1.jpg"]
    text(root / "2.xml", voc_xml([CAT], filename=r"C:\photos\other.png"))
    picture(root / "other.png")
    assert read(root).images.names == ["1.jpg", "other.png"]
    assert len(read_coco(root, "all")) == 2
    text(root / "3.xml", voc_xml([CAT], filename="../../secret.jpg"))
    assert read(root).images.names[2] == "secret.jpg"
    assert "images missing (1): image 3 (secret.jpg" in message(root)


@pytest.mark.parametrize("corners", [("", 20, 30, 50), ("left", 20, 30, 50), ("nan", 20, 30, 50)])
def test_a_box_that_is_no_four_numbers_is_a_fault(tmp_path: Path, corners: Any) -> None:
    root = data_set(tmp_path, voc_xml([CAT]), voc_xml([("cat", corners)]))
    said = message(root)
    assert "boxes that are not four finite numbers (1): annotation 2" in said
    assert f"bbox [xmin {corners[0] or None}, ymin 20, xmax 30, ymax 50] in {root}/2.xml" in said


def test_an_object_without_box_is_a_fault_and_one_without_name_is_refused(tmp_path: Path) -> None:
    root = data_set(tmp_path, "<annotation><object><name>cat</name></object></annotation>")
    assert f"boxes that are not four finite numbers (1): annotation 1 (image 1, bbox none in {root}/1.xml)" in message(
        root
    )
    text(root / "1.xml", voc_xml([CAT, ("", (1, 2, 3, 4))]))
    assert message(root) == f"{root}/1.xml: object 2 has no <name>; give it one, or take it out"


def test_corners_in_the_wrong_order_are_a_fault(tmp_path: Path) -> None:
    assert "boxes of zero or negative size (1)" in message(data_set(tmp_path, voc_xml([("cat", (30, 20, 10, 50))])))


def test_data_without_any_object_are_refused(tmp_path: Path) -> None:
    assert "there is nothing to detect: no XML file names an object" in message(data_set(tmp_path, voc_xml([])))


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<annotation><filename>&b;</filename></annotation>"
)
OUTSIDE = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "declares a document type"),
        (OUTSIDE, "declares a document type"),
        (BOMB.replace("?>", ' encoding="utf-16"?>', 1).encode("utf-16"), "declares a document type"),
        ("<annotation><object>", "not XML"),
        ("", "not XML"),
        (b"\xff\xfe\x00", "not XML"),
        ("<a>&b;</a>", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
        ("<html/>", "not Pascal VOC: the top element is 'html', expected 'annotation'"),
    ],
)
def test_what_is_no_annotation_is_refused_by_its_name(tmp_path: Path, content: str | bytes, reason: str) -> None:
    file = tmp_path / "1.xml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        read_xml(file)
    assert str(error.value).startswith(f"{file}: {reason}")


def test_a_link_to_nothing_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "1.xml").symlink_to("/nowhere/1.xml")
    with pytest.raises(DataError, match=r"1\.xml is a link to /nowhere/1\.xml, where nothing is; restore that"):
        read_xml(tmp_path / "1.xml")


def test_a_faulty_box_is_shown_as_its_file_has_it(tmp_path: Path) -> None:
    told = message(data_set(tmp_path, voc_xml([CAT, ("cat", (30, 20, 10, 50)), ("cat", (10, 20, 90, 50))])))
    assert f"bbox [xmin 30, ymin 20, xmax 10, ymax 50] in {tmp_path / '1.xml'}" in told
    assert f"bbox [xmin 10, ymin 20, xmax 90, ymax 50] in {tmp_path / '1.xml'}" in told


def test_width_and_height_in_the_place_of_the_second_corner_are_refused(tmp_path: Path) -> None:
    data_set(tmp_path, voc_xml([("cat", (10, 10, 30, 20)), ("cat", (50, 40, 20, 15))]))
    with pytest.raises(DataError, match=r"look like a box's width and height .* are \[50.0, 40.0, 20.0, 15.0\]"):
        read_coco(tmp_path, "all", faults="quarantine")


def test_corners_that_are_all_swapped_are_refused_as_such(tmp_path: Path) -> None:
    data_set(tmp_path, voc_xml([("cat", (30, 40, 1, 2)), ("cat", (80, 60, 50, 30))]))
    with pytest.raises(DataError, match=r"the corners are swapped: .* are \[30.0, 40.0, 1.0, 2.0\]\); write the upper"):
        read_coco(tmp_path, "all", faults="quarantine")


def test_what_is_not_xml_is_told_with_the_likely_cause(tmp_path: Path) -> None:
    file = tmp_path / "1.xml"
    for content, cause in (
        ("<annotation>ä</annotation>".encode("latin-1"), "save the file as UTF-8"),
        (b'<?xml version="1.0" encoding="gbk"?><annotation/>', "save the file as UTF-8"),
        (b"<annotation><size", "cut short"),
        (b"<annotation><name>R&D</name></annotation>", "which XML writes &amp; and &lt;"),
        ("<annotation><name>ä<b</name></annotation>".encode(), "which XML writes &amp; and &lt;"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=cause):
            read_xml(file)
