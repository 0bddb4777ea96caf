"""Paths in data.yaml, Darknet's files and folders without either; which label file is an image's."""

import unicodedata
from pathlib import Path

import pytest

from model.data.faults import DataError
from model.data.layouts.yolo import find_yolo, read_yaml
from tests.data_folders import picture, text

BOX = "0 0.5 0.5 0.5 0.5\n"


def labelled(folder: Path, *names: str) -> None:
    """Images in images/ and their labels in labels/."""
    for name in names:
        picture(folder / "images" / f"{name}.jpg")
        text(folder / "labels" / f"{name}.txt", BOX)


def listing(root: Path) -> dict[str, tuple[Path, list[str], list[str | None]]]:
    """Folder, names and the names of label files, by split."""
    return {
        name: (split.images, list(split.listed or ()), [label.name if label else None for label in split.labels])
        for name, split in find_yolo(root).items()
    }


def message(root: Path) -> str:
    with pytest.raises(DataError) as error:
        find_yolo(root)
    return str(error.value)


def test_folders_of_a_data_yaml_are_listed_with_the_labels_that_are_there(tmp_path: Path) -> None:
    labelled(tmp_path, "train/1", "train/deep/2", "val/3")
    picture(tmp_path / "images" / "train" / "4.PNG")
    text(tmp_path / "images" / "train" / "notes.md")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    images = tmp_path / "images"
    assert listing(tmp_path) == {
        "train": (images / "train", ["1.jpg", "4.PNG", "deep/2.jpg"], ["1.txt", None, "2.txt"]),
        "val": (images / "val", ["3.jpg"], ["3.txt"]),
    }
    assert listing(tmp_path / "data.yaml") == listing(tmp_path)
    train = find_yolo(tmp_path)["train"]
    labels = tmp_path / "labels" / "train"
    assert train.annotations == (tmp_path / "data.yaml", labels / "1.txt", labels / "deep" / "2.txt")


@pytest.mark.parametrize("prefix", ["", "./", "../", "/content/dataset/", r"C:\data\set\\"[:-1]])
def test_paths_of_another_machine_and_roboflows_lead_to_the_folder_beside_the_file(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "set"
    labelled(root / "train", "1")
    labelled(root / "valid", "2")
    yaml = f"train: {prefix}train/images\nval: {prefix}valid/images\ntest: {prefix}test/images\nnames: [cat]\n"
    text(root / "data.yaml", yaml)
    found = find_yolo(root)
    assert [(name, split.images) for name, split in found.items()] == [
        ("train", root / "train" / "images"),
        ("val", root / "valid" / "images"),
    ]
    moved = "content" in prefix or "C:" in prefix
    for split in found.values():
        assert any("was taken" in note for note in split.notes) is moved
        assert split.notes[-1] == f"{root}/data.yaml: test is {prefix}test/images, which is not there: left out"


def test_roboflows_path_is_not_that_of_another_set_beside_it(tmp_path: Path) -> None:
    labelled(tmp_path / "train", "other")
    labelled(tmp_path / "set" / "train", "own")
    text(tmp_path / "set" / "data.yaml", "train: ../train/images\nnames: [cat]\n")
    assert find_yolo(tmp_path / "set")["train"].listed == ("own.jpg",)


def test_a_folder_elsewhere_is_taken_where_the_file_names_it_and_nowhere_else(tmp_path: Path) -> None:
    labelled(tmp_path / "photos", "1")
    labelled(tmp_path / "other", "2")
    text(
        tmp_path / "set" / "data.yaml", f"path: {tmp_path}/photos\ntrain: images\nval: ../other/images\nnames: [cat]\n"
    )
    assert [split.images for split in find_yolo(tmp_path / "set" / "data.yaml").values()] == [
        tmp_path / "photos" / "images",
        tmp_path / "other" / "images",
    ]
    # Whoever names the folder alone may have been given it.
    said = f"{tmp_path}/set/data.yaml: path is {tmp_path}/photos, which leads out of {tmp_path}/set, the folder that"
    assert said in message(tmp_path / "set")
    (tmp_path / "link").symlink_to(tmp_path)
    text(tmp_path / "data.yaml", f"path: {tmp_path}\ntrain: photos/images\nnames: [cat]\n")
    (split,) = find_yolo(tmp_path / "link").values()
    assert split.images == tmp_path / "photos" / "images"
    (tmp_path / "data.yaml").unlink()


@pytest.mark.parametrize("where", ["../other/images", "{}/other/images"])
@pytest.mark.parametrize("description", ["data.yaml", "obj.data"])
def test_a_list_leads_elsewhere_as_the_file_that_names_it_does(tmp_path: Path, description: str, where: str) -> None:
    labelled(tmp_path / "other", "2")
    where, lists = where.format(tmp_path), tmp_path / "listed"
    text(lists / "train.txt", f"{where}/2.jpg\n")
    text(lists / "obj.names", "cat\n")
    yaml, darknet = "train: train.txt\nnames: [cat]\n", "train = train.txt\nnames = obj.names\n"
    file = text(lists / description, yaml if description == "data.yaml" else darknet)
    assert f"{lists}/train.txt: a line is {where}, which leads out of {lists}, the folder that was" in message(lists)
    assert find_yolo(file)["train"].images == tmp_path / "other" / "images"


def test_the_end_of_a_path_is_not_taken_for_another_split(tmp_path: Path) -> None:
    labelled(tmp_path, "1")
    text(tmp_path / "data.yaml", "train: /content/photos/images\nval: /content/photos/valid/images\nnames: [cat]\n")
    found = find_yolo(tmp_path)
    assert list(found) == ["train"]
    assert [note.split(": ", 1)[1] for note in found["train"].notes] == [
        f"train is /content/photos/images, which is not there: {tmp_path}/images was taken",
        "val is /content/photos/valid/images, which is not there: left out",
    ]


def test_path_of_another_machine_counts_as_the_files_own_folder_and_is_told(tmp_path: Path) -> None:
    labelled(tmp_path, "train/1")
    text(tmp_path / "data.yaml", "path: /home/else/mine\ntrain: images/train\nnames: [cat]\n")
    found = find_yolo(tmp_path)["train"]
    assert found.listed == ("1.jpg",)
    assert found.notes == (
        f"{tmp_path}/data.yaml: path is /home/else/mine, which is not there: paths count from {tmp_path}",
    )


def test_a_split_may_be_several_folders_or_a_list_of_images(tmp_path: Path) -> None:
    labelled(tmp_path, "a/1", "b/2", "b/3")
    text(tmp_path / "data.yaml", "train: [images/a, images/b]\nval: val.txt\nnames: [cat]\n")
    text(tmp_path / "val.txt", "./images/b/3.jpg\nimages/a/1.jpg\n\n")
    assert listing(tmp_path) == {
        "train": (tmp_path / "images", ["a/1.jpg", "b/2.jpg", "b/3.jpg"], ["1.txt", "2.txt", "3.txt"]),
        "val": (tmp_path / "images", ["a/1.jpg", "b/3.jpg"], ["1.txt", "3.txt"]),
    }


def test_darknets_files_lead_to_images_with_their_labels_beside_them(tmp_path: Path) -> None:
    text(tmp_path / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    text(tmp_path / "obj.names", "cat\n")
    text(tmp_path / "train.txt", "data/obj_train_data/1.jpg\n")
    picture(tmp_path / "obj_train_data" / "1.jpg")
    text(tmp_path / "obj_train_data" / "1.txt", BOX)
    found = find_yolo(tmp_path)
    assert listing(tmp_path) == {"train": (tmp_path / "obj_train_data", ["1.jpg"], ["1.txt"])}
    assert found["train"].annotations[0] == tmp_path / "obj.names"
    assert find_yolo(tmp_path / "obj.data") == found


@pytest.mark.parametrize(
    ("classes", "images", "labels", "split"),
    [
        ("classes.txt", "images", "labels", "all"),  # Label Studio
        ("classes.txt", "images/train", "labels/train", "train"),
        ("classes.txt", "valid/images", "valid/labels", "valid"),
        ("classes.txt", "", "", "all"),  # labelImg
        ("labels/classes.txt", "images", "labels", "all"),  # labelImg, with a folder for labels
        ("train/classes.txt", "train", "train", "train"),
        ("obj.names", "train", "train", "train"),
        ("train/_darknet.labels", "train", "train", "train"),  # Roboflow's YOLO Darknet
        ("data.yaml", "train/images", "train/labels", "train"),  # supervision: names, and no splits
    ],
)
def test_class_names_and_folders_are_enough(tmp_path: Path, classes: str, images: str, labels: str, split: str) -> None:
    text(tmp_path / classes, "nc: 1\nnames: [cat]\n" if classes == "data.yaml" else "cat\n")
    picture(tmp_path / images / "1.jpg")
    text(tmp_path / labels / "1.txt", BOX)
    assert listing(tmp_path) == {split: (tmp_path / images, ["1.jpg"], ["1.txt"])}
    assert find_yolo(tmp_path)[split].annotations[0] == tmp_path / classes


@pytest.mark.parametrize("images", ["{}", "{}/images", "images/{}"])
def test_lists_of_classes_in_several_folders_number_them_alike(tmp_path: Path, images: str) -> None:
    for split in ("train", "val"):
        picture(tmp_path / images.format(split) / "1.jpg")
        text(tmp_path / images.replace("images", "labels").format(split) / "1.txt", BOX)
    files = {
        split: tmp_path / images.replace("images", "labels").format(split) / "classes.txt" for split in ("train", "val")
    }
    text(files["train"], "cat\ndog\n\n")
    text(files["val"], "cat\ndog\nowl\n")
    text(tmp_path / "elsewhere" / "coco.names", "person\n")
    assert {split.annotations[0] for split in find_yolo(tmp_path).values()} == {files["val"]}
    text(files["val"], "cat\nowl\n")
    said = f"{files['val']}: class 1 is 'owl', and in {files['train']} 'dog': a label's number would mean two things"
    assert message(tmp_path).startswith(said)


def test_without_class_names_or_labels_it_is_not_yolo(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg")
    assert find_yolo(tmp_path) == {}
    text(tmp_path / "classes.txt", "cat\n")
    assert find_yolo(tmp_path) == {}
    text(tmp_path / "recipe.yaml", "names: [soup]\ntime: 3\n")
    assert find_yolo(tmp_path) == {}


ANCHORS = "x-base: &base\n  image: a\nservices:\n  <<: *base\n"
STRAY = {
    "._data.yaml": "\0\x05\x16\x07",  # macOS's
    "._a.data": "\0names = a",
    "._obj.names": "\0",
    "._train.txt": "\0",
    ".gitlab-ci.yml": ANCHORS,
    "docker-compose.yml": ANCHORS,
    "mkdocs.yml": "b: [\n",
    "recipe.yaml": "names: [soup]\ntrain: /nowhere\n",
    "perf.data": "PERFILE2\0",
    "notes.data": "x = 1\n",
}


@pytest.mark.parametrize("description", ["data.yaml", "classes.txt", None])
def test_files_of_other_programs_neither_stop_nor_rename_what_is_there(tmp_path: Path, description: str | None) -> None:
    labelled(tmp_path, "train/1")
    if description == "data.yaml":
        text(tmp_path / "data.yaml", "train: images/train\nnames: [cat]\n")
    elif description is not None:
        text(tmp_path / description, "cat\n")
    else:
        (tmp_path / "labels" / "train" / "1.txt").unlink()
    before = find_yolo(tmp_path)
    assert bool(before) is (description is not None)
    for name, content in STRAY.items():
        text(tmp_path / name, content)
    (tmp_path / "perf.data").write_bytes(b"PERFILE2\xff\xfe")
    assert find_yolo(tmp_path) == before


def test_a_yaml_of_any_name_beside_images_with_labels_is_not_passed_over(tmp_path: Path) -> None:
    labelled(tmp_path, "train/1")
    file = text(tmp_path / "mine.yaml", "train: images/trian\nnames: [cat]\n")
    assert message(tmp_path).startswith(f"{file}: train is images/trian, which is nowhere below {tmp_path}")


@pytest.mark.parametrize("images", ["{}", "{}/images", "images/{}"])
@pytest.mark.parametrize("stray", ["preview.jpg", "images/preview.jpg"])
def test_a_picture_beside_the_folders_of_splits_does_not_join_or_hide_them(
    tmp_path: Path, images: str, stray: str
) -> None:
    text(tmp_path / "classes.txt", "cat\n")
    for split in ("train", "val"):
        picture(tmp_path / images.format(split) / "1.jpg")
        text(tmp_path / images.replace("images", "labels").format(split) / "1.txt", BOX)
    picture(tmp_path / stray)
    assert list(listing(tmp_path)) == ["train", "val"]


def test_images_above_the_set_do_not_turn_its_labels_away(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    picture(root / "train" / "1.jpg")
    text(root / "train" / "1.txt", BOX)
    text(root / "data.yaml", "train: train\nnames: [cat]\n")
    assert listing(root)["train"][2] == ["1.txt"]


def test_label_files_without_an_image_are_told(tmp_path: Path) -> None:
    labelled(tmp_path, "train/1", "val/2")
    text(tmp_path / "labels" / "train" / "3.txt", BOX)
    text(tmp_path / "labels" / "train" / "classes.txt", "cat\n")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    found = find_yolo(tmp_path)
    labels = tmp_path / "labels" / "train"
    told = f"1 label files of train have no image, such as {labels}/3.txt"
    assert found["train"].notes == (told,)
    assert found["val"].notes == ()
    photograph = text(tmp_path / "images" / "train" / "3.HEIC")
    assert find_yolo(tmp_path)["train"].notes == (
        f"{told}; files of other kinds have their names, such as {photograph}: save pictures as JPEG",
    )
    # Of a list nothing follows: the others may be of another split.
    text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]\n")
    text(tmp_path / "train.txt", "images/train/1.jpg\n")
    assert find_yolo(tmp_path)["train"].notes == ()


def test_labels_may_lie_in_a_folder_beside_the_images(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "1.jpg")
    text(tmp_path / "train" / "labels" / "1.txt", BOX)
    text(tmp_path / "data.yaml", "train: train\nnames: [cat]\n")
    assert listing(tmp_path) == {"train": (tmp_path / "train", ["1.jpg"], ["1.txt"])}


def test_a_split_without_any_label_is_told_with_the_place_of_the_first(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg")
    text(tmp_path / "data.yaml", "train: images\nnames: [cat]\n")
    said = message(tmp_path)
    assert "data.yaml: train has 1 images and no label file; expected that of" in said
    assert f"at {tmp_path}/labels/1.txt, or beside it" in said


def test_paths_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    labelled(tmp_path, "val/1")
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    assert f"data.yaml: train is images/train, which is nowhere below {tmp_path}; correct the path" in message(tmp_path)
    text(tmp_path / "data.yaml", "train: {a: 1}\nnames: [cat]\n")
    assert "train is {'a': '1'}, expected a folder, a list of folders, or a .txt of images" in message(tmp_path)


@pytest.mark.parametrize("base", ["coco8", "../datasets/coco8", "/else/coco8"])
def test_a_path_that_leads_nowhere_is_told_as_the_reason_with_the_way_out(tmp_path: Path, base: str) -> None:
    file = text(tmp_path / "coco8" / "data.yaml", f"path: {base}\ntrain: images/train\nnames: [cat]\n")
    said = message(file)
    assert said.startswith(
        f"{file}: train is images/train, which is nowhere below {file.parent}; path is {base}, which"
    )
    assert said.endswith("let path name the whole way to the folder of the data, or put the file into it")


def test_yaml_is_read_as_texts_and_what_is_none_is_told(tmp_path: Path) -> None:
    assert read_yaml(text(tmp_path / "a.yaml", "names: [no, 1, 'on']\n")) == {"names": ["no", "1", "on"]}
    assert read_yaml(text(tmp_path / "b.yaml", "- 1\n")) == {}
    with pytest.raises(DataError, match=r"c\.yaml: not YAML \(.*line 1"):
        read_yaml(text(tmp_path / "c.yaml", "names: [a\n"))
    with pytest.raises(DataError, match=r"d\.yaml: not YAML"):
        read_yaml(text(tmp_path / "d.yaml", "a: !!python/object/apply:os.system [ls]\n}"))


def test_a_split_without_images_is_refused_to_train_on_and_told_of_to_validate_on(tmp_path: Path) -> None:
    file = text(tmp_path / "data.yaml", "names: [cat]\ntrain: images/train\nval: images/val")
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    with pytest.raises(DataError, match="train is images/train, where there is no image"):
        find_yolo(tmp_path)
    picture(tmp_path / "images" / "train" / "1.jpg")
    text(tmp_path / "labels" / "train" / "1.txt", "0 0.5 0.5 0.2 0.2")
    splits = find_yolo(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].notes == (f"{file}: val is images/val, where there is no image: left out",)


def test_a_list_of_images_without_any_label_is_refused(tmp_path: Path) -> None:
    text(tmp_path / "classes.txt", "cat")
    for split in ("train", "val"):
        picture(tmp_path / "images" / f"{split}.jpg")
        text(tmp_path / f"{split}.txt", f"images/{split}.jpg")
    text(tmp_path / "labels" / "val.txt", "0 0.5 0.5 0.2 0.2")
    with pytest.raises(DataError, match="train has 1 images and no label file"):
        find_yolo(tmp_path)


def test_images_that_share_a_label_file_are_told_of(tmp_path: Path) -> None:
    text(tmp_path / "classes.txt", "cat")
    first, second = picture(tmp_path / "1.jpg"), picture(tmp_path / "1.png")
    label = text(tmp_path / "1.TXT", "0 0.5 0.5 0.2 0.2")
    found = find_yolo(tmp_path)["all"]
    assert found.labels == (label, label)
    assert found.notes == (
        f"2 images of all share a label file with another of the same name, such as {first} and {second} ({label}): "
        "its boxes count in each",
    )


def test_a_class_number_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text(tmp_path / "data.yaml", "names:\n  0: cat\n  0: dog\n")
    with pytest.raises(DataError, match="'0' stands twice in one mapping"):
        find_yolo(tmp_path)


def test_an_accent_written_as_two_characters_is_the_same_name(tmp_path: Path) -> None:
    text(tmp_path / "classes.txt", "cat")
    picture(tmp_path / f"{unicodedata.normalize('NFC', 'ä')}.jpg")
    label = text(tmp_path / f"{unicodedata.normalize('NFD', 'ä')}.txt", BOX)
    assert find_yolo(tmp_path)["all"].labels == (label,)


def test_a_number_of_classes_that_is_not_that_of_the_names_is_refused(tmp_path: Path) -> None:
    labelled(tmp_path, "1")
    text(tmp_path / "obj.names", "cat\n")
    text(tmp_path / "train.txt", "images/1.jpg")
    file = text(tmp_path / "obj.data", "classes = 2\ntrain = train.txt\nnames = obj.names\n")
    assert message(tmp_path).startswith(f"{file}: classes is 2, and {tmp_path / 'obj.names'} lists 1; correct either")


def test_aliases_that_would_take_all_memory_are_refused_unread(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    (tmp_path / "data.yaml").write_text(f"{bomb}names: [cat]\ntrain: *a39\n")
    with pytest.raises(DataError, match=r"data\.yaml: has YAML aliases"):
        find_yolo(tmp_path)
