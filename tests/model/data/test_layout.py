"""What is found in folders and files; names of splits, and the message where nothing is found."""

import pickle
import shutil
from pathlib import Path

import pytest

from model.data import layout as layouts
from model.data.coco import read_coco
from model.data.faults import DataError, UnknownSplit
from model.data.layout import count_images, find_layout, split_files
from tests.conftest import MakeCoco
from tests.data_folders import coco_json, picture, text, voc_xml


def message(root: Path, split: str | None = None) -> str:
    with pytest.raises(DataError) as error:
        _ = find_layout(root) if split is None else split_files(root, split)
    return str(error.value)


def test_cocos_own_layout_is_found_without_looking_into_a_file(
    make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_coco()
    monkeypatch.setattr(layouts, "find_layout", None)
    files = split_files(root, "train")
    assert (files.format, files.images, files.share) == ("coco", root / "train", None)
    assert files.annotations == (root / "annotations" / "instances_train.json",)


def test_a_split_is_found_by_any_of_its_usual_names_and_keeps_the_one_asked_for(tmp_path: Path) -> None:
    for split in ("train", "valid", "testing"):
        picture(tmp_path / split / "1.jpg")
        coco_json(tmp_path / split / "_annotations.coco.json", ["1.jpg"])
    found = find_layout(tmp_path)
    assert (list(found.splits), found.train, found.val) == (["testing", "train", "valid"], "train", "valid")
    for asked, folder in (("val", "valid"), ("validation", "valid"), ("valid", "valid"), ("test", "testing")):
        files = split_files(tmp_path, asked)
        assert (files.name, files.images) == (asked, tmp_path / folder)
    assert "there is no split 'val2017'; the data set has testing, train, valid;" in message(tmp_path, "val2017")


def test_a_split_is_found_in_any_case_of_its_letters_where_one_alone_is_called_so(tmp_path: Path) -> None:
    for split in ("Train", "Validation", "test", "TEST"):
        picture(tmp_path / "images" / split / "1.jpg")
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", ["1.jpg"])
    for asked, folder in (("train", "Train"), ("TRAIN", "Train"), ("val", "Validation"), ("TEST", "TEST")):
        files = split_files(tmp_path, asked)
        assert (files.name, files.images) == (asked, tmp_path / "images" / folder)
    assert "there is no split 'Test'; the data set has" in message(tmp_path, "Test")


def test_names_that_only_contain_a_usual_one_are_offered_for_training(tmp_path: Path) -> None:
    for split in ("mine_train", "mine_val2"):
        picture(tmp_path / split / "1.jpg")
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", ["1.jpg"])
    found = find_layout(tmp_path)
    assert (found.train, found.val) == ("mine_train", "mine_val2")


def test_splits_of_which_no_name_tells_are_left_to_the_user(tmp_path: Path) -> None:
    for split in ("berlin", "paris"):
        picture(tmp_path / split / "1.jpg")
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", ["1.jpg"])
    found = find_layout(tmp_path)
    assert (list(found.splits), found.train, found.val) == (["berlin", "paris"], None, None)


def test_data_of_one_split_offer_two_shares_beside_the_whole(tmp_path: Path) -> None:
    names = [f"{place}.jpg" for place in range(10)]
    for name in names:
        picture(tmp_path / "images" / name)
    coco_json(tmp_path / "result.json", [f"images/{name}" for name in names])
    found = find_layout(tmp_path)
    assert (list(found.splits), found.train, found.val) == (["all", "train", "val"], "train", "val")
    whole, train, val = (read_coco(tmp_path, split) for split in ("all", "train", "val"))
    assert [len(data) for data in (whole, train, val)] == [10, 8, 2]
    assert sorted([*train.file_names, *val.file_names]) == whole.file_names
    assert sorted([*train.image_ids.tolist(), *val.image_ids.tolist()]) == list(range(1, 11))
    assert [len(data.annotation_ids) for data in (whole, train, val)] == [10, 8, 2]
    assert [count_images(tmp_path, split) for split in ("all", "train", "val")] == [10, 8, 2]


@pytest.mark.parametrize("there", [("train",), ("train", "test"), ("val",)])
def test_a_whole_called_train_or_val_keeps_its_name(tmp_path: Path, there: tuple[str, ...]) -> None:
    for split in there:
        picture(tmp_path / split / "1.jpg")
        picture(tmp_path / split / "2.jpg")
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", ["1.jpg", "2.jpg"])
    found = find_layout(tmp_path)
    assert (found.train, found.val) == ("train-part", "val-part")
    assert set(found.splits) == {*there, "train-part", "val-part"}
    assert len(read_coco(tmp_path, there[0])) == 2
    parts = [read_coco(tmp_path, split).file_names for split in ("train-part", "val-part")]
    assert sorted(map(tuple, parts)) == [("1.jpg",), ("2.jpg",)]


def test_one_file_stands_for_its_data(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.jpg")
    picture(tmp_path / "train" / "2.jpg")
    file = coco_json(tmp_path / "annotations" / "instances_train.json", ["1.jpg", "2.jpg"])
    found = find_layout(file)
    assert (found.root, found.train, found.val) == (file, "train-part", "val-part")
    data = read_coco(file, "train")
    assert (data.root, data.folder, len(data)) == (file, tmp_path / "train", 2)
    text(tmp_path / "notes.docx")
    assert "notes.docx: no data set is described by such a file; name the folder" in message(tmp_path / "notes.docx")


def test_the_current_folder_is_found_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "images" / "1.jpg")
    text(tmp_path / "labels" / "1.txt", "0 0.5 0.5 0.5 0.5\n")
    text(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat]\n")
    monkeypatch.chdir(tmp_path)
    for root in (Path("."), Path("data.yaml"), Path("..") / tmp_path.name):
        assert find_layout(root).root == root
        assert split_files(root, "train").images == tmp_path / "images"
        assert len(read_coco(root, "train").annotation_ids) == 1


def test_a_path_of_a_split_that_is_not_there_is_told_with_the_shares_that_stand_for_it(tmp_path: Path) -> None:
    for place in range(2):
        picture(tmp_path / "images" / f"{place}.jpg")
        text(tmp_path / "labels" / f"{place}.txt", "0 0.5 0.5 0.5 0.5\n")
    text(tmp_path / "data.yaml", "train: images\nval: valid/images\nnames: [cat]\n")
    found = find_layout(tmp_path)
    assert found.val == "val-part"
    notes = read_coco(tmp_path, "val-part").notes
    assert notes[0] == f"{tmp_path}/data.yaml: val is valid/images, which is not there: left out"
    assert "val is 1 of the 2 images" in notes[1]


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    assert "photos.zip: an archive is not looked into; unpack it" in message(text(tmp_path / "photos.zip"))


def test_folders_that_are_called_like_files_do_no_harm(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.jpg")
    for name in ("a.json", "b.csv", "c.data", "d.yaml", "e.txt", "f.xml"):
        (tmp_path / name).mkdir()
    assert "no data set was found" in message(tmp_path)


def test_a_split_whose_images_are_elsewhere_does_not_stand_in_the_way_of_another(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", ["1.jpg"])
    picture(tmp_path / "val2017" / "1.jpg")
    assert list(find_layout(tmp_path).splits) == ["train2017", "val2017"]
    assert len(read_coco(tmp_path, "val2017")) == 1
    with pytest.raises(DataError, match=rf"images missing \(1\): image 1 \(1\.jpg, looked for in {tmp_path}/train2017"):
        read_coco(tmp_path, "train2017")


def test_what_was_looked_for_is_said_and_what_is_there(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    assert "the folder is empty" in message(root)
    picture(root / "train" / "1.jpg")
    for place in range(9):
        text(root / f"{place}.md")
    said = message(root, "train")
    assert said.startswith(
        f"{root}: the data set lacks file {root}/annotations/instances_train.json; no data set was found in {root}"
    )
    for part in (
        "looked for COCO: annotations/instances_<split>.json",
        "looked for YOLO: data.yaml",
        "looked for Pascal VOC: JPEGImages/",
        "looked for Open Images: a CSV file",
        "there is 0.md, 1.md, 2.md, 3.md, 4.md, 5.md, 6.md, 7.md, ... (10 in all)",
        f"{root}/train holds images and no annotations that belong to them",
    ):
        assert part in said


def test_near_misses_get_a_hint(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.jpg")
    text(tmp_path / "a" / "1.txt", "0 0.5 0.5 0.1 0.1\n")
    assert "no classes.txt or data.yaml says what YOLO's numbers mean" in message(tmp_path)
    shutil.rmtree(tmp_path / "a")
    picture(tmp_path / "b" / "1.jpg")
    text(tmp_path / "b" / "1.json", '{"shapes": []}')
    assert "none has COCO's lists 'images' and 'annotations' (export as COCO)" in message(tmp_path)
    shutil.rmtree(tmp_path / "b")
    picture(tmp_path / "c" / "train" / "1.jpg")
    text(tmp_path / "c" / "train" / "1.xml", voc_xml([]))
    assert f"c in it would do: name {tmp_path / 'c'}" in message(tmp_path)


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert (
        message(tmp_path / "none")
        == f"there is no such folder or file as {tmp_path}/none; correct the path of the data"
    )


def test_images_are_counted_in_every_layout(tmp_path: Path, make_coco: MakeCoco) -> None:
    assert count_images(make_coco(sizes=[(60, 80)] * 3), "train") == 3
    assert count_images(tmp_path / "none", "train") is None
    bare = tmp_path / "bare"
    picture(bare / "train" / "1.jpg")
    assert count_images(bare, "train") == 1  # annotations may lie elsewhere when a plan is made
    yolo = tmp_path / "yolo"
    text(yolo / "data.yaml", "train: train/images\nval: train/images\nnames: [cat]\n")
    for place in range(5):
        picture(yolo / "train" / "images" / f"{place}.jpg")
    text(yolo / "train" / "labels" / "0.txt", "0 0.5 0.5 0.5 0.5\n")
    assert count_images(yolo, "train") == 5
    shared = tmp_path / "shared"
    picture(shared / "images" / "1.jpg")
    picture(shared / "images" / "2.jpg")
    picture(shared / "images" / "3.jpg")
    coco_json(shared / "annotations" / "instances_train.json", ["1.jpg", "2.jpg"])
    coco_json(shared / "annotations" / "instances_val.json", ["3.jpg"])
    assert (count_images(shared, "train"), count_images(shared, "val")) == (2, 1)


def test_images_called_like_a_split_that_nothing_annotates_are_told_of(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "1.jpg")
        picture(tmp_path / split / "2.jpg")
    file = coco_json(tmp_path / "train" / "_annotations.coco.json", ["1.jpg", "2.jpg"])
    note = f"{tmp_path / 'valid'}: holds images, and nothing that was found annotates them: left out"
    found = find_layout(tmp_path)
    assert (found.train, found.val) == ("train-part", "val-part")
    assert note in read_coco(tmp_path, "train-part").notes
    # To learn from the images to be scored on, since those to learn from are not annotated, is nobody's wish.
    file.rename(tmp_path / "valid" / file.name)
    assert message(tmp_path).startswith(
        f"{tmp_path / 'train'}: holds images, and nothing that was found annotates them, "
    )


def test_a_folder_of_two_formats_tells_which_is_read(tmp_path: Path) -> None:
    for name in ("1", "2"):
        picture(tmp_path / f"{name}.jpg")
        text(tmp_path / f"{name}.txt", "0 0.5 0.5 0.2 0.2")
    text(tmp_path / "classes.txt", "cat")
    file = coco_json(tmp_path / "result.json", ["1.jpg", "2.jpg"])
    note = f"{tmp_path}: holds YOLO as well as COCO; COCO is read, and the other left out"
    assert note in split_files(tmp_path, "train").notes
    file.unlink()
    assert split_files(tmp_path, "train").notes == ()


def test_an_archive_in_a_folder_is_pointed_at(tmp_path: Path) -> None:
    text(tmp_path / "photos.zip")
    assert "photos.zip is an archive, which is not looked into: unpack it" in message(tmp_path)


def test_links_to_folders_are_followed_and_not_in_circles(tmp_path: Path) -> None:
    elsewhere = picture(tmp_path / "elsewhere" / "2.jpg").parent
    root = text(tmp_path / "data" / "classes.txt", "cat").parent
    picture(root / "images" / "1.jpg")
    (root / "images" / "more").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(elsewhere)
    for name in ("1", "more/2"):
        text(root / "labels" / f"{name}.txt", "0 0.5 0.5 0.2 0.2")
    assert split_files(root, "all").listed == ("1.jpg", "more/2.jpg")


def test_a_split_that_is_not_there_is_told_in_the_same_words_by_another_process(tmp_path: Path) -> None:
    error = UnknownSplit(tmp_path, "vla", ("train", "val"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "there is no split 'vla'; the data set has train, val; correct train_split or val_split" in str(error)
