"""A small detector's config and random images, for tests of the network's parts."""

import torch
from torch import Tensor

from model.config import ModelConfig


def small(**settings: object) -> ModelConfig:
    """A quarter-width ResNet-18 with one layer a tower, unless told otherwise."""
    defaults: dict[str, object] = {"backbone": "resnet18_quarter", "channels": 16, "tower_depth": 1}
    return ModelConfig(**(defaults | settings))  # type: ignore[arg-type]


def images(*shape: int) -> Tensor:
    """Noise, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
