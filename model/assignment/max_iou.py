"""Max-IoU assignment, RetinaNet's rule, for a whole batch at once."""

import torch
from torch import Tensor

from model.assignment.samples import IGNORED, INVALID, NEGATIVE, GroundTruth
from model.network.anchors import AnchorGrid, valid_anchors
from model.network.overlaps import pairwise_iou


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


def _best_box(iou: Tensor, image_index: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
    """[B, N] the best IoU with a box of the anchor's own image, and the first box that has it."""
    best_iou = iou.new_full((num_images, iou.shape[1]), -1.0).index_reduce_(0, image_index, iou, "amax")
    order = torch.arange(len(iou), dtype=torch.int32, device=iou.device)[:, None]
    none = torch.iinfo(torch.int32).max
    candidates = torch.where(iou == best_iou[image_index], order, none)
    first = torch.full(best_iou.shape, none, dtype=torch.int32, device=iou.device)
    return best_iou, first.index_reduce_(0, image_index, candidates, "amin").long()
