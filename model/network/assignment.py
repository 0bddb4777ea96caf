"""Which anchor learns which box: max-IoU assignment for a whole batch at once, and the normaliser of the losses."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.anchors import NUM_ANCHORS, AnchorGrid, pairwise_iou, valid_anchors

warnings.filterwarnings("ignore", message="index_reduce")  # "in beta": its results are held by the tests

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


def assign(
    grid: AnchorGrid, padded_sizes: Tensor, truth: GroundTruth, *, positive_iou: float, negative_iou: float
) -> Tensor:
    """Assign each anchor a box, background, or nothing.

    An anchor whose best IoU reaches `positive_iou` learns that box (the first on ties); below `negative_iou`
    it learns background. Then every anchor that ties for a box's best IoU learns that box, however low it is;
    later boxes win. Crowds take no part.

    Args:
        grid: N anchors.
        padded_sizes: [B, 2] each image's own padded (height, width); anchors outside are INVALID.
        truth: M boxes.

    Returns:
        [B, N] int64: index into `truth` (0 to M-1), or NEGATIVE, IGNORED, INVALID.
    """
    valid = valid_anchors(grid, padded_sizes)
    num_boxes = len(truth.boxes)
    assigned = torch.full(valid.shape, NEGATIVE, dtype=torch.int64, device=valid.device)
    if num_boxes:
        # -1 is below every IoU: what is padding for an image ties with none of its boxes.
        iou = pairwise_iou(truth.boxes, grid.boxes).masked_fill_(~valid[truth.image_index], -1)
        best_iou, best_box = _best_box(iou, truth.image_index, len(valid))
        assigned.masked_fill_(best_iou >= negative_iou, IGNORED)
        assigned = torch.where(best_iou >= positive_iou, best_box, assigned)
        # However low: a box of zero area has best IoU 0 and takes every anchor that it misses, as in the released code.
        ties = iou == iou.amax(dim=1, keepdim=True)
        order = torch.arange(num_boxes, dtype=torch.int32, device=iou.device)[:, None]
        last = torch.full(valid.shape, -1, dtype=torch.int32, device=iou.device)
        # Of several boxes that tie for one anchor, the later one wins.
        last.index_reduce_(0, truth.image_index, torch.where(ties, order, -1), "amax")
        assigned = torch.where(last >= 0, last.long(), assigned)
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


def _best_box(iou: Tensor, image_index: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """[B, N] the best IoU with a box of the anchor's own image, and the first box that has it."""
    best_iou = iou.new_full((num_images, iou.shape[1]), -1.0).index_reduce_(0, image_index, iou, "amax")
    order = torch.arange(len(iou), dtype=torch.int32, device=iou.device)[:, None]
    none = torch.iinfo(torch.int32).max
    candidates = torch.where(iou == best_iou[image_index], order, none)
    first = torch.full(best_iou.shape, none, dtype=torch.int32, device=iou.device)
    return best_iou, first.index_reduce_(0, image_index, candidates, "amin").long()
