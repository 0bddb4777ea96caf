"""Boxes kept and dropped on a picture: a scene of three boxes with numbers worked out by hand, through the real NMS."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import InferenceConfig
from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.split import CocoData
from model.evaluation.counting import image_parts, objects_of
from model.evaluation.examples.pictures import (
    BEST,
    DROPPED,
    KEPT,
    LINE,
    MARGIN,
    MOST_DROPPED,
    TRUTH,
    WIDTH,
    BoxRow,
    _cells,
    box_rows,
    draw_boxes,
)
from model.evaluation.misalignment import DroppedTable
from model.inference.postprocess import ImagePredictions, pool, shortlist
from model.inference.table import DetectionTable
from model.network.anchors import AnchorGrid
from tests.conftest import MakeCoco
from tests.misalignments import dropped as dropped_boxes

DOG = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [20, 20, 50, 50], "area": 2500, "iscrowd": 0}
WORSE, BETTER, CAT = (26.0, 20.0, 76.0, 70.0), (22.0, 20.0, 72.0, 70.0), (110.0, 50.0, 140.0, 80.0)
GREY, LIGHT = (128, 128, 128), (255, 255, 255)
Found = tuple[DetectionTable, DroppedTable]


@pytest.fixture
def data(make_coco: MakeCoco) -> CocoData:
    return read_coco(make_coco([DOG], sizes=((144, 192), (144, 192))), "train")


def found(data: CocoData, *, with_branch: bool = True) -> Found:
    """On the first image, from p = 0.8, 0.5, 0.3 and c = 0.5, 0.9, 0.2 of three anchors."""
    logits, boxes = torch.full((9, 2), -30.0), torch.tensor([WORSE, BETTER, CAT] + [CAT] * 6)
    logits[[0, 1, 2], [0, 0, 1]] = torch.tensor([0.8, 0.5, 0.3]).logit()
    confidences = torch.tensor([0.5, 0.9, *[0.2] * 7]).logit() if with_branch else None
    grid, size = AnchorGrid(boxes, ((1, 1),)), torch.tensor([144, 192])  # a cell has nine anchors
    image = ImagePredictions(
        image_id=1,
        category_ids=np.array([3, 8]),
        class_logits=logits,
        box_deltas=torch.zeros(9, 4),
        confidence_logits=confidences,
        size=size,
        scale=torch.ones(2),
        grid=grid,
    )
    chosen = shortlist(image, InferenceConfig(confidence_exponent=0.4 if with_branch else 0.0))
    (part,) = image_parts(pool(image, [chosen]), [chosen], objects_of(data, 0), 0)
    assert part.misalignment is not None
    return part.detections, part.misalignment.dropped


def numbers(row: BoxRow) -> list[float]:
    return [row.class_score, row.confidence, row.score, row.iou]


def column(picture: Image.Image, x: float, top: int, bottom: int) -> set[tuple[int, int, int]]:
    """The colours down a line of the drawn image, in its own pixels; it is drawn four times as large."""
    left, above = MARGIN + round(4 * x), 2 * LINE + MARGIN
    return {tuple(pixel) for pixel in np.asarray(picture)[above + 4 * top : above + 4 * bottom, left].tolist()}


def test_the_better_box_that_nms_dropped_stands_below_the_one_that_beat_it(data: CocoData) -> None:
    kept, dropped, other = box_rows(data, 0, *found(data))
    assert [(row.mark, row.beaten_by, row.label, row.box) for row in (kept, dropped, other)] == [
        ("1", None, "dog", WORSE),
        ("1a", "1", "dog", BETTER),
        ("2", None, "cat", CAT),
    ]
    assert numbers(kept) == pytest.approx([0.8, 0.5, 0.66289, 2200 / 2800], abs=1e-5)  # 0.8^0.6 * 0.5^0.4
    assert numbers(dropped) == pytest.approx([0.5, 0.9, 0.63253, 2400 / 2600], abs=1e-5)  # 0.5^0.6 * 0.9^0.4
    assert numbers(other) == pytest.approx([0.3, 0.2, 0.25508, 0.0], abs=1e-5)  # 0.3^0.6 * 0.2^0.4
    assert _cells(dropped) == ("1a", "dog", "dropped for 1", "0.500", "0.900", "0.633", "0.923")


def test_a_confidence_that_there_is_not_is_a_dash(data: CocoData) -> None:
    kept, *_ = box_rows(data, 0, *found(data, with_branch=False))
    assert math.isnan(kept.confidence)
    assert _cells(kept) == ("1", "dog", "kept", "0.800", "-", "0.800", "0.786")


def test_objects_are_dashed_kept_boxes_solid_and_dropped_ones_dotted(data: CocoData) -> None:
    picture = draw_boxes(data, 0, {"RetinaNet-Conf": found(data)})
    assert column(picture, 20, 30, 60) == {TRUTH, LIGHT}
    assert column(picture, 26, 30, 60) == {KEPT}
    dots = column(picture, 22, 30, 60)
    assert {DROPPED, GREY} <= dots and not dots & {KEPT, TRUTH}
    assert column(picture, 110, 60, 75) == {KEPT}
    assert column(picture, 150, 0, 144) == {GREY}


def test_each_box_has_a_line_beneath_in_the_colour_of_its_kind(data: CocoData) -> None:
    picture = draw_boxes(data, 0, {"RetinaNet-Conf": found(data)})
    plates = np.asarray(picture)[-4 * LINE - MARGIN :, 2 * MARGIN - 3]
    kinds = [tuple(pixel) for pixel in plates.tolist() if tuple(pixel) in (KEPT, DROPPED)]
    assert list(dict.fromkeys(kinds)) == [KEPT, DROPPED]
    runs = 1 + sum(one != other for one, other in pairwise(kinds))
    assert runs == 3 and kinds[0] == kinds[-1] == KEPT


def test_heads_stand_side_by_side_on_the_same_image(data: CocoData) -> None:
    one = draw_boxes(data, 0, {"a": found(data)})
    two = draw_boxes(data, 0, {"a": found(data), "a ": found(data)})
    assert two.width - MARGIN == 2 * (one.width - MARGIN) and two.height == one.height
    left = two.crop((MARGIN, 60, one.width - MARGIN, two.height))
    right = two.crop((one.width, 60, two.width - MARGIN, two.height))
    assert np.array_equal(np.asarray(left), np.asarray(right))


def test_an_image_without_objects_or_boxes_is_drawn_all_the_same(data: CocoData) -> None:
    assert box_rows(data, 1, *found(data)) == []
    picture = draw_boxes(data, 1, {"RetinaNet-Conf": found(data)})
    assert picture.width >= WIDTH and column(picture, 96, 0, 144) == {GREY}


def test_of_many_boxes_the_best_are_shown_and_those_that_beat_a_dropped_one(data: CocoData) -> None:
    kept, _ = found(data)
    many = kept.take(np.zeros(40, np.int64))
    many = replace(
        many,
        scores=np.linspace(0.9, 0.1, 40).astype(np.float32),
        anchors=np.arange(40, dtype=np.int32),
        category_ids=np.full(40, 3),
        ious=np.where(np.arange(40) < 5, 0.0, 0.75).astype(np.float32),
    )
    none = dropped_boxes([], [])
    marks = [row.score for row in box_rows(data, 0, many, none)]
    assert marks == many.scores[[*range(BEST), 5]].tolist()  # and one that lies well, as there is one object
    lost = replace(dropped_boxes([0] * 8, [1] * 8), category_ids=np.full(8, 3))  # their anchors: 7 to 14
    rows = box_rows(data, 0, many, lost)
    assert [row.beaten_by for row in rows if row.beaten_by] == [str(BEST + 2 + k) for k in range(MOST_DROPPED)]
    winners = [row.score for row in rows if row.beaten_by is None][BEST + 1 :]
    assert winners == many.scores[7 : 7 + MOST_DROPPED].tolist()


def test_marks_of_boxes_at_one_place_do_not_cover_each_other(data: CocoData) -> None:
    kept, none = found(data)[0], dropped_boxes([], [])
    same = replace(kept.take(np.zeros(3, np.int64)), anchors=np.arange(3, dtype=np.int32))
    one, three = (draw_boxes(data, 0, {"a": (same.take(np.arange(n)), none)}) for n in (1, 3))
    areas = [int((np.asarray(p)[60 : 60 + 4 * 20 - 3] == KEPT).all(axis=2).sum()) for p in (one, three)]
    assert areas[1] > 2.5 * areas[0] > 0


def test_among_many_objects_narrow_ones_are_not_covered_by_the_names_of_their_classes(make_coco: MakeCoco) -> None:
    none = found(read_coco(make_coco([DOG], sizes=((144, 192),)), "train"))[0].take(np.zeros(0, np.int64))

    def plates(count: int, width: int) -> bool:  # a colour that fills a line beneath, inside the object's sides
        boxes = [DOG | {"id": k + 1, "bbox": [20, 20, width, 50], "area": 50 * width} for k in range(count)]
        many = read_coco(make_coco(boxes, sizes=((144, 192),)), "train")
        return TRUTH in column(draw_boxes(many, 0, {"a": (none, dropped_boxes([], []))}), 21, 71, 74)

    assert plates(8, 5) and not plates(9, 5) and plates(9, 50)


def test_an_image_that_went_away_is_an_error_that_names_it(data: CocoData) -> None:
    Path(data.path(0)).unlink()
    with pytest.raises(DataError, match=r"1\.jpg"):
        draw_boxes(data, 0, {"RetinaNet-Conf": found(data)})


def test_an_image_is_drawn_as_it_is_annotated(make_coco: MakeCoco) -> None:
    root = make_coco([DOG], sizes=((144, 192),))
    none = found(read_coco(root, "train"))[0].take(np.zeros(0, np.int64))
    heads = {"a": (none, dropped_boxes([], []))}
    upright = draw_boxes(read_coco(root, "train"), 0, heads)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "train" / "1.jpg") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)  # counterclockwise, which orientation 6 turns back
    turned.save(root / "train" / "1.jpg", exif=exif)
    data = read_coco(root, "train")
    assert turned.size == (144, 192)
    assert np.array_equal(np.asarray(draw_boxes(data, 0, heads)), np.asarray(upright))
