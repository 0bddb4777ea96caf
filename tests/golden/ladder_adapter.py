"""Binds `model/` to the golden numbers of other detectors' code: arrays in, arrays out, no logic of its own."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.assignment.atss import atss as assign_by_statistics
from model.assignment.samples import GroundTruth, Predicted
from model.assignment.task_aligned import alignment
from model.assignment.task_aligned import task_aligned as assign_by_alignment
from model.network.anchors import AnchorGrid
from model.network.overlaps import aligned_iou

Array = NDArray[Any]
ENDLESS = torch.tensor([[2**20, 2**20]])
"""A padded size in which all anchors are valid."""


def atss(anchors: Array, num_level_anchors: Array, gt_boxes: Array, gt_labels: Array, topk: int) -> Array:
    grid, truth = _one_anchor_a_cell(anchors, num_level_anchors), _one_image(gt_boxes, gt_labels)
    return _numbers_from_one(assign_by_statistics(grid, ENDLESS, truth, top_k=topk))


def task_aligned(
    anchors: Array,
    num_level_anchors: Array,
    gt_boxes: Array,
    gt_labels: Array,
    pred_boxes: Array,
    scores: Array,
    topk: int,
    alpha: float,
    beta: float,
) -> tuple[Array, Array]:
    grid, truth = _one_anchor_a_cell(anchors, num_level_anchors), _one_image(gt_boxes, gt_labels)
    boxes, probabilities = torch.from_numpy(pred_boxes), torch.from_numpy(scores)
    predicted = Predicted(boxes[None], probabilities.logit()[None])
    found = assign_by_alignment(grid, ENDLESS, truth, predicted, top_k=topk, alpha=alpha, beta=beta).assigned
    own = found[0].clamp(min=0)
    of_own_class = probabilities.gather(1, truth.labels[own][:, None])[:, 0]
    metric = alignment(of_own_class, aligned_iou(truth.boxes[own], boxes), alpha=alpha, beta=beta)
    return _numbers_from_one(found), metric.numpy()


def _one_anchor_a_cell(anchors: Array, num_level_anchors: Array) -> AnchorGrid:
    # How the cells lie in rows is no part of what the rules read.
    return AnchorGrid(torch.from_numpy(anchors), tuple((1, int(count)) for count in num_level_anchors))


def _one_image(boxes: Array, labels: Array) -> GroundTruth:
    return GroundTruth(torch.from_numpy(boxes), torch.from_numpy(labels), torch.zeros(len(boxes), dtype=torch.int64))


def _numbers_from_one(assigned: Tensor) -> Array:
    """[N] 0 for background, else 1 and the index of the box."""
    numbers: Array = np.maximum(assigned[0].numpy() + 1, 0)
    return numbers
