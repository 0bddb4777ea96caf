"""Binds losses and assignment to the golden numbers of other detectors' own code; numpy in, numpy out."""

import numpy as np
import torch
from numpy.typing import NDArray

from model.assignment.samples import GroundTruth, Predicted
from model.assignment.sim_ota import sim_ota as assign_by_sim_ota
from model.network.anchors import STRIDES, AnchorGrid

Array = NDArray[np.generic]


def sim_ota(points: Array, gt_boxes: Array, gt_labels: Array, pred_boxes: Array, scores: Array) -> Array:
    """[N] 0 for background, else 1 + index of the box; points are (x, y, stride, stride)."""
    center, stride = torch.from_numpy(points[:, :2]), torch.from_numpy(points[:, 2])
    # One row of one-anchor cells for each level: the rule reads centres and strides alone.
    sizes = tuple((1, int((stride == level).sum())) for level in STRIDES)
    grid = AnchorGrid(torch.cat([center - 2 * stride[:, None], center + 2 * stride[:, None]], dim=1), sizes)
    boxes = torch.from_numpy(gt_boxes)
    truth = GroundTruth(boxes, torch.from_numpy(gt_labels), torch.zeros(len(boxes), dtype=torch.int64))
    predicted = Predicted(torch.from_numpy(pred_boxes)[None], torch.from_numpy(scores).logit()[None])
    whole = torch.full((1, 2), max(STRIDES) * len(points))
    assigned = assign_by_sim_ota(grid, whole, truth, predicted, top_k=10, radius=2.5, iou_weight=3.0)
    found: Array = (assigned[0].clamp(min=-1) + 1).numpy()
    return found
