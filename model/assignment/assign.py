"""Assign the anchors of a batch by the rule that the settings name."""

from torch import Tensor

from model.assignment.atss import atss
from model.assignment.max_iou import max_iou
from model.assignment.paa import paa
from model.assignment.samples import Assignment, GroundTruth, Predicted
from model.assignment.sim_ota import sim_ota
from model.assignment.task_aligned import task_aligned
from model.config import ModelConfig
from model.network.anchors import AnchorGrid

TOP_K = {"atss": 9, "task_aligned": 13, "sim_ota": 10, "paa": 9}
"""Of the papers, where assignment.top_k is None."""


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
    rule = config.assignment
    if rule.kind == "max_iou":
        iou = {"positive_iou": config.positive_iou, "negative_iou": config.negative_iou}
        return Assignment(max_iou(grid, padded_sizes, truth, **iou))
    top_k = rule.top_k or TOP_K[rule.kind]
    if rule.kind == "atss":
        return Assignment(atss(grid, padded_sizes, truth, top_k=top_k))
    if predicted is None:
        raise ValueError(f"assignment.kind {rule.kind!r} looks at predictions, and none were given")
    if rule.kind == "task_aligned":
        alpha, beta = rule.alignment_class, rule.alignment_iou
        return task_aligned(grid, padded_sizes, truth, predicted, top_k=top_k, alpha=alpha, beta=beta)
    if rule.kind == "sim_ota":
        radius, weight = rule.ota_radius, rule.ota_iou_weight
        return Assignment(sim_ota(grid, padded_sizes, truth, predicted, top_k=top_k, radius=radius, iou_weight=weight))
    return Assignment(paa(grid, padded_sizes, truth, predicted, top_k=top_k, iou=rule.paa_iou))
