"""From raw predictions to detections: score fusion (Eq. 11), object filter, top-k, NMS."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from model.anchors import NUM_ANCHORS, AnchorGrid, clip, decode
from model.config import InferenceConfig
from model.heads import Predictions, per_anchor


@dataclass(frozen=True, slots=True)
class Detections:
    """What is kept of one image, best first."""

    boxes: Tensor
    """[D, 4] xyxy pixels of the original image."""
    scores: Tensor
    """[D] the fused scores that ranked the boxes."""
    labels: Tensor
    """[D] classes, 0 to K-1."""
    anchors: Tensor
    """[D] flat index of the anchor that each box came from."""


def fuse_scores(class_logits: Tensor, confidence_logits: Tensor | None, config: InferenceConfig) -> Tensor:
    """Score each anchor by class and by how well its box should fit (Eq. 11, Table 4).

    Args:
        class_logits: [..., K].
        confidence_logits: [...]; may be None where `config.needs_confidence` is False.
        config: p^(1-e) * c^e, or p * c; scores at or below the object filter become 0.

    Returns:
        [..., K] scores in [0, 1], the order in which NMS keeps boxes.
    """
    probability = class_logits.sigmoid()
    if not config.needs_confidence:
        return probability
    if confidence_logits is None:
        raise ValueError(
            "this checkpoint has no confidence branch (model.confidence is null): set inference.confidence_exponent "
            "to 0 and leave fusion and min_confidence at their defaults, or take a checkpoint with a branch on the "
            "classification or box tower"
        )
    confidence = confidence_logits.sigmoid()[..., None]
    if config.fusion == "product":
        scores = probability * confidence
    elif config.confidence_exponent > 0:
        scores = probability ** (1 - config.confidence_exponent) * confidence**config.confidence_exponent
    else:
        scores = probability
    return scores * (confidence > config.min_confidence) if config.min_confidence > 0 else scores


def detect(
    predictions: Predictions, grid: AnchorGrid, sizes: Tensor, scales: Tensor, config: InferenceConfig
) -> list[Detections]:
    """Detections of each image of a batch.

    Args:
        predictions: B images, N anchors, float32.
        grid: the N anchors.
        sizes: [B, 2] (height, width) of each resized image, to which boxes are cut.
        scales: [B, 2] resized size over original size, (y, x); boxes are divided by it before NMS.
        config: fusion, filter, top-k, thresholds.
    """
    maps = [predictions.class_logits, predictions.box_deltas, predictions.confidence_logits or []]
    classes, deltas, confidences = (
        [per_anchor(level, level.shape[1] // NUM_ANCHORS) for level in levels] for levels in maps
    )
    found = []
    for image in range(len(sizes)):
        levels = [
            _Level(rows[image], moves[image], confidences[place][image][:, 0] if confidences else None)
            for place, (rows, moves) in enumerate(zip(classes, deltas, strict=True))
        ]
        found.append(_detect_one(levels, grid, sizes[image], scales[image], config))
    return found


@dataclass(frozen=True, slots=True)
class _Level:
    """The n anchors of one level of one image."""

    class_logits: Tensor
    """[n, K]."""
    deltas: Tensor
    """[n, 4]."""
    confidence_logits: Tensor | None
    """[n]."""


def _detect_one(
    levels: list[_Level], grid: AnchorGrid, size: Tensor, scale: Tensor, config: InferenceConfig
) -> Detections:
    starts = accumulate([0, *grid.level_lengths[:-1]])
    candidates = [_candidates(level, config) for level in levels]
    anchor = torch.cat([rows + start for (rows, *_), start in zip(candidates, starts, strict=True)])
    label, score = (torch.cat([candidate[part] for candidate in candidates]) for part in (1, 2))
    deltas = torch.cat([level.deltas[rows] for level, (rows, *_) in zip(levels, candidates, strict=True)])
    boxes = clip(decode(grid.boxes[anchor], deltas), size) / scale.flip(0).repeat(2)
    kept = batched_nms(boxes, score, label, config.nms_iou)[: config.max_detections]
    return Detections(boxes[kept], score[kept], label[kept], anchor[kept])


def _candidates(level: _Level, config: InferenceConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, classes and scores of what a level sends to NMS.

    A score rises with the class logit, so the best class of each anchor tells which anchors are worth scoring in full.
    """
    length, num_classes = level.class_logits.shape
    best = _scores(level, level.class_logits.amax(dim=1, keepdim=True), slice(None), config)[:, 0]
    if config.top_k_of == "pairs":
        rows = (best > config.score_threshold).nonzero()[:, 0]
    elif length > config.nms_pre:
        rows = best.topk(config.nms_pre).indices
    else:
        rows = torch.arange(length, device=best.device)
    scores = _scores(level, level.class_logits[rows], rows, config).flatten()
    pairs = (scores > config.score_threshold).nonzero()[:, 0]
    if config.top_k_of == "pairs":
        pairs = pairs[scores[pairs].topk(min(config.nms_pre, len(pairs))).indices]
    return rows[pairs // num_classes], pairs % num_classes, scores[pairs]


def _scores(level: _Level, class_logits: Tensor, rows: Tensor | slice, config: InferenceConfig) -> Tensor:
    if config.needs_confidence and not config.fuse_small_levels and len(level.class_logits) <= config.nms_pre:
        return class_logits.sigmoid() ** (1 - config.confidence_exponent)
    confidence = level.confidence_logits
    return fuse_scores(class_logits, None if confidence is None else confidence[rows], config)
