"""Boxes that are written in another form than COCO's: they are refused as a whole, and no sound data with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.data.checks import names_alike
from model.data.coco import read_coco
from model.data.faults import DataError
from tests.conftest import MakeCoco

SIZE = (60, 80)


def boxes_of(form: str, count: int, seed: int = 0, *, area: bool = True) -> list[dict[str, Any]]:
    """Random boxes of 8 to 30 pixels anywhere in an image of 80 x 60, written in a form."""
    random = np.random.default_rng(seed)
    rows = []
    for id in range(1, count + 1):
        w, h = random.uniform(8, 30, 2)
        x, y = random.uniform(0, 80 - w), random.uniform(0, 60 - h)
        box = {
            "xywh": [x, y, w, h],
            "xyxy": [x, y, x + w, y + h],
            "centre": [x + w / 2, y + h / 2, w, h],
            "fractions": [x / 80, y / 60, w / 80, h / 60],
            "fractions of centres": [(x + w / 2) / 80, (y + h / 2) / 60, w / 80, h / 60],
            "fractions of corners": [x / 80, y / 60, (x + w) / 80, (y + h) / 60],
        }[form]
        row = {"id": id, "image_id": 1, "category_id": 3, "bbox": [round(side, 4) for side in box]}
        rows.append(row | ({"area": w * h} if area else {}))
    return rows


def refused(root: Path) -> str:
    messages = []
    for faults in ("refuse", "quarantine"):
        with pytest.raises(DataError) as caught:
            read_coco(root, "train", faults=faults)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{root / 'annotations' / 'instances_train.json'}: ")
    return messages[0]


@pytest.mark.parametrize("form", ["fractions", "fractions of centres", "fractions of corners"])
@pytest.mark.parametrize("count", [1, 40])
def test_fractions_of_the_image_are_refused(make_coco: MakeCoco, form: str, count: int) -> None:
    rows = boxes_of(form, count)
    message = refused(make_coco(rows, sizes=[SIZE]))
    assert "boxes look like fractions of the image, from 0 to 1 (annotation 1 has [0." in message
    assert str(rows[0]["bbox"][0]) in message


@pytest.mark.parametrize("count", [1, 4, 40, 400])
def test_corners_are_refused_by_their_areas_or_by_leaving_their_images(make_coco: MakeCoco, count: int) -> None:
    assert "boxes look like corners (x1, y1, x2, y2)" in refused(make_coco(boxes_of("xyxy", count), sizes=[SIZE]))
    if count > 10:
        rows = boxes_of("xyxy", count, area=False)
        message = refused(make_coco(rows, sizes=[SIZE]))
        assert "boxes look like corners (x1, y1, x2, y2)" in message
        assert "in an image of 80 x 60" in message


def test_corners_within_their_images_either_way_are_told_by_their_areas(make_coco: MakeCoco) -> None:
    rows = [{"id": i, "image_id": 1, "category_id": 3, "bbox": [20, 10, 50, 40], "area": 900} for i in range(1, 5)]
    assert "boxes look like corners" in refused(make_coco(rows, sizes=[SIZE]))
    sound = [row | {"area": 2000} for row in rows]
    assert len(read_coco(make_coco(sound, sizes=[SIZE]), "train").boxes(0)) == 4


def test_a_few_faulty_boxes_do_not_hide_that_the_rest_are_corners(make_coco: MakeCoco) -> None:
    rows = boxes_of("xyxy", 100, area=False)
    for row in rows[:3]:
        row["bbox"][2] = row["bbox"][0] - 1
    assert "boxes look like corners" in refused(make_coco(rows, sizes=[SIZE]))


def test_centres_are_refused(make_coco: MakeCoco) -> None:
    message = refused(make_coco(boxes_of("centre", 40), sizes=[SIZE]))
    assert "boxes look as if x and y were their centre" in message and "write the upper left corner" in message


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 2, 40])
def test_sound_boxes_are_taken_for_nothing_else(make_coco: MakeCoco, seed: int, count: int) -> None:
    rows = boxes_of("xywh", count, seed)
    assert len(read_coco(make_coco(rows, sizes=[SIZE]), "train", check_images=False).boxes(0)) == count
    for row in rows[: count // 10]:  # some that leave their image are faults of their own
        row["bbox"][2] = 100.0
    data = read_coco(make_coco(rows, sizes=[SIZE]), "train", faults="quarantine", check_images=False)
    assert len(data.faults) == count // 10


def test_boxes_listed_twice_are_told(make_coco: MakeCoco) -> None:
    rows = boxes_of("xywh", 6)
    again = [*rows, rows[4] | {"id": 7}, rows[1] | {"id": 8}, rows[2] | {"id": 9, "category_id": 8}]
    data = read_coco(make_coco(again, sizes=[SIZE]), "train")
    (note,) = data.notes
    assert note.startswith("2 boxes are listed more than once in the same image and category (annotations ")
    assert "5 and 7" in note and "2 and 8" in note
    assert len(data.annotation_ids) == 9
    assert read_coco(make_coco(rows, sizes=[SIZE]), "train").notes == ()


def test_boxes_that_count_pixels_from_1_are_told(make_coco: MakeCoco) -> None:
    rows = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 20, 20]},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [61, 41, 20, 20]},
    ]
    (note,) = read_coco(make_coco(rows, sizes=[SIZE]), "train").notes
    assert "they seem to count pixels from 1, and COCO from 0" in note
    rows[0]["bbox"] = [0, 0, 20, 20]
    assert read_coco(make_coco(rows, sizes=[SIZE]), "train").notes == ()


def test_categories_that_people_would_take_for_one_are_told_of() -> None:
    names = {1: "cat", 2: "Cat ", 3: "big  dog", 4: "big dog", 5: "cats"}
    (note,) = names_alike(names)
    assert note == (
        "categories have the same name, but for case and spaces: 'cat' (1), 'Cat ' (2), 'big  dog' (3), 'big dog' (4); "
        "each is a class of its own"
    )
    assert names_alike({1: "cat", 2: "dog"}) == []
