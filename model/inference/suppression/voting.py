"""Box voting, compiled by numba: greedy class-wise NMS whose winners are moved by what they drop.

Unlike what greedy NMS keeps, it depends on candidates of the lowest scores, which vote as well.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.inference.suppression.nms import overlap

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(nogil=True, cache=True, error_model="numpy")
def keep_voted(
    scores: Floats, boxes: Floats, labels: Ints, num_classes: int, iou: np.float32, sigma: float, limit: int
) -> tuple[Ints, Floats]:
    """Greedy NMS, and each kept box as the mean of itself and of what it dropped.

    A dropped box belongs to the best kept box of its class that overlaps it by more than `iou`. It weighs
    score * exp(-(1 - IoU)^2 / sigma), as in PAA's score voting (Kim and Lee 2020), where others that overlap vote too.

    Args:
        scores: [n] falling.
        boxes: [n, 4] xyxy.
        labels: [n] from 0 to below `num_classes`.
        num_classes: K.
        iou: a box is dropped whose IoU with a kept one of its class is strictly above this.
        sigma: how fast a vote loses weight with its distance.
        limit: how many are wanted; boxes behind the last of them still vote.

    Returns:
        Places of those kept, rising, and their boxes [D, 4].
    """
    most = min(limit, len(scores))
    kept, weights = np.empty(most, np.int64), np.empty(most, np.float64)
    moved = np.zeros((most, 4), np.float64)
    newest, before = np.full(num_classes, -1), np.full(most, -1)  # of each class, and from each the one before it
    count = 0
    for i in range(len(scores)):
        winner, shared, k = -1, np.float32(0), newest[labels[i]]
        while k >= 0:
            met = overlap(boxes[kept[k]], boxes[i])
            if met > iou:
                winner, shared = k, met  # the last that is found is the best
            k = before[k]
        if winner >= 0:
            weight = scores[i] * math.exp(-((1.0 - np.float64(shared)) ** 2) / sigma)
            weights[winner] += weight
            for side in range(4):
                # As a shift, so that a box without votes stays as it is to the last bit.
                moved[winner, side] += weight * (np.float64(boxes[i, side]) - boxes[kept[winner], side])
        elif count < most:
            before[count], newest[labels[i]] = newest[labels[i]], count
            kept[count], weights[count] = i, scores[i]
            count += 1
    voted = np.empty((count, 4), np.float32)
    for k in range(count):
        for side in range(4):
            voted[k, side] = boxes[kept[k], side] + moved[k, side] / weights[k]
    return kept[:count], voted
