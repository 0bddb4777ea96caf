"""Greedy NMS, compiled: a box falls where it overlaps a better one of its class too much."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(nogil=True, cache=True, error_model="numpy")
def keep(boxes: Floats, labels: Ints, iou: np.float32, limit: int) -> Ints:
    """Ranks of the boxes that NMS keeps, rising; it ends once there are `limit`, which later boxes cannot change.

    Args:
        boxes: [n, 4] xyxy, best first.
        labels: [n] from 0.
        iou: a box falls that overlaps a kept one of its class by more.
        limit: how many are wanted.
    """
    kept = np.empty(min(limit, len(boxes)), np.int64)
    count = 0
    newest = np.full(labels.max() + 1 if len(labels) else 0, -1)  # of each class, and from each the one before it
    before = np.empty(len(kept), np.int64)
    for i in range(len(boxes)):
        if count == limit:
            break
        k = newest[labels[i]]
        while k >= 0 and not overlap(boxes[kept[k]], boxes[i]) > iou:
            k = before[k]
        if k < 0:
            before[count] = newest[labels[i]]
            newest[labels[i]] = count
            kept[count] = i
            count += 1
    return kept[:count]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def overlap(one: Floats, other: Floats) -> np.float32:
    """IoU of two boxes, in single precision; NaN where neither has an area."""
    width = max(np.float32(0), min(one[2], other[2]) - max(one[0], other[0]))
    height = max(np.float32(0), min(one[3], other[3]) - max(one[1], other[1]))
    shared = width * height
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared
    return shared / union  # type: ignore[no-any-return]
