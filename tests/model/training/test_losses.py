"""The losses; expected numbers are worked out by hand or come from torchvision."""

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from model.assignment.samples import IGNORED, INVALID, NEGATIVE, Assignment, GroundTruth, loss_normalizer
from model.config import ConfidenceConfig, ModelConfig
from model.losses.confidence import confidence_loss
from model.network.anchors import AnchorGrid, anchor_grid
from model.network.retinanet import Predictions, flat
from model.training.losses import Losses, detector_losses
from tests.golden.vectors_adapter import VARIANTS

GRID = anchor_grid((32, 32))  # 144 + 36 + 9 + 9 + 9 anchors
ORIGIN = 3  # the 32 x 32 anchor around (0, 0)
NUM_CLASSES = 3


def maps(num_images: int, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def level(channels: int, size: tuple[int, int]) -> Tensor:
        return (2 * torch.randn(num_images, channels, *size, generator=generator)).requires_grad_()

    channels = (9 * NUM_CLASSES, 9 * 4, 9)
    return Predictions(*[[level(count, size) for size in GRID.level_sizes] for count in channels])


def scene(num_images: int, seed: int = 0) -> tuple[Tensor, GroundTruth]:
    """Random assignments of every kind, and the boxes that they point into."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(2 * num_images, 2, generator=generator) * 20
    boxes = torch.cat([low, low + 4 + torch.rand(2 * num_images, 2, generator=generator) * 20], dim=1)
    labels = torch.randint(NUM_CLASSES, (2 * num_images,), generator=generator)
    images = torch.arange(num_images).repeat_interleave(2)
    kind = torch.randint(-9, 2, (num_images, len(GRID.boxes)), generator=generator)
    own = kind + 2 * torch.arange(num_images)[:, None]
    assigned = torch.where(kind >= 0, own, torch.where(kind >= -3, kind, NEGATIVE))
    return assigned, GroundTruth(boxes, labels, images)


def losses(
    predictions: Predictions, assigned: Tensor, truth: GroundTruth, normalizer: float = 1.0, **settings: Any
) -> Losses:
    return detector_losses(
        predictions, GRID, Assignment(assigned), truth, torch.tensor(normalizer), ModelConfig(**settings)
    )


def one_positive(box: Tensor, confidence: float = 0.0, dx: float = 0.0) -> tuple[Predictions, Tensor, GroundTruth]:
    """One image where the anchor at the origin learns `box`, and all others are ignored."""
    predictions = Predictions(
        *[[torch.zeros(1, count, *size) for size in GRID.level_sizes] for count in (9 * NUM_CLASSES, 36, 9)]
    )
    assert predictions.confidence_logits is not None
    predictions.box_deltas[0][0, 4 * ORIGIN, 0, 0] = dx
    predictions.confidence_logits[0][0, ORIGIN, 0, 0] = confidence
    assigned = torch.full((1, len(GRID.boxes)), IGNORED)
    assigned[0, ORIGIN] = 0
    return predictions, assigned, GroundTruth(box[None], torch.tensor([1]), torch.tensor([0]))


def levels_of(grid: AnchorGrid, per_anchor: Tensor) -> Tensor:
    return torch.stack([level.sum() for level in per_anchor.split(grid.level_lengths, dim=1)])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_focal_loss_and_its_gradient_match_torchvision_without_ignored_and_invalid_anchors(
    alpha: float, gamma: float
) -> None:
    predictions, (assigned, truth) = maps(3), scene(3)
    assert {IGNORED, INVALID, NEGATIVE, 0, 5} <= set(assigned.flatten().tolist())
    ours = losses(predictions, assigned, truth, focal_alpha=alpha, focal_gamma=gamma).classification
    gradients = torch.autograd.grad(ours.sum(), predictions.class_logits)

    targets = one_hot(truth.labels[assigned.clamp(min=0)], NUM_CLASSES) * (assigned >= 0)[..., None]
    logits = flat(predictions.class_logits, NUM_CLASSES)
    theirs = sigmoid_focal_loss(logits, targets.float(), alpha=alpha, gamma=gamma).sum(dim=2)
    theirs = levels_of(GRID, theirs * (assigned >= NEGATIVE))
    assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, their in zip(gradients, torch.autograd.grad(theirs.sum(), predictions.class_logits), strict=True):
        assert_close(mine, their, rtol=1e-4, atol=1e-6)


def test_losses_of_saturated_logits_are_finite() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    extreme = Predictions(
        [(level * 1e4).detach().requires_grad_() for level in predictions.class_logits],
        predictions.box_deltas,
        [(level * 1e4).detach().requires_grad_() for level in predictions.confidence_logits or []],
    )
    total = losses(extreme, assigned, truth, confidence=ConfidenceConfig(negative_weight=1e-3)).total
    gradients = torch.autograd.grad(total, [*extreme.class_logits, *(extreme.confidence_logits or [])])
    assert math.isfinite(total.item())
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_box_loss_is_the_sum_of_four_absolute_differences_on_the_anchors_own_level() -> None:
    box = torch.tensor([0.0, -16, 64, 0])  # dx = 32/32, dy = -8/32, dw = ln 2, dh = -ln 2
    predictions, assigned, truth = one_positive(box, dx=0.4)
    by_hand = 0.6 + 0.25 + 2 * math.log(2)
    assert_close(losses(predictions, assigned, truth).box, torch.tensor([by_hand, 0, 0, 0, 0]))

    p4 = GRID.level_lengths[0] + ORIGIN  # 64 x 64 around the origin
    assigned = assigned.roll(p4 - ORIGIN, dims=1)
    by_hand = 0.5 + 0.125 + 0 + math.log(4)
    assert_close(losses(predictions, assigned, truth).box, torch.tensor([0, by_hand, 0, 0, 0]))


LOGIT, IOU = math.log(3), 0.5  # so the confidence is 0.75
CE = math.log(4) - 0.5 * math.log(3)


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (ConfidenceConfig(), CE),
        (ConfidenceConfig(loss="l1"), 0.25),
        (ConfidenceConfig(loss="l2"), 0.0625),
        (ConfidenceConfig(loss="smooth_l1"), 0.03125),
        (ConfidenceConfig(loss="smooth_l1", smooth_l1_beta=1 / 9), 0.25 - 1 / 18),
        (ConfidenceConfig(loss="l1", loss_on="logit"), math.log(3) - 0.5),
        (ConfidenceConfig(loss="l2", loss_on="logit"), (math.log(3) - 0.5) ** 2),
        (ConfidenceConfig(loss="smooth_l1", loss_on="logit"), (math.log(3) - 0.5) ** 2 / 2),
        (ConfidenceConfig(loss="gfocal"), 0.0625 * CE),
        (ConfidenceConfig(loss="gfocal", gfocal_gamma=1.0), 0.25 * CE),
        (ConfidenceConfig(negative_weight=1e-3), CE),
    ],
    ids=lambda value: "-".join(map(str, (value.loss, value.loss_on))) if isinstance(value, ConfidenceConfig) else "",
)
def test_each_confidence_loss_matches_the_hand_calculation(config: ConfidenceConfig, by_hand: float) -> None:
    loss = confidence_loss(torch.tensor([LOGIT]), torch.tensor([IOU]), config)
    assert_close(loss, torch.tensor([by_hand]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ce", "loss_on": "logit"}, "loss_on 'logit' has no meaning for loss 'ce', which is defined on the"),
        ({"loss": "gfocal", "loss_on": "logit"}, "loss_on 'logit' has no meaning for loss 'gfocal'"),
        ({"loss": "l1", "smooth_l1_beta": 0.5}, "smooth_l1_beta has no meaning for loss 'l1'; it belongs to 'smooth_"),
        ({"loss": "ce", "gfocal_gamma": 1.0}, "gfocal_gamma has no meaning for loss 'ce'; it belongs to 'gfocal'"),
        ({"loss": "l2", "negative_weight": 0.1}, "negative_weight has no meaning for loss 'l2'; it belongs to 'ce'"),
        ({"loss": "gfocal", "gfocal_gamma": 0.5}, "gfocal_gamma is 0.5, expected 0 or at least 1; in between the grad"),
    ],
)
def test_a_setting_that_would_change_nothing_or_end_in_nan_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ConfidenceConfig(**settings)


def test_every_pair_of_loss_and_input_is_refused_or_proved_by_the_released_code() -> None:
    released = {(config.loss, config.loss_on, config.negative_weight > 0) for config in VARIANTS.values()}
    accepted = set()
    for loss in get_args(ConfidenceConfig.__annotations__["loss"]):
        for loss_on in get_args(ConfidenceConfig.__annotations__["loss_on"]):
            for weight in (0.0, 1e-3):
                with suppress(ValueError):
                    ConfidenceConfig(loss=loss, loss_on=loss_on, negative_weight=weight)
                    accepted.add((loss, loss_on, weight > 0))
    by_hand = {("gfocal", "sigmoid", True)}  # the paper gave it up, so nothing was released; the next test proves it
    assert accepted == released | by_hand and not released & by_hand
    assert len(accepted) == 2 + 3 * 2 + 2  # CE and CE^w, three on the sigmoid and on the logit, GFocal and GFocal^w


EXTREMES = (-1000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 1000.0)


def reference(logit: float, target: float, config: ConfidenceConfig) -> float:
    """The loss of one sample as Eqs. 5-7 and 13 have it, in Python's float64, with logarithms that cannot overflow."""
    log_p, log_rest = (-max(0.0, x) - math.log1p(math.exp(-abs(x))) for x in (-logit, logit))
    cross_entropy = -target * log_p - (1 - target) * log_rest
    error = abs(math.exp(log_p) - target) if config.loss_on == "sigmoid" else abs(logit - target)
    beta = config.smooth_l1_beta
    return {
        "ce": (config.negative_weight if config.negative_weight and target == 0 else 1.0) * cross_entropy,
        "l1": error,
        "l2": error**2,
        "smooth_l1": 0.5 * error**2 / beta if error < beta else error - 0.5 * beta,
        "gfocal": error**config.gfocal_gamma * cross_entropy,
    }[config.loss]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", [*VARIANTS])
def test_confidence_losses_of_extreme_logits_are_right_and_have_finite_gradients(
    variant: str, precision: torch.dtype
) -> None:
    config = VARIANTS[variant]
    pairs = [(logit, target) for logit in EXTREMES for target in (0.0, 0.5, 1.0)]  # exact in bfloat16
    logits = torch.tensor([logit for logit, _ in pairs], dtype=precision).requires_grad_()
    targets = torch.tensor([target for _, target in pairs], dtype=precision).requires_grad_()
    found = confidence_loss(logits, targets, config)
    gradients = torch.autograd.grad(found.sum(), [logits, targets])
    assert all(gradient.isfinite().all() for gradient in gradients)
    by_hand = [reference(logit, target, config) for logit, target in pairs]
    tolerance = 1e-5 if precision == torch.float32 else 3 * 2**-8  # a few roundings to bfloat16's eight bits
    assert found.tolist() == pytest.approx(by_hand, rel=tolerance, abs=1e-5 if precision == torch.float32 else 2e-3)


@pytest.mark.parametrize("variant", [*VARIANTS])
def test_a_bfloat16_networks_extreme_outputs_give_finite_losses_near_those_of_float32(variant: str) -> None:
    """As training with precision bfloat16 does: the maps are bfloat16, the losses are computed in float32."""
    predictions, (assigned, truth) = maps(2), scene(2)
    generator = torch.Generator().manual_seed(5)

    def extreme(level: Tensor) -> Tensor:
        chosen = torch.randint(len(EXTREMES), level.shape, generator=generator)
        return torch.tensor(EXTREMES)[chosen] + level.detach()

    def found(precision: torch.dtype) -> tuple[Losses, list[Tensor]]:
        outputs = [[level.detach().to(precision).requires_grad_() for level in kind] for kind in inputs]
        result = losses(Predictions(*outputs).float(), assigned, truth, confidence=VARIANTS[variant])
        return result, list(torch.autograd.grad(result.total, [level for kind in outputs for level in kind]))

    confidences = [extreme(level) for level in predictions.confidence_logits or []]
    inputs = [[extreme(level) for level in predictions.class_logits], predictions.box_deltas, confidences]
    full, brief = found(torch.float32), found(torch.bfloat16)
    for name in ("classification", "box", "confidence"):
        one, other = getattr(full[0], name), getattr(brief[0], name)
        assert one.isfinite().all() and other.isfinite().all()
        assert_close(one.sum(), other.sum(), rtol=1e-2, atol=0)
    for one, other in zip(full[1], brief[1], strict=True):
        assert other.dtype == torch.bfloat16
        assert one.isfinite().all() and other.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_of_extreme_logits_matches_a_calculation_that_cannot_overflow(gamma: float) -> None:
    predictions, (assigned, truth) = maps(1), scene(1)
    generator = torch.Generator().manual_seed(5)
    extreme = [
        torch.tensor(EXTREMES)[torch.randint(len(EXTREMES), level.shape, generator=generator)].requires_grad_()
        for level in predictions.class_logits
    ]
    found = losses(replace(predictions, class_logits=extreme), assigned, truth, focal_gamma=gamma).classification.sum()
    by_hand = 0.0
    for logits, match in zip(flat(extreme, NUM_CLASSES)[0].tolist(), assigned[0].tolist(), strict=True):
        for label, logit in enumerate(logits):
            log_p, log_rest = (-max(0.0, x) - math.log1p(math.exp(-abs(x))) for x in (-logit, logit))
            if match >= 0 and label == truth.labels[match]:
                by_hand -= 0.25 * math.exp(log_rest) ** gamma * log_p
            elif match >= NEGATIVE:
                by_hand -= 0.75 * math.exp(log_p) ** gamma * log_rest
    assert found.item() == pytest.approx(by_hand, rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, extreme))


def test_gfocal_with_negatives_adds_the_weighted_loss_of_each_negative_at_a_target_of_0() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    plain, weighted = (
        losses(predictions, assigned, truth, confidence=ConfidenceConfig(loss="gfocal", negative_weight=weight))
        for weight in (0.0, 1.0)
    )
    logits = flat(predictions.confidence_logits or [], 1)[..., 0]
    background = levels_of(GRID, logits.sigmoid() ** 2 * softplus(logits) * (assigned == NEGATIVE))  # p^2 * -ln(1-p)
    assert background.sum() > 0
    assert_close(weighted.confidence, plain.confidence + background)
    loss = confidence_loss(
        torch.tensor([LOGIT]), torch.tensor([0.0]), ConfidenceConfig(loss="gfocal", negative_weight=0.5)
    )
    assert_close(loss, torch.tensor([0.5 * 0.75**2 * math.log(4)]))


def test_a_positive_whose_box_misses_its_target_weighs_like_a_negative() -> None:
    loss = confidence_loss(torch.tensor([LOGIT]), torch.tensor([0.0]), ConfidenceConfig(negative_weight=1e-3))
    assert_close(loss, torch.tensor([1e-3 * math.log(4)]))


def test_the_confidence_target_is_the_iou_of_the_predicted_box() -> None:
    predictions, assigned, truth = one_positive(GRID.boxes[ORIGIN], confidence=2.0, dx=0.25)
    # 24 of 32 columns are common: 0.75 / 1.25 = 0.6
    by_hand = math.log1p(math.exp(2.0)) - 2.0 * 0.6
    assert_close(losses(predictions, assigned, truth).confidence, torch.tensor([by_hand, 0, 0, 0, 0]))


@pytest.mark.parametrize(("detach", "by_hand"), [(False, 1 + 2 * 1.28), (True, 1.0)])
def test_the_confidence_loss_pulls_at_the_box_unless_its_target_is_detached(detach: bool, by_hand: float) -> None:
    predictions, assigned, truth = one_positive(GRID.boxes[ORIGIN], confidence=2.0, dx=0.25)
    predictions.box_deltas[0].requires_grad_()
    confidence = ConfidenceConfig(detach_iou_target=detach)
    found = losses(predictions, assigned, truth, confidence=confidence)
    (gradient,) = torch.autograd.grad(found.total, predictions.box_deltas[:1])
    # L1 gives 1; IoU = (1 - dx) / (1 + dx) falls by 2 / 1.25^2 = 1.28 for each dx, times the logit
    assert gradient[0, 4 * ORIGIN, 0, 0].item() == pytest.approx(by_hand, rel=1e-5)
    assert (gradient != 0).sum() <= 4


def test_detaching_the_target_changes_no_value() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    attached, detached = (
        losses(predictions, assigned, truth, confidence=ConfidenceConfig(detach_iou_target=detach))
        for detach in (False, True)
    )
    assert torch.equal(attached.confidence, detached.confidence)
    gradients = [
        torch.autograd.grad(loss.confidence.sum(), predictions.confidence_logits or []) for loss in (attached, detached)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_negatives_add_weighted_cross_entropy_and_ignored_anchors_nothing() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    plain, weighted = (
        losses(predictions, assigned, truth, confidence=ConfidenceConfig(negative_weight=weight)).confidence
        for weight in (0.0, 1e-2)
    )
    logits = flat(predictions.confidence_logits or [], 1)[..., 0]
    background = levels_of(GRID, softplus(logits) * (assigned == NEGATIVE))
    missed = torch.zeros(5)
    boxes_missed = positives_that_miss(predictions, assigned, truth)
    for level, anchors in enumerate(boxes_missed.split(GRID.level_lengths, dim=1)):
        chosen = logits.split(GRID.level_lengths, dim=1)[level][anchors]
        missed[level] = softplus(chosen).sum()
    assert boxes_missed.any()
    assert_close(weighted, plain + 1e-2 * background - (1 - 1e-2) * missed, rtol=1e-4, atol=1e-4)


def positives_that_miss(predictions: Predictions, assigned: Tensor, truth: GroundTruth) -> Tensor:
    """[B, N] positives whose predicted box is disjoint from their target, by torchvision's IoU."""
    from torchvision.ops import box_iou

    deltas = flat(predictions.box_deltas, 4).detach()
    sides = GRID.boxes[:, 2:] - GRID.boxes[:, :2]
    centers = (GRID.boxes[:, 2:] + GRID.boxes[:, :2]) / 2 + deltas[..., :2] * sides
    half = sides * deltas[..., 2:].clamp(-4.1351665, 4.1351665).exp() / 2
    boxes = torch.cat([centers - half, centers + half], dim=-1)
    missed = torch.zeros(assigned.shape, dtype=torch.bool)
    for image, anchor in (assigned >= 0).nonzero().tolist():
        target = truth.boxes[assigned[image, anchor]]
        missed[image, anchor] = box_iou(boxes[image, anchor][None], target[None])[0, 0] == 0
    return missed


def test_every_loss_is_divided_by_the_normalizer() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    settings: dict[str, Any] = {"confidence": ConfidenceConfig(negative_weight=0.1)}
    whole = losses(predictions, assigned, truth, **settings)
    quarter = losses(predictions, assigned, truth, normalizer=4.0, **settings)
    for name in ("classification", "box", "confidence"):
        assert_close(getattr(quarter, name), getattr(whole, name) / 4)
    assert_close(quarter.total, whole.total / 4)


def test_the_parts_of_a_batch_add_up_to_the_batch() -> None:
    predictions, (assigned, truth) = maps(4), scene(4)
    settings: dict[str, Any] = {"confidence": ConfidenceConfig(negative_weight=0.1)}
    settings["normalizer"] = float(loss_normalizer(assigned))
    whole = losses(predictions, assigned, truth, **settings)
    parts = []
    for images in (slice(0, 1), slice(1, 4)):
        chosen = (truth.image_index >= images.start) & (truth.image_index < images.stop)
        first = 2 * images.start
        local = torch.where(assigned[images] >= 0, assigned[images] - first, assigned[images])
        part = Predictions(*[[level[images] for level in kind] for kind in levels(predictions)])
        own = GroundTruth(truth.boxes[chosen], truth.labels[chosen], truth.image_index[chosen] - images.start)
        parts.append(losses(part, local, own, **settings))
    for name in ("classification", "box", "confidence"):
        assert_close(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name))


def levels(predictions: Predictions) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return predictions.class_logits, predictions.box_deltas, predictions.confidence_logits or []


def test_without_a_confidence_branch_the_other_losses_are_those_of_retinanet() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    with_branch = losses(predictions, assigned, truth)
    without = losses(replace(predictions, confidence_logits=None), assigned, truth, confidence=None)
    assert torch.equal(without.classification, with_branch.classification)
    assert torch.equal(without.box, with_branch.box)
    assert without.confidence.tolist() == [0.0] * 5
    assert_close(without.total, with_branch.classification.sum() + with_branch.box.sum())


def test_the_confidence_loss_has_its_own_weight() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    one, two = (
        losses(predictions, assigned, truth, confidence=ConfidenceConfig(loss_weight=weight, negative_weight=0.1))
        for weight in (1.0, 2.0)
    )
    assert_close(two.confidence, 2 * one.confidence)
    assert torch.equal(two.box, one.box)


def test_images_without_boxes_learn_background_alone() -> None:
    predictions = maps(2)
    assigned = torch.full((2, len(GRID.boxes)), NEGATIVE)
    nothing = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    found = losses(predictions, assigned, nothing)
    assert found.box.tolist() == found.confidence.tolist() == [0.0] * 5
    logits = flat(predictions.class_logits, NUM_CLASSES)
    theirs = sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")
    assert_close(found.classification.sum(), theirs)
    torch.autograd.backward(found.total)


@pytest.mark.parametrize("variant", [*VARIANTS])
def test_losses_of_a_bfloat16_networks_maps_are_computed_in_float32(variant: str) -> None:
    """Not a bit less than those of the same numbers, given as float32."""
    assigned, truth = scene(2)
    config = ModelConfig(confidence=VARIANTS[variant])
    brief = Predictions(*[[level.detach().bfloat16() for level in kind] for kind in levels(maps(2))])
    found = detector_losses(brief, GRID, Assignment(assigned), truth, torch.tensor(3.0), config)
    expected = detector_losses(brief.float(), GRID, Assignment(assigned), truth, torch.tensor(3.0), config)
    for name in ("classification", "box", "confidence"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
