from pathlib import Path

import pytest

from model.data.coco import read_coco
from orchestrator.data.advice import advice, listed, quick_advice, verdict
from orchestrator.data.audit import audit
from tests.data_folders import coco_json
from tests.orchestrator.data.conftest import MakeSplit, cut_short, photo

EDGES = (600, 1000)
BOX = [10, 10, 30, 20]


def seen(root: Path) -> list[str]:
    return [one.seen for one in advice(audit(root, EDGES))]


@pytest.fixture
def sound(make_split: MakeSplit) -> Path:
    """Twenty boxes of either class in train, one in val, all on pictures of their own."""
    images = {f"{seed}.png": photo(seed) for seed in range(20)}
    root = make_split("train", images, [(id, name, BOX) for id in range(1, 21) for name in ("cat", "dog")])
    return make_split("val", {"v.png": photo(50)}, [(1, "cat", BOX), (1, "dog", BOX)]) and root


def test_nothing_is_suspicious_about_sound_data(sound: Path) -> None:
    assert advice(audit(sound, EDGES)) == []
    assert verdict(audit(sound, EDGES)) == ("20 + 1 images (train, val), 2 classes, 40 of 40 boxes of train are learnt")


def test_a_split_that_contains_another_by_its_name_has_no_copies_of_it(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed in range(4):
        photo(seed).save(tmp_path / "images" / f"{seed}.png")
    size = [{"id": id, "file_name": f"{id}.png", "height": 120, "width": 160} for id in range(4)]
    for split, ids in (("train", [0, 1]), ("val", [1, 2]), ("trainval", [0, 1, 2])):
        coco_json(tmp_path / "annotations" / f"instances_{split}.json", [], images=[size[id] for id in ids])
    leaks = [line for line in seen(tmp_path) if " cop" in line or "contains" in line]
    assert leaks == [
        "trainval contains train: the same files",
        "trainval contains val: the same files",
        "1 image of val is a copy of train: val/1.png = train/1.png (same bytes)",
    ]


def test_the_verdict_names_leaks_faults_and_splits_that_cannot_be_read(sound: Path, make_split: MakeSplit) -> None:
    make_split("test", {"t.png": photo(3), "u.png": photo(60)}, [(1, "cat", [1, 1, 0, 5]), (2, "dog", BOX)])
    make_split("other", {"t.png": photo(61)})
    cut_short(sound / "annotations" / "instances_other.json")
    assert verdict(audit(sound, EDGES)) == (
        "20 + 1 + 2 images (train, val, test), 2 classes, 40 of 40 boxes of train are learnt; 1 fault is left out; "
        "other cannot be read; 1 image of test is a copy of train"
    )


def test_a_class_that_one_split_lacks_is_told_by_its_counts(make_split: MakeSplit) -> None:
    images = {f"{seed}.png": photo(seed) for seed in range(20)}
    rows = [(id, "cat", BOX) for id in range(1, 21)]
    classes = ["cat", "puffin", "eel", "owl"]
    root = make_split("train", images, [*rows, *((1, "puffin", [9, 9, size, 20]) for size in (20, 21, 22))], classes)
    make_split("val", {"v.png": photo(50)}, [(1, "cat", BOX), (1, "eel", BOX)], classes)
    assert seen(root) == [
        "class 'puffin' has 3 boxes in train and none in val",
        "class 'eel' has 1 box in val and none to learn in train",
        "class 'puffin' has 3 boxes to learn in train, fewer than 20",
        "class 'owl' has no box in any split",
    ]
    assert all(one.way_out for one in advice(audit(root, EDGES)))


def test_several_classes_of_a_kind_are_one_warning(make_split: MakeSplit) -> None:
    classes = [f"c{number}" for number in range(7)]
    root = make_split("train", {"1.png": photo(1)}, [(1, name, BOX) for name in classes], classes)
    assert seen(root) == [
        "7 classes have boxes to learn in train, fewer than 20: 'c0' (1), 'c1' (1), 'c2' (1), 'c3' (1), 'c4' (1), ..."
    ]


def test_imbalance_is_told_above_a_hundred(make_split: MakeSplit) -> None:
    many = [(1, "cat", [1 + place % 50, 1 + place // 50, 60, 60]) for place in range(2001)]
    root = make_split("train", {"1.png": photo(1)}, [*many, *((1, "dog", [9 + x, 9, 60, 60]) for x in range(20))])
    assert seen(root) == ["class 'cat' has 100 times the boxes of class 'dog' in train"]


def test_boxes_that_are_not_learnt_come_with_the_way_out_of_their_reason(make_split: MakeSplit) -> None:
    crowds = [(id, "cat", BOX, {"iscrowd": 1}) for id in range(1, 4)]
    root = make_split("train", {f"{seed}.png": photo(seed) for seed in range(4)}, crowds, ["cat"])
    first, second, third, *_ = advice(audit(root, EDGES))
    assert first.seen == "train has nothing to find: every box is a crowd"
    assert second.seen == "3 of 3 boxes of train are not learnt: crowd"
    assert "iscrowd" in second.way_out
    assert third.seen == "images of train without a box, which do not train: 1 of 4"


def test_a_few_crowds_are_nothing_to_warn_of(make_split: MakeSplit) -> None:
    images = {f"{seed}.png": photo(seed) for seed in range(20)}
    rows = [(id, "cat", BOX) for id in range(1, 21)]
    assert seen(make_split("train", images, [*rows, (1, "cat", BOX, {"iscrowd": 1})], ["cat"])) == []


def test_splits_that_list_other_classes_are_told(sound: Path, make_split: MakeSplit) -> None:
    make_split("test", {"t.png": photo(70)}, [(1, "cat", BOX), (1, "fox", BOX)], ["cat", "fox"])
    assert "train and test list other classes: 2 is 'dog' in train and 'fox' in test" in seen(sound)
    make_split("later", {"t.png": photo(71)}, [(1, "cat", BOX), (1, "dog", BOX)], ["dog", "cat"])
    differing = "1 is 'cat' in train and 'dog' in later, 2 is 'dog' in train and 'cat' in later"
    assert f"train and later list other classes: {differing}" in seen(sound)


def test_boxes_that_no_anchor_overlaps_by_half_are_told(make_split: MakeSplit) -> None:
    images = {f"{seed}.png": photo(seed) for seed in range(20)}
    # Five times as large in training: 4 pixels a side are 20 there, 5 are 25.
    small, large = ([(id, "cat", [1, 1, side, side]) for id in range(1, 21)] for side in (4, 5))
    root = make_split("train", images, [*small[:5], *large[5:]], ["cat"])
    assert seen(root) == [
        "25 % of the boxes of train are smaller than 23 pixels a side at 600 x 1000, which no anchor overlaps by half"
    ]


def test_double_boxes_and_faults_are_told_with_their_ids(sound: Path, make_split: MakeSplit) -> None:
    rows = [(1, "cat", BOX), (1, "cat", BOX), (1, "dog", BOX), (1, "dog", [1, 1, 0, 5])]
    make_split("test", {"t.png": photo(70)}, rows)
    fault, double = seen(sound)
    assert fault.startswith("test: boxes of zero or negative size (1): annotation 4 (image 1, bbox [1")
    assert double == ("1 of 3 boxes of test repeat another of the same image and class: annotation 2 (image 1)")


def test_quick_advice_tells_of_copies_and_double_boxes_without_decoding(
    sound: Path, make_split: MakeSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_split("test", {"t.png": photo(3), "u.png": photo(60)}, [(1, "cat", BOX), (1, "cat", BOX)])
    train, val = (read_coco(sound, split) for split in ("train", "test"))
    monkeypatch.setattr("PIL.Image.open", None)
    first, second = quick_advice(train, val)
    assert str(first) == (
        "1 image of test is a copy of train: test/t.png = train/3.png (same bytes); "
        "the numbers of test flatter: keep copies, and frames of one video, in one split"
    )
    assert second.seen.startswith("1 of 2 boxes of test repeat another")
    assert quick_advice(train, read_coco(sound, "val", check_images=False)) == []
    assert quick_advice(train, train) == []


def test_a_list_names_the_first_five() -> None:
    assert listed(["a"] * 5) == "a, a, a, a, a"
    assert listed(["a"] * 6) == "a, a, a, a, a, ..."
