"""How far scores are from what they estimate, by class: LaECE, LaACE, D-ECE and LRP; and the bins of a diagram.

LaECE and LaACE take a score for the IoU of a detection with the object that it finds (Oksuz et al., "Towards building
self-aware object detectors via reliable uncertainty quantification and calibration", CVPR 2023; Kuzucu et al., "On
calibration of object detectors: pitfalls, evaluation and baselines", ECCV 2024), D-ECE for the probability that it
finds one (Kueppers et al., "Multivariate confidence calibration for object detection", CVPRW 2020). LRP counts what is
missed, what is wrong, and how badly the rest lies (Oksuz et al., "One metric to measure them all: localisation recall
precision (LRP) for evaluating visual detection tasks", TPAMI 2021).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import CALIBRATION
from model.data.split import CocoData
from model.evaluation.calibration.outcomes import FOUND, Outcomes, outcomes
from model.inference.table import DetectionTable

BINS = 25
"""Equal bins of the score, from 0 to 1."""
Floats = NDArray[np.float64]
Errors = dict[str, float | None]
"""By the names of CALIBRATION, 0 to 100, the least the best; None where there is nothing to take one of."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reliability:
    """What a reliability diagram shows: detections of all classes together, in bins of the score."""

    counts: NDArray[np.int64]
    """[BINS] detections."""
    scores: Floats
    """[BINS] their mean score, NaN in an empty bin; so are those below."""
    ious: Floats
    """[BINS] the mean of u, 0 for a false positive."""
    precision: Floats
    """[BINS] the share of true positives."""


def calibration(data: CocoData, detections: DetectionTable) -> Errors:
    """The errors of one table of detections.

    Raises:
        ValueError: a detection's image or category is none of the data's.
    """
    return calibration_errors(outcomes(data, detections))


def calibration_errors(found: Outcomes) -> Errors:
    """Return the mean over categories of each error, 0 to 100.

    For a category with n detections, of which those of bin j have scores s and u of what they find (0 of a false one):

    - LaECE: sum over j of n_j / n * abs(mean s - sum of u / n_j).
    - D-ECE: the same with precision in place of u.
    - LaACE: the mean of abs(s - u): a bin for each detection.
    - LRP: (sum over true positives of (1 - u) / (1 - 0.5) + FP + FN) / (TP + FP + FN), of all detections.
    - oLRP: the least LRP of the detections above any one score.

    As in COCO's evaluation, categories without an object to find are part of no mean; nor are those without a
    detection, where scores are judged. Scores beyond 0 to 1 are no probabilities, and have neither of the first three.
    """
    has_objects = found.num_objects > 0
    if not has_objects.any():
        return dict.fromkeys(CALIBRATION)
    errors: Errors = dict(zip(CALIBRATION, (None, None, None, *_missed(found, has_objects)), strict=True))
    number = np.bincount(found.labels, minlength=len(has_objects))
    judged = has_objects & (number > 0)
    if judged.any() and found.scores.min() >= 0.0 and found.scores.max() <= 1.0:
        bins = found.labels * BINS + bins_of(found.scores)
        by_iou = _gaps(bins, found.scores - found.ious, len(number))
        by_class = np.bincount(found.labels, np.abs(found.scores - found.ious), minlength=len(number))
        by_precision = _gaps(bins, found.scores - (found.ious > 0), len(number))
        for name, sums in zip(CALIBRATION, (by_iou, by_class, by_precision), strict=False):
            errors[name] = 100.0 * float((sums[judged] / number[judged]).mean())
    return errors


def reliability(found: Outcomes) -> Reliability:
    """Count detections by score; their categories need not have an object."""
    bins = bins_of(found.scores)
    counts = np.bincount(bins, minlength=BINS)

    def mean(values: NDArray[Any]) -> Floats:
        means: Floats = np.full(BINS, np.nan)
        return np.divide(np.bincount(bins, values, BINS), counts, out=means, where=counts > 0)

    return Reliability(counts=counts, scores=mean(found.scores), ious=mean(found.ious), precision=mean(found.ious > 0))


def bins_of(scores: Floats) -> NDArray[np.int64]:
    """Return the bin of each score; 1 is in the last."""
    return np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)


def _gaps(bins: NDArray[np.int64], differences: Floats, num_categories: int) -> Floats:
    """Return for each category the sum over bins of n_j * abs(mean difference), which is abs(sum of differences)."""
    sums = np.bincount(bins, differences, minlength=num_categories * BINS)
    by_category: Floats = np.abs(sums).reshape(num_categories, BINS).sum(axis=1)
    return by_category


def _missed(found: Outcomes, has_objects: NDArray[np.bool_]) -> list[float]:
    """LRP and optimal LRP.

    A detection matches the same object whatever stands below it, so that those above a score are the first of each
    category as it is ranked.
    """
    objects = found.num_objects
    # numpy sorts int16 by radix, and a stable sort keeps the order by score within a category.
    order = np.argsort(-found.scores)
    kind = np.int16 if len(objects) < 2**15 else np.int64
    order = order[np.argsort(found.labels[order].astype(kind), kind="stable")]
    labels, scores = found.labels[order], found.scores[order]
    is_true = found.ious[order] > 0
    misplaced = np.where(is_true, (1.0 - found.ious[order]) / (1.0 - FOUND), 0.0)
    starts = np.searchsorted(labels, np.arange(len(objects) + 1))
    first = starts[:-1][labels]

    def up_to(values: NDArray[Any]) -> Any:
        total = np.concatenate([[0], np.cumsum(values)])
        return total[1:] - total[first]

    number, true = np.arange(1, len(labels) + 1) - first, up_to(is_true)
    wrong = number - true + objects[labels] - true
    lrp = (up_to(misplaced) + wrong) / np.maximum(wrong + true, 1)
    # Without any detection each object is missed.
    whole, least = np.ones(len(objects)), np.ones(len(objects))
    present = np.flatnonzero(np.diff(starts))
    whole[present] = lrp[starts[present + 1] - 1]
    # No score lies between equal ones.
    is_last = np.append((labels[1:] != labels[:-1]) | (scores[1:] != scores[:-1]), True)[: len(labels)]
    if len(present):
        least[present] = np.minimum.reduceat(np.where(is_last, lrp, 1.0), starts[present]).clip(max=1.0)
    return [100.0 * float(values[has_objects].mean()) for values in (whole, least)]
