"""IoU-guided NMS, compiled by numba: class-wise, in the order of the confidences instead of the scores.

Unlike what greedy NMS keeps, it depends on candidates of the lowest scores, which may be the most confident.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.inference.suppression.nms import overlap

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(nogil=True, cache=True, error_model="numpy")
def keep_guided(
    order: Ints, scores: Floats, boxes: Floats, labels: Ints, num_classes: int, iou: np.float32
) -> tuple[Ints, Floats]:
    """IoU-guided NMS (IoU-Net, Jiang et al. 2018): NMS in another order than that of the scores.

    A winner takes the best score of itself and of what it drops.

    Args:
        order: [n] places in the order in which boxes win, most confident first.
        scores: [n].
        boxes: [n, 4] xyxy.
        labels: [n] from 0 to below `num_classes`.
        num_classes: K.
        iou: a box is dropped whose IoU with a winner of its class is strictly above this.

    Returns:
        Places of all winners, in the order in which they won, and the scores that they have in the end.
    """
    kept, best = np.empty(len(order), np.int64), np.empty(len(order), np.float32)
    newest, before = np.full(num_classes, -1), np.full(len(order), -1)  # of each class, and from each the one before it
    count = 0
    for i in order:
        winner, k = -1, newest[labels[i]]
        while k >= 0:
            if overlap(boxes[kept[k]], boxes[i]) > iou:
                winner = k  # the last that is found won first
            k = before[k]
        if winner >= 0:
            best[winner] = max(best[winner], scores[i])
        else:
            before[count], newest[labels[i]] = newest[labels[i]], count
            kept[count], best[count] = i, scores[i]
            count += 1
    return kept[:count], best[:count]
