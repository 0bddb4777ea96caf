"""Soft-NMS (Bodla et al. 2017), class-wise, compiled by numba: a kept box lowers the scores of those that overlap it.

Scores only fall, so that a score that was lowered by some of the kept boxes is a bound of what is left of it. A heap of
such bounds gives the box with the largest true score without lowering all the others first.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.inference.suppression.nms import LOW, overlap

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(nogil=True, cache=True, error_model="numpy")
def keep_lowered(
    keys: NDArray[np.uint64],
    scores: Floats,
    boxes: Floats,
    labels: Ints,
    num_classes: int,
    iou: np.float32,
    sigma: float,
    floor: np.float32,
    limit: int,
) -> tuple[Ints, Floats]:
    """Keep the box with the largest score, lower the scores of its class by their overlap with it, and so on.

    Args:
        keys: [n] packed scores (`nms.pack`), falling; the lower halves settle ties of lowered scores as well.
        scores: [n] that were packed.
        boxes: [n, 4] xyxy.
        labels: [n] from 0 to below `num_classes`.
        num_classes: K.
        iou: the overlap above which the linear rule lowers a score: s * (1 - IoU).
        sigma: of the Gaussian rule, s * exp(-IoU^2 / sigma), which lowers whatever overlaps; 0 for the linear rule.
        floor: a box whose lowered score is not above this is dropped.
        limit: how many are wanted.

    Returns:
        Places of those kept, and their lowered scores, falling.
    """
    current, seen = scores.copy(), np.full(len(keys), -1)  # the kept box of its class that lowered it last
    bits = current.view(np.uint32)
    # Falling, so that they are a heap already.
    heap, places, size = keys.copy(), np.arange(len(keys)), len(keys)
    kept = np.empty(min(limit, len(keys)), np.int64)
    first, newest = np.full(num_classes, -1), np.full(num_classes, -1)
    after = np.full(len(kept), -1)  # the next one kept of the same class
    count = 0
    while size > 0 and count < len(kept):
        i = places[0]
        label = labels[i]
        k = first[label] if seen[i] < 0 else after[seen[i]]
        leaves = True
        if k < 0:  # it has met all that were kept, and no bound of another is larger
            if newest[label] < 0:
                first[label] = count
            else:
                after[newest[label]] = count
            newest[label] = count
            kept[count] = i
            count += 1
        else:
            while k >= 0:
                current[i] *= _factor(overlap(boxes[kept[k]], boxes[i]), iou, sigma)
                seen[i], k = k, after[k]
            if current[i] > floor:
                leaves = False
                heap[0] = (np.uint64(bits[i]) << np.uint64(32)) | (heap[0] & LOW)
        if leaves:
            size -= 1
            heap[0], places[0] = heap[size], places[size]
        _sink(heap, places, size)
    return kept[:count], current[kept[:count]]


@njit(nogil=True, cache=True, error_model="numpy")
def _factor(shared: np.float32, iou: np.float32, sigma: float) -> np.float32:
    if sigma > 0:
        # In double precision, so that the rounded factor does not depend on the machine's exp. NaN lowers nothing.
        return np.float32(math.exp(-np.float64(shared) * shared / sigma)) if shared > 0 else np.float32(1)
    return np.float32(1) - shared if shared > iou else np.float32(1)


@njit(nogil=True, cache=True, error_model="numpy")
def _sink(heap: NDArray[np.uint64], places: Ints, size: int) -> None:
    """Move the root of a heap, largest first, down to where it belongs."""
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            return
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[parent] >= heap[child]:
            return
        heap[parent], heap[child] = heap[child], heap[parent]
        places[parent], places[child] = places[child], places[parent]
        parent = child
