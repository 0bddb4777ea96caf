"""Small counts of a scoring pass, made by hand."""

from collections.abc import Sequence

import numpy as np

from model.evaluation.misalignment import BINS, IOUS, SCORES, DroppedTable, Misalignment
from model.inference.table import DetectionTable
from tests.detections import table


def dropped(objects: Sequence[int], counts: Sequence[int]) -> DroppedTable:
    """Boxes that NMS dropped although they lie better on these objects, all of image 1 and category 2."""
    n = len(objects)
    return DroppedTable(
        image_ids=np.ones(n, np.int64),
        category_ids=np.full(n, 2, np.int64),
        boxes=np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        scores=np.full(n, 0.25, np.float32),
        class_scores=np.full(n, 0.5, np.float32),
        confidences=np.full(n, np.nan, np.float32),
        ious=np.full(n, 0.875, np.float32),
        levels=np.full(n, 4, np.int8),
        anchors=np.arange(n, dtype=np.int32),
        kept_anchors=np.arange(n, dtype=np.int32) + 7,
        kept_ious=np.full(n, 0.75, np.float32),
        objects=np.array(objects, np.int64),
        counts=np.array(counts, np.int32),
    )


def misalignment(
    num_objects: Sequence[int] = (2, 0), lost: DroppedTable | None = None, oracle: DetectionTable | None = None
) -> Misalignment:
    """Counts that tell their columns apart, of images 1, 2, ... with so many objects."""
    n = len(num_objects)
    step = np.arange(n, dtype=np.int32)

    def rising(start: int, width: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
        return (start - 10 * np.arange(width, dtype=np.int32) + step[:, None]).astype(np.int32)

    return Misalignment(
        image_ids=np.arange(1, n + 1, dtype=np.int64),
        num_objects=np.array(num_objects, np.int32),
        num_positive_anchors=step + 11,
        num_before=step + 1000,
        num_after=step + 100,
        scores_before=rising(900, len(SCORES)),
        scores_after=rising(90, len(SCORES)),
        ious_before=rising(500, len(IOUS)),
        ious_after=rising(50, len(IOUS)),
        density_before=np.arange(BINS * BINS, dtype=np.int64).reshape(BINS, BINS),
        density_after=np.eye(BINS, dtype=np.int64),
        dropped=dropped([], []) if lost is None else lost,
        oracle=table([]) if oracle is None else oracle,
    )
