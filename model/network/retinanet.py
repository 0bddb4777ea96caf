"""The whole detector: backbone, feature pyramid, and the two towers with their branches, the confidence among them."""

import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.anchors import NUM_ANCHORS
from model.network.backbone import Backbone, FeaturePyramid, fold, group_norm
from model.network.checkpoint import load_weights, read_card
from model.network.layers.convolution import apply, dense_maps, sparse_rows
from model.network.layers.edges import Edges

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
    edge_logits: list[Tensor] | None = None
    """L maps [B, 9*4*n, h, w] of the distributions that the deltas are the means of; None without box.bins."""

    def float(self) -> "Predictions":
        """The same in float32."""
        confidence, edges = self.confidence_logits, self.edge_logits
        return Predictions(
            [level.float() for level in self.class_logits],
            [level.float() for level in self.box_deltas],
            None if confidence is None else [level.float() for level in confidence],
            None if edges is None else [level.float() for level in edges],
        )


class RetinaNetConf(nn.Module):
    """RetinaNet with an object-confidence branch; plain RetinaNet where `config.confidence` is None."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        """Build with random weights; torch.manual_seed decides them."""
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.source = "the detector"
        """Where the weights come from, in words for messages."""
        self.backbone = Backbone(config)
        self.pyramid = FeaturePyramid(
            self.backbone.out_channels, config.channels, config.pyramid_extra_from, config.pyramid_extra_relu
        )
        self.head = Head(config, num_classes)

    def forward(self, images: Tensor, cells: Tensor | None = None) -> Predictions:
        """Predict from normalised images [B, 3, H, W], H and W multiples of 32; for `cells` see Head."""
        return cast(Predictions, self.head(self.pyramid(self.backbone(images)), cells))


def build_detector(config: ModelConfig, num_classes: int, seed: int) -> RetinaNetConf:
    """A detector whose random weights depend on the seed alone; the caller's generator is left as it was."""
    # Weights are drawn on the CPU; without a list, the state of every GPU would be saved as well.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RetinaNetConf(config, num_classes)


def load_detector(folder: Path) -> RetinaNetConf:
    """The detector of a checkpoint, on the CPU, ready to predict.

    Raises:
        ValueError: the checkpoint is damaged, or its card is of another detector.
    """
    card, weights = read_card(folder), load_weights(folder)
    detector = RetinaNetConf(card.config.model, len(card.category_ids))
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:  # with a line for each tensor
        raise ValueError(
            f"{folder}: the weights are of another detector than the card's ({str(error).splitlines()[-1].strip()}); "
            "fetch the checkpoint again"
        ) from error
    detector.source = str(folder)
    return detector.eval()


def for_inference(detector: RetinaNetConf, dtype: torch.dtype) -> RetinaNetConf:
    """A copy that predicts the same with fewer operations, but cannot train.

    Args:
        detector: stays as it is.
        dtype: that autocast computes convolutions in; their weights are brought to it once instead of in each pass.
    """
    copy = deepcopy(detector).requires_grad_(False)
    fold(copy.backbone)
    for layer in copy.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(dtype)
    return copy.eval()


class Head(nn.Module):
    """Two towers of 3x3 convolutions, and the branches that read them (Figure 3 of the paper)."""

    def __init__(self, config: ModelConfig, num_classes: int, in_channels: int | None = None) -> None:
        """Weights are normal(0, 0.01), biases 0, so that the confidence starts at 0.5."""
        super().__init__()
        channels = config.channels
        self.class_tower = tower(config, in_channels or channels)
        self.box_tower = tower(config, in_channels or channels)
        self.class_logits = nn.Conv2d(channels, NUM_ANCHORS * num_classes, 3, padding=1)
        self.edges = None
        if config.box.bins is None:
            self.box_deltas = nn.Conv2d(channels, NUM_ANCHORS * 4, 3, padding=1)
        else:
            self.edge_logits = nn.Conv2d(channels, NUM_ANCHORS * 4 * config.box.bins, 3, padding=1)
            self.edges = Edges(config.box.bins, config.anchor_rule, config.classification.edge_quality)
        self.confidence_logits = None
        self.confidence_tower = None
        # A norm needs the whole map, and a score that reads edges reads them everywhere.
        self.needs_all_boxes = config.tower_norm != "none" or config.classification.edge_quality is not None
        if config.confidence is not None:
            self.confidence_logits = nn.Conv2d(channels, NUM_ANCHORS, 3, padding=1)
            self.confidence_tower = config.confidence.tower
            # CE^w (negative_weight above 0) reads the confidence of negatives, too.
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
            cells: where the box tower is wanted (samples.positive_cells); elsewhere its outputs may then be 0.
        """
        class_features = [climb(self.class_tower, feature) for feature in features]
        classes = [apply(self.class_logits, feature) for feature in class_features]
        on_boxes = [self.box_deltas if self.edges is None else self.edge_logits]
        confidences = None
        # On the classification tower this is RetinaNet-Conf, on the box tower the IoU-aware baseline.
        if self.confidence_logits is not None and self.confidence_tower == "classification":
            confidences = [apply(self.confidence_logits, feature) for feature in class_features]
        elif self.confidence_logits is not None:
            on_boxes.append(self.confidence_logits)
        maps, qualities = self._on_box_tower(on_boxes, features, cells)
        confidences = maps[1] if len(on_boxes) == 2 else confidences
        if self.edges is None:
            return Predictions(classes, maps[0], confidences)
        if qualities is not None:
            classes = [self.edges.join(*pair) for pair in zip(classes, qualities, strict=True)]
        return Predictions(classes, maps[-1], confidences, maps[0])

    def _on_box_tower(
        self, outputs: list[nn.Conv2d], features: list[Tensor], cells: Tensor | None
    ) -> tuple[list[list[Tensor]], list[Tensor] | None]:
        """Maps of each output; where the first is of edges, those of their deltas at the end, and of their quality."""
        # Few cells learn boxes: a step of R50 on two cores takes 7.2 to 8.0 s so, and 8.7 to 9.1 s with whole maps.
        if cells is not None and not self.needs_all_boxes:
            layers = [layer for layer in self.box_tower if isinstance(layer, nn.Conv2d)]
            rows = sparse_rows(layers, outputs, features, cells)
            if rows is not None:
                if self.edges is not None:
                    rows.append(self.edges(rows[0], _levels_of(cells, features))[0])
                return [dense_maps(values, cells, features) for values in rows], None
        box_features = [climb(self.box_tower, feature) for feature in features]
        maps = [[apply(output, feature) for feature in box_features] for output in outputs]
        if self.edges is None:
            return maps, None
        read = [self.edges(level.permute(0, 2, 3, 1), place) for place, level in enumerate(maps[0])]
        maps.append([deltas.permute(0, 3, 1, 2) for deltas, _ in read])
        return maps, None if self.edges.quality is None else [quality for _, quality in read]


def _levels_of(cells: Tensor, features: list[Tensor]) -> Tensor:
    """[S] the level of each cell, of rising places in the list of all."""
    ends = torch.tensor([feature[:, 0].numel() for feature in features], device=cells.device).cumsum(0)
    return torch.bucketize(cells, ends, right=True)


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


def climb(tower: nn.Sequential, feature: Tensor) -> Tensor:
    """tower(feature); a convolution that a ReLU follows runs together with it."""
    if any(isinstance(layer, nn.GroupNorm) for layer in tower):
        return cast(Tensor, tower(feature))
    for layer in tower:
        if isinstance(layer, nn.Conv2d):
            feature = apply(layer, feature, relu=True)
    return feature


def per_anchor(level: Tensor, size: int) -> Tensor:
    """[B, 9*size, h, w] -> [B, h*w*9, size], in the flat order of the anchors."""
    batch, _, height, width = level.shape
    return level.view(batch, NUM_ANCHORS, size, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, size)


def flat(levels: list[Tensor], size: int) -> Tensor:
    """L maps [B, 9*size, h, w] -> [B, N, size], in the flat order of the anchors."""
    return torch.cat([per_anchor(level, size) for level in levels], dim=1)
