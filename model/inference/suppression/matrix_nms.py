"""Matrix NMS (SOLOv2, Wang et al. 2020, Eq. 5), class-wise, compiled by numba: each score is lowered once, in parallel.

A box i with a better score lowers that of j by f(IoU_ij), less what i itself suffers from those better than it:
decay_j = min over i of f(IoU_ij) / f(max over k of IoU_ki). Whether i is kept in the end plays no part.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.inference.suppression.nms import LOW, overlap

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(nogil=True, cache=True, error_model="numpy")
def rank_decayed(
    keys: NDArray[np.uint64],
    scores: Floats,
    boxes: Floats,
    labels: Ints,
    num_classes: int,
    sigma: float,
    floor: np.float32,
    limit: int,
) -> tuple[Ints, Floats]:
    """Lower each score by the overlaps with better boxes of its class, and rank by what is left.

    It ends once `limit` lowered scores are above the next score as it was: no later box can be among the best.

    Args:
        keys: [n] packed scores (`nms.pack`), falling; the lower halves settle ties of lowered scores as well.
        scores: [n] that were packed.
        boxes: [n, 4] xyxy.
        labels: [n] from 0 to below `num_classes`.
        num_classes: K.
        sigma: of f(IoU) = exp(-IoU^2 / sigma); 0 for f(IoU) = 1 - IoU.
        floor: a box whose lowered score is not above this is dropped.
        limit: how many are wanted.

    Returns:
        Places of the best, and their lowered scores, falling.
    """
    most = min(limit, len(keys))
    chosen, best, order = np.empty(most, np.int64), np.empty(most, np.float32), np.empty(most, np.uint64)
    newest, before = np.full(num_classes, -1), np.full(len(keys), -1)  # of each class, and from each the one before it
    nearest = np.zeros(len(keys), np.float64)  # the largest overlap with a better one
    lowered = np.empty(1, np.float32)
    bits = lowered.view(np.uint32)
    count = 0
    for j in range(len(keys)):
        if count == most and (most == 0 or order[most - 1] > keys[j]):
            break
        decay, excess, k = 1.0, 0.0, newest[labels[j]]
        while k >= 0:
            shared = np.float64(overlap(boxes[k], boxes[j]))
            if shared > 0:  # NaN, of two boxes without area, lowers nothing
                nearest[j] = max(nearest[j], shared)
                # f / f of the Gaussian is exp(-excess / sigma), which does not divide what may be 0.
                excess = max(excess, shared * shared - nearest[k] * nearest[k])
                ratio = (1.0 - shared) / (1.0 - nearest[k])
                if ratio < decay:  # not 0 / 0, of three equal boxes, of which the first decides
                    decay = ratio
            k = before[k]
        before[j], newest[labels[j]] = newest[labels[j]], j
        lowered[0] = scores[j] * (math.exp(-excess / sigma) if sigma > 0 else decay)
        if not lowered[0] > floor:
            continue
        key = (np.uint64(bits[0]) << np.uint64(32)) | (keys[j] & LOW)
        if count == most:
            if order[most - 1] > key:
                continue
            count -= 1
        place = count
        while place > 0 and order[place - 1] < key:
            chosen[place], best[place], order[place] = chosen[place - 1], best[place - 1], order[place - 1]
            place -= 1
        chosen[place], best[place], order[place] = j, lowered[0], key
        count += 1
    return chosen[:count], best[:count]
