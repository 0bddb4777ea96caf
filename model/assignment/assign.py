"""Assign the anchors of a batch by the rule that the settings name."""

from torch import Tensor

from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth, Predicted
from model.config import ModelConfig
from model.network.anchors import AnchorGrid


def assign(
    grid: AnchorGrid, padded_sizes: Tensor, truth: GroundTruth, config: ModelConfig, predicted: Predicted | None = None
) -> Assignment:
    """Assign each anchor of a batch a box, background, or nothing.

    Args:
        grid: N anchors.
        padded_sizes: [B, 2] each image's own padded (height, width); anchors outside are INVALID.
        truth: M boxes.
        config: the rule and its settings.
        predicted: where `config.assignment.by_prediction`.
    """
    return Assignment(
        max_iou(grid, padded_sizes, truth, positive_iou=config.positive_iou, negative_iou=config.negative_iou)
    )
