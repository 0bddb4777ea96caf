"""First weights from a file: an ImageNet backbone, or a RetinaNet with our, torchvision's or MMDetection's names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from model.config import ModelConfig
from model.data.cache import file_sha256
from model.network.anchors import NUM_ANCHORS
from model.network.backbone import Backbone
from model.network.retinanet import RetinaNetConf
from model.network.weight_files import WeightsInput, read_weights, require_finite, resnet_of, to_imagenet_input

MARKS = {"our": "head.class_logits.", "torchvision's": "head.classification_head.", "MMDetection's": "bbox_head."}
"""The naming schemes of RetinaNet files, each with a prefix that only its names have."""
OF_ITS_OWN = ("head.confidence_logits.", "head.edge_logits.", "head.edges.")
"""What a file may lack: the confidence branch, distributions of edges, and what reads their quality."""
BODY = "backbone.body."
"""What the names of our ResNet's tensors begin with."""
NORM_EPS = 1e-5
"""What our batch norm adds to the variance."""
EPS_FREE_SHA256 = "eeacb38b"
"""torchvision's COCO_V1 file, by the hash in its name: trained with a batch norm that adds nothing to the variance."""


def load_first_weights(detector: RetinaNetConf, path: Path, category_ids: Sequence[int]) -> None:
    """Load the file that the detector's config names: `detector_weights`, or `backbone_weights`.

    Raises:
        ValueError: the file does not fit.
    """
    if detector.config.detector_weights is None:
        load_backbone_weights(detector.backbone, path, expects=detector.config.weights_input)
    else:
        load_detector_weights(detector, path, category_ids=category_ids)


def load_backbone_weights(backbone: Backbone, path: Path, *, expects: WeightsInput = "imagenet") -> tuple[str, ...]:
    """Put ImageNet weights with torchvision's names (.pth or .safetensors) into the backbone.

    Args:
        backbone: the ResNet of the file.
        path: a state dict, or a checkpoint with one; of a whole detector the backbone is taken.
        expects: the input that the weights were trained with.

    Returns:
        What was chosen among several things in the file, a sentence each, for people.

    Raises:
        ValueError: the file lacks weights of this ResNet, holds others, was trained with another input, or is damaged.
    """
    weights, notes = resnet_of(path, read_weights(path))
    if misfits := _misfits(_without_counters(backbone.body.state_dict()), weights):
        raise ValueError(
            f"{path} does not fit this backbone: {misfits}; set model.backbone to the ResNet of the file, or "
            "model.backbone_weights to another file"
        )
    require_finite(path, weights)
    backbone.body.load_state_dict(to_imagenet_input(path, weights, expects), strict=False)
    return notes


def load_detector_weights(
    detector: RetinaNetConf, path: Path, *, category_ids: Sequence[int] | None = None, norm_eps: float | None = None
) -> tuple[str, ...]:
    """Put a whole RetinaNet into the detector; branches that the file lacks keep their random start.

    They are the confidence, and with box.bins the distributions of edges: deltas of a file say nothing of them.

    Args:
        detector: its config must be the file's network.
        path: .pth or .safetensors; a state dict, or a checkpoint with one under `state_dict` or `model`.
        category_ids: of the detector's classes; of a torchvision file with more classes, these rows are taken, since
            its rows are COCO's category ids.
        norm_eps: what the file's batch norms added to the variance; None means 0 for torchvision's COCO_V1 file, as
            torchvision does it, and 1e-5 for every other.

    Returns:
        What was chosen among several things in the file, a sentence each, for people.

    Raises:
        ValueError: the file is no RetinaNet, that of another config or other classes, or damaged.
    """
    config, (weights, notes) = detector.config, read_weights(path)
    # MMDetection's moving average, which its checkpoints hold a second time, with points as underscores.
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("ema_")}
    whose = _whose(weights, path)
    if whose == "torchvision's":
        weights = {_current_torchvision_name(name): tensor for name, tensor in weights.items()}
        if not config.pyramid_extra_relu:
            raise ValueError(
                f"{path} is a RetinaNet of torchvision's, with a ReLU between P6 and P7; set model.pyramid_extra_relu "
                "to true"
            )
    ours = _without_counters(detector.state_dict())
    theirs = {name: _their_name(name, whose, config) for name in ours}
    for prefix in OF_ITS_OWN:
        branch = [name for name in theirs if name.startswith(prefix)]
        if branch and not any(theirs[name] in weights for name in branch):
            theirs = {name: their for name, their in theirs.items() if name not in branch}
            if prefix == "head.edge_logits.":
                deltas = {_their_name(f"head.box_deltas.{kind}", whose, config) for kind in ("weight", "bias")}
                weights = {name: tensor for name, tensor in weights.items() if name not in deltas}
                notes = (*notes, f"{path} predicts deltas; distributions of edges (box.bins) start at random")
    for name in ("head.class_logits.weight", "head.class_logits.bias"):
        if theirs[name] in weights:
            rows = category_ids if whose == "torchvision's" else None
            weights[theirs[name]] = _class_rows(weights[theirs[name]], detector.num_classes, rows, path)
    if misfits := _misfits({their: ours[name] for name, their in theirs.items()}, weights):
        raise ValueError(
            f"{path}, a RetinaNet with {whose} names, does not fit this detector: {misfits}; set backbone, channels, "
            "tower_depth, tower_norm, pyramid_extra_from, confidence and box.bins of model as the file has them, or "
            "model.detector_weights to another file"
        )
    if norm_eps is None:
        norm_eps = 0.0 if file_sha256(path).startswith(EPS_FREE_SHA256) else NORM_EPS
    require_finite(path, {their: weights[their] for their in theirs.values()})
    for name, their in theirs.items():
        # A norm divides by sqrt(var + eps), so a difference of eps can go into the variance.
        ours[name] = weights[their] + (norm_eps - NORM_EPS) if name.endswith("running_var") else weights[their]
    body = {name.removeprefix(BODY): tensor for name, tensor in ours.items() if name.startswith(BODY)}
    body = to_imagenet_input(path, body, config.weights_input)
    detector.load_state_dict(ours | {BODY + name: tensor for name, tensor in body.items()}, strict=False)
    return notes


def _whose(weights: Mapping[str, Tensor], path: Path) -> str:
    for whose, mark in MARKS.items():
        if any(name.startswith(mark) for name in weights):
            return whose
    raise ValueError(
        f"{path} holds no RetinaNet: no name begins with {', '.join(MARKS.values())} (it has {sorted(weights)[:3]}); "
        "name another file, or, for a backbone alone, model.backbone_weights"
    )


def _current_torchvision_name(name: str) -> str:
    """Files of before torchvision 0.13, COCO_V1 among them, number pyramid and towers without the inner 0."""
    name = re.sub(r"(_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", name)
    # Old towers count their ReLUs as well: conv.0, conv.2, conv.4, conv.6.
    return re.sub(r"(_head\.conv)\.(\d)\.(weight|bias)$", lambda old: f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}", name)


def _their_name(name: str, whose: str, config: ModelConfig) -> str:
    """What a tensor of ours is called in a file with these names."""
    module, _, kind = name.rpartition(".")
    if whose == "torchvision's":
        return name if name.startswith("backbone.") else f"{_torchvision_modules(config).get(module, module)}.{kind}"
    if whose == "MMDetection's":
        if name.startswith("backbone."):
            return name.replace("backbone.body.", "backbone.")
        return f"{_mmdetection_modules(config).get(module, module)}.{kind}"
    return name


def _torchvision_modules(config: ModelConfig) -> dict[str, str]:
    names = {f"pyramid.lateral.{level}": f"backbone.fpn.inner_blocks.{level}.0" for level in range(3)}
    names |= {f"pyramid.output.{level}": f"backbone.fpn.layer_blocks.{level}.0" for level in range(3)}
    names |= {f"pyramid.{level}": f"backbone.fpn.extra_blocks.{level}" for level in ("p6", "p7")}
    for layer, part, place in _tower_layers(config):
        names[f"head.class_tower.{place}"] = f"head.classification_head.conv.{layer}.{part}"
        names[f"head.box_tower.{place}"] = f"head.regression_head.conv.{layer}.{part}"
    return names | {
        "head.class_logits": "head.classification_head.cls_logits",
        "head.box_deltas": "head.regression_head.bbox_reg",
    }


def _mmdetection_modules(config: ModelConfig) -> dict[str, str]:
    outputs = ("output.0", "output.1", "output.2", "p6", "p7")
    names = {f"pyramid.lateral.{level}": f"neck.lateral_convs.{level}.conv" for level in range(3)}
    names |= {f"pyramid.{output}": f"neck.fpn_convs.{level}.conv" for level, output in enumerate(outputs)}
    for layer, part, place in _tower_layers(config):
        names[f"head.class_tower.{place}"] = f"bbox_head.cls_convs.{layer}.{('conv', 'gn')[part]}"
        names[f"head.box_tower.{place}"] = f"bbox_head.reg_convs.{layer}.{('conv', 'gn')[part]}"
    return names | {
        "head.class_logits": "bbox_head.retina_cls",
        "head.box_deltas": "bbox_head.retina_reg",
        # The released fork's name; MMDetection itself has no such branch.
        "head.confidence_logits": "bbox_head.retina_iou",
    }


def _tower_layers(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(layer, 0 for its convolution and 1 for its norm, place in our tower) of all that has weights."""
    parts = 1 if config.tower_norm == "none" else 2
    return [(n, part, n * (parts + 1) + part) for n in range(config.tower_depth) for part in range(parts)]


def _class_rows(tensor: Tensor, num_classes: int, category_ids: Sequence[int] | None, path: Path) -> Tensor:
    """[9*K, ...] of the detector's classes; rows are chosen by category id where the file has other classes."""
    # Channels run anchor by anchor, and class by class within an anchor.
    rows = tensor.reshape(NUM_ANCHORS if len(tensor) % NUM_ANCHORS == 0 else 1, -1, *tensor.shape[1:])
    if rows.shape[1] == num_classes:
        return tensor
    if category_ids is None or min(category_ids) < 0 or max(category_ids) >= rows.shape[1]:
        raise ValueError(
            f"{path} detects {rows.shape[1]} classes, this data set has {num_classes}, and no category ids tell which "
            "are which; name a file with the data set's classes, or start from model.backbone_weights"
        )
    return rows[:, list(category_ids)].flatten(0, 1)


def _without_counters(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch norm that never updates its statistics needs no count of the updates; not every file has it."""
    return {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


def _misfits(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What a file lacks, has too much, or has in another shape; empty if it fits."""
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    wrong = sorted(n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape)
    if not (missing or extra or wrong):
        return ""
    return f"lacks {missing[:3]}, has unknown {extra[:3]}, other shapes {wrong[:3]}"
