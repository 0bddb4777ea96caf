"""The kinds of suppression beside greedy NMS by IoU, for the candidates of one image under one setting.

Each sees the same candidates and works class by class. What is compiled is compiled as a setting asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import InferenceConfig
from model.inference.suppression.iou_guided import keep_guided
from model.inference.suppression.matrix_nms import rank_decayed
from model.inference.suppression.nms import LOW, keep
from model.inference.suppression.soft_nms import keep_lowered
from model.inference.suppression.voting import keep_voted

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
SIGMAS = {"soft_gaussian": 0.5, "matrix_gaussian": 0.5, "voting": 0.025}
"""As soft-NMS, SOLOv2 and PAA have them; SOLOv2's code multiplies by 2 where this divides by 0.5."""
NEEDS_ALL = ("iou_guided", "voting")
"""Kinds whose result may change with any candidate, however low its score."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """The candidates of an image, best first; of equal scores the lower anchor, then the lower class is the better."""

    keys: NDArray[np.uint64]
    """[n] falling: the bits of the score above, below them a number that falls with anchor and class."""
    boxes: Floats
    """[n, 4] xyxy."""
    labels: Ints
    """[n] from 0."""
    confidences: Floats
    """[n] NaN without a confidence branch."""
    num_classes: int
    above: np.float32 | None
    """All candidates whose score is above this are here, and no others; None where all are here."""

    @property
    def scores(self) -> Floats:
        """[n] falling."""
        return (self.keys >> np.uint64(32)).astype(np.uint32).view(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Survivors:
    """What is left of the candidates, best first, and which of them dropped others; all by their places."""

    places: Ints
    """[D]."""
    scores: Floats
    """[D] as they are in the end."""
    boxes: Floats
    """[D, 4] as they are in the end."""
    droppers: Ints
    """[W] in the order in which they dropped others; some may be too many for the limit, and be no survivors."""
    ranks: Floats
    """[W] what put them into that order: scores, or confidences."""


def survivors(ranked: Ranked, config: InferenceConfig) -> Survivors | None:
    """At most `max_detections` candidates as a kind of suppression leaves them; None where more have to be seen.

    What the best candidates alone decide:
    - diou: greedy NMS meets boxes best first, so that the first `max_detections` are kept whatever comes after.
    - soft_*, matrix_*: scores only fall, and a box is lowered by better ones alone. So a lowered score above all that
      was not seen stands, and is not overtaken.
    - iou_guided, voting: nothing. The lowest score may have the largest confidence, and any dropped box votes.

    Args:
        ranked: candidates of one image.
        config: of any kind but `nms`.
    """
    if config.suppression in NEEDS_ALL and ranked.above is not None:
        return None
    found = _KINDS[config.suppression](ranked, config)
    if ranked.above is None:
        return found
    enough = len(found.places) == config.max_detections
    return found if enough and found.scores[-1] > ranked.above else None


def sort_candidates(
    scores: Floats,
    rows: Ints,
    labels: Ints,
    boxes: Floats,
    confidences: Floats,
    num_classes: int,
    above: np.float32 | None,
) -> tuple[Ints, Ranked]:
    """Rank candidates that come in any order.

    Args:
        scores: [n] above 0.
        rows: [n] that rise with the anchor, from 0.
        labels: [n] from 0.
        boxes: [n, 4] xyxy.
        confidences: [n].
        num_classes: K.
        above: as in `Ranked`; candidates at it are left out.

    Returns:
        The place of each that is ranked among those that came, and these.
    """
    bits = np.ascontiguousarray(scores, np.float32).view(np.uint32)
    keys = (bits.astype(np.uint64) << np.uint64(32)) | (LOW - (rows * num_classes + labels).astype(np.uint64))
    order = np.argsort(keys)[::-1]
    if above is not None:
        order = order[: int((scores > above).sum())]
    return order, Ranked(keys[order], boxes[order], labels[order], confidences[order], num_classes, above)


def _by_distance(ranked: Ranked, config: InferenceConfig) -> Survivors:
    """Greedy NMS that drops by DIoU: neighbours whose centres lie apart both stay."""
    kept = keep(ranked.boxes, ranked.labels, np.float32(config.nms_iou), config.max_detections, True)
    scores = ranked.scores[kept]
    return Survivors(kept, scores, ranked.boxes[kept], kept, scores)


def _soft(ranked: Ranked, config: InferenceConfig) -> Survivors:
    kept, scores = keep_lowered(
        ranked.keys,
        ranked.scores,
        ranked.boxes,
        ranked.labels,
        ranked.num_classes,
        np.float32(config.nms_iou),
        _sigma(config),
        np.float32(config.soft_floor),
        config.max_detections,
    )
    return _lowered(ranked, kept, scores)


def _matrix(ranked: Ranked, config: InferenceConfig) -> Survivors:
    kept, scores = rank_decayed(
        ranked.keys,
        ranked.scores,
        ranked.boxes,
        ranked.labels,
        ranked.num_classes,
        _sigma(config),
        np.float32(config.soft_floor),
        config.max_detections,
    )
    return _lowered(ranked, kept, scores)


def _lowered(ranked: Ranked, kept: Ints, scores: Floats) -> Survivors:
    return Survivors(kept, scores, ranked.boxes[kept], np.zeros(0, np.int64), np.zeros(0, np.float32))


def _voting(ranked: Ranked, config: InferenceConfig) -> Survivors:
    kept, boxes = keep_voted(
        ranked.scores,
        ranked.boxes,
        ranked.labels,
        ranked.num_classes,
        np.float32(config.nms_iou),
        _sigma(config),
        config.max_detections,
    )
    scores = ranked.scores[kept]
    return Survivors(kept, scores, boxes, kept, scores)


def _guided(ranked: Ranked, config: InferenceConfig) -> Survivors:
    # Of equal confidences the lower anchor, then class, wins, as among scores.
    low = (ranked.keys & LOW).astype(np.int64)
    order = np.lexsort((-low, -ranked.confidences))
    scores = ranked.scores
    winners, best = keep_guided(
        order, scores, ranked.boxes, ranked.labels, ranked.num_classes, np.float32(config.nms_iou)
    )
    chosen = np.lexsort((-low[winners], -best))[: config.max_detections]
    places = winners[chosen]
    return Survivors(places, best[chosen], ranked.boxes[places], winners, ranked.confidences[winners])


def _sigma(config: InferenceConfig) -> float:
    """Of a Gaussian; 0 for a linear kind."""
    return config.suppression_sigma or SIGMAS.get(config.suppression, 0.0)


_KINDS: dict[str, Callable[[Ranked, InferenceConfig], Survivors]] = {
    "soft_linear": _soft,
    "soft_gaussian": _soft,
    "iou_guided": _guided,
    "diou": _by_distance,
    "matrix_linear": _matrix,
    "matrix_gaussian": _matrix,
    "voting": _voting,
}
