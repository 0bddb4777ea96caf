"""From raw predictions to detections: the best anchors of each level, score fusion, NMS, for many settings at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from model.config import InferenceConfig, require_branch
from model.inference.fusion import fuse_scores, log_scores, sigmoid
from model.inference.suppression.kinds import NEEDS_ALL, Ranked, survivors
from model.inference.suppression.nms import LOW, keep_packed, largest, pack
from model.inference.table import DetectionTable
from model.network.anchors import FIRST_LEVEL, NUM_ANCHORS, AnchorGrid, clip, decode
from model.network.retinanet import Predictions, flat

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
FIRST_LOOK = 24
"""NMS is tried on so many anchors a detection first, and on four times as many if it kept too few of their boxes."""
NEAR = 1e-4
"""Slack on log scores: more than what rounding to single precision makes of them."""


def detect(
    predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor, config: InferenceConfig
) -> list[DetectionTable]:
    """Detections of each image of a batch; an image's id is its place there, a category's id its place among classes.

    Args:
        predictions: B images, N anchors, float32.
        grid: the N anchors.
        sizes: [B, 2] (height, width) of each resized image, to which boxes are cut.
        scales: [B, 2] resized size over original size, (y, x); boxes are divided by it before NMS.
        config: fusion, filter, top-k, thresholds.
    """
    categories = range(predictions.class_logits[0].shape[1] // NUM_ANCHORS)
    tables = []
    for image in split(predictions, grid, sizes, scales, range(len(sizes)), categories):
        chosen = shortlist(image, config)
        tables.append(suppress(pool(image, [chosen]), chosen))
    return tables


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePredictions:
    """Raw outputs for one image, over the N anchors of all levels; tensors are on the detector's device."""

    image_id: int
    category_ids: Ints
    """[K] of the classes, rising."""
    class_logits: Tensor
    """[N, K]."""
    box_deltas: Tensor
    """[N, 4]."""
    confidence_logits: Tensor | None
    """[N]; None without a confidence branch."""
    size: Tensor
    """[2] (height, width) of the resized image, to which boxes are cut."""
    scale: Tensor
    """[2] resized size over original size, (y, x)."""
    grid: AnchorGrid

    @cached_property
    def log_best(self) -> Floats:
        """[N] logarithm of the probability of each anchor's best class."""
        return _numpy(logsigmoid(self.class_logits.amax(dim=1)))

    @cached_property
    def log_confidences(self) -> Floats | None:
        """[N]."""
        return None if self.confidence_logits is None else _numpy(logsigmoid(self.confidence_logits))

    @cached_property
    def boxes(self) -> Tensor:
        """[N, 4] xyxy, in pixels of the original image."""
        # Of all anchors, even where few are wanted: torch's last bits depend on where a number stands.
        return clip(decode(self.grid.boxes, self.box_deltas), self.size) / self.scale.flip(0).repeat(2)


def split(
    predictions: Predictions,
    grid: AnchorGrid,
    sizes: Tensor,
    scales: Tensor,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
) -> list[ImagePredictions]:
    """The images of a batch one by one.

    Args:
        predictions: B images, N anchors, float32.
        grid: the N anchors.
        sizes: as in `detect`.
        scales: as in `detect`.
        image_ids: [B].
        category_ids: [K], rising.
    """
    class_logits, box_deltas = flat(predictions.class_logits, len(category_ids)), flat(predictions.box_deltas, 4)
    confidence_logits = None
    if predictions.confidence_logits is not None:
        confidence_logits = flat(predictions.confidence_logits, 1)[..., 0]
    return [
        ImagePredictions(
            image_id=image_id,
            category_ids=np.asarray(category_ids, np.int64),
            class_logits=class_logits[place],
            box_deltas=box_deltas[place],
            confidence_logits=None if confidence_logits is None else confidence_logits[place],
            size=sizes[place],
            scale=scales[place],
            grid=grid,
        )
        for place, image_id in enumerate(image_ids)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Shortlist:
    """The anchors whose boxes reach NMS under one setting, and how their classes score."""

    config: InferenceConfig
    anchors: Ints
    """[R] rising."""
    best: Floats
    """[R] logarithm of an anchor's score for its best class, in single precision."""
    fused: NDArray[np.bool_]
    """[R] whether the confidence enters the score."""
    floor: Floats | None = None
    """[R] a pair of this anchor and a class is a candidate only if its score reaches this; None where all are."""


def shortlist(image: ImagePredictions, config: InferenceConfig) -> Shortlist:
    """What a setting sends to NMS: the best anchors of each level, or the best pairs of each level (`top_k_of`).

    A score rises with the class logit, so the best class of each anchor tells which anchors are worth scoring in full.

    Raises:
        ValueError: the setting reads a confidence branch, and the detector has none.
    """
    require_branch(config, has_branch=image.confidence_logits is not None)
    lengths, num_anchors = image.grid.level_lengths, len(image.grid.boxes)
    fused = np.full(num_anchors, True)
    if not config.fuse_small_levels:
        # The released code leaves the confidence out where all anchors of a level pass the top-k.
        fused = np.repeat([length > config.nms_pre for length in lengths], lengths)
    confidences = image.log_confidences if config.needs_confidence else None
    if confidences is not None and not config.fuse_small_levels:
        # c^0: a logarithm of 0 leaves the class alone in the score.
        confidences = confidences * fused
    best = log_scores(image.log_best, confidences, config)
    if confidences is not None and config.min_confidence > 0.0:
        # Before the top-k, which is an assumption: the code behind Table 4's filter was not released.
        best = np.where(confidences > np.log(config.min_confidence) - NEAR, best, -np.inf).astype(np.float32)
    starts = np.cumsum([0, *lengths]).tolist()
    if config.top_k_of == "pairs":
        return _best_pairs(image, config, best, fused, starts)
    small = sum(length for length in lengths if length > config.nms_pre)  # the coarser levels come last
    tops = [lo + _top(best[lo:hi], config.nms_pre) for lo, hi in pairwise(starts) if hi <= small]
    anchors = np.concatenate([*tops, np.arange(small, num_anchors)])
    return Shortlist(config, anchors, best[anchors], fused[anchors])


def _best_pairs(
    image: ImagePredictions, config: InferenceConfig, best: Floats, fused: NDArray[np.bool_], starts: Sequence[int]
) -> Shortlist:
    """All anchors with a candidate; the floor of a level is the score of the last pair that it may send."""
    anchors = np.flatnonzero(best > _log(config.score_threshold) - NEAR)
    every = Shortlist(config, anchors, best[anchors], fused[anchors])
    gathered = pool(image, [every])
    floor = np.zeros(len(anchors), np.float32)
    for lo, hi in pairwise(np.searchsorted(anchors, starts).tolist()):
        level = Shortlist(config, every.anchors[lo:hi], every.best[lo:hi], every.fused[lo:hi])
        scores = rank(gathered, level, config.nms_pre).scores
        if len(scores) == config.nms_pre:
            floor[lo:hi] = scores[-1]
    return replace(every, floor=floor)


def _top(values: Floats, count: int) -> Ints:
    """Places of the `count` largest values, rising; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    chosen: Ints = largest(values, np.partition(values, -count)[-count], count)
    return chosen


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pool:
    """The U anchors of one image that several settings may send to NMS, computed once for all of them."""

    image_id: int
    category_ids: Ints
    """[K] of the classes, rising."""
    place_of: Ints
    """[N] of each anchor in the pool; without meaning for the others."""
    anchors: Ints
    """[U] rising."""
    levels: NDArray[np.int8]
    """[U] of the feature pyramid, 3 to 7."""
    boxes: Floats
    """[U, 4] xyxy pixels of the original image."""
    probabilities: Floats
    """[U, K] of the classes."""
    log_probabilities: Floats
    confidences: Floats
    """[U], NaN without a confidence branch."""
    log_confidences: Floats

    def take(self, places: Ints, labels: Ints, scores: Floats) -> DetectionTable:
        """Pairs of an anchor, by its place, and a class, by its place; not yet compared with any object."""
        return DetectionTable(
            image_ids=np.full(len(places), self.image_id),
            category_ids=self.category_ids[labels],
            boxes=self.boxes[places],
            scores=scores,
            class_scores=self.probabilities[places, labels],
            confidences=self.confidences[places],
            ious=np.zeros(len(places), np.float32),
            levels=self.levels[places],
            anchors=self.anchors[places].astype(np.int32),
        )


def pool(image: ImagePredictions, lists: Sequence[Shortlist]) -> Pool:
    """Gather what the settings have shortlisted."""
    occurs = np.zeros(len(image.grid.boxes), np.bool_)
    for one in lists:
        occurs[one.anchors] = True
    anchors = np.flatnonzero(occurs)
    place_of = np.empty(len(occurs), np.int64)
    place_of[anchors] = np.arange(len(anchors))
    probabilities = sigmoid(_at(image.class_logits, anchors))
    confidences = np.full(len(anchors), np.float32(np.nan))
    if image.confidence_logits is not None:
        confidences = sigmoid(_at(image.confidence_logits, anchors))
    level_ends = np.cumsum(image.grid.level_lengths)
    return Pool(
        image_id=image.image_id,
        category_ids=image.category_ids,
        place_of=place_of,
        anchors=anchors,
        levels=(FIRST_LEVEL + np.searchsorted(level_ends, anchors, side="right")).astype(np.int8),
        boxes=_at(image.boxes, anchors),
        probabilities=probabilities,
        log_probabilities=np.log(probabilities),
        confidences=confidences,
        log_confidences=np.log(confidences),
    )


def rank(pool: Pool, one: Shortlist, count: int) -> DetectionTable:
    """The best candidates of a setting, best first: as many as `count`, or all if there are fewer."""
    scored = _score(pool, one, count)
    best = np.sort(scored.keys)[::-1][:count]
    rows, labels = np.divmod(scored.scores.size - 1 - (best & LOW).astype(np.int64), scored.scores.shape[1])
    return pool.take(scored.places[rows], labels, scored.scores[rows, labels])


def suppress(pool: Pool, one: Shortlist) -> DetectionTable:
    """What NMS, or another kind of suppression, keeps under a setting, whichever other settings share the pool."""
    return suppress_one(pool, one).kept


@dataclass(frozen=True, slots=True, eq=False)
class Suppressed:
    """What suppression keeps of an image, best first, and the boxes in whose favour it dropped others."""

    kept: DetectionTable
    droppers: DetectionTable
    """With their own boxes, in the order in which they dropped others; the scores are what put them into it. Those of
    NMS are all that it keeps, those of IoU-guided NMS more than are kept; where scores are only lowered, there are
    none."""


def suppress_one(pool: Pool, one: Shortlist) -> Suppressed:
    """`suppress`, and which boxes dropped others.

    Greedy NMS of the best candidates begins as that of all, so it ends as soon as enough of them are kept; for other
    kinds see `kinds.survivors`.
    """
    config = one.config
    limit, iou = config.max_detections, np.float32(config.nms_iou)
    # With a detector whose boxes overlap much, the 100th detection may be the 2,300th candidate.
    count = FIRST_LOOK * limit if config.suppression not in NEEDS_ALL else len(one.best)
    while True:
        scored = _score(pool, one, count)
        last, num_classes = scored.scores.size - 1, scored.scores.shape[1]
        if config.suppression != "nms":
            found = _survivors(pool, scored, config)
            if found is not None:
                return found
        else:
            rows, labels = keep_packed(scored.keys, last, scored.places, pool.boxes, num_classes, iou, limit)
            if scored.complete or len(rows) == limit:
                kept = pool.take(scored.places[rows], labels, scored.scores[rows, labels])
                return Suppressed(kept, kept)
        count *= 4


def _survivors(pool: Pool, scored: "_Scored", config: InferenceConfig) -> Suppressed | None:
    """What a kind other than NMS leaves; None where it has to see more candidates."""
    keys = np.sort(scored.keys)[::-1].copy()  # functions are compiled for arrays in a row
    rows, labels = np.divmod(scored.scores.size - 1 - (keys & LOW).astype(np.int64), scored.scores.shape[1])
    places = scored.places[rows]
    above = None if scored.complete else scored.above
    ranked = Ranked(keys, pool.boxes[places], labels, pool.confidences[places], scored.scores.shape[1], above)
    found = survivors(ranked, config)
    if found is None:
        return None
    kept = pool.take(places[found.places], labels[found.places], found.scores)
    droppers = pool.take(places[found.droppers], labels[found.droppers], found.ranks)
    return Suppressed(replace(kept, boxes=found.boxes), droppers)


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """The best candidates of a setting, at least as many as were asked for, if there are."""

    scores: Floats
    """[m, K]."""
    places: Ints
    """[m] in the pool."""
    keys: NDArray[np.uint64]
    """[n] packed; of equal scores the lower anchor, then class, is the better one."""
    above: np.float32
    """The candidates that were packed are all that score more than this."""
    complete: bool
    """Whether there are no others."""


def _score(pool: Pool, one: Shortlist, count: int) -> _Scored:
    config = one.config
    threshold = _log(config.score_threshold)
    kth = float(np.partition(one.best, -count)[-count]) if len(one.best) > count else -np.inf
    # The best scores were taken in torch, these are numpy's: near the border, both have to be looked at.
    rows = np.flatnonzero(one.best >= max(threshold, kth) - NEAR)
    places = pool.place_of[one.anchors[rows]]
    of_confidence = (pool.log_confidences[places] * one.fused[rows])[:, None] if config.needs_confidence else None
    scores = fuse_scores(pool.probabilities[places], pool.log_probabilities[places], of_confidence, config)
    if one.floor is not None:
        scores[scores < one.floor[rows, None]] = 0.0
    complete, above = kth <= threshold, np.float32(config.score_threshold)
    if not complete:
        # An anchor that was left out may score up to this, and so be better than a weaker class of one that was not.
        above = max(above, np.float32(np.exp(kth - NEAR / 2)))
    # The bits of floats from 0 on sort as the floats do, and integers sort faster.
    return _Scored(scores, places, pack(scores.view(np.uint32), above.view(np.uint32)), above, complete)


def _at(tensor: Tensor, anchors: Ints) -> Floats:
    """The rows of some anchors, from the device."""
    return _numpy(tensor[torch.from_numpy(anchors).to(tensor.device)])


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.cpu().numpy()
    return array


def _log(threshold: float) -> float:
    return float(np.log(threshold)) if threshold > 0.0 else -np.inf
