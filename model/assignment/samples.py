"""The samples that a detector learns from: the ground truth of a batch, what each anchor learns, and the positives."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.anchors import NUM_ANCHORS, AnchorGrid, at_least_float32, decode
from model.network.retinanet import Predictions, flat

# Rules take maxima by image with it. "In beta", it says; its results are held by the tests.
warnings.filterwarnings("ignore", message="index_reduce")

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


def predicted(predictions: Predictions, grid: AnchorGrid) -> Predicted:
    """What an assignment reads of the raw outputs for B images at N anchors."""
    num_classes = predictions.class_logits[0].shape[1] // NUM_ANCHORS
    with torch.no_grad():
        deltas = at_least_float32(flat(predictions.box_deltas, 4))
        logits = at_least_float32(flat(predictions.class_logits, num_classes))
        return Predicted(decode(grid.boxes, deltas), logits)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What each anchor of a batch of B images with M boxes learns."""

    assigned: Tensor
    """[B, N] int64: index of a box (0 to M-1), or NEGATIVE, IGNORED, INVALID."""
    alignment: Tensor | None = None
    """[B, N] how well a positive's prediction is aligned with its box, 0 to 1, where the rule measures it (TOOD)."""


def best(values: Tensor, count: int, *, largest: bool = True) -> Tensor:
    """[M, count] places of the largest or smallest of each row of values [M, n], none below 0; on ties the lower place.

    topk alone takes any of equal values, and not the same ones on each device.
    """
    # The bits of floats from 0 on rise with them; with the place below, no two keys are equal.
    bits = values.float().view(torch.int32).long()
    place = torch.arange(values.shape[1], device=values.device)
    keys = (bits if largest else -bits) * 2**32 - place
    return keys.topk(min(count, values.shape[1]), dim=1).indices


def shared_out(anchors: Tensor, iou: Tensor, wanted: Tensor, truth: GroundTruth, valid: Tensor) -> Tensor:
    """Let each anchor learn, of the boxes that want it, the one with the largest IoU; the first on ties.

    Args:
        anchors: [M, C] candidates of each box, none twice.
        iou: [M, C] of the box with the anchor, or with what is predicted there.
        wanted: [M, C] whether the box wants the candidate.
        truth: M boxes.
        valid: [B, N] from valid_anchors.

    Returns:
        [B, N] int64: index into `truth`, or NEGATIVE, INVALID.
    """
    place = anchors + truth.image_index[:, None] * valid.shape[1]  # in [B*N]
    iou = iou.masked_fill(~wanted, -1.0)
    most = iou.new_full((valid.numel(),), -1.0).scatter_reduce_(0, place.flatten(), iou.flatten(), "amax")
    order = torch.arange(len(anchors), dtype=torch.int32, device=anchors.device)[:, None].expand_as(anchors)
    none = torch.iinfo(torch.int32).max
    order = order.masked_fill(~wanted | (iou != most[place]), none)
    first = torch.full((valid.numel(),), none, dtype=torch.int32, device=anchors.device)
    first.scatter_reduce_(0, place.flatten(), order.flatten(), "amin")
    assigned = torch.where(first < none, first.long(), NEGATIVE).view(valid.shape)
    return assigned.masked_fill_(~valid, INVALID)


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
