"""A tiny training on drawn shapes, and what tests compare of it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import (
    AssignmentConfig,
    BoxConfig,
    ClassificationConfig,
    ConfidenceConfig,
    DataConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.loop import Progress, train

MODEL = ModelConfig(
    backbone="resnet18_quarter", backbone_norm="group", channels=16, tower_depth=1, tower_norm="group", frozen_stages=0
)
CONFIG = TrainConfig(
    model=MODEL,
    data=DataConfig(
        train_split="train", val_split="val", num_train_images=24, num_val_images=3, short_edge=64, long_edge=96
    ),
    schedule=ScheduleConfig(epochs=3, lr_drop_epochs=(2,), warmup_iterations=6, warmup_ratio=0.1, validate_every=3),
    global_batch=8,
    seed=1,
)
LADDER = {
    "atss, vfl, giou": replace(
        MODEL,
        assignment=AssignmentConfig(kind="atss"),
        classification=ClassificationConfig(loss="vfl"),
        box=BoxConfig(loss="giou", loss_weight=2.0),
        confidence=ConfidenceConfig(target="centerness"),
    ),
    "task_aligned, qfl, ciou": replace(
        MODEL,
        assignment=AssignmentConfig(kind="task_aligned"),
        classification=ClassificationConfig(loss="qfl", quality="alignment"),
        box=BoxConfig(loss="ciou"),
    ),
    "sim_ota, ia_bce, diou, gflv2": replace(
        MODEL,
        assignment=AssignmentConfig(kind="sim_ota"),
        confidence=None,
        classification=ClassificationConfig(loss="ia_bce", edge_quality="gflv2"),
        box=BoxConfig(loss="diou", bins=4),
    ),
    "paa, mal, iou, dfine": replace(
        MODEL,
        assignment=AssignmentConfig(kind="paa"),
        confidence=None,
        classification=ClassificationConfig(loss="mal", edge_quality="dfine"),
        box=BoxConfig(loss="iou", bins=4),
    ),
}
"""Detectors with each way to assign anchors, and to learn classes, boxes and the quality of boxes, at least once; those
that RetinaNet-Conf takes are in MODEL."""
SPEEDS = {"perf/images_per_s", "perf/eta_s"}


def run(config: TrainConfig, root: Path, folder: Path, **settings: Any) -> list[Progress]:
    """Train, and give the reports."""
    reports: list[Progress] = []
    train(config, data_root=root, folder=folder, report=reports.append, **settings)
    return reports


def last(folder: Path) -> Path:
    """The latest checkpoint of a training."""
    return max(folder.glob("epoch-*"))


def norm(tensors: dict[str, Tensor]) -> float:
    """The length of all tensors as one vector."""
    return float(torch.cat([tensor.flatten() for tensor in tensors.values()]).norm())


def same(one: Any, other: Any) -> bool:
    """Whether two nests of dicts, lists and tensors are equal bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def without_speed(reports: Sequence[Progress]) -> list[dict[str, Any]]:
    """What reports say, but for how fast it went, where checkpoints lie and what was detected."""
    content = [asdict(replace(report, validation=None)) for report in reports]
    for report in content:
        report["metrics"] = {name: value for name, value in report["metrics"].items() if name not in SPEEDS}
        del report["checkpoint"]
    return content
