"""Open Images' rows to boxes in pixels; images are 80 wide and 60 high, and boxes are worked out by hand."""

from pathlib import Path

import pytest

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.formats.reading import read_split
from model.data.layout import split_files
from tests.data_folders import picture, text

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"


def row(image: str, code: str, *sides: float, group: int = 0) -> str:
    return f"{image},xclick,{code},1,{','.join(map(str, sides))},0,0,{group},0,0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = [
        row("0011", "/m/02", 0.25, 0.75, 0.5, 1),
        row("0011", "/m/01", 0, 1, 0, 0.1, group=1),
        row("2022", "/m/02", 0.5, 1, 0, 0.5, group=-1),
        row("absent", "/m/02", 0, 1, 0, 1),
    ]
    text(tmp_path / "train-annotations-bbox.csv", HEAD + "".join(rows))
    text(tmp_path / "validation-annotations-bbox.csv", HEAD + row("3033", "/m/03", 0, 1, 0, 1))
    text(tmp_path / "class-descriptions-boxable.csv", '/m/01,Zebra\n/m/02,"Cat, wild"\n/m/04,Unused\n')
    for name in ("0011", "2022", "9099"):
        picture(tmp_path / "train" / f"{name}.jpg")
    picture(tmp_path / "validation" / "3033.jpg")
    return tmp_path


def test_rows_of_the_images_that_are_there_become_boxes_in_pixels(root: Path) -> None:
    tables = read_split(split_files(root, "train"))
    assert tables.images.names == ["0011.jpg", "2022.jpg", "9099.jpg"]
    assert tables.images.sizes.tolist() == [[60, 80]] * 3
    assert tables.annotations.boxes.tolist() == [[20, 30, 40, 30], [0, 0, 80, 6], [40, 0, 40, 30]]
    assert tables.annotations.image_ids.tolist() == [1, 1, 2]
    assert tables.annotations.crowds.tolist() == [False, True, False]
    # Of the classes in use, /m/03 has no description; by name "/m/03" comes first.
    assert tables.categories == {1: "/m/03", 2: "Cat, wild", 3: "Zebra"}
    assert tables.annotations.category_ids.tolist() == [2, 3, 2]
    assert tables.notes == (
        "1 of 3 images have no row, such as 9099.jpg: they have no objects",
        "1 of 4 boxes are of images that are not there, and are left out",
        "1 boxes around a group of objects are read as crowds: not learnt, and not scored",
    )
    assert read_split(split_files(root, "val")).categories == tables.categories
    assert len(read_coco(root, "train").annotation_ids) == 3


def test_one_csv_file_stands_for_its_split(root: Path) -> None:
    assert len(read_coco(root / "train-annotations-bbox.csv", "train")) == 3


def test_rows_of_other_images_alone_are_refused(root: Path) -> None:
    for image in (root / "train").iterdir():
        image.rename(image.with_name(f"other{image.name}"))
    with pytest.raises(DataError, match=r"none of its 4 rows is of an image in .*train; put its images there"):
        read_coco(root, "train")


def test_a_damaged_file_is_named(root: Path) -> None:
    text(root / "train-annotations-bbox.csv", HEAD + "0011,x,/m/01,1,left,1,0,1,0,0,0,0,0\n")
    with pytest.raises(DataError, match=r"train-annotations-bbox\.csv: not a CSV file of Open Images \(.*left"):
        read_coco(root, "train")


def test_two_images_of_one_id_are_refused(root: Path) -> None:
    (name, *_) = split_files(root, "train").listed or ()
    picture(root / "train" / f"{Path(name).stem}.png")
    with pytest.raises(DataError, match="have the same ImageID"):
        read_coco(root, "train")


def test_boxes_in_pixels_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.jpg")
    text(tmp_path / "train-annotations-bbox.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\n1,/m/01,10,20,5,9\n")
    with pytest.raises(DataError, match="1 of 1 boxes are far outside of 0 to 1: they look like pixels"):
        read_coco(tmp_path, "train", faults="quarantine")


def test_class_names_in_an_older_encoding_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.jpg")
    text(tmp_path / "train-annotations-bbox.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\n1,/m/01,0.1,0.2,0.1,0.9\n")
    (tmp_path / "class-descriptions-boxable.csv").write_bytes("/m/01,Kätzchen\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV file of codes and names in UTF-8"):
        read_coco(tmp_path, "train")
