"""Top-k and score fusion (Eq. 11) of a batch under many settings, on an accelerator: what each setting sends to NMS.

Nothing makes the host wait but settings that are new.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from model.config import InferenceConfig, require_branch
from model.inference.fusion import exponents
from model.inference.suppression.kinds import NEEDS_ALL
from model.network.anchors import NUM_ANCHORS, AnchorGrid, clip, decode
from model.network.finite import are_finite
from model.network.retinanet import Predictions, flat

MOST_PAIRS = 2**26
"""Pairs of an anchor and a class that are scored at once: 256 MiB for each array of them. More settings take turns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchPredictions:
    """Raw outputs for B images over the N anchors of all levels, on the detector's device."""

    class_logits: Tensor
    """[B, N, K], in the type of the forward pass."""
    confidence_logits: Tensor | None
    """[B, N] float32; None without a confidence branch."""
    boxes: Tensor
    """[B, N, 4] xyxy, in pixels of the original images."""
    level_lengths: tuple[int, ...]
    """Anchors of each level; they add up to N."""
    finite: Tensor | None = None
    """[2 or 3] whether class logits, box deltas and confidence logits are; None where nobody has looked."""


def of_batch(predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor) -> BatchPredictions:
    """Bring the maps of a batch into the order of the anchors, and decode all boxes.

    Args:
        predictions: B images, N anchors, in any floating type.
        grid: the N anchors.
        sizes: [B, 2] (height, width) of each resized image, to which boxes are cut.
        scales: [B, 2] resized size over original size, (y, x).
    """
    num_classes = predictions.class_logits[0].shape[1] // NUM_ANCHORS
    class_logits, box_deltas = flat(predictions.class_logits, num_classes), flat(predictions.box_deltas, 4)
    boxes = clip(decode(grid.boxes, box_deltas.float()), sizes[:, None])
    confidences = predictions.confidence_logits
    confidence_logits = None if confidences is None else flat(confidences, 1)[..., 0].float()
    outputs = [class_logits, box_deltas, *([] if confidence_logits is None else [confidence_logits])]
    return BatchPredictions(
        class_logits=class_logits,
        confidence_logits=confidence_logits,
        boxes=boxes / scales.flip(1).repeat(1, 2)[:, None],
        level_lengths=tuple(grid.level_lengths),
        finite=are_finite(outputs),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """What S settings send to NMS of B images: R anchors each, and the scores of all their classes."""

    settings: tuple[InferenceConfig, ...]
    places: tuple[int, ...]
    """[S] of the settings, among all that were asked for."""
    anchors: Tensor
    """[B, S, R] rising."""
    class_logits: Tensor
    """[B, S, R, K]."""
    log_scores: Tensor
    """[B, S, R, K] logarithms of the fused scores; -inf where the pair is no candidate."""


def score_settings(images: BatchPredictions, settings: Sequence[InferenceConfig]) -> Iterator[Scored]:
    """Score the anchors that the settings send to NMS, as many settings at once as memory allows.

    Those are together whose suppression looks equally far: NMS, what the best candidates decide, and what needs all.

    Raises:
        ValueError: a setting reads a confidence branch, and the detector has none.
    """
    for config in settings:
        require_branch(config, has_branch=images.confidence_logits is not None)
    of_shape: dict[tuple[str, int, int, bool, bool], list[int]] = {}
    for place, config in enumerate(settings):
        looks = config.suppression == "nms", config.suppression in NEEDS_ALL
        of_shape.setdefault((config.top_k_of, config.nms_pre, config.max_detections, *looks), []).append(place)
    for (_, nms_pre, *_), places in of_shape.items():
        rows = sum(min(length, nms_pre) for length in images.level_lengths)
        step = max(1, MOST_PAIRS // (len(images.class_logits) * rows * images.class_logits.shape[2]))
        for start in range(0, len(places), step):
            some = tuple(places[start : start + step])
            yield _score(images, tuple(settings[place] for place in some), some)


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What S settings say, on the device."""

    of_class: Tensor
    """[S] power of the class probability."""
    of_confidence: Tensor
    """[S, L] power of the confidence on each level."""
    plain: Tensor
    """[S, 1] whether the score is the class probability."""
    min_confidence: Tensor
    """[S] -1 without a filter."""
    threshold: Tensor
    """[S] logarithm of the score threshold."""
    nms_iou: Tensor
    """[S]."""


@lru_cache(maxsize=256)  # of a pass: a few groups of settings times about ten shapes of images
def constants_of(
    settings: tuple[InferenceConfig, ...], level_lengths: tuple[int, ...], device: torch.device
) -> Constants:
    """What the settings say, sent to the device once, as each copy makes the host wait."""
    of_class, of_confidence, plain = [], [], []
    for config in settings:
        powers = exponents(config)
        fused = [config.fuse_small_levels or length > config.nms_pre for length in level_lengths]
        of_class.append(float(powers[0]))
        of_confidence.append([float(powers[1]) * on for on in fused])
        plain.append([not config.score_reads_confidence])
    # Outside of inference mode, whose tensors could be used in no other.
    with torch.inference_mode(mode=False):
        return Constants(
            of_class=torch.tensor(of_class, device=device),
            of_confidence=torch.tensor(of_confidence, device=device),
            plain=torch.tensor(plain, device=device),
            min_confidence=torch.tensor([config.min_confidence or -1.0 for config in settings], device=device),
            # The logarithm on the host: a kernel might not be done when another stream reads it.
            threshold=torch.tensor([config.score_threshold for config in settings]).log().to(device),
            nms_iou=torch.tensor([config.nms_iou for config in settings], device=device),
        )


def _score(images: BatchPredictions, settings: tuple[InferenceConfig, ...], places: tuple[int, ...]) -> Scored:
    constants = constants_of(settings, images.level_lengths, images.boxes.device)
    log_confidences = None
    if any(config.needs_confidence for config in settings):
        assert images.confidence_logits is not None
        log_confidences = logsigmoid(images.confidence_logits)
    filtered = any(config.min_confidence > 0.0 for config in settings)
    nms_pre = settings[0].nms_pre
    # A score rises with the class logit, so the best class of each anchor tells which anchors are worth scoring.
    log_best = logsigmoid(images.class_logits.amax(dim=2).float())
    chosen, of_confidence, start = [], [], 0
    for level, length in enumerate(images.level_lengths):
        here = slice(start, start + length)
        # [B, S, n] what the confidence adds to the logarithm of a score: -inf where it does not pass the filter.
        added = None
        if log_confidences is not None:
            confidences = log_confidences[:, None, here]
            added = constants.of_confidence[:, level, None] * confidences
            if filtered:
                added = added.masked_fill(~(confidences.exp() > constants.min_confidence[:, None]), -torch.inf)
        if length > nms_pre:
            best = constants.of_class[:, None] * log_best[:, None, here]
            anchors = (best if added is None else best + added).topk(nms_pre, sorted=False).indices.sort().values
        else:
            every = torch.arange(length, device=images.boxes.device)
            anchors = every.expand(len(log_best), len(settings), length)
        if added is not None:
            of_confidence.append(added.expand(-1, len(settings), -1).gather(2, anchors))
        chosen.append(anchors + start)
        start += length
    anchors = torch.cat(chosen, dim=2)
    image = torch.arange(len(anchors), device=anchors.device)[:, None, None]
    class_logits = images.class_logits[image, anchors].float()
    log_scores = logsigmoid(class_logits).mul_(constants.of_class[:, None, None])
    if log_confidences is not None:
        log_scores.add_(torch.cat(of_confidence, dim=2)[..., None])
    log_scores.masked_fill_(~(log_scores > constants.threshold[:, None, None]), -torch.inf)
    if settings[0].top_k_of == "pairs":
        _best_pairs(log_scores, [anchors.shape[2] for anchors in chosen], nms_pre)
    return Scored(settings=settings, places=places, anchors=anchors, class_logits=class_logits, log_scores=log_scores)


def _best_pairs(log_scores: Tensor, lengths: Sequence[int], nms_pre: int) -> None:
    """Leave the best pairs of each level. Their anchors are among the best: each has a pair that is as good."""
    for level in torch.split(log_scores, list(lengths), dim=2):
        pairs = level.flatten(2)
        if pairs.shape[2] > nms_pre:
            floor = pairs.topk(nms_pre, sorted=False).values.amin(dim=2)
            level.masked_fill_(level < floor[..., None, None], -torch.inf)
