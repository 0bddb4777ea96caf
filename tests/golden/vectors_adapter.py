"""Binds `model/` to the golden vectors: plain arrays in, plain arrays out, no logic of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.assignment import samples
from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth
from model.config import ConfidenceConfig, InferenceConfig, ModelConfig, ScheduleConfig
from model.data.images import flip_boxes, normalize, padded_shape, resize, resize_boxes
from model.data.images import resize_shape as resized_shape
from model.inference import postprocess
from model.inference.table import DetectionTable
from model.network import anchors as anchors_module
from model.network.backbone import FeaturePyramid
from model.network.overlaps import aligned_iou, pairwise_iou
from model.network.retinanet import Head, Predictions
from model.training.losses import Losses, detector_losses
from model.training.schedule import learning_rate

Array = NDArray[Any]
VARIANTS = {
    "ce": ConfidenceConfig(),
    "cew_1e-4": ConfidenceConfig(negative_weight=1e-4),
    "cew_1e-3": ConfidenceConfig(negative_weight=1e-3),
    "l1_sig": ConfidenceConfig(loss="l1"),
    "l2_sig": ConfidenceConfig(loss="l2"),
    "smoothl1_sig_beta1": ConfidenceConfig(loss="smooth_l1"),
    "smoothl1_sig_beta1over9": ConfidenceConfig(loss="smooth_l1", smooth_l1_beta=1 / 9),
    "l1_raw": ConfidenceConfig(loss="l1", loss_on="logit"),
    "l2_raw": ConfidenceConfig(loss="l2", loss_on="logit"),
    "smoothl1_raw_beta1": ConfidenceConfig(loss="smooth_l1", loss_on="logit"),
    "gfocal_g2": ConfidenceConfig(loss="gfocal"),
    "gfocal_g1": ConfidenceConfig(loss="gfocal", gfocal_gamma=1.0),
}
SCHEDULES = {"1x": ScheduleConfig(), "2x": ScheduleConfig(epochs=24, lr_drop_epochs=(16, 22))}


def base_anchors() -> list[Array]:
    return [anchors_module.base_anchors(stride).numpy() for stride in anchors_module.STRIDES]


def anchors(batch_hw: Sequence[int]) -> list[Array]:
    grid = _grid(batch_hw)
    return [level.numpy() for level in grid.boxes.split(grid.level_lengths)]


def valid(batch_hw: Sequence[int], pad_hw: Sequence[int]) -> Array:
    return anchors_module.valid_anchors(_grid(batch_hw), _sizes([pad_hw]))[0].numpy()


def assign(batch_hw: Sequence[int], pad_hw: Sequence[int], gt_boxes: Array) -> Array:
    truth = _truth([gt_boxes], [np.zeros(len(gt_boxes), np.int64)])
    assigned = _match(_grid(batch_hw), [pad_hw], truth)[0].numpy()
    names = {samples.NEGATIVE: 0, samples.IGNORED: -1, samples.INVALID: -2}
    return np.array([names.get(value, value + 1) for value in assigned.tolist()])


def encode(anchors: Array, gt: Array) -> Array:
    return anchors_module.encode(torch.from_numpy(anchors), torch.from_numpy(gt)).numpy()


def decode(anchors: Array, deltas: Array, clip_hw: Sequence[int] | None = None) -> Array:
    boxes = anchors_module.decode(torch.from_numpy(anchors), torch.from_numpy(deltas))
    return (boxes if clip_hw is None else anchors_module.clip(boxes, _sizes([clip_hw])[0])).numpy()


def iou_matrix(a: Array, b: Array) -> Array:
    return pairwise_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def iou_aligned(a: Array, b: Array) -> Array:
    return aligned_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def iou_delta_grad(anchors: Array, deltas: Array, gt: Array, weight: Array) -> Array:
    moved = torch.from_numpy(deltas).requires_grad_()
    boxes = anchors_module.decode(torch.from_numpy(anchors), moved)
    (aligned_iou(boxes, torch.from_numpy(gt)) * torch.from_numpy(weight)).sum().backward()
    return _grad(moved)


def fpn(weights: dict[str, Array], features: list[Array]) -> list[Array]:
    outputs = {0: "output.0", 1: "output.1", 2: "output.2", 3: "p6", 4: "p7"}
    names = {f"lateral_convs.{level}.conv": f"lateral.{level}" for level in range(3)}
    names |= {f"fpn_convs.{level}.conv": name for level, name in outputs.items()}
    pyramid = FeaturePyramid([f.shape[1] for f in features[1:]], weights["lateral_convs.0.conv.weight"].shape[0])
    _load(pyramid, weights, names)
    return [level.detach().numpy() for level in pyramid([torch.from_numpy(f) for f in features[1:]])]


def head(weights: dict[str, Array], feats: list[Array], num_classes: int, conf_on: str) -> tuple[list[Array], ...]:
    predictions = _head(weights, num_classes, conf_on)[0]([torch.from_numpy(level) for level in feats])
    levels = (predictions.class_logits, predictions.box_deltas, predictions.confidence_logits)
    return tuple([level.detach().numpy() for level in kind] for kind in levels)


def head_grads(
    weights: dict[str, Array],
    feats: list[Array],
    num_classes: int,
    conf_on: str,
    attached: bool,
    gt_boxes: list[Array],
    gt_labels: list[Array],
    pad_hws: list[Sequence[int]],
) -> tuple[Array, dict[str, Array], list[Array]]:
    module, names = _head(weights, num_classes, conf_on)
    features = [torch.from_numpy(level).requires_grad_() for level in feats]
    losses = _losses(module(features), gt_boxes, gt_labels, pad_hws, ConfidenceConfig(detach_iou_target=not attached))
    losses.total.backward()
    parts = (losses.classification.sum(), losses.box.sum(), losses.confidence.sum(), losses.total)
    parameters = dict(module.named_parameters())
    gradients = {
        f"{old}.{kind}": _grad(parameters[f"{new}.{kind}"]) for old, new in names.items() for kind in ("weight", "bias")
    }
    return np.array([part.item() for part in parts]), gradients, [_grad(level) for level in features]


def losses(
    cls: list[Array],
    reg: list[Array],
    conf: list[Array],
    gt_boxes: list[Array],
    gt_labels: list[Array],
    pad_hws: list[Sequence[int]],
    num_classes: int,
    variant: str,
    attached: bool,
) -> dict[str, Any]:
    maps = [[torch.from_numpy(level).requires_grad_() for level in kind] for kind in (cls, reg, conf)]
    confidence = replace(VARIANTS[variant], detach_iou_target=not attached)
    result = _losses(Predictions(*maps), gt_boxes, gt_labels, pad_hws, confidence)
    result.total.backward()
    values = {"loss_cls": result.classification, "loss_bbox": result.box, "loss_conf": result.confidence}
    gradients = dict(zip(("grad_cls", "grad_reg", "grad_conf"), maps, strict=True))
    return {name: value.detach().numpy() for name, value in values.items()} | {
        name: [_grad(level) for level in kind] for name, kind in gradients.items()
    }


def detect(
    cls: list[Array],
    reg: list[Array],
    conf: list[Array],
    img_hw: Sequence[int],
    num_classes: int,
    rule: str,
    alpha: float,
    nms_pre: int,
    scale_factor: Array | None,
    find: Callable[..., list[DetectionTable]] = postprocess.detect,
) -> tuple[Array, Array, Array]:
    settings = InferenceConfig(
        fusion="product" if rule.startswith("mul") else "power",
        confidence_exponent=0.4 if rule.startswith("mul") else float(alpha),
        fuse_small_levels=not rule.startswith("released"),
        min_confidence=0.5 if rule.endswith("_f") else 0.0,
        nms_pre=nms_pre,
    )
    predictions = Predictions(*[[torch.from_numpy(level)[None] for level in kind] for kind in (cls, reg, conf)])
    scale = torch.ones(1, 2) if scale_factor is None else torch.from_numpy(scale_factor)[[1, 0]][None]
    grid = _grid([8 * side for side in cls[0].shape[-2:]])
    (found,) = find(predictions, grid, _sizes([img_hw]), scale, settings)
    return found.boxes, found.scores, found.category_ids


def resize_shape(h: int, w: int, long_edge: int, short_edge: int) -> tuple[int, int, int, int]:
    shape = resized_shape(h, w, short_edge, long_edge)
    return *shape, *padded_shape(*shape)


def preprocess(
    image_bgr: Array, boxes: Array, scale: tuple[int, int], flip: bool
) -> tuple[Array, Array, tuple[int, int], tuple[int, int]]:
    image = torch.from_numpy(image_bgr[..., ::-1].copy()).permute(2, 0, 1)
    old = (image.shape[1], image.shape[2])
    new = resized_shape(*old, scale[1], scale[0])
    padded = padded_shape(*new)
    image, boxes = resize(image, new), resize_boxes(boxes, old, new)
    if flip:
        image, boxes = image.flip(2), flip_boxes(boxes, new[1])
    canvas = torch.zeros(1, 3, *padded, dtype=torch.uint8)
    canvas[0, :, : new[0], : new[1]] = image
    return normalize(canvas, torch.tensor([new]))[0].numpy(), boxes, new, padded


def lr(schedule: str, epoch: int, iteration: int, iters_per_epoch: int) -> float:
    return learning_rate(SCHEDULES[schedule], epoch, iteration)


def _grid(batch_hw: Sequence[int]) -> anchors_module.AnchorGrid:
    return anchors_module.anchor_grid((int(batch_hw[0]), int(batch_hw[1])))


def _sizes(sizes: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([[int(side) for side in size] for size in sizes])


def _truth(boxes: list[Array], labels: list[Array]) -> GroundTruth:
    counts = torch.tensor([len(part) for part in labels])
    flat_boxes = torch.cat([torch.from_numpy(part).reshape(-1, 4) for part in boxes])
    image = torch.arange(len(labels)).repeat_interleave(counts)
    return GroundTruth(flat_boxes, torch.cat([torch.from_numpy(part) for part in labels]).long(), image)


def _match(grid: anchors_module.AnchorGrid, pad_hws: Sequence[Sequence[int]], truth: GroundTruth) -> Tensor:
    config = ModelConfig()
    return max_iou(grid, _sizes(pad_hws), truth, positive_iou=config.positive_iou, negative_iou=config.negative_iou)


def _losses(
    predictions: Predictions,
    gt_boxes: list[Array],
    gt_labels: list[Array],
    pad_hws: Sequence[Sequence[int]],
    confidence: ConfidenceConfig,
) -> Losses:
    grid = _grid([8 * side for side in predictions.class_logits[0].shape[-2:]])
    truth = _truth(gt_boxes, gt_labels)
    assigned = _match(grid, pad_hws, truth)
    config = ModelConfig(confidence=confidence)
    return detector_losses(predictions, grid, Assignment(assigned), truth, samples.loss_normalizer(assigned), config)


def _head(weights: dict[str, Array], num_classes: int, conf_on: str) -> tuple[Head, dict[str, str]]:
    channels = weights["retina_cls.weight"].shape[1]
    in_channels = weights["cls_convs.0.conv.weight"].shape[1]
    tower: Literal["classification", "box"] = "classification" if conf_on == "clsfeat" else "box"
    module = Head(ModelConfig(channels=channels, confidence=ConfidenceConfig(tower=tower)), num_classes, in_channels)
    names = {"retina_cls": "class_logits", "retina_reg": "box_deltas", "retina_iou": "confidence_logits"}
    for layer in range(4):
        names[f"cls_convs.{layer}.conv"] = f"class_tower.{2 * layer}"
        names[f"reg_convs.{layer}.conv"] = f"box_tower.{2 * layer}"
    _load(module, weights, names)
    return module, names


def _load(module: nn.Module, weights: dict[str, Array], names: dict[str, str]) -> None:
    state = {
        f"{new}.{kind}": torch.from_numpy(weights[f"{old}.{kind}"])
        for old, new in names.items()
        for kind in ("weight", "bias")
    }
    module.load_state_dict(state, strict=True)


def _grad(tensor: Tensor) -> Array:
    return (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).numpy()
