"""Binds `model/` to the golden numbers of other detectors' code: arrays in, arrays out, no logic of its own."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ClassificationConfig, ModelConfig
from model.losses.classification import classification_loss

Array = NDArray[Any]


def quality_focal_loss(logits: Array, labels: Array, quality: Array, beta: float) -> tuple[Array, Array]:
    return _classification(logits, labels, quality, ClassificationConfig(loss="qfl", gamma=beta))


def varifocal_loss(logits: Array, labels: Array, quality: Array, iou_weighted: bool) -> tuple[Array, Array]:
    return _classification(logits, labels, quality, ClassificationConfig(loss="vfl", vfl_iou_weighted=iou_weighted))


def _classification(
    logits: Array, labels: Array, quality: Array, settings: ClassificationConfig
) -> tuple[Array, Array]:
    """([N] the loss of each row by itself, [N, K] the gradient of their sum)."""
    classes = np.where(labels == logits.shape[1], -1, labels)  # background is K there
    given = torch.from_numpy(logits).requires_grad_()
    config = ModelConfig(classification=settings)
    rows = zip(given.split(1), torch.from_numpy(classes).split(1), torch.from_numpy(quality).split(1), strict=True)
    losses = torch.stack([classification_loss(*row, config) for row in rows])
    (gradient,) = torch.autograd.grad(losses.sum(), given)
    return losses.detach().numpy(), gradient.numpy()
