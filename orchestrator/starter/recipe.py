"""Settings for a first training that suit data and machine, each with its reason."""

import math
from dataclasses import dataclass
from typing import Any

from orchestrator.experiment.layers import moved_drops
from orchestrator.starter.facts import DataFacts, Machine

Settings = dict[str, Any]
GPU_UPDATES = 3000
"""Updates of a training on some hundred photographs: about twice the 1,344 that brought the aquarium of
experiments/results/photos to AP 36. Whether that many are needed was not measured."""
CPU_IMAGES = 3600
"""Images that a training on a CPU sees, all epochs together: some minutes on two cores."""
LEAST_BOX = 24
"""Pixels of a resized box's side: below, fewer and fewer anchors (the smallest have 32) overlap it by half."""
PAPER_SHORT, MOST_SHORT = 600, 1024
CPU_SHORT = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The settings of a file, and why they are so."""

    train: Settings
    """By dotted name below `train`."""
    resources: Settings
    why: dict[str, str]
    """By the same names."""
    warnings: tuple[str, ...] = ()
    """What limits the result, with the way out."""


def choose(data: DataFacts, machine: Machine, asked: Settings | None = None) -> Recipe:
    """Choose the settings of a first training.

    Args:
        data: what it learns from.
        machine: what it runs on.
        asked: settings of `train` that are decided already, nested; the length of warm-up and the like follows them.
    """
    on_gpu = machine.num_gpus > 0
    train: Settings = {}
    why: dict[str, str] = {}
    warnings = list(_weights(train, why, machine, on_gpu))
    warnings += _data(train, why, data, on_gpu)
    _schedule(train, why, data, machine, asked or {})
    return Recipe(train=train, resources=_resources(why, machine), why=why, warnings=tuple(warnings))


def _weights(train: Settings, why: dict[str, str], machine: Machine, on_gpu: bool) -> list[str]:
    """Choose the detector; return what its first weights lack."""
    if machine.weights is not None:
        train |= {"model.backbone": machine.backbone, "model.backbone_weights": machine.weights.name}
        if machine.is_caffe:
            train["model.backbone_stride"] = "1x1"
            why["model.backbone_stride"] = "as weights that come from Caffe have it, by the file's name"
        if machine.weights_input != "imagenet":
            train["model.weights_input"] = machine.weights_input
            why["model.weights_input"] = "by the size of the file's first convolution"
        if not on_gpu:
            train["model.frozen_stages"] = 3
            why["model.frozen_stages"] = "on a CPU only the last stage of the backbone learns"
        warnings = []
    else:
        train |= {
            "model.backbone": "resnet18" if on_gpu else "resnet18_half",
            "model.backbone_norm": "group",
            "model.frozen_stages": 0,
        }
        why["model.backbone_norm"] = "no ImageNet weights were found, so that all of the backbone learns from scratch"
        warnings = [
            "no ImageNet weights were found: from scratch a detector takes more images and epochs. This "
            "fetches torchvision's, then remove the file and make it anew: "
            "python -c \"from torchvision.models import resnet50 as r; r(weights='IMAGENET1K_V1')\"; "
            "or name a folder of weights in RNC_WEIGHTS"
        ]
    train["model.tower_norm"] = "group"
    why["model.tower_norm"] = "as in experiments/photos, for some thousand updates"
    if not on_gpu:
        train |= {"model.channels": 128, "model.tower_depth": 2}
        why["model.channels"] = "half the paper's towers, for a CPU"
    return warnings


def _data(train: Settings, why: dict[str, str], data: DataFacts, on_gpu: bool) -> list[str]:
    """Choose what is read, and how large; return what is too small for that."""
    train |= {"data.train_split": data.train.name, "data.val_split": data.val.name}
    # As small as the smallest tenth of the boxes allows, no larger than the images are.
    wanted = LEAST_BOX / data.small_box if data.small_box else PAPER_SHORT
    short = min(max(PAPER_SHORT, wanted), MOST_SHORT, data.short_side) if on_gpu else min(CPU_SHORT, data.short_side)
    short = max(32, round(short / 32) * 32)
    long = max(short, math.ceil(short * min(2.0, data.long_side / data.short_side) / 32) * 32)
    train |= {"data.short_edge": short, "data.long_edge": long}
    why["data.short_edge"] = (
        f"images are {data.long_side} x {data.short_side} in the median" if on_gpu else "small, for a CPU"
    )
    if 0 < data.train.num_empty <= data.train.num_images // 2:
        train["data.train_on_empty_images"] = True
        why["data.train_on_empty_images"] = (
            f"images without boxes, here {data.train.num_empty}, teach what is no object"
        )
    if data.faults == "quarantine":
        train["data.faults"] = "quarantine"
        why["data.faults"] = "a few images or boxes are faulty; they are left out and named"
    smallest = data.small_box * short
    if 0 < smallest < LEAST_BOX:
        return [
            f"a tenth of the boxes are smaller than {smallest:.0f} pixels a side at short_edge {short}, where the "
            f"smallest anchors have 32: they are hardly learnt; raise data.short_edge (images have {data.short_side})"
        ]
    return []


def _schedule(train: Settings, why: dict[str, str], data: DataFacts, machine: Machine, asked: Settings) -> None:
    on_gpu = machine.num_gpus > 0
    images = _whole(asked, "data", "num_train_images") or data.train.num_images
    batch = _whole(asked, "global_batch") or ((8 if images < 2000 else 16) if on_gpu else 4)
    epochs = _whole(asked, "schedule", "epochs") or _epochs(images, batch, on_gpu, machine.weights is not None)
    updates = math.ceil(epochs * images / batch)
    why["schedule.epochs"] = (
        f"{updates:,} updates" if on_gpu else f"{epochs * images:,} images, for a CPU; more is better"
    )
    train |= {
        "global_batch": batch,
        "schedule.epochs": epochs,
        # One drop, and late, where there are few updates: with two the rate is low for as long as it is high.
        "schedule.lr_drop_epochs": moved_drops((8, 11) if on_gpu else (11,), 12, epochs),
        "schedule.optimizer": "adamw",
        # In proportion to the root of the batch, from the rate of experiments/photos at 8 on a GPU.
        "schedule.learning_rate": float(f"{(0.0002 if on_gpu else 0.0007) * math.sqrt(batch / 8):.1g}"),
        "schedule.weight_decay": 0.01,
        "schedule.warmup_iterations": min(500, updates // 12),
        "schedule.gradient_clip": 10.0,
        "schedule.validate_every": max(1, epochs // 6),
    }
    why["schedule.optimizer"] = "as in experiments/photos; the paper's SGD is made for 90,000 updates"
    if on_gpu:
        train["precision"] = "bfloat16"
        why["precision"] = "as in experiments/photos on a GPU; weights and losses are float32"


def _epochs(images: int, batch: int, on_gpu: bool, has_weights: bool) -> int:
    if on_gpu:
        epochs = min(max(math.ceil(GPU_UPDATES * batch / images), 12), 72)
    else:
        epochs = min(max(round(CPU_IMAGES / images), 2), 24)
    return epochs if has_weights else 3 * epochs


def _whole(settings: Settings, *path: str) -> int | None:
    """A whole number of nested settings, from 1 on; None where there is none, or a mistake that is told later."""
    value: Any = settings
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int and value >= 1 else None


def _resources(why: dict[str, str], machine: Machine) -> Settings:
    if machine.num_gpus:
        cores = max(1, machine.num_cores // machine.num_gpus)
        return {"num_workers": 1, "gpus_per_worker": 1, "cpus_per_worker": min(8, cores)}
    why["num_workers"] = "this machine has no GPU"
    return {"num_workers": 1, "gpus_per_worker": 0, "cpus_per_worker": machine.num_cores}
