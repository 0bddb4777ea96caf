"""Pascal VOC's folders and lists, and XML files beside images."""

import unicodedata
from pathlib import Path

import pytest

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.layouts.voc import find_voc
from tests.data_folders import picture, text, voc_xml

XML = voc_xml([("cat", (1, 2, 3, 4))])


def listed(root: Path) -> dict[str, tuple[Path, list[str]]]:
    return {name: (split.images, list(split.listed or ())) for name, split in find_voc(root).items()}


def annotated(images: Path, annotations: Path, *names: str) -> None:
    for name in names:
        picture(images / f"{name}.jpg")
        text(annotations / f"{name}.xml", XML)


def test_a_devkits_lists_are_its_splits(tmp_path: Path) -> None:
    kit = tmp_path / "VOCdevkit" / "VOC2007"
    annotated(kit / "JPEGImages", kit / "Annotations", "1", "2", "3")
    main = kit / "ImageSets" / "Main"
    text(main / "train.txt", "1\n")
    text(main / "val.txt", "2 \n")
    text(main / "trainval.txt", "1\n2\n")
    text(main / "cat_train.txt", "1  1\n")
    text(main / "dog_train.txt", "1 -1\n")
    text(main / "._train.txt", "what macOS writes beside a file")
    images = kit / "JPEGImages"
    expected = {"train": (images, ["1.jpg"]), "trainval": (images, ["1.jpg", "2.jpg"]), "val": (images, ["2.jpg"])}
    assert listed(tmp_path) == listed(tmp_path / "VOCdevkit") == listed(kit) == expected
    # Classes are those of all files, so that the splits have the same.
    assert len(find_voc(kit)["val"].annotations) == 3
    annotated(
        tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages", tmp_path / "VOCdevkit" / "VOC2012" / "Annotations", "1"
    )
    with pytest.raises(DataError, match=r"holds 2 data sets of Pascal VOC; name one of them, such as .*VOC2007"):
        find_voc(tmp_path)


def test_lists_may_name_images_in_folders(tmp_path: Path) -> None:
    annotated(tmp_path / "JPEGImages" / "a", tmp_path / "Annotations" / "a", "1")
    text(tmp_path / "ImageSets" / "Main" / "default.txt", "a/1.jpg\n")
    assert listed(tmp_path) == {"default": (tmp_path / "JPEGImages", ["a/1.jpg"])}
    text(tmp_path / "ImageSets" / "Main" / "default.txt", '"a/1"\n')
    assert listed(tmp_path) == {"default": (tmp_path / "JPEGImages", ["a/1.jpg"])}


@pytest.mark.parametrize(
    ("images", "annotations", "split"),
    [
        ("JPEGImages", "Annotations", "all"),
        ("images", "annotations", "all"),
        ("data", "labels", "all"),  # FiftyOne
        ("", "", "all"),  # labelImg
        ("train", "train", "train"),  # Roboflow
        ("JPEGImages/val", "Annotations/val", "val"),
    ],
)
def test_folders_without_lists_are_found(tmp_path: Path, images: str, annotations: str, split: str) -> None:
    annotated(tmp_path / images, tmp_path / annotations, "1")
    assert listed(tmp_path) == {split: (tmp_path / images, ["1.jpg"])}


def test_images_of_a_folder_without_an_xml_file_are_left_out_and_told(tmp_path: Path) -> None:
    annotated(tmp_path, tmp_path, "1")
    picture(tmp_path / "2.jpg")
    picture(tmp_path / "3.jpg")
    found = find_voc(tmp_path)["all"]
    assert found.listed == ("1.jpg",)
    assert found.notes[0].startswith("2 images of all have no XML file, such as 2: they are left out as not annotated;")


def test_images_of_a_list_without_an_xml_file_have_no_objects(tmp_path: Path) -> None:
    annotated(tmp_path / "JPEGImages", tmp_path / "Annotations", "1")
    picture(tmp_path / "JPEGImages" / "2.jpg")
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "1\n2\n")
    found = find_voc(tmp_path)["train"]
    assert (found.listed, found.labels) == (("1.jpg", "2.jpg"), (tmp_path / "Annotations" / "1.xml", None))
    assert found.notes[0].startswith("1 images of train have no XML file, such as 2: they have no objects,")
    data = read_coco(tmp_path, "train")
    assert (len(data), len(data.annotation_ids)) == (2, 1)
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "1\n2\nnowhere\n")
    with pytest.raises(DataError, match=r"images missing \(1\): image 3 \(nowhere\.jpg"):
        read_coco(tmp_path, "train")


def test_a_list_may_have_names_in_another_case(tmp_path: Path) -> None:
    annotated(tmp_path / "JPEGImages", tmp_path / "Annotations", "a", "b")
    text(tmp_path / "ImageSets" / "Main" / "train.txt", "A\nb\n")
    found = find_voc(tmp_path)["train"]
    assert found.listed == ("a.jpg", "b.jpg")
    assert found.labels == (tmp_path / "Annotations" / "a.xml", tmp_path / "Annotations" / "b.xml")
    assert len(found.notes) == 1 and "such as 'A.jpg' at 'a.jpg'" in found.notes[0]


def test_a_folder_without_xml_is_not_voc(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "1.jpg")
    assert find_voc(tmp_path) == {}


def test_a_list_of_images_of_which_none_is_annotated_is_refused_and_an_empty_one_told_of(tmp_path: Path) -> None:
    for name in ("1", "2"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        text(tmp_path / "Annotations" / f"{name}.xml", voc_xml([]))
    lists = tmp_path / "ImageSets" / "Main"
    text(lists / "train.txt", "JPEGImages/1.jpg\n2\n")
    val = text(lists / "val.txt", "3\n4\n")
    with pytest.raises(DataError, match=r"val.txt: names 2 images, of which none has an XML file in .*, such as 3;"):
        find_voc(tmp_path)
    text(val)
    splits = find_voc(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].listed == ("1.jpg", "2.jpg")
    assert splits["train"].notes == (f"{val}: names no image: left out",)


def test_folders_of_images_are_splits_of_xml_files_that_lie_together(tmp_path: Path) -> None:
    for split, name in (("train", "1"), ("train", "2"), ("val", "3")):
        picture(tmp_path / "images" / split / f"{name}.jpg")
        text(tmp_path / "annotations" / f"{name}.xml", voc_xml([]))
    assert {name: found.listed for name, found in find_voc(tmp_path).items()} == {
        "train": ("1.jpg", "2.jpg"),
        "val": ("3.jpg",),
    }


def test_of_images_with_one_name_the_one_that_the_xml_file_names_is_its(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png"):
        picture(tmp_path / name)
    for said in ("1.jpg", "1.png"):
        text(tmp_path / "1.xml", voc_xml([("cat", (1, 2, 30, 40))], filename=said))
        data = read_coco(tmp_path, "all")
        assert data.file_names == [said]
        assert data.notes == (
            "1 XML files of all have several images of their name, such as 1.png: the one that <filename> says is "
            "taken, and others are left out",
        )


def test_an_accent_written_as_two_characters_is_the_same_name(tmp_path: Path) -> None:
    name = f"{unicodedata.normalize('NFC', 'ä')}.jpg"
    picture(tmp_path / name)
    file = text(tmp_path / f"{unicodedata.normalize('NFD', 'ä')}.xml", voc_xml([]))
    found = find_voc(tmp_path)["all"]
    assert (found.listed, found.labels, found.notes) == ((name,), (file,), ())
