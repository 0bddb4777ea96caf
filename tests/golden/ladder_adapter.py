"""Binds `model/` to the golden numbers of other detectors' code: arrays in, arrays out, no logic of its own."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.assignment.atss import atss as assign_by_statistics
from model.assignment.samples import GroundTruth, Predicted
from model.assignment.sim_ota import sim_ota as assign_by_sim_ota
from model.assignment.task_aligned import alignment
from model.assignment.task_aligned import task_aligned as assign_by_alignment
from model.config import ClassificationConfig, ModelConfig
from model.losses import boxes as box_losses
from model.losses.classification import classification_loss
from model.network.anchors import STRIDES, AnchorGrid
from model.network.layers.edges import read_distributions
from model.network.overlaps import aligned_iou

Array = NDArray[Any]
ENDLESS = torch.tensor([[2**20, 2**20]])
"""A padded size in which all anchors are valid."""


def quality_focal_loss(logits: Array, labels: Array, quality: Array, beta: float) -> tuple[Array, Array]:
    return _classification(logits, labels, quality, ClassificationConfig(loss="qfl", gamma=beta))


def varifocal_loss(logits: Array, labels: Array, quality: Array, iou_weighted: bool) -> tuple[Array, Array]:
    return _classification(logits, labels, quality, ClassificationConfig(loss="vfl", vfl_iou_weighted=iou_weighted))


def box_loss(kind: Any, pred: Array, target: Array) -> tuple[Array, Array]:
    predicted = torch.from_numpy(pred).requires_grad_()
    return _with_gradient(box_losses.box_loss(kind, predicted, torch.from_numpy(target)), predicted)


def distribution_focal_loss(logits: Array, target: Array) -> tuple[Array, Array]:
    given = torch.from_numpy(logits).requires_grad_()
    return _with_gradient(box_losses.distribution_focal_loss(given, torch.from_numpy(target)), given)


def distribution_mean(logits: Array) -> Array:
    mean, _ = read_distributions(torch.from_numpy(logits), 0)
    return mean.numpy()


def centerness(anchors: Array, boxes: Array) -> Array:
    return box_losses.centerness(torch.from_numpy(anchors), torch.from_numpy(boxes)).numpy()


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


def _classification(
    logits: Array, labels: Array, quality: Array, settings: ClassificationConfig
) -> tuple[Array, Array]:
    """([N] the loss of each row by itself, [N, K] the gradient of their sum)."""
    classes = np.where(labels == logits.shape[1], -1, labels)  # background is K there
    given = torch.from_numpy(logits).requires_grad_()
    config = ModelConfig(classification=settings)
    rows = zip(given.split(1), torch.from_numpy(classes).split(1), torch.from_numpy(quality).split(1), strict=True)
    return _with_gradient(torch.stack([classification_loss(*row, config) for row in rows]), given)


def _with_gradient(loss: Tensor, given: Tensor) -> tuple[Array, Array]:
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    return loss.detach().numpy(), gradient.numpy()


def _one_anchor_a_cell(anchors: Array, num_level_anchors: Array) -> AnchorGrid:
    # How the cells lie in rows is no part of what the rules read.
    return AnchorGrid(torch.from_numpy(anchors), tuple((1, int(count)) for count in num_level_anchors))


def _one_image(boxes: Array, labels: Array) -> GroundTruth:
    return GroundTruth(torch.from_numpy(boxes), torch.from_numpy(labels), torch.zeros(len(boxes), dtype=torch.int64))


def _numbers_from_one(assigned: Tensor) -> Array:
    """[N] 0 for background, else 1 and the index of the box."""
    numbers: Array = np.maximum(assigned[0].numpy() + 1, 0)
    return numbers
