"""The twelve COCO numbers of a set of detections."""

import contextlib
import io

import numpy as np

from model.data import CocoData
from model.detections import DetectionTable

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Average precision and recall, in the order of the COCO API; here on a 0-100 scale."""


def evaluate(data: CocoData, detections: DetectionTable) -> dict[str, float | None]:
    """The twelve numbers, 0 to 100; None where the data set has no object of that size."""
    from hotcoco import COCO, COCOeval

    boxes = detections.boxes.astype(np.float64)
    rows = np.column_stack(
        [
            detections.image_ids,
            boxes[:, :2],
            boxes[:, 2:] - boxes[:, :2],
            detections.scores.astype(np.float64),
            detections.category_ids,
        ]
    )
    truth = COCO(data.coco_dict())
    evaluator = COCOeval(truth, truth.load_res(rows), "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    numbers = zip(METRICS, evaluator.stats, strict=True)
    return {name: 100.0 * float(value) if value > -1 else None for name, value in numbers}
