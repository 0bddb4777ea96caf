"""The compiled loops behind counting: over candidates, detections and objects of one image."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from model.evaluation.misalignment import BINS, IOUS, SCORES, WELL_PLACED
from model.inference.nms import overlap

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
SCORE_LIMITS = np.array(SCORES, np.float32)
IOU_LIMITS = np.array(IOUS, np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def tally_detections(class_scores: Floats, scores: Floats, ious: Floats) -> tuple[Ints, Ints, Ints]:
    """Count detections above each of SCORES and IOUS, and list the cells of those that overlap an object."""
    by_score, by_iou = np.zeros(len(SCORES), np.int64), np.zeros(len(IOUS), np.int64)
    cells, num_cells = np.empty(len(ious), np.int64), 0
    for i in range(len(ious)):
        for place in range(len(SCORES)):
            by_score[place] += class_scores[i] > SCORE_LIMITS[place]
        for place in range(len(IOUS)):
            by_iou[place] += ious[i] > IOU_LIMITS[place]
        if ious[i] > 0:
            cells[num_cells] = _cell(scores[i], ious[i])
            num_cells += 1
    return by_score, by_iou, cells[:num_cells]


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _cell(score: np.float32, iou: np.float32) -> int:
    return min(int(score * BINS), BINS - 1) * BINS + min(int(iou * BINS), BINS - 1)


@njit(nogil=True, cache=True, error_model="numpy")
def overlaps(boxes: Floats, num_classes: int, truths: Floats, labels: Ints) -> tuple[Floats, Ints]:
    """[n, K] IoU of each box with the object of each class that it overlaps most, and which; 0 and -1 where none."""
    ious = np.zeros((len(boxes), num_classes), np.float32)
    which = np.full((len(boxes), num_classes), -1)
    for g in range(len(truths)):
        for i in range(len(boxes)):
            iou = overlap(boxes[i], truths[g])
            if iou > ious[i, labels[g]]:
                ious[i, labels[g]] = iou
                which[i, labels[g]] = g
    return ious, which


@njit(nogil=True, cache=True, error_model="numpy")
def best_overlaps(boxes: Floats, classes: Ints, truths: Floats, labels: Ints) -> Floats:
    """[n] IoU of each box with the object of its class that it overlaps most."""
    ious = np.zeros(len(boxes), np.float32)
    for i in range(len(boxes)):
        for g in range(len(truths)):
            if labels[g] == classes[i]:
                iou = overlap(boxes[i], truths[g])
                if iou > ious[i]:
                    ious[i] = iou
    return ious


@njit(nogil=True, cache=True, error_model="numpy")
def tally_candidates(
    rows: Ints,
    probabilities: Floats,
    log_probabilities: Floats,
    log_confidences: Floats,
    of_class: np.float32,
    of_confidence: np.float32,
    threshold: np.float32,
    floor: Floats,
    ious: Floats,
) -> tuple[int, Ints, Ints, Ints, Ints, Ints, Floats]:
    """Count candidates, and list those that overlap an object (by cell) or lie well on one (row, class, log score)."""
    num_classes = log_probabilities.shape[1]
    num, by_score, by_iou = 0, np.zeros(len(SCORES), np.int64), np.zeros(len(IOUS), np.int64)
    most = len(rows) * num_classes  # memory that is never touched costs nothing
    cells, num_cells, num_placed = np.empty(most, np.int64), 0, 0
    row, label, scores = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)
    for i in range(len(rows)):
        u = rows[i]
        for k in range(num_classes):
            total = of_class * log_probabilities[u, k] + of_confidence * log_confidences[i]
            if total > threshold and total >= floor[i]:
                num += 1
                if probabilities[u, k] > SCORE_LIMITS[0]:
                    for place in range(len(SCORES)):
                        by_score[place] += probabilities[u, k] > SCORE_LIMITS[place]
                iou = ious[u, k]
                if iou > 0:
                    cells[num_cells] = _cell(np.exp(total), iou)
                    num_cells += 1
                    for place in range(len(IOUS)):
                        by_iou[place] += iou > IOU_LIMITS[place]
                    if iou >= WELL_PLACED:
                        row[num_placed], label[num_placed], scores[num_placed] = i, k, total
                        num_placed += 1
    return num, by_score, by_iou, cells[:num_cells], row[:num_placed], label[:num_placed], scores[:num_placed]


@njit(nogil=True, cache=True, error_model="numpy")
def beaten(
    boxes: Floats,
    labels: Ints,
    scores: Floats,
    anchors: Ints,
    own: Floats,
    object_of: Ints,
    kept: Floats,
    kept_labels: Ints,
    kept_scores: Floats,
    kept_anchors: Ints,
    truths: Floats,
    nms_iou: np.float32,
) -> tuple[Ints, Ints, Floats, Ints]:
    """Of each kept box and object, the best box dropped for it that is placed better, and how many there are."""
    best = np.full((len(kept), len(truths)), -1)
    counts = np.zeros((len(kept), len(truths)), np.int64)
    for w in range(len(boxes)):
        for k in range(len(kept)):
            if kept_labels[k] == labels[w]:
                tie = kept_scores[k] == scores[w]
                if kept_scores[k] < scores[w] or (tie and kept_anchors[k] >= anchors[w]):
                    break  # from here on they come after it
                if overlap(kept[k], boxes[w]) > nms_iou:
                    g = object_of[w]
                    if own[w] > overlap(kept[k], truths[g]):
                        counts[k, g] += 1
                        if best[k, g] < 0 or own[w] > own[best[k, g]]:
                            best[k, g] = w
                    break
    number = np.count_nonzero(counts)
    chosen, by, ious, nums = (
        np.empty(number, np.int64),
        np.empty(number, np.int64),
        np.empty(number, np.float32),
        np.empty(number, np.int64),
    )
    place = 0
    for k in range(len(kept)):
        for g in range(len(truths)):
            if counts[k, g]:
                chosen[place], by[place], nums[place] = best[k, g], k, counts[k, g]
                ious[place] = overlap(kept[k], truths[g])
                place += 1
    return chosen, by, ious, nums
