"""The samples that a detector learns from: the ground truth of a batch, what each anchor learns, and the positives."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.anchors import NUM_ANCHORS, AnchorGrid

NEGATIVE = -1
IGNORED = -2
INVALID = -3


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The boxes to learn of a batch of B images, in one flat list of M boxes, image after image."""

    boxes: Tensor
    """[M, 4] xyxy pixels."""
    labels: Tensor
    """[M] classes, 0 to K-1."""
    image_index: Tensor
    """[M] place of the box's image in the batch; rising."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the detector predicts for a batch of B images at N anchors, for rules that assign by it; no gradients."""

    boxes: Tensor
    """[B, N, 4] xyxy pixels, decoded and not clipped, float32."""
    class_logits: Tensor
    """[B, N, K] float32."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What each anchor of a batch of B images with M boxes learns."""

    assigned: Tensor
    """[B, N] int64: index of a box (0 to M-1), or NEGATIVE, IGNORED, INVALID."""
    alignment: Tensor | None = None
    """[B, N] how well a positive's prediction is aligned with its box, 0 to 1, where the rule measures it (TOOD)."""


def loss_normalizer(assigned: Tensor) -> Tensor:
    """[] what the losses are divided by: positive anchors of each image, at least 1, summed over the batch."""
    return (assigned >= 0).sum(dim=1).clamp(min=1).sum()


def positives(assigned: Tensor) -> Tensor | None:
    """[P] places of the anchors that learn a box, in [B*N].

    None on an accelerator: to list them, the host would have to wait for their number.
    """
    return (assigned >= 0).flatten().nonzero()[:, 0] if assigned.device.type == "cpu" else None


def positive_cells(assigned: Tensor, grid: AnchorGrid) -> Tensor | None:
    """[S] places of the cells with a positive anchor, by level, image, row, column; None as for `positives`."""
    if assigned.device.type != "cpu":
        return None
    levels = torch.split(assigned >= 0, grid.level_lengths, dim=1)
    cells = [level.view(len(level), -1, NUM_ANCHORS).any(dim=2).flatten() for level in levels]
    return torch.cat(cells).nonzero()[:, 0]
