"""The twelve COCO numbers of a set of detections."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np

from model.data.coco import CocoData
from model.inference.table import DetectionTable

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Average precision and recall, in the order of the COCO API; here on a 0-100 scale."""


def evaluate(data: CocoData, detections: DetectionTable) -> dict[str, float | None]:
    """The twelve numbers, 0 to 100; None where the data set has no object of that size."""
    return evaluate_all(data, [detections])[0]


def evaluate_all(data: CocoData, tables: Sequence[DetectionTable]) -> list[dict[str, float | None]]:
    """The twelve numbers of each of several tables, 0 to 100; None where the data set has no object of that size."""
    from hotcoco import COCO, COCOeval

    truth, numbers = COCO(data.coco_dict()), []
    for table in tables:
        boxes = table.boxes.astype(np.float64)
        sides = boxes[:, 2:] - boxes[:, :2]
        scores = table.scores.astype(np.float64)
        rows = np.column_stack([table.image_ids, boxes[:, :2], sides, scores, table.category_ids])
        evaluator = COCOeval(truth, truth.load_res(rows), "bbox")
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        stats = zip(METRICS, evaluator.stats, strict=True)
        numbers.append({name: 100.0 * float(value) if value > -1 else None for name, value in stats})
    return numbers
