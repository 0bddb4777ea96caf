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

from model.config import InferenceConfig, require_branch
from model.inference.fusion import fuse, log_scores, sigmoid
from model.inference.nms import LOW, keep_packed, largest, pack
from model.network.anchors import NUM_ANCHORS, AnchorGrid, clip, decode
from model.network.retinanet import Predictions, flat

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
        """Logits [N, K], deltas [N, 4], confidence logits [N]; the rest as in `split`."""
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
        return (3 + np.searchsorted(self._level_ends, anchors, side="right")).astype(np.int8)

    @cached_property
    def _level_ends(self) -> Ints:
        return np.cumsum(self.grid.level_lengths)

    @cached_property
    def _boxes(self) -> Tensor:
        # All of them, as torch's last bits depend on where a number stands.
        return clip(decode(self.grid.boxes, self._deltas), self._size) / self._scale.flip(0).repeat(2)

    def boxes(self, anchors: Ints) -> Floats:
        """[n, 4] xyxy boxes of some anchors, in pixels of the original image."""
        return _numpy(self._boxes[torch.from_numpy(anchors).to(self._boxes.device)])


def split(predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor) -> list[ImagePredictions]:
    """The images of a batch one by one.

    Args:
        predictions: B images, N anchors, float32.
        grid: the N anchors.
        sizes: [B, 2] (height, width) of each resized image, to which boxes are cut.
        scales: [B, 2] resized size over original size, (y, x); boxes are divided by it.
    """
    num_classes = predictions.class_logits[0].shape[1] // NUM_ANCHORS
    classes, deltas = flat(predictions.class_logits, num_classes), flat(predictions.box_deltas, 4)
    logits = predictions.confidence_logits
    confidences = [None] * len(sizes) if logits is None else flat(logits, 1)[..., 0]
    return [ImagePredictions(*one, grid=grid) for one in zip(classes, deltas, confidences, sizes, scales, strict=True)]


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.cpu().numpy()
    return array


FIRST_LOOK = 24
"""NMS is tried on so many anchors a detection first, and on four times as many if it kept too few of their boxes."""
NEAR = 1e-4
"""More than a score loses in single precision, relatively."""


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

    def take(self, places: Ints) -> "Boxes":
        """Some of them."""
        return Boxes(*(getattr(self, name)[places] for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """All that several settings may send to NMS, computed once."""

    place_of: Ints
    """[N] of each anchor in the pool; without meaning for the others."""
    anchors: Ints
    """[U] rising."""
    boxes: Floats
    """[U, 4] xyxy pixels of the original image."""
    probabilities: Floats
    """[U, K] of the classes."""
    log_probabilities: Floats
    confidences: Floats
    """[U], NaN without a confidence branch."""
    log_confidences: Floats

    def take(self, places: Ints, labels: Ints, scores: Floats) -> Boxes:
        """Pairs of an anchor, by its place, and a class."""
        return Boxes(
            self.anchors[places],
            labels,
            self.boxes[places],
            scores,
            self.probabilities[places, labels],
            self.confidences[places],
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
    found = []
    for image in images:
        (one,) = shortlists(image, [config])
        found += suppress(pool(image, [one]), [one])
    return found


def shortlists(image: ImagePredictions, settings: Sequence[InferenceConfig]) -> list[Shortlist]:
    """What each setting sends to NMS: the best anchors of each level, or of each level the best pairs (`top_k_of`).

    A score rises with the class logit, so the best class of each anchor tells which anchors are worth scoring in full.
    """
    return [_shortlist(image, config) for config in settings]


def pool(image: ImagePredictions, lists: Sequence[Shortlist]) -> Pool:
    """Gather what the settings have shortlisted."""
    anchors, place_of = number(image.num_anchors, [one.anchors for one in lists])
    probabilities, confidences = sigmoid(image.class_logits(anchors)), image.confidences(anchors)
    logs = np.log(probabilities), np.log(confidences)
    return Pool(place_of, anchors, image.boxes(anchors), probabilities, logs[0], confidences, logs[1])


def rank(pool: Pool, one: Shortlist, count: int) -> Boxes:
    """The best candidates of a setting, best first: as many as `count`, or all if there are fewer."""
    scored = _score(pool, one, count)
    best = np.sort(scored.keys)[::-1][:count]
    rows, labels = np.divmod(scored.scores.size - 1 - (best & LOW).astype(np.int64), scored.scores.shape[1])
    return pool.take(scored.places[rows], labels, scored.scores[rows, labels])


def suppress(pool: Pool, lists: Sequence[Shortlist]) -> list[Boxes]:
    """What NMS keeps under each setting; a setting's detections are those that it has alone.

    Greedy NMS of the best candidates begins as that of all, so it ends as soon as enough of them are kept.
    """
    return [_suppress(pool, one) for one in lists]


def _suppress(pool: Pool, one: Shortlist) -> Boxes:
    limit, iou = one.config.max_detections, np.float32(one.config.nms_iou)
    count = FIRST_LOOK * limit
    while True:
        scored = _score(pool, one, count)
        last, num_classes = scored.scores.size - 1, scored.scores.shape[1]
        rows, labels = keep_packed(scored.keys, last, scored.places, pool.boxes, num_classes, iou, limit)
        if scored.complete or len(rows) == limit:
            return pool.take(scored.places[rows], labels, scored.scores[rows, labels])
        count *= 4


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """The candidates of the best anchors of a setting, at least as many as were asked for, if there are."""

    scores: Floats
    """[m, K]."""
    places: Ints
    """[m] in the pool."""
    keys: NDArray[np.uint64]
    """[n] packed; of equal scores the lower anchor, then class, is the better one."""
    complete: bool
    """Whether no other anchor has a candidate."""


def _score(pool: Pool, one: Shortlist, count: int) -> _Scored:
    config = one.config
    threshold = _log(config.score_threshold)
    kth = float(np.partition(one.best, -count)[-count]) if len(one.best) > count else -np.inf
    rows = np.flatnonzero(one.best >= max(threshold, kth) - NEAR)
    places = pool.place_of[one.anchors[rows]]
    of_confidence = (pool.log_confidences[places] * one.fused[rows])[:, None] if config.needs_confidence else None
    scores = fuse(pool.probabilities[places], pool.log_probabilities[places], of_confidence, config)
    if one.floor is not None:
        scores[scores < one.floor[rows, None]] = 0.0
    keys = pack(scores.view(np.uint32), np.float32(config.score_threshold).view(np.uint32))
    return _Scored(scores, places, keys, kth <= threshold)


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
    require_branch(config, has_branch=image.has_confidence)
    lengths = image.grid.level_lengths
    fused = np.full(image.num_anchors, True)
    if not config.fuse_small_levels:
        fused = np.repeat([length > config.nms_pre for length in lengths], lengths)
    confidences = image.log_confidences if config.needs_confidence else None
    if confidences is not None and not config.fuse_small_levels:
        confidences = confidences * fused
    best = log_scores(image.best, confidences, config)
    if confidences is not None and config.min_confidence > 0.0:
        best = np.where(confidences > np.log(config.min_confidence) - NEAR, best, -np.inf).astype(np.float32)
    starts = np.cumsum([0, *image.grid.level_lengths]).tolist()
    if config.top_k_of == "anchors":
        small = sum(length for length in lengths if length > config.nms_pre)  # the coarser levels come last
        large = [(lo, hi) for lo, hi in pairwise(starts) if hi <= small]
        tops = [lo + _top(best[lo:hi], config.nms_pre) for lo, hi in large]
        anchors = np.concatenate([*tops, np.arange(small, image.num_anchors)])
        return Shortlist(config, anchors, best[anchors], fused[anchors], None)
    anchors = np.flatnonzero(best > _log(config.score_threshold) - NEAR)
    floor = np.zeros(len(anchors), np.float32)
    every = Shortlist(config, anchors, best[anchors], fused[anchors], None)
    gathered = pool(image, [every])
    for lo, hi in pairwise(np.searchsorted(anchors, starts).tolist()):
        level = Shortlist(config, every.anchors[lo:hi], every.best[lo:hi], every.fused[lo:hi], None)
        scores = rank(gathered, level, config.nms_pre).scores
        if len(scores) == config.nms_pre:
            floor[lo:hi] = scores[-1]
    return Shortlist(config, every.anchors, every.best, every.fused, floor)


def _top(values: Floats, count: int) -> Ints:
    """Places of the `count` largest values, rising; of equal ones the first."""
    if len(values) <= count:
        return np.arange(len(values))
    chosen: Ints = largest(values, np.partition(values, -count)[-count], count)
    return chosen


def _log(threshold: float) -> float:
    return float(np.log(threshold)) if threshold > 0.0 else -np.inf
