"""Binds `model/` to the golden numbers of other detectors' code: arrays in, arrays out, no logic of its own."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import ClassificationConfig, ModelConfig
from model.losses import boxes as box_losses
from model.losses.classification import classification_loss
from model.network.retinanet import distribution_mean as mean_of

Array = NDArray[Any]


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
    return mean_of(torch.from_numpy(logits)).numpy()


def centerness(anchors: Array, boxes: Array) -> Array:
    return box_losses.centerness(torch.from_numpy(anchors), torch.from_numpy(boxes)).numpy()


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
