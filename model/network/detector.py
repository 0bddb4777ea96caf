"""RetinaNet-Conf whole: normalised images in, raw predictions out."""

from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.backbone import Backbone, FeaturePyramid
from model.network.retinanet import Head, Predictions


class RetinaNetConf(nn.Module):
    """RetinaNet with an object-confidence branch; plain RetinaNet where `config.confidence` is None."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        """Build with random weights; torch.manual_seed decides them."""
        super().__init__()
        self.config = config
        self.num_classes = num_classes
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RetinaNetConf(config, num_classes)
