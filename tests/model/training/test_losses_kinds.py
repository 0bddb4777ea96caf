"""Every kind of loss that the settings name, in the sum of a batch; expected numbers are worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.assignment import samples
from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth, loss_normalizer
from model.config import (
    AssignmentConfig,
    BoxConfig,
    ClassificationConfig,
    ConfidenceConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.data.images import Batch
from model.network.anchors import anchor_grid
from model.network.retinanet import Predictions, build_detector
from model.training import losses as losses_module
from model.training.batches import MicroBatch
from model.training.losses import Losses, detector_losses
from model.training.step import TrainingStep
from tests.detectors import small
from tests.model.training.test_losses import GRID, ORIGIN, losses, maps, one_positive, scene

EDGES = BoxConfig(loss="giou", loss_weight=2.0, bins=9)
KINDS: dict[str, dict[str, Any]] = {
    **{kind: {"box": BoxConfig(loss=kind)} for kind in ("iou", "giou", "diou", "ciou")},
    **{kind: {"classification": ClassificationConfig(loss=kind)} for kind in ("qfl", "vfl", "ia_bce", "mal")},
    "L1 of edges": {"box": BoxConfig(bins=9), "confidence": None},
    "edges": {"box": EDGES, "confidence": ConfidenceConfig(tower="box")},
    "gflv2": {"box": EDGES, "classification": ClassificationConfig(loss="qfl", edge_quality="gflv2")},
    "dfine": {"box": EDGES, "classification": ClassificationConfig(loss="mal", edge_quality="dfine")},
    "gflv2 focal": {"box": EDGES, "classification": ClassificationConfig(edge_quality="gflv2"), "confidence": None},
    "centerness": {"confidence": ConfidenceConfig(tower="box", target="centerness")},
}
SHIFTED = 0.25
"""dx of a predicted box: 24 of 40 columns are common to it and the anchor, its target."""


@pytest.mark.parametrize(
    ("kind", "overlap"),
    [("iou", 0.6), ("giou", 0.6), ("diou", 0.6 - 64 / (40**2 + 32**2)), ("ciou", 0.6 - 64 / (40**2 + 32**2))],
)
def test_each_box_loss_compares_the_predicted_box_with_its_target(kind: Any, overlap: float) -> None:
    predictions, assigned, truth = one_positive(GRID.boxes[ORIGIN], dx=SHIFTED)
    found = losses(predictions, assigned, truth, box=BoxConfig(loss=kind, loss_weight=2.0))
    assert_close(found.box, torch.tensor([2 * (1 - overlap), 0, 0, 0, 0]))


def with_edges(predictions: Predictions, weights: list[float]) -> Predictions:
    """The same with four distributions of these weights for the anchor at the origin, and flat ones elsewhere."""
    bins = len(weights)
    edges = [torch.zeros(1, 9 * 4 * bins, *size) for size in GRID.level_sizes]
    first = 4 * bins * ORIGIN
    edges[0][0, first : first + 4 * bins, 0, 0] = torch.tensor(weights).log().repeat(4)
    return replace(predictions, edge_logits=edges)


@pytest.mark.parametrize(
    ("box", "entropy"),
    [
        # 1.5, 2, 2.5 and 2 strides of 8 pixels from (0, 0), of distances that have 0.1, 0.2, 0.3 and 0.4
        ([-12.0, -16, 20, 16], 0.5 * math.log(1 / 0.2) + 3 * math.log(1 / 0.3) + 0.5 * math.log(1 / 0.4)),
        # 10 strides are beyond the last distance, and -1 before the first
        ([8.0, -8, 80, 16], sum(map(math.log, (10, 5, 1 / 0.3))) + 0.01 * math.log(1 / 0.3) + 0.99 * math.log(1 / 0.4)),
    ],
)
def test_the_distribution_loss_is_the_mean_over_the_four_edges_in_strides(box: list[float], entropy: float) -> None:
    predictions, assigned, truth = one_positive(torch.tensor(box))
    plain = losses(predictions, assigned, truth).box
    whole = with_edges(predictions, [0.1, 0.2, 0.3, 0.4])
    for weight in (0.25, 1.0):
        settings = BoxConfig(bins=4, distribution_loss_weight=weight)
        found = losses(whole, assigned, truth, box=settings).box
        assert_close(found - plain, torch.tensor([weight * entropy / 4, 0, 0, 0, 0]))


def test_distances_are_strides_of_the_anchors_own_level() -> None:
    predictions, assigned, truth = one_positive(torch.tensor([-16.0, -16, 16, 16]))
    assigned = assigned.roll(GRID.level_lengths[0], dims=1)  # to P4, where 16 pixels are 1
    edges = [torch.zeros(1, 9 * 4 * 4, *size) for size in GRID.level_sizes]
    edges[1][0, 4 * 4 * ORIGIN : 4 * 4 * (ORIGIN + 1), 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(4)
    plain = losses(predictions, assigned, truth).box
    found = losses(replace(predictions, edge_logits=edges), assigned, truth, box=BoxConfig(bins=4)).box
    assert_close(found - plain, torch.tensor([0, 0.25 * math.log(5), 0, 0, 0]))


def test_the_confidence_may_learn_how_central_its_anchor_lies_and_leaves_the_box_alone() -> None:
    predictions, assigned, truth = one_positive(torch.tensor([-8.0, -16, 24, 16]), confidence=2.0)
    predictions.box_deltas[0].requires_grad_()
    found = losses(predictions, assigned, truth, confidence=ConfidenceConfig(target="centerness"))
    by_hand = math.log1p(math.exp(2.0)) - 2.0 * math.sqrt(1 / 3)
    assert_close(found.confidence, torch.tensor([by_hand, 0, 0, 0, 0]))
    assert not found.confidence.requires_grad


def test_the_quality_is_the_iou_of_the_predicted_box_or_the_alignment_and_carries_no_gradient() -> None:
    predictions, assigned, truth = one_positive(GRID.boxes[ORIGIN], dx=SHIFTED)
    predictions.box_deltas[0].requires_grad_()
    # QFL: at a probability of 0.5, (u - 0.5)^2 * ln 2 of the own class, and 0.5^2 * ln 2 of both others
    config = ModelConfig(classification=ClassificationConfig(loss="qfl", loss_weight=3.0))
    found = detector_losses(predictions, GRID, Assignment(assigned), truth, torch.tensor(1.0), config)
    assert_close(found.classification, torch.tensor([3 * math.log(2) * (0.1**2 + 0.5), 0, 0, 0, 0]))
    assert not found.classification.requires_grad

    aligned = ClassificationConfig(loss="qfl", quality="alignment")
    config = ModelConfig(classification=aligned, assignment=AssignmentConfig(kind="task_aligned"))
    alignment = torch.zeros(assigned.shape)
    alignment[0, ORIGIN] = 0.9
    found = detector_losses(predictions, GRID, Assignment(assigned, alignment), truth, torch.tensor(1.0), config)
    assert_close(found.classification, torch.tensor([math.log(2) * (0.4**2 + 0.5), 0, 0, 0, 0]))


def test_the_losses_of_classes_and_boxes_have_their_own_weights() -> None:
    predictions, (assigned, truth) = maps(2), scene(2)
    one = losses(predictions, assigned, truth)
    other = losses(
        predictions,
        assigned,
        truth,
        classification=ClassificationConfig(loss_weight=2.0),
        box=BoxConfig(loss_weight=3.0),
    )
    assert_close(other.classification, 2 * one.classification)
    assert_close(other.box, 3 * one.box)
    assert torch.equal(other.confidence, one.confidence)


def scene_of(config: ModelConfig) -> tuple[Batch, GroundTruth, Tensor]:
    """An image of noise with two boxes, and a second without any."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        images=torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=generator),
        sizes=torch.tensor([[64, 96], [64, 64]]),
        boxes=torch.tensor([[8.0, 8, 40, 44], [50, 20, 90, 60]]),
        labels=torch.tensor([0, 2]),
        image_index=torch.tensor([0, 0]),
        image_ids=torch.tensor([1, 2]),
        original_sizes=torch.tensor([[64, 96], [64, 64]]),
    )
    truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
    grid = anchor_grid((64, 96), rule=config.anchor_rule)
    return batch, truth, max_iou(grid, batch.sizes, truth, positive_iou=0.5, negative_iou=0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_weighing_all_anchors_gives_the_losses_and_gradients_of_listing_the_positive_ones(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(**KINDS[kind])
    detector = build_detector(config, num_classes=3, seed=0).double()
    batch, truth, assigned = scene_of(config)
    results: list[list[Tensor]] = []
    for listed in (samples.positives, lambda assigned: None):
        monkeypatch.setattr(losses_module, "positives", listed)
        predictions = detector(batch.images.double() / 50 - 2)
        found = detector_losses(
            predictions, anchor_grid((64, 96)), Assignment(assigned), truth, loss_normalizer(assigned), config
        )
        found.total.backward()
        gradients = [part.grad for part in detector.parameters() if part.grad is not None]
        results.append([found.classification, found.box, found.confidence, *gradients])
        detector.zero_grad()
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_a_bfloat16_networks_maps_are_computed_in_float32(kind: str) -> None:
    config = small(**KINDS[kind])
    batch, truth, assigned = scene_of(config)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        brief = build_detector(config, num_classes=3, seed=0)(batch.images / 50 - 2)
    assert brief.class_logits[0].dtype == torch.bfloat16

    def found(predictions: Predictions) -> Losses:
        grid = anchor_grid((64, 96))
        return detector_losses(predictions, grid, Assignment(assigned), truth, torch.tensor(3.0), config)

    for name in ("classification", "box", "confidence"):
        assert torch.equal(getattr(found(brief), name), getattr(found(brief.float()), name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_learns_an_image_by_each_kind(kind: str) -> None:
    config = replace(small(channels=32, confidence=None, backbone_norm="group"), **KINDS[kind])
    schedule = ScheduleConfig(optimizer="adamw", gradient_clip=10.0)
    step = TrainingStep(TrainConfig(model=config, schedule=schedule), build_detector(config, num_classes=3, seed=0))
    batch, _, _ = scene_of(config)
    found = torch.stack([step.update([MicroBatch(batch, counts=True)], 5e-4) for _ in range(16)])
    assert found.isfinite().all()
    assert found[-1].sum() < 0.7 * found[0].sum(), found
    assert found[-1, 1] < 0.6 * found[0, 1], found  # a target that is the IoU rises with the boxes, theirs does not
