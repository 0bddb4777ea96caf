"""A step on an imagined GPU: nothing waits for a value, and nothing goes to the GPU but the batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth, loss_normalizer, positive_cells
from model.config import ConfidenceConfig, ModelConfig, ScheduleConfig, TrainConfig
from model.data.images import Batch, normalize
from model.network.anchors import AnchorGrid, AnchorRule, anchor_grid
from model.network.retinanet import Predictions
from model.training.batches import MicroBatch
from model.training.losses import detector_losses
from model.training.step import TrainingStep
from tests import assignments
from tests.detectors import small
from tests.fake_cuda import CUDA, detector_on_cuda, imagined_cuda, watched
from tests.model.training.test_losses_kinds import KINDS

SHAPE = (64, 96)
HEADS = {
    "plain": None,
    "classification": ConfidenceConfig(),
    "box": ConfidenceConfig(tower="box"),
    "weighted": ConfidenceConfig(tower="box", negative_weight=1e-3),
    "gfocal": ConfidenceConfig(loss="gfocal", negative_weight=1e-3),
    "smooth L1": ConfidenceConfig(loss="smooth_l1", loss_on="logit"),
}
SETTINGS: dict[str, dict[str, Any]] = {**{name: {"confidence": branch} for name, branch in HEADS.items()}, **KINDS}


def batch(num_boxes: int, device: torch.device | str = "cpu", shape: tuple[int, int] = SHAPE) -> Batch:
    """Two images; the boxes are the first one's."""
    return Batch(
        images=torch.zeros(2, 3, *shape, dtype=torch.uint8, device=device),
        sizes=torch.zeros(2, 2, dtype=torch.int64, device=device),
        boxes=torch.zeros(num_boxes, 4, device=device),
        labels=torch.zeros(num_boxes, dtype=torch.int64, device=device),
        image_index=torch.zeros(num_boxes, dtype=torch.int64, device=device),
        image_ids=torch.zeros(2, dtype=torch.int64, device=device),
        original_sizes=torch.zeros(2, 2, dtype=torch.int64, device=device),
    )


def truth_of(batch: Batch) -> GroundTruth:
    return GroundTruth(batch.boxes, batch.labels, batch.image_index)


def said(
    config: ModelConfig, device: torch.device | str = CUDA, shape: tuple[int, int] = SHAPE, num_boxes: int = 3
) -> tuple[Batch, AnchorGrid, Predictions]:
    """A batch, its anchors and what a network might say of it."""
    grid = anchor_grid(shape, torch.device(device), config.anchor_rule)

    def maps(size: int) -> list[Tensor]:
        return [torch.zeros(2, 9 * size, *cells, device=device, requires_grad=True) for cells in grid.level_sizes]

    edges = maps(4 * config.box.bins) if config.box.bins else None
    predictions = Predictions(maps(3), maps(4), maps(1) if config.confidence else None, edges)
    return batch(num_boxes, device, shape), grid, predictions


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_a_step_sends_its_batch_and_waits_for_nothing(kind: str, precision: str) -> None:
    config = TrainConfig(
        model=small(**SETTINGS[kind]),
        schedule=ScheduleConfig(gradient_clip=1.0, optimizer="adamw" if precision == "float32" else "sgd"),
        precision=precision,  # type: ignore[arg-type]
    )
    with imagined_cuda():
        step = TrainingStep(config, detector_on_cuda(config.model))
        given = [batch(3), batch(0)]
        parts = [MicroBatch(given[0], True), MicroBatch(given[1], False)]
        # The first step of a shape may send anchors and other constants, which stay there.
        step.update(parts, 0.01)
        with watched(sent=given):
            losses = step.update(parts, 0.01)
        assert (losses.shape, losses.device) == ((3,), CUDA)
        for part in step.detector.parameters():
            assert part.device == CUDA and part.dtype == torch.float32
            assert (part.grad is not None) == part.requires_grad


@pytest.mark.parametrize("kind", assignments.KINDS)
def test_a_step_waits_for_nothing_by_whatever_rule_it_assigns(kind: str) -> None:
    schedule = ScheduleConfig(gradient_clip=1.0)
    config = TrainConfig(
        model=small(assignment=assignments.rule(kind).assignment), schedule=schedule, precision="bfloat16"
    )
    with imagined_cuda():
        step = TrainingStep(config, detector_on_cuda(config.model))
        given = [batch(3), batch(0)]
        parts = [MicroBatch(given[0], True), MicroBatch(given[1], False)]
        step.update(parts, 0.01)
        with watched(sent=given):
            losses = step.update(parts, 0.01)
        assert (losses.shape, losses.device) == ((3,), CUDA)
        assert all(part.grad is not None for part in step.detector.parameters() if part.requires_grad)


def test_a_step_takes_a_batch_that_is_on_the_gpu_already() -> None:
    config = TrainConfig(model=small(), precision="bfloat16")
    with imagined_cuda():
        step = TrainingStep(config, detector_on_cuda(config.model))
        parts = [MicroBatch(batch(5, CUDA), True)]
        step.update(parts, 0.01)
        with watched():
            step.update(parts, 0.01)


def test_a_step_makes_the_gpu_of_its_detector_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are recorded on a stream of the current GPU, and what runs on another one would not be in them."""
    made: list[object] = []
    with imagined_cuda():
        detector = detector_on_cuda(small())
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.Stream", lambda device: made.append(("stream", device)))
        monkeypatch.setattr("torch.cuda.set_device", lambda device: made.append(("current", device)))
        TrainingStep(TrainConfig(model=small()), detector, use_graphs=False)
    assert made == [("current", CUDA), ("stream", CUDA)]


def test_normalisation_waits_for_nothing_once_its_constants_are_there() -> None:
    with imagined_cuda():
        given = batch(3, CUDA)
        normalize(given.images, given.sizes)
        with watched():
            images = normalize(given.images, given.sizes)
        assert (images.device, images.dtype) == (CUDA, torch.float32)


@pytest.mark.parametrize("num_boxes", [3, 1, 0])
def test_matching_waits_for_nothing(num_boxes: int) -> None:
    with imagined_cuda():
        given, grid = batch(num_boxes, CUDA), anchor_grid(SHAPE, CUDA)
        with watched():
            assigned = max_iou(grid, given.sizes, truth_of(given), positive_iou=0.5, negative_iou=0.4)
            normalizer = loss_normalizer(assigned)
            cells = positive_cells(assigned, grid)
        assert (assigned.shape, assigned.device) == ((2, len(grid.boxes)), CUDA)
        assert (normalizer.shape, cells) == ((), None)


@pytest.mark.parametrize("rule", ["paper", "torchvision"])
@pytest.mark.parametrize("kind", SETTINGS)
def test_losses_and_their_gradients_wait_for_nothing(kind: str, rule: AnchorRule) -> None:
    config = replace(small(**SETTINGS[kind]), anchor_rule=rule)
    with imagined_cuda():
        given, grid, predictions = said(config)
        assigned = torch.zeros(2, len(grid.boxes), dtype=torch.int64, device=CUDA)
        normalizer = torch.ones((), device=CUDA)
        with watched():
            losses = detector_losses(predictions, grid, Assignment(assigned), truth_of(given), normalizer, config)
            losses.total.backward()
        assert losses.total.device == CUDA
        levels = [predictions.class_logits, predictions.box_deltas, predictions.confidence_logits or []]
        levels.append(predictions.edge_logits or [])
        assert all(level.grad is not None and level.grad.device == CUDA for maps in levels for level in maps)
