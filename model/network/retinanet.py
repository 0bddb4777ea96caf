"""The towers that all levels share: classes, boxes, and the object confidence on either tower or on none."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.anchors import NUM_ANCHORS
from model.network.sparse import dense_maps, sparse_rows

PRIOR_PROBABILITY = 0.01
"""Class probability that the classification branch starts from (focal loss, Section 3.3)."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Raw outputs of the head, one map a level; channels run anchor by anchor."""

    class_logits: list[Tensor]
    """L maps [B, 9*K, h, w]."""
    box_deltas: list[Tensor]
    """L maps [B, 9*4, h, w]."""
    confidence_logits: list[Tensor] | None
    """L maps [B, 9, h, w]; None without a confidence branch."""

    def float(self) -> "Predictions":
        """The same in float32."""
        confidence = self.confidence_logits
        return Predictions(
            [level.float() for level in self.class_logits],
            [level.float() for level in self.box_deltas],
            None if confidence is None else [level.float() for level in confidence],
        )


class Head(nn.Module):
    """Two towers of 3x3 convolutions, and the branches that read them (Figure 3 of the paper)."""

    def __init__(self, config: ModelConfig, num_classes: int, in_channels: int | None = None) -> None:
        """Weights are normal(0, 0.01), biases 0, so that the confidence starts at 0.5."""
        super().__init__()
        channels = config.channels
        self.class_tower = tower(config, in_channels or channels)
        self.box_tower = tower(config, in_channels or channels)
        self.class_logits = nn.Conv2d(channels, NUM_ANCHORS * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, NUM_ANCHORS * 4, 3, padding=1)
        self.confidence_logits = None
        self.confidence_tower = None
        self.needs_all_boxes = config.tower_norm != "none"  # a norm needs the whole map
        if config.confidence is not None:
            self.confidence_logits = nn.Conv2d(channels, NUM_ANCHORS, 3, padding=1)
            self.confidence_tower = config.confidence.tower
            self.needs_all_boxes |= config.confidence.tower == "box" and config.confidence.negative_weight > 0
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.class_logits.bias is not None
        nn.init.constant_(self.class_logits.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

    def forward(self, features: list[Tensor], cells: Tensor | None = None) -> Predictions:
        """Predict from L feature maps [B, channels, h, w].

        Args:
            features: P3 to P7.
            cells: where the box tower is wanted (matching.positive_cells); elsewhere its outputs may then be 0.
        """
        class_features = [self.class_tower(feature) for feature in features]
        classes = [self.class_logits(feature) for feature in class_features]
        on_boxes = [self.box_deltas]
        confidences = None
        if self.confidence_logits is not None and self.confidence_tower == "classification":
            confidences = [self.confidence_logits(feature) for feature in class_features]
        elif self.confidence_logits is not None:
            on_boxes.append(self.confidence_logits)
        deltas, *others = self._on_box_tower(on_boxes, features, cells)
        return Predictions(classes, deltas, others[0] if others else confidences)

    def _on_box_tower(
        self, outputs: list[nn.Conv2d], features: list[Tensor], cells: Tensor | None
    ) -> list[list[Tensor]]:
        if cells is not None and not self.needs_all_boxes:
            layers = [layer for layer in self.box_tower if isinstance(layer, nn.Conv2d)]
            rows = sparse_rows(layers, outputs, features, cells)
            if rows is not None:
                return [dense_maps(values, cells, features) for values in rows]
        box_features = [self.box_tower(feature) for feature in features]
        return [[output(feature) for feature in box_features] for output in outputs]


def tower(config: ModelConfig, in_channels: int) -> nn.Sequential:
    """`tower_depth` times 3x3 convolution, normalisation if any, ReLU."""
    layers: list[nn.Module] = []
    for layer in range(config.tower_depth):
        width = config.channels if layer else in_channels
        layers.append(nn.Conv2d(width, config.channels, 3, padding=1, bias=config.tower_norm == "none"))
        if config.tower_norm == "group":
            layers.append(group_norm(config.channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups of at least 4 channels; the same for any batch."""
    return nn.GroupNorm(min(32, channels // 4), channels)


def per_anchor(level: Tensor, size: int) -> Tensor:
    """[B, 9*size, h, w] -> [B, h*w*9, size], in the flat order of the anchors."""
    batch, _, height, width = level.shape
    return level.view(batch, NUM_ANCHORS, size, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, size)


def flat(levels: list[Tensor], size: int) -> Tensor:
    """L maps [B, 9*size, h, w] -> [B, N, size], in the flat order of the anchors."""
    return torch.cat([per_anchor(level, size) for level in levels], dim=1)
