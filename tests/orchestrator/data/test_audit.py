import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import TrainConfig
from model.data.faults import DataError
from model.data.images import resize_boxes, resize_shape
from model.data.split import CocoData, Learnt
from model.training.batches import training_images
from orchestrator.data.audit import (
    audit,
    box_sides,
    boxes_by_class,
    class_names,
    count_sizes,
    images_by_class,
    learnt,
)
from tests.orchestrator.data.conftest import MakeSplit, cut_short, photo

EDGES = (600, 1000)
BOX = [10, 10, 30, 20]


@pytest.fixture
def odd(make_split: MakeSplit) -> Path:
    """Of nine boxes three are learnt: the others are two crowds, one of area 0, two too thin, one in a small image."""
    rows = [
        (1, "cat", BOX),
        (1, "dog", BOX),
        (2, "cat", BOX),
        (2, "cat", [1, 1, 9, 9], {"iscrowd": 1}),
        (2, "dog", [1, 1, 0.5, 9], {"iscrowd": 1}),  # a crowd first of all
        (2, "dog", BOX),  # of area 0, see below
        (2, "dog", [5, 5, 0.5, 9]),
        (2, "dog", [5, 5, 9, 0.9]),
        (3, "dog", [1, 1, 9, 9]),
    ]
    images = {"1.png": photo(1), "2.png": photo(2), "3.png": photo(3, (60, 31)), "4.png": photo(4)}
    return make_split("train", images, rows)


def odd_split(root: Path) -> CocoData:
    """Its train, with an area of 0, which readers of some formats may leave."""
    data = audit(root, EDGES, read_images=False).splits[0]
    areas = np.where(data.annotation_ids == 6, 0.0, data.annotation_areas)
    return replace(data, annotation_areas=areas)


def test_boxes_that_are_not_learnt_are_counted_by_their_first_reason(odd: Path) -> None:
    data = odd_split(odd)
    assert {reason: int(mask.sum()) for reason, mask in data.not_learnt().items()} == {
        "crowd": 2,
        "area 0": 1,
        "under a pixel": 2,
        "outside": 0,
        "small image": 1,
    }
    assert data.annotation_ids[learnt(data)].tolist() == [1, 2, 3]
    assert data.learnt() == Learnt(3, 9, crowds=2, without_area=1, under_a_pixel=2, outside=0, in_small_images=1)


def test_what_is_counted_as_learnt_is_what_a_training_gets(odd: Path) -> None:
    data = odd_split(odd)
    trained = training_images(data, TrainConfig())
    assert sum(len(data.boxes(index)) for index in trained.tolist()) == learnt(data).sum() == 3


def test_classes_are_counted_by_boxes_and_by_images(odd: Path, make_split: MakeSplit) -> None:
    make_split("val", {"1.png": photo(9)}, [(1, "owl", BOX), (1, "dog", BOX)], ["dog", "owl"])
    found = audit(odd, EDGES)
    assert [data.split for data in found.splits] == ["train", "val"]
    assert class_names(found) == ["cat", "dog", "owl"]
    train, val = odd_split(odd), found.splits[1]
    assert boxes_by_class(train, class_names(found)).tolist() == [3, 6, 0]
    assert boxes_by_class(train, class_names(found), learnt(train)).tolist() == [2, 1, 0]
    assert images_by_class(train, class_names(found)).tolist() == [2, 3, 0]
    assert boxes_by_class(val, class_names(found)).tolist() == [0, 1, 1]


def test_objects_are_small_below_32_and_large_from_96_pixels_a_side(make_split: MakeSplit) -> None:
    boxes = [[0, 0, 31, 33], [0, 0, 32, 32], [0, 0, 95, 97], [0, 0, 96, 96], [0, 0, 110, 110]]  # 1023, 1024, 9215, 9216
    rows = [*((1, "cat", box) for box in boxes), (1, "cat", BOX, {"iscrowd": 1})]
    data = audit(make_split("train", {"1.png": photo(1)}, rows), EDGES).splits[0]
    assert count_sizes(data) == (1, 2, 2)


def test_box_sides_are_those_after_resizing_for_training(make_split: MakeSplit) -> None:
    # 160 x 120 -> 800 x 600 (times 5); 300 x 60 -> 1000 x 200 (times 10 / 3, as the long edge is the limit).
    images = {"1.png": photo(1), "2.png": photo(2, (300, 60))}
    data = audit(make_split("train", images, [(1, "cat", [0, 0, 8, 2]), (2, "cat", [0, 0, 27, 3])]), EDGES).splits[0]
    np.testing.assert_allclose(box_sides(data, EDGES), [20, 30])
    for index in range(2):
        height, width = data.sizes[index].tolist()
        left, top, right, bottom = resize_boxes(
            data.boxes(index), (height, width), resize_shape(height, width, *EDGES)
        )[0].tolist()
        assert ((right - left) * (bottom - top)) ** 0.5 == pytest.approx(box_sides(data, EDGES)[index], rel=1e-6)


def test_what_trains_comes_first_then_what_is_validated_on(make_split: MakeSplit) -> None:
    for seed, split in enumerate(("extra", "valid", "test", "my_train")):
        root = make_split(split, {f"{split}.png": photo(seed)}, [(1, "cat", BOX)])
    assert [data.split for data in audit(root, EDGES).splits] == ["my_train", "valid", "extra", "test"]


def test_of_data_that_are_shared_out_each_image_counts_once(make_split: MakeSplit) -> None:
    images = {f"{seed}.png": photo(seed) for seed in range(30)}
    root = make_split("all", images, [(id, "cat", BOX) for id in range(1, 31)])
    found = audit(root, EDGES)
    assert [data.split for data in found.splits] == ["train", "val"]
    assert sum(map(len, found.splits)) == 30
    assert found.looked is not None and found.looked.across == ()


def test_a_split_that_cannot_be_read_does_not_hide_the_others(odd: Path, make_split: MakeSplit) -> None:
    make_split("val", {"1.png": photo(9)}, [(1, "dog", BOX)])
    cut_short(odd / "annotations" / "instances_val.json")
    found = audit(odd, EDGES)
    assert [data.split for data in found.splits] == ["train"] and list(found.refused) == ["val"]
    assert "not JSON" in found.refused["val"]


def test_where_no_split_can_be_read_each_reason_is_told(odd: Path) -> None:
    for split in ("train", "val"):
        cut_short(odd / "annotations" / f"instances_{split}.json")
    with pytest.raises(DataError, match=r"instances_train\.json: not JSON(?s:.)*instances_val\.json: not JSON"):
        audit(odd, EDGES)


def test_faulty_boxes_are_left_out_and_kept_as_faults(odd: Path) -> None:
    file = odd / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [1, 1, -5, 5]
    file.write_text(json.dumps(content))
    data = audit(odd, EDGES).splits[0]
    assert [fault.annotation_id for fault in data.faults] == [1] and len(data.annotation_ids) == 8


def test_all_images_are_read_once_and_progress_runs_over_all_splits(odd: Path, make_split: MakeSplit) -> None:
    make_split("val", {"1.png": photo(1), "2.png": photo(9)}, [(1, "dog", BOX)])
    told: list[tuple[int, int]] = []
    looked = audit(odd, EDGES, lambda done, total: told.append((done, total))).looked
    assert told == [(place, 6) for place in range(1, 7)]
    assert looked is not None and looked.num_images == 6
    assert [(twin.name, twin.other_name, twin.distance) for twin in looked.across] == [("1.png", "1.png", None)]
    assert looked.within == () and looked.broken == {}


def test_images_are_read_only_if_asked(odd: Path) -> None:
    assert audit(odd, EDGES, read_images=False).looked is None


def test_an_image_that_does_not_decode_is_told_with_its_reason(odd: Path) -> None:
    # Its parts carry the right checksums, so that the quick check of images passes it.
    file = odd / "train" / "4.png"
    content = file.read_bytes()
    start = content.index(b"IDAT")
    (length,) = struct.unpack(">I", content[start - 4 : start])
    garbage = b"IDAT" + bytes(length)
    file.write_bytes(content[:start] + garbage + struct.pack(">I", zlib.crc32(garbage)) + content[start + length + 8 :])
    looked = audit(odd, EDGES).looked
    assert looked is not None and list(looked.broken) == ["train"] and list(looked.broken["train"]) == ["4.png"]
