"""Small detectors and random images, for tests of the network's parts and of what is made of it."""

import copy
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import DataConfig, InferenceConfig, ModelConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.scoring import score
from model.names import INFERENCE
from model.network.checkpoint import Categories, save_checkpoint
from model.network.retinanet import RetinaNetConf, build_detector

MODEL = ModelConfig(
    backbone="resnet18_quarter", backbone_norm="group", channels=16, tower_depth=1, tower_norm="group", frozen_stages=0
)
SIZES = DataConfig(dataset="shapes", train_split="train", val_split="val", short_edge=64, long_edge=128)
SETTINGS = [
    InferenceConfig(),
    InferenceConfig(confidence_exponent=0.0),
    InferenceConfig(fusion="product", nms_iou=0.3, max_detections=7),
    InferenceConfig(confidence_exponent=0.9, min_confidence=0.5, nms_pre=60),
    InferenceConfig(fuse_small_levels=False, nms_pre=60),
    InferenceConfig(top_k_of="pairs", nms_pre=50),
]
"""Inference settings that differ in every way."""
SUPPRESSIONS = [
    InferenceConfig(suppression="soft_linear", nms_iou=0.3),
    InferenceConfig(suppression="soft_gaussian", suppression_sigma=0.2, confidence_exponent=0.8),
    InferenceConfig(suppression="iou_guided", confidence_exponent=0.0),
    InferenceConfig(suppression="iou_guided", max_detections=5, top_k_of="pairs", nms_pre=50),
    InferenceConfig(suppression="diou", nms_iou=0.4),
    InferenceConfig(suppression="matrix_linear", max_detections=9),
    InferenceConfig(suppression="matrix_gaussian", fuse_small_levels=False, nms_pre=60),
    InferenceConfig(suppression="voting", nms_iou=0.6),
    InferenceConfig(suppression="voting", nms_iou=0.6, max_detections=7, min_confidence=0.3),
]
"""Of every kind of suppression but NMS."""


def small(**settings: object) -> ModelConfig:
    """A quarter-width ResNet-18 with one layer a tower, unless told otherwise."""
    defaults: dict[str, object] = {"backbone": "resnet18_quarter", "channels": 16, "tower_depth": 1}
    return ModelConfig(**(defaults | settings))  # type: ignore[arg-type]


def images(*shape: int) -> Tensor:
    """Noise, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def opinionated(num_classes: int, model: ModelConfig = MODEL) -> RetinaNetConf:
    """A detector whose scores spread from 0 to 1, though it learnt nothing."""
    return copy.deepcopy(_opinionated(num_classes, model))


@cache  # a narrow ResNet is cut out of a whole one, which takes a while
def _opinionated(num_classes: int, model: ModelConfig) -> RetinaNetConf:
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


def write_inference(folder: Path, inference: InferenceConfig) -> None:
    """Put inference settings beside a checkpoint, as `rnc pull` does."""
    (folder / INFERENCE).write_text(json.dumps(asdict(inference)))


def with_objects_where_it_finds_some(root: Path, data: CocoData) -> CocoData:
    """The same images with other objects, near some boxes of an opinionated detector, so that no number of it is 0.

    Every second of the objects lies on boxes that rank high by class and confidence, the others anywhere.
    """
    found = score(opinionated(len(data.category_ids)), data, [InferenceConfig()], SIZES)[0].detections
    generator = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for image_id, (height, width) in zip(data.image_ids.tolist(), data.sizes.tolist(), strict=True):
        here = np.flatnonzero(found.image_ids == image_id)
        for place in [*here[:8:2], *here[8::13]]:
            box = found.boxes[place] + generator.normal(0.0, 1.5, 4)
            low, high = np.clip(box[:2], 0, [width - 8, height - 8]), np.clip(box[2:], 0, [width, height])
            side = np.maximum(high - low, 4.0)
            what = {"image_id": image_id, "category_id": int(found.category_ids[place])}
            one = what | {"bbox": [*low.tolist(), *side.tolist()], "area": float(side.prod()), "iscrowd": 0}
            rows.append({"id": len(rows) + 1, **one})
    (root / "annotations").mkdir(parents=True)
    (root / data.split).symlink_to(data.root / data.split)
    content = data.coco_dict() | {"annotations": rows}
    (root / "annotations" / f"instances_{data.split}.json").write_text(json.dumps(content))
    return read_coco(root, data.split)
