"""How well scores say how well boxes are placed: what the paper counts, and what its argument needs beside that."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.inference.table import DetectionTable

SCORES = (0.05, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Class scores above which boxes are counted."""
IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Overlaps with an object of their class above which boxes are counted."""
WELL_PLACED = 0.5
"""The overlap from which a box is well placed."""
BINS = 50
"""Of a density, along the score and along the IoU, each from 0 to 1."""
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
Ints = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DroppedTable:
    """Boxes that NMS dropped in favour of one that is placed worse: for each kept box and object the best one dropped.

    A dropped box is well placed on the object of its class that it overlaps most; the kept box overlaps that same
    object less, and the dropped box by more than NMS allows.
    """

    image_ids: NDArray[np.int64]
    """[D]."""
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float32]
    """[D, 4] xyxy pixels of the original image, of the dropped box."""
    scores: NDArray[np.float32]
    """[D] its fused score."""
    class_scores: NDArray[np.float32]
    confidences: NDArray[np.float32]
    """[D], NaN where there is no such branch."""
    ious: NDArray[np.float32]
    """[D] its overlap with its object."""
    levels: NDArray[np.int8]
    anchors: NDArray[np.int32]
    """[D] flat index of its anchor."""
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
