"""The losses of the object confidence (Table 2): how well a positive sample's box lies, or how central it is."""

import torch
from torch import Tensor
from torch.nn import functional

from model.config import ConfidenceConfig


def confidence_loss(logits: Tensor, target: Tensor, config: ConfidenceConfig) -> Tensor:
    """[P] the confidence loss of each positive anchor; differentiable in the IoU target, too (Eqs. 5-7, 13)."""
    if config.loss in ("ce", "gfocal"):
        # -y ln p - (1-y) ln(1-p), in the form that stays finite in float32 for logits above 16.6 or below -88.
        cross_entropy = functional.softplus(logits) - logits * target
        if config.loss == "gfocal":
            # Eq. 13, with the sign and the absolute value that make it a positive loss.
            cross_entropy = (target - logits.sigmoid()).abs() ** config.gfocal_gamma * cross_entropy
        if config.negative_weight > 0:  # a positive whose box misses its target weighs like a negative
            return torch.where(target == 0, config.negative_weight, 1.0) * cross_entropy
        return cross_entropy
    predicted = logits.sigmoid() if config.loss_on == "sigmoid" else logits
    error = (predicted - target).abs()
    if config.loss == "l1":
        return error
    if config.loss == "l2":
        return error**2
    beta = config.smooth_l1_beta
    return torch.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
