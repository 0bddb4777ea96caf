"""Max-IoU assignment, RetinaNet's rule, for a whole batch at once."""

import torch
from torch import Tensor

from model.assignment.samples import IGNORED, INVALID, NEGATIVE, GroundTruth
from model.network.anchors import AnchorGrid, valid_anchors
from model.network.overlaps import pairwise_iou

BLOCK = 2**25
"""Pairs of a box and an anchor that are looked at at a time, at some 12 bytes each."""
NO_BOX = torch.iinfo(torch.int32).max


def max_iou(
    grid: AnchorGrid, padded_sizes: Tensor, truth: GroundTruth, *, positive_iou: float, negative_iou: float
) -> Tensor:
    """Assign each anchor a box, background, or nothing, by its IoU with the boxes (RetinaNet, Section 4).

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
    best_iou = torch.full(valid.shape, -1.0, dtype=grid.boxes.dtype, device=valid.device)
    best_box = torch.full(valid.shape, NO_BOX, dtype=torch.int32, device=valid.device)
    last_tie = torch.full(valid.shape, NEGATIVE, dtype=torch.int32, device=valid.device)
    order = torch.arange(len(truth.boxes), dtype=torch.int32, device=valid.device)
    # So many boxes at a time that memory does not grow with their number.
    for block in torch.split(order, max(1, BLOCK // len(grid.boxes))):
        image, rows = truth.image_index[block], block[:, None]
        # -1 is below every IoU: what is padding for an image ties with none of its boxes.
        iou = pairwise_iou(truth.boxes[block], grid.boxes).masked_fill_(~valid[image], -1)
        before = best_iou.clone()
        best_iou.index_reduce_(0, image, iou, "amax")
        # Of several boxes that are equally good for one anchor, the first wins.
        best_box.masked_fill_(best_iou > before, NO_BOX)
        best_box.index_reduce_(0, image, torch.where(iou == best_iou[image], rows, NO_BOX), "amin")
        # Of several boxes that tie for it, the last one.
        ties = iou == iou.amax(dim=1, keepdim=True)
        last_tie.index_reduce_(0, image, torch.where(ties, rows, NEGATIVE), "amax")
    assigned = torch.where(best_iou < negative_iou, NEGATIVE, IGNORED)
    assigned = torch.where(best_iou >= positive_iou, best_box.long(), assigned)
    # However low: a box of zero area has best IoU 0 and takes every anchor that it misses, as in the released code.
    assigned = torch.where(last_tie >= 0, last_tie.long(), assigned)
    return assigned.masked_fill_(~valid, INVALID)
