"""Statistics of how well scores rank boxes by their placement, and of what a perfect ranking would be worth."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.data.coco import CocoData
from model.evaluation.coco_eval import evaluate
from model.evaluation.misalignment import WELL_PLACED, Misalignment
from model.inference.table import DetectionTable

OF_DETECTIONS = ("rank_correlation", "rank_correlation_well_placed", "ece", "oracle_AP")
"""Follow from detections alone."""
OF_SUPPRESSION = ("oracle_nms_AP", "dropped_better", "objects_lost")
"""Follow from what was counted while NMS ran."""
STATISTICS = OF_DETECTIONS + OF_SUPPRESSION
CALIBRATION_BINS = 10
Statistics = dict[str, float | None]
"""By name; None where there is nothing to take one of."""


def statistics(data: CocoData, detections: DetectionTable, misalignment: Misalignment) -> Statistics:
    """All statistics of one evaluation."""
    return of_detections(data, detections) | of_suppression(data, misalignment)


def of_detections(data: CocoData, detections: DetectionTable) -> Statistics:
    """What the kept boxes say: rank correlations, calibration, and the AP if their true IoUs ranked them.

    Args:
        data: the images that were scored.
        detections: with their IoUs.
    """
    scores, ious = detections.scores, detections.ious
    well_placed = ious >= WELL_PLACED
    return {
        "rank_correlation": rank_correlation(scores, ious),
        "rank_correlation_well_placed": rank_correlation(scores[well_placed], ious[well_placed]),
        "ece": calibration_error(scores, ious),
        "oracle_AP": evaluate(data, replace(detections, scores=ious))["AP"],
    }


def of_suppression(data: CocoData, misalignment: Misalignment) -> Statistics:
    """What NMS threw away: the AP if it had ranked by IoU, better boxes dropped per image, and per cent of objects."""
    num_images, num_objects = len(misalignment.image_ids), int(misalignment.num_objects.sum())
    dropped = misalignment.dropped
    return {
        "oracle_nms_AP": evaluate(data, misalignment.oracle)["AP"],
        "dropped_better": float(dropped.counts.sum()) / num_images if num_images else None,
        "objects_lost": 100.0 * len(np.unique(dropped.objects)) / num_objects if num_objects else None,
    }


def rank_correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float | None:
    """Spearman's: -1 to 1, the correlation of ranks in which equal values share theirs; None without a spread."""
    if len(first) < 2:
        return None
    ranks = [average_ranks(values) for values in (first, second)]
    x, y = (rank - rank.mean() for rank in ranks)
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else None


def average_ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The place of each value from 1, rising; equal values have the mean of their places."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    return (last - (sizes - 1) / 2)[group]


def calibration_error(scores: NDArray[np.float32], ious: NDArray[np.float32]) -> float | None:
    """How far scores are from IoUs, 0 to 100: |mean score - mean IoU| of ten equal bins of the score, by size."""
    if not len(scores):
        return None
    bins = np.clip((scores * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, scores.astype(np.float64) - ious, minlength=CALIBRATION_BINS)
    return 100.0 * float(np.abs(gaps).sum()) / len(scores)
