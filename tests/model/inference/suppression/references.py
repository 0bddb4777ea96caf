"""Suppression in plain numpy, one box after the other, as the papers write it: what compiled functions must find.

And the candidates that it is tried on.
"""

import numpy as np
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.inference.suppression.kinds import Ranked, Survivors, sort_candidates, survivors

Floats = NDArray[np.float32]
Found = tuple[list[int], list[float], list[list[float]]]
"""Places, scores and boxes, best first."""
# IoUs: 0.8 of the first two, 0.5 of the first and the last, 0.625 of the last two.
THREE = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5]]


def ranked(boxes: object, scores: object, labels: object = 0, confidences: object = 0.5) -> Ranked:
    """Candidates with one class each; of equal scores the first given is the better."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores = np.asarray(scores, np.float32)
    labels = np.broadcast_to(np.asarray(labels, np.int64), scores.shape)
    confidences = np.broadcast_to(np.asarray(confidences, np.float32), scores.shape)
    return sort_candidates(
        scores, np.arange(len(scores)), labels, boxes, confidences, int(labels.max(initial=0)) + 1, None
    )[1]


def crowd(num: int, num_classes: int, seed: int) -> Ranked:
    """Boxes that overlap much, some of them equal, with scores and confidences of which many are equal."""
    random = np.random.default_rng(seed)
    corners, sides = random.random((num, 2)) * 40, random.random((num, 2)) * 30
    corners[1::7], sides[1::7] = corners[0], sides[0]
    sides[::23] = 0.0
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    scores = ((random.integers(1, 60, num)) / 60).astype(np.float32)
    confidences = (random.integers(1, 20, num) / 20).astype(np.float32)
    return ranked(boxes, scores, random.integers(0, num_classes, num), confidences)


def left(one: Ranked, config: InferenceConfig) -> Survivors:
    found = survivors(one, config)
    assert found is not None
    return found


def ious(one: Ranked) -> Floats:
    """[n, n] of boxes of one class, 0 for others; 0 where neither has an area."""
    low, high = one.boxes[:, None, :2], one.boxes[:, None, 2:]
    sides = np.maximum(np.minimum(high, high.transpose(1, 0, 2)) - np.maximum(low, low.transpose(1, 0, 2)), 0)
    shared, area = sides[..., 0] * sides[..., 1], np.prod(high - low, axis=2)
    with np.errstate(all="ignore"):
        found = np.nan_to_num(shared / (area + area.T - shared))
    return np.where(one.labels[:, None] == one.labels, found, 0).astype(np.float32)


def dious(one: Ranked) -> Floats:
    """[n, n] the same, less the squared distance of the centres over the squared diagonal around both."""
    centres = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
    distance = ((centres[:, None] - centres) ** 2).sum(axis=2)
    low = np.minimum(one.boxes[:, None, :2], one.boxes[None, :, :2])
    high = np.maximum(one.boxes[:, None, 2:], one.boxes[None, :, 2:])
    with np.errstate(all="ignore"):
        return np.nan_to_num(ious(one) - distance / ((high - low) ** 2).sum(axis=2))


def greedy(overlaps: Floats, order: list[int], iou: float) -> dict[int, list[int]]:
    """The winners in their order, each with what it drops."""
    won: dict[int, list[int]] = {}
    for i in order:
        beats = overlaps[list(won), i] > np.float32(iou)
        if beats.any():
            won[list(won)[int(beats.argmax())]].append(i)
        else:
            won[i] = []
    return won


def reference(one: Ranked, config: InferenceConfig) -> Found:
    """What is left under any kind of suppression; places are those in `one`, which is sorted."""
    kind, everything = config.suppression, list(range(len(one.labels)))
    if kind.startswith("soft"):
        places, scores = _soft(one, config)
    elif kind.startswith("matrix"):
        places, scores = _matrix(one, config)
    elif kind == "iou_guided":
        by_confidence = sorted(everything, key=lambda i: (-one.confidences[i], -_low(one, i)))
        won = greedy(ious(one), by_confidence, config.nms_iou)
        best = {k: max(float(one.scores[i]) for i in [k, *dropped]) for k, dropped in won.items()}
        places = sorted(won, key=lambda k: (-best[k], -_low(one, k)))
        scores = [best[k] for k in places]
    else:
        won = greedy(dious(one) if kind == "diou" else ious(one), everything, config.nms_iou)
        places, scores = list(won), [float(one.scores[k]) for k in won]
    boxes = [one.boxes[k].tolist() for k in places]
    if kind == "voting":
        boxes = [_mean(one, [k, *won[k]], config.suppression_sigma or 0.025) for k in places]
    limit = config.max_detections
    return places[:limit], scores[:limit], boxes[:limit]


def _low(one: Ranked, place: int) -> int:
    """Larger is better among equal scores."""
    return int(one.keys[place] & np.uint64(0xFFFFFFFF))


def _soft(one: Ranked, config: InferenceConfig) -> tuple[list[int], list[float]]:
    overlaps, scores, left = ious(one), one.scores.copy(), list(range(len(one.labels)))
    places = []
    while left:
        best = max(left, key=lambda i: (scores[i], _low(one, i)))
        left.remove(best)
        places.append(best)
        for i in left:
            iou = overlaps[best, i]
            if config.suppression == "soft_gaussian":
                scores[i] *= np.float32(np.exp(-(float(iou) ** 2) / (config.suppression_sigma or 0.5)))
            elif iou > np.float32(config.nms_iou):
                scores[i] *= np.float32(1) - iou
        left = [i for i in left if scores[i] > np.float32(config.soft_floor)]
    return places, [float(scores[i]) for i in places]


def _matrix(one: Ranked, config: InferenceConfig) -> tuple[list[int], list[float]]:
    """SOLOv2's Eq. 5 with whole matrices."""
    better = np.triu(ious(one).astype(np.float64), 1)  # [i, j] of i that is better than j
    nearest = better.max(axis=0, initial=0.0)
    sigma = config.suppression_sigma or 0.5
    with np.errstate(all="ignore"):
        if config.suppression == "matrix_gaussian":
            decay = np.exp(-(better**2) / sigma) / np.exp(-(nearest[:, None] ** 2) / sigma)
        else:
            decay = (1 - better) / (1 - nearest[:, None])
    decay = np.nan_to_num(np.where(better > 0, decay, 1.0), nan=1.0).min(axis=0, initial=1.0)
    scores = (one.scores * decay).astype(np.float32)
    left = [i for i in range(len(scores)) if scores[i] > np.float32(config.soft_floor)]
    places = sorted(left, key=lambda i: (-scores[i], -_low(one, i)))
    return places, [float(scores[i]) for i in places]


def _mean(one: Ranked, voters: list[int], sigma: float) -> list[float]:
    overlaps = ious(one)[voters[0], voters].astype(np.float64)
    overlaps[0] = 1.0  # also of a box without area
    weights = one.scores[voters] * np.exp(-((1 - overlaps) ** 2) / sigma)
    return (weights @ one.boxes[voters].astype(np.float64) / weights.sum()).tolist()
