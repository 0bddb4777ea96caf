"""Small detectors and random images, for tests of the network's parts and of what is made of it."""

from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import Categories, save_checkpoint
from model.config import DataConfig, ModelConfig, TrainConfig
from model.detector import RetinaNetConf, build_detector

MODEL = ModelConfig(
    backbone="resnet18_quarter", backbone_norm="group", channels=16, tower_depth=1, tower_norm="group", frozen_stages=0
)
SIZES = DataConfig(dataset="shapes", train_split="train", val_split="val", short_edge=64, long_edge=128)


def small(**settings: object) -> ModelConfig:
    """A quarter-width ResNet-18 with one layer a tower, unless told otherwise."""
    defaults: dict[str, object] = {"backbone": "resnet18_quarter", "channels": 16, "tower_depth": 1}
    return ModelConfig(**(defaults | settings))  # type: ignore[arg-type]


def images(*shape: int) -> Tensor:
    """Noise, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def opinionated(num_classes: int, model: ModelConfig = MODEL) -> RetinaNetConf:
    """A detector whose scores spread from 0 to 1, though it learnt nothing."""
    detector = build_detector(model, num_classes, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in detector.head.named_parameters():
            if name in ("class_logits.weight", "confidence_logits.weight", "box_deltas.weight"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
        detector.head.class_logits.bias.fill_(-3.0)  # type: ignore[union-attr]
    return detector.eval()


def save_opinionated(folder: Path, categories: Categories, config: TrainConfig | None = None) -> Path:
    """A checkpoint of an opinionated detector."""
    config = config or TrainConfig(model=MODEL, data=SIZES)
    return save_checkpoint(
        folder,
        weights=opinionated(len(categories[0]), config.model).state_dict(),
        config=config,
        epoch=1,
        step=1,
        categories=categories,
        data_fingerprint="0" * 64,
        optimizer={},
    )
