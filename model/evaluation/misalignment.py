"""Misalignment of scores and IoUs: what a scoring pass counts of it, the files of counts, and their statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from model.data.split import CocoData
from model.evaluation.coco.metrics import evaluate
from model.foreign import open_parquet
from model.inference.table import (
    CORNERS,
    TYPES,
    DetectionTable,
    read_detections,
    split_corners,
    write_columns,
    write_detections,
)

SCORES = (0.05, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Class scores above which boxes are counted."""
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Overlaps with an object of their class above which boxes are counted."""
WELL_PLACED = 0.5
"""The overlap from which a box is well placed."""
BINS = 50
"""Bins of a density along the score, and as many along the IoU, each from 0 to 1."""
CALIBRATION_BINS = 10
PER_IMAGE = (
    "image_ids",
    "num_objects",
    "num_positive_anchors",
    "num_before",
    "num_after",
    "scores_before",
    "scores_after",
    "ious_before",
    "ious_after",
)
"""The fields of `Misalignment` that have a row for each image."""
COUNTS, DENSITY, DROPPED, ORACLE = FILES = ("counts.parquet", "density.parquet", "dropped.parquet", "oracle.parquet")
"""Counts by image; densities; boxes that NMS dropped for worse ones; what NMS would keep if it ranked by IoU."""
PER_IMAGE_COLUMNS = ("num_objects", "num_positive_anchors", "num_before", "num_after")
ABOVE = {"scores_before": SCORES, "scores_after": SCORES, "ious_before": IOUS, "ious_after": IOUS}
"""Columns of an image, one for each threshold: `scores_before > 0.05`."""
DENSITIES = ("density_before", "density_after")
DROPPED_TYPES: dict[str, type[np.generic]] = TYPES | {
    "kept_anchors": np.int32,
    "kept_ious": np.float32,
    "objects": np.int64,
    "counts": np.int32,
}
"""Of the columns of a table of dropped boxes."""
OF_DETECTIONS = ("rank_correlation", "rank_correlation_well_placed", "ece", "oracle_AP")
"""Statistics that follow from detections alone."""
OF_SUPPRESSION = ("oracle_nms_AP", "dropped_better", "objects_lost")
"""Statistics that follow from what was counted while NMS ran."""
STATISTICS = OF_DETECTIONS + OF_SUPPRESSION
Ints = NDArray[np.int32]
Columns = dict[str, NDArray[Any]]
Statistics = dict[str, float | None]
"""By name; None where there is nothing to take one of."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DroppedTable(DetectionTable):
    """Boxes that NMS dropped in favour of one that is placed worse: for each kept box and object the best one dropped.

    A dropped box is well placed on the object of its class that it overlaps most; the kept box overlaps that same
    object less, and the dropped box by more than NMS allows.
    """

    types: ClassVar[Mapping[str, type[np.generic]]] = DROPPED_TYPES

    kept_anchors: NDArray[np.int32]
    """[D] anchor of the kept box, a detection of the same image and category."""
    kept_ious: NDArray[np.float32]
    """[D] the kept box's overlap with the object."""
    objects: NDArray[np.int64]
    """[D] the object: its row among the annotations of the data set."""
    counts: NDArray[np.int32]
    """[D] better boxes that were dropped for this kept box and object, this one included."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Misalignment:
    """What a scoring pass counts under one inference setting.

    The boxes before NMS are its candidates: pairs of an anchor among the best of its level and a class, with a fused
    score above the threshold. The IoU of a box is that with the object of its class that it overlaps most.
    """

    image_ids: NDArray[np.int64]
    """[I] rising."""
    num_objects: Ints
    """[I] crowds left out."""
    num_positive_anchors: Ints
    """[I] that training would match with an object."""
    num_before: Ints
    """[I] candidates."""
    num_after: Ints
    """[I] detections."""
    scores_before: Ints
    """[I, 6] candidates whose class score is above each of SCORES."""
    scores_after: Ints
    ious_before: Ints
    """[I, 5] candidates whose IoU is above each of IOUS."""
    ious_after: Ints
    density_before: NDArray[np.int64]
    """[BINS, BINS] candidates that overlap an object of their class, by fused score and IoU."""
    density_after: NDArray[np.int64]
    """The same of detections."""
    dropped: DroppedTable
    oracle: DetectionTable
    """What NMS would keep of the well-placed candidates if it ranked by IoU; the scores are the IoUs."""


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
        # With the IoU for a score, COCO's evaluation ranks by it.
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
    # The mean of the places last - size + 1 to last.
    return (last - (sizes - 1) / 2)[group]


def calibration_error(scores: NDArray[np.float32], ious: NDArray[np.float32]) -> float | None:
    """How far scores are from IoUs, 0 to 100: |mean score - mean IoU| of ten equal bins of the score, by size."""
    if not len(scores):
        return None
    bins = np.clip((scores * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)
    # A bin's |mean score - mean IoU| times its size is |sum of the differences|, so that no bin is divided by.
    gaps = np.bincount(bins, scores.astype(np.float64) - ious, minlength=CALIBRATION_BINS)
    return 100.0 * float(np.abs(gaps).sum()) / len(scores)


def write_misalignment(folder: Path, misalignment: Misalignment, about: Mapping[str, Any]) -> list[Path]:
    """Write FILES into a folder, compressed, and return them; `about` says whose they are, as JSON will have it."""
    counts: Columns = {name: getattr(misalignment, name) for name in ("image_ids", *PER_IMAGE_COLUMNS)}
    for name, thresholds in ABOVE.items():
        values = getattr(misalignment, name)
        counts |= {_above(name, one): np.ascontiguousarray(values[:, k]) for k, one in enumerate(thresholds)}
    dropped = {name: getattr(misalignment.dropped, name) for name in DROPPED_TYPES}
    corners = split_corners(dropped.pop("boxes"))
    write_columns(folder / COUNTS, counts, about)
    write_columns(folder / DENSITY, {name: getattr(misalignment, name).ravel() for name in DENSITIES}, about)
    write_columns(folder / DROPPED, corners | dropped, about)
    write_detections(misalignment.oracle, folder / ORACLE, about)
    return [folder / name for name in FILES]


def read_misalignment(folder: Path) -> Misalignment:
    """Read back what `write_misalignment` wrote.

    Raises:
        ValueError: a file is missing, cut off, damaged, or none of ours.
    """
    above = [_above(name, one) for name, thresholds in ABOVE.items() for one in thresholds]
    counts = _read(folder / COUNTS, {"image_ids": np.int64, **dict.fromkeys((*PER_IMAGE_COLUMNS, *above), np.int32)})
    density = _read(folder / DENSITY, dict.fromkeys(DENSITIES, np.int64))
    if len(density[DENSITIES[0]]) != BINS * BINS:
        raise ValueError(f"{folder / DENSITY} has {len(density[DENSITIES[0]])} bins, expected {BINS} times {BINS}")
    plain = {name: kind for name, kind in DROPPED_TYPES.items() if name != "boxes"}
    dropped = _read(folder / DROPPED, dict.fromkeys(CORNERS, np.float32) | plain)
    boxes = np.column_stack([dropped.pop(corner) for corner in CORNERS])
    return Misalignment(
        **{name: counts[name] for name in ("image_ids", *PER_IMAGE_COLUMNS)},
        **{name: np.column_stack([counts[_above(name, one)] for one in ABOVE[name]]) for name in ABOVE},
        **{name: density[name].reshape(BINS, BINS) for name in DENSITIES},
        dropped=DroppedTable(boxes=boxes, **dropped),
        oracle=read_detections(folder / ORACLE)[0],
    )


def _above(name: str, threshold: float) -> str:
    return f"{name} > {threshold:g}"


def _read(file: Path, types: Mapping[str, type[np.generic]]) -> Columns:
    import pyarrow as pa

    try:
        with open_parquet(file) as opened:
            table = opened.read(columns=[name for name in opened.schema_arrow.names if name in types])
        columns: Columns = {name: table[name].to_numpy() for name in types}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} holds no counts of a scoring pass, or is cut off or damaged: {error}") from error
    wrong = [name for name, kind in types.items() if columns[name].dtype != kind]
    if wrong:
        raise ValueError(f"{file} has other types than expected, in: {', '.join(wrong)}")
    return columns
