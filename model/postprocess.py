"""From raw predictions to detections: the best anchors of each level, score fusion, NMS, for many settings at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from model.anchors import NUM_ANCHORS, AnchorGrid, clip, decode
from model.config import InferenceConfig
from model.fusion import fuse, log_scores, require_confidence, sigmoid
from model.heads import Predictions, flat
from model.suppression import keep

FIRST_LOOK = 24
"""NMS is tried on so many candidates a detection first, and on four times as many if it kept too few of them."""
NEAR = 1e-4
"""More than a score loses in single precision, relatively."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class ImagePredictions:
    """What the detector says of one image, over the anchors of all levels; on its device."""

    def __init__(
        self,
        classes: Tensor,
        deltas: Tensor,
        confidences: Tensor | None,
        size: Tensor,
        scale: Tensor,
        *,
        grid: AnchorGrid,
    ) -> None:
        """Logits [N, K], deltas [N, 4], confidence logits [N]; the rest as in `detect`."""
        self._classes, self._deltas, self._confidences = classes, deltas, confidences
        self._size, self._scale, self.grid = size, scale, grid
        self.num_anchors, self.num_classes = classes.shape

    @property
    def has_confidence(self) -> bool:
        """Whether there is a confidence branch."""
        return self._confidences is not None

    @cached_property
    def best(self) -> Floats:
        """[N] logarithm of the probability of each anchor's best class."""
        return _numpy(logsigmoid(self._classes.amax(dim=1)))

    @cached_property
    def log_confidences(self) -> Floats | None:
        """[N]."""
        return None if self._confidences is None else _numpy(logsigmoid(self._confidences))

    def confidences(self, anchors: Ints) -> Floats:
        """[n] of some anchors; NaN without a confidence branch."""
        if self._confidences is None:
            return np.full(len(anchors), np.float32(np.nan))
        return sigmoid(_numpy(self._confidences[torch.from_numpy(anchors).to(self._confidences.device)]))

    def class_logits(self, anchors: Ints) -> Floats:
        """[n, K] of some anchors."""
        return _numpy(self._classes[torch.from_numpy(anchors).to(self._classes.device)])

    def levels(self, anchors: Ints) -> NDArray[np.int8]:
        """[n] levels of the feature pyramid, from 3, that some anchors stand on."""
        ends = np.cumsum(self.grid.level_lengths)
        return (3 + np.searchsorted(ends, anchors, side="right")).astype(np.int8)

    @cached_property
    def _boxes(self) -> Tensor:
        # All of them, as torch's last bits depend on where a number stands.
        return clip(decode(self.grid.boxes, self._deltas), self._size) / self._scale.flip(0).repeat(2)

    def boxes(self, anchors: Ints) -> Floats:
        """[n, 4] xyxy boxes of some anchors, in pixels of the original image."""
        return _numpy(self._boxes[torch.from_numpy(anchors).to(self._boxes.device)])


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
    floor: Floats | None
    """[R] a pair of this anchor and a class is a candidate only if its score reaches this; None where all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Candidates of one setting, pairs of an anchor and a class, best first; of equal ones the lower anchor."""

    anchors: Ints
    labels: Ints
    boxes: Floats
    """[n, 4] xyxy pixels of the original image."""
    scores: Floats
    class_scores: Floats
    confidences: Floats
    """[n], NaN without a confidence branch."""

    def take(self, ranks: Ints) -> "Boxes":
        """Some of them."""
        return Boxes(
            self.anchors[ranks],
            self.labels[ranks],
            self.boxes[ranks],
            self.scores[ranks],
            self.class_scores[ranks],
            self.confidences[ranks],
        )


def detect(
    predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor, config: InferenceConfig
) -> list[Boxes]:
    """Detections of each image of a batch.

    Args:
        predictions: B images, N anchors, float32.
        grid: the N anchors.
        sizes: [B, 2] (height, width) of each resized image, to which boxes are cut.
        scales: [B, 2] resized size over original size, (y, x); boxes are divided by it before NMS.
        config: fusion, filter, top-k, thresholds.
    """
    images = split(predictions, grid, sizes, scales)
    return [suppress(image, shortlists(image, [config]))[0] for image in images]


def split(predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor) -> list[ImagePredictions]:
    """The images of a batch one by one; arguments as in `detect`."""
    num_classes = predictions.class_logits[0].shape[1] // NUM_ANCHORS
    classes, deltas = flat(predictions.class_logits, num_classes), flat(predictions.box_deltas, 4)
    logits = predictions.confidence_logits
    confidences = [None] * len(sizes) if logits is None else flat(logits, 1)[..., 0]
    return [ImagePredictions(*one, grid=grid) for one in zip(classes, deltas, confidences, sizes, scales, strict=True)]


def shortlists(image: ImagePredictions, settings: Sequence[InferenceConfig]) -> list[Shortlist]:
    """What each setting sends to NMS: the best anchors of each level, or of each level the best pairs (`top_k_of`).

    A score rises with the class logit, so the best class of each anchor tells which anchors are worth scoring in full.
    """
    return [_shortlist(image, config) for config in settings]


def rank(image: ImagePredictions, lists: Sequence[Shortlist], counts: Sequence[int]) -> list[tuple[Boxes, bool]]:
    """Of each setting the best candidates, at least as many as its count, if there are, and whether these are all."""
    chosen = [_worth_scoring(one, count) for one, count in zip(lists, counts, strict=True)]
    members = [one.anchors[rows] for one, (rows, _) in zip(lists, chosen, strict=True)]
    anchors, place_of = number(image.num_anchors, members)
    probabilities, boxes = sigmoid(image.class_logits(anchors)), image.boxes(anchors)
    log_probabilities, confidences = np.log(probabilities), image.confidences(anchors)
    log_confidences = np.log(confidences)
    ranked = []
    for one, (rows, is_uncut), count in zip(lists, chosen, counts, strict=True):
        places = place_of[one.anchors[rows]]
        of_confidence = (log_confidences[places] * one.fused[rows])[:, None] if one.config.needs_confidence else None
        scores = fuse(probabilities[places], log_probabilities[places], of_confidence, one.config)
        if one.floor is not None:
            scores[scores < one.floor[rows, None]] = 0.0
        scores = scores.ravel()
        pairs, complete = _best(scores, count, one.config.score_threshold)
        row, labels = np.divmod(pairs, image.num_classes)
        row = places[row]
        found = Boxes(anchors[row], labels, boxes[row], scores[pairs], probabilities[row, labels], confidences[row])
        ranked.append((found, complete and is_uncut))
    return ranked


def suppress(image: ImagePredictions, lists: Sequence[Shortlist]) -> list[Boxes]:
    """What NMS keeps under each setting; a setting's detections are those that it has alone.

    Greedy NMS of the best candidates begins as that of all, so it ends as soon as enough of them are kept.
    """
    found: dict[int, Boxes] = {}
    counts = [FIRST_LOOK * one.config.max_detections for one in lists]
    while len(found) < len(lists):
        waiting = [place for place in range(len(lists)) if place not in found]
        ranked = rank(image, [lists[place] for place in waiting], [counts[place] for place in waiting])
        for place, (boxes, complete) in zip(waiting, ranked, strict=True):
            config = lists[place].config
            kept = keep(boxes.boxes, boxes.labels, np.float32(config.nms_iou), config.max_detections)
            if complete or len(kept) == config.max_detections:
                found[place] = boxes.take(kept)
            counts[place] *= 4
    return [found[place] for place in range(len(lists))]


def number(size: int, members: Sequence[Ints]) -> tuple[Ints, Ints]:
    """Number what occurs of 0 to size - 1: the members, rising, and the place of each among them."""
    occurs = np.zeros(size, np.bool_)
    for some in members:
        occurs[some] = True
    found = np.flatnonzero(occurs)
    places = np.empty(size, np.int64)
    places[found] = np.arange(len(found))
    return found, places


def _shortlist(image: ImagePredictions, config: InferenceConfig) -> Shortlist:
    require_confidence(image.has_confidence, config)
    fused = np.full(image.num_anchors, True)
    if not config.fuse_small_levels:
        lengths = image.grid.level_lengths
        fused = np.repeat([length > config.nms_pre for length in lengths], lengths)
    confidences = image.log_confidences if config.needs_confidence else None
    if confidences is not None and not config.fuse_small_levels:
        confidences = confidences * fused
    best = log_scores(image.best, confidences, config)
    if confidences is not None and config.min_confidence > 0.0:
        best = np.where(confidences > np.log(config.min_confidence) - NEAR, best, -np.inf).astype(np.float32)
    starts = np.cumsum([0, *image.grid.level_lengths]).tolist()
    if config.top_k_of == "anchors":
        anchors = np.concatenate([lo + _top(best[lo:hi], config.nms_pre) for lo, hi in pairwise(starts)])
        return Shortlist(config, anchors, best[anchors], fused[anchors], None)
    anchors = np.flatnonzero(best > _log(config.score_threshold) - NEAR)
    floor = np.zeros(len(anchors), np.float32)
    every = Shortlist(config, anchors, best[anchors], fused[anchors], None)
    for lo, hi in pairwise(np.searchsorted(anchors, starts).tolist()):
        level = Shortlist(config, every.anchors[lo:hi], every.best[lo:hi], every.fused[lo:hi], None)
        ((ranked, _),) = rank(image, [level], [config.nms_pre])
        if len(ranked.scores) >= config.nms_pre:
            floor[lo:hi] = ranked.scores[config.nms_pre - 1]
    return Shortlist(config, every.anchors, every.best, every.fused, floor)


def _worth_scoring(one: Shortlist, count: int) -> tuple[Ints, bool]:
    """Rows of the anchors that may have a pair among the `count` best, and whether none else has a candidate."""
    threshold = _log(one.config.score_threshold)
    kth = float(np.partition(one.best, -count)[-count]) if len(one.best) > count else -np.inf
    return np.flatnonzero(one.best >= max(threshold, kth) - NEAR), kth <= threshold


def _best(scores: Floats, count: int, threshold: float) -> tuple[Ints, bool]:
    """Places of at least the `count` best scores above a threshold, best first, and whether these are all."""
    chosen = np.flatnonzero(scores > np.float32(threshold))
    num_candidates = len(chosen)
    values = scores[chosen]
    if num_candidates > count:
        among = values >= np.partition(values, -count)[-count]
        chosen, values = chosen[among], values[among]
    # Positive floats sort like their bits; below these the place, turned round, so that the first of equal ones wins.
    order = np.sort((values.view(np.uint32).astype(np.uint64) << 32) | (len(scores) - 1 - chosen).astype(np.uint64))
    return len(scores) - 1 - (order[::-1] & 0xFFFFFFFF).astype(np.int64), len(chosen) == num_candidates


def _top(values: Floats, count: int) -> Ints:
    """Places of the `count` largest values, rising; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    kth = np.partition(values, -count)[-count]
    above, equal = np.flatnonzero(values > kth), np.flatnonzero(values == kth)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _log(threshold: float) -> float:
    return float(np.log(threshold)) if threshold > 0.0 else -np.inf


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.cpu().numpy()
    return array
