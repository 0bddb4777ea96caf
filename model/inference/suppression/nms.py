"""Greedy class-wise NMS, compiled by numba: drops a box whose IoU with a better kept one of its class is too large."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
LOW = np.uint64(0xFFFFFFFF)
"""Mask of the lower half of a packed score, which holds its place."""


# nogil: images are scored in threads. cache: compiling takes about 10 s in a fresh folder. error_model: 0 / 0 is NaN
# instead of an error.
@njit(nogil=True, cache=True, error_model="numpy")
def keep(boxes: Floats, labels: Ints, iou: np.float32, limit: int, by_distance: bool | None = None) -> Ints:
    """Places of the boxes that NMS keeps, rising; it ends once there are `limit`, which later boxes cannot change.

    Args:
        boxes: [n, 4] xyxy, best first.
        labels: [n] from 0.
        iou: a box is dropped whose IoU with a kept one of its class is strictly above this.
        limit: how many are wanted.
        by_distance: True drops by DIoU instead; it compiles a second function, and None leaves all of it out.
    """
    kept = np.empty(min(limit, len(boxes)), np.int64)
    count = 0
    newest = np.full(labels.max() + 1 if len(labels) else 0, -1)  # of each class, and from each the one before it
    before = np.empty(len(kept), np.int64)
    for i in range(len(boxes)):
        if count == limit:
            break
        k = newest[labels[i]]
        # `not >` instead of `<=`: the NaN of two boxes without area drops nothing.
        while k >= 0 and not (
            overlap(boxes[kept[k]], boxes[i]) > iou
            # No DIoU is above the IoU, which is cheaper.
            and (by_distance is None or distance_overlap(boxes[kept[k]], boxes[i]) > iou)
        ):
            k = before[k]
        if k < 0:
            before[count] = newest[labels[i]]
            newest[labels[i]] = count
            kept[count] = i
            count += 1
    return kept[:count]


@njit(nogil=True, cache=True, error_model="numpy")
def largest(values: Floats, kth: np.float32, count: int) -> Ints:
    """Places of the `count` largest values, of which `kth` is the least, rising; of equal ones the first.

    NaN is no large value, and fewer are found where it takes the place of some.
    """
    equal = count
    for value in values:
        equal -= value > kth
    found, number = np.empty(count, np.int64), 0
    for i in range(len(values)):
        if number == count:  # a `kth` that is not the least of them, as among NaN, must not write behind the end
            break
        if values[i] > kth or (values[i] == kth and equal > 0):
            equal -= values[i] == kth
            found[number] = i
            number += 1
    return found[:number]


@njit(nogil=True, cache=True, error_model="numpy")
def pack(scores: NDArray[np.uint32], threshold: np.uint32) -> NDArray[np.uint64]:
    """One number for each score above a threshold: its bits, and below these the number of scores that come after it.

    Args:
        scores: [m, K] the bits of floats from 0 on, which sort as they do.
        threshold: the bits of a float.
    """
    flat = scores.ravel()
    keys = np.empty(len(flat), np.uint64)
    count = 0
    for i in range(len(flat)):
        if flat[i] > threshold:
            keys[count] = (np.uint64(flat[i]) << np.uint64(32)) | np.uint64(len(flat) - 1 - i)
            count += 1
    return keys[:count]


@njit(nogil=True, cache=True, error_model="numpy")
def keep_packed(
    keys: NDArray[np.uint64],
    last: int,
    places: Ints,
    boxes: Floats,
    num_classes: int,
    iou: np.float32,
    limit: int,
) -> tuple[Ints, Ints]:
    """`keep` of packed scores: the rows and the classes of the pairs that stay, best first.

    The scores are dealt into as many buckets as there are; a bucket is sorted only when NMS reaches it.

    Args:
        keys: [n] as `pack` makes them, in any order.
        last: the number of scores less one.
        places: [m] of the box of each row.
        boxes: xyxy.
        num_classes: K.
        iou: as in `keep`.
        limit: as in `keep`.
    """
    dealt, ends = _deal(keys)
    limit = min(limit, len(keys))  # a setting, for which there may not be the memory
    rows, labels, kept = np.empty(limit, np.int64), np.empty(limit, np.int64), np.empty((limit, 4), np.float32)
    newest, before = np.full(num_classes, -1), np.empty(limit, np.int64)
    count = 0
    for bucket in range(len(ends) - 1, 0, -1):
        some = dealt[ends[bucket - 1] : ends[bucket]]
        # Most candidates are never sorted: NMS ends as soon as it has kept `limit` boxes.
        _sort(some)
        for i in range(len(some) - 1, -1, -1):
            if count == limit:
                return rows, labels
            flat = last - np.int64(some[i] & LOW)
            row, label = flat // num_classes, flat % num_classes
            box, k = boxes[places[row]], newest[label]
            while k >= 0 and not overlap(kept[k], box) > iou:
                k = before[k]
            if k < 0:
                before[count], newest[label] = newest[label], count
                rows[count], labels[count] = row, label
                for side in range(4):  # `kept[count] = box` compiles 3 s longer, for such a message
                    kept[count, side] = box[side]
                count += 1
    return rows[:count], labels[:count]


@njit(nogil=True, cache=True, error_model="numpy")
def _deal(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], Ints]:
    """The keys by bucket, worst bucket first, and where each ends; the first end is 0."""
    least = keys.min() if len(keys) else LOW
    span, shift = (keys.max() if len(keys) else LOW) - least, np.uint64(0)
    # Until there are no more than about half as many buckets as keys.
    while span >> shift >= np.uint64(len(keys) // 2 + 1):
        shift += np.uint64(1)
    ends = np.zeros(np.int64(span >> shift) + 2, np.int64)
    for key in keys:
        ends[np.int64((key - least) >> shift) + 1] += 1
    for bucket in range(len(ends) - 1):
        ends[bucket + 1] += ends[bucket]
    free, dealt = ends[:-1].copy(), np.empty_like(keys)
    for key in keys:
        place = np.int64((key - least) >> shift)
        dealt[free[place]] = key
        free[place] += 1
    return dealt, ends


@njit(nogil=True, cache=True, error_model="numpy")
def _sort(keys: NDArray[np.uint64]) -> None:
    """In place, rising."""
    if len(keys) > 32:
        keys.sort()  # `keys[:] = np.sort(keys)` compiles 2 s longer, for the message about shapes that do not fit
        return
    for i in range(1, len(keys)):
        key, j = keys[i], i
        while j > 0 and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def overlap(one: Floats, other: Floats) -> np.float32:
    """IoU of two boxes, in single precision; NaN where neither has an area."""
    width = max(np.float32(0), min(one[2], other[2]) - max(one[0], other[0]))
    height = max(np.float32(0), min(one[3], other[3]) - max(one[1], other[1]))
    shared = width * height
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared
    return shared / union  # type: ignore[no-any-return]


@njit(nogil=True, cache=True, error_model="numpy")
def distance_overlap(one: Floats, other: Floats) -> np.float32:
    """DIoU of two boxes (Zheng et al. 2020): IoU less the squared distance of their centres over the squared diagonal
    of the box around both; NaN where that is a point."""
    across = (one[0] + one[2] - other[0] - other[2]) / np.float32(2)
    down = (one[1] + one[3] - other[1] - other[3]) / np.float32(2)
    width = max(one[2], other[2]) - min(one[0], other[0])
    height = max(one[3], other[3]) - min(one[1], other[1])
    distance, diagonal = across * across + down * down, width * width + height * height
    return overlap(one, other) - distance / diagonal  # type: ignore[no-any-return]
