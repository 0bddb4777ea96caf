"""The twelve COCO numbers of a set of detections."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.data import CocoData

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Average precision and recall, in the order of the COCO API; here on a 0-100 scale."""


@dataclass(frozen=True, slots=True)
class DetectionTable:
    """The detections of many images, best first within an image; boxes in pixels of the original images."""

    image_ids: NDArray[np.int64]
    """[D] COCO image ids."""
    category_ids: NDArray[np.int64]
    """[D] the data set's own category ids."""
    boxes: NDArray[np.float32]
    """[D, 4] xyxy."""
    scores: NDArray[np.float32]
    """[D] the scores that ranked the boxes."""
    anchors: NDArray[np.int32]
    """[D] flat index of the anchor that the box came from."""

    @staticmethod
    def concatenate(tables: "list[DetectionTable]") -> "DetectionTable":
        """One table of all, sorted by image id, whatever the order in which workers finished."""
        empty = DetectionTable(
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int32),
        )
        tables = [empty, *tables]
        order = np.argsort(np.concatenate([table.image_ids for table in tables]), kind="stable")
        return DetectionTable(
            *(
                np.concatenate([getattr(table, name) for table in tables])[order]
                for name in ("image_ids", "category_ids", "boxes", "scores", "anchors")
            )
        )


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
