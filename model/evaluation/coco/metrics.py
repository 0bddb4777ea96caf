"""COCO's twelve numbers of a table of detections, by hotcoco."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import METRICS
from model.data.split import CocoData
from model.evaluation.coco.matches import Ints, places
from model.inference.table import DetectionTable


def evaluate(data: CocoData, detections: DetectionTable) -> dict[str, float | None]:
    """The twelve numbers, 0 to 100; None where the data set has no object of that size."""
    return evaluate_all(data, [detections])[0]


def evaluate_all(data: CocoData, tables: Sequence[DetectionTable]) -> list[dict[str, float | None]]:
    """The twelve numbers of each of several tables, 0 to 100; None where the data set has no object of that size.

    Raises:
        ValueError: a detection's image or category is none of the data's.
    """
    from hotcoco import COCO

    present = _present(data)
    truth, numbers = COCO(_numbered(data, present).coco_dict()), []
    for table in tables:
        boxes = table.boxes.astype(np.float64)
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        rows = _rows(data, present, table.image_ids, table.category_ids, sides, table.scores.astype(np.float64))
        numbers.append(_twelve(truth, rows))
    return numbers


def evaluate_written(
    data: CocoData, image_ids: Ints, category_ids: Ints, boxes: NDArray[np.float64], scores: NDArray[np.float64]
) -> dict[str, float | None]:
    """The twelve numbers of detections that were not made here, bit for bit of the numbers as they are written.

    Args:
        data: the images.
        image_ids: [D].
        category_ids: [D].
        boxes: [D, 4], x, y, width and height.
        scores: [D].

    Raises:
        ValueError: a detection's image or category is none of the data's.
    """
    from hotcoco import COCO

    present = _present(data)
    rows = _rows(data, present, image_ids, category_ids, boxes, scores)
    return _twelve(COCO(_numbered(data, present).coco_dict()), rows)


def _present(data: CocoData) -> Ints:
    """The labels that objects have, rising."""
    # A category without an object is no part of any mean; of 40,000 they would take 8 GB.
    return np.unique(data.annotation_labels).astype(np.int64)


def _rows(
    data: CocoData,
    present: Ints,
    image_ids: Ints,
    category_ids: Ints,
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
) -> NDArray[np.float64]:
    """[D, 7] image, x, y, width, height, score and category, of detections of the categories that are present."""
    # In a row of floats an id beyond 2^53 would become another; places in the data set never do.
    images = places(image_ids, data.image_ids, "image")
    labels = places(category_ids, np.array(data.category_ids, np.int64), "category")
    rows = np.column_stack([images, boxes, scores, np.searchsorted(present, labels)])
    return rows[np.isin(labels, present)]


def _twelve(truth: Any, rows: NDArray[np.float64]) -> dict[str, float | None]:
    """COCO's evaluation of detections as rows."""
    from hotcoco import COCOeval

    evaluator = COCOeval(truth, truth.load_res(rows), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        # `summarize` would print them, past any redirection where Ray Train has put a print of its own in place:
        # a training's output then held the AP of its oracles under the same words as its own.
        evaluator.summary_lines()
    stats = zip(METRICS, evaluator.stats, strict=True)
    # COCO's -1 stands for a mean over nothing.
    return {name: 100.0 * float(value) if value > -1 else None for name, value in stats}


def _numbered(data: CocoData, present: Ints) -> CocoData:
    """The same data with images and those categories that are present numbered from 0, and annotations from 1."""
    return replace(
        data,
        image_ids=np.arange(len(data)),
        category_ids=tuple(range(len(present))),
        category_names=tuple(data.category_names[label] for label in present.tolist()),
        annotation_ids=np.arange(1, len(data.annotation_ids) + 1),
        annotation_labels=np.searchsorted(present, data.annotation_labels).astype(np.int32),
    )
