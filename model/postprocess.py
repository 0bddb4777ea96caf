"""From raw predictions to detections: score fusion (Eq. 11), object filter, top-k, NMS."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from model.anchors import AnchorGrid, clip, decode
from model.config import InferenceConfig
from model.heads import Predictions, flat


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
    num_classes = predictions.class_logits[0].shape[1] * 4 // predictions.box_deltas[0].shape[1]
    classes = flat(predictions.class_logits, num_classes)
    deltas = flat(predictions.box_deltas, 4)
    confidence = predictions.confidence_logits
    confidences = None if confidence is None else flat(confidence, 1)[..., 0]
    scores = _scores(classes, confidences, grid, config)
    return [
        _detect_one(scores[image], deltas[image], grid, sizes[image], scales[image], config)
        for image in range(len(sizes))
    ]


def _scores(classes: Tensor, confidences: Tensor | None, grid: AnchorGrid, config: InferenceConfig) -> Tensor:
    scores = fuse_scores(classes, confidences, config)
    if config.fuse_small_levels or not config.needs_confidence:
        return scores
    levels = zip(*(torch.split(part, grid.level_lengths, dim=1) for part in (scores, classes)), strict=True)
    return torch.cat(
        [
            fused if fused.shape[1] > config.nms_pre else logits.sigmoid() ** (1 - config.confidence_exponent)
            for fused, logits in levels
        ],
        dim=1,
    )


def _detect_one(
    scores: Tensor, deltas: Tensor, grid: AnchorGrid, size: Tensor, scale: Tensor, config: InferenceConfig
) -> Detections:
    if config.top_k_of == "anchors":
        anchor = _top_anchors(scores, grid, config.nms_pre)
        row, label = (scores[anchor] > config.score_threshold).nonzero(as_tuple=True)
        anchor = anchor[row]
    else:
        anchor, label = _top_pairs(scores, grid, config)
    boxes = clip(decode(grid.boxes[anchor], deltas[anchor]), size) / scale.flip(0).repeat(2)
    score = scores[anchor, label]
    kept = batched_nms(boxes, score, label, config.nms_iou)[: config.max_detections]
    return Detections(boxes[kept], score[kept], label[kept], anchor[kept])


def _top_anchors(scores: Tensor, grid: AnchorGrid, nms_pre: int) -> Tensor:
    """Indices of each level's best anchors by their best class."""
    best = scores.amax(dim=1)
    start, kept = 0, []
    for length in grid.level_lengths:
        level = best[start : start + length]
        places = level.topk(nms_pre).indices if length > nms_pre else torch.arange(length, device=best.device)
        kept.append(places + start)
        start += length
    return torch.cat(kept)


def _top_pairs(scores: Tensor, grid: AnchorGrid, config: InferenceConfig) -> tuple[Tensor, Tensor]:
    """Anchors and classes of each level's best pairs above the threshold, best first."""
    start, kept = 0, []
    for level in torch.split(scores, grid.level_lengths):
        values = level.flatten()
        pairs = (values > config.score_threshold).nonzero()[:, 0]
        best = values[pairs].topk(min(config.nms_pre, len(pairs))).indices
        kept.append(pairs[best] + start)
        start += len(values)
    pairs = torch.cat(kept)
    return pairs // scores.shape[1], pairs % scores.shape[1]
