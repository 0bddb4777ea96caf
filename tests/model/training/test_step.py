"""An update of a training never makes the host wait for an accelerator, and weighing all anchors changes nothing."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.assignment import samples
from model.assignment.assign import assign
from model.assignment.max_iou import max_iou
from model.assignment.samples import Assignment, GroundTruth, loss_normalizer, predicted
from model.config import AssignmentConfig, ConfidenceConfig, ModelConfig, ScheduleConfig, TrainConfig
from model.data.images import Batch, _mean_and_std, normalize
from model.network.anchors import anchor_grid
from model.network.retinanet import build_detector
from model.training import losses
from model.training.batches import MicroBatch
from model.training.losses import detector_losses
from model.training.step import Accumulate, Prepared, TrainingStep, _Graphs, _with_room
from tests.assignments import BY_PREDICTION, KINDS

TINY = ModelConfig(backbone="resnet18_quarter", channels=16, tower_depth=1)


def batch(device: str = "cpu") -> Batch:
    return Batch(
        images=torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, device=device),
        sizes=torch.tensor([[64, 96], [50, 60]], device=device),
        boxes=torch.tensor([[4.0, 5, 40, 50], [50, 10, 90, 60], [3, 3, 30, 44]], device=device),
        labels=torch.tensor([0, 2, 1], device=device),
        image_index=torch.tensor([0, 0, 1], device=device),
        image_ids=torch.tensor([1, 2], device=device),
        original_sizes=torch.tensor([[64, 96], [50, 60]], device=device),
    )


@pytest.fixture
def _uncached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tensors of an imagined device out of the caches that other tests use."""
    monkeypatch.setattr("model.training.step.anchor_grid", anchor_grid.__wrapped__)
    monkeypatch.setattr("model.data.images._mean_and_std", _mean_and_std.__wrapped__)


@pytest.mark.usefixtures("_uncached")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "confidence",
    [None, ConfidenceConfig(), ConfidenceConfig(tower="box"), ConfidenceConfig(negative_weight=1e-3)],
    ids=["plain", "classification", "box", "weighted"],
)
def test_no_line_of_an_update_reads_what_an_accelerator_has_computed(
    confidence: ConfidenceConfig | None, optimizer: Literal["sgd", "adamw"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the device `meta` have shapes and no values; a line that asks for one, or for their number, raises."""
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())  # which does not know the device
    schedule = ScheduleConfig(optimizer=optimizer, gradient_clip=1.0)
    config = TrainConfig(model=replace(TINY, confidence=confidence), schedule=schedule)
    step = TrainingStep(config, build_detector(config.model, num_classes=3, seed=0).to("meta"))
    parts = [MicroBatch(batch("meta"), True), MicroBatch(batch("meta"), False)]
    assert step.update(parts, 0.01).shape == (3,)
    assert all(part.grad is not None for part in step.detector.parameters() if part.requires_grad)
    for ask in (Tensor.nonzero, Tensor.tolist, Tensor.item, bool):
        with pytest.raises((NotImplementedError, RuntimeError)):
            ask(torch.ones(1, device="meta"))


def test_a_prepared_batch_holds_its_anchors_whatever_the_cache_of_grids_lets_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph that is recorded on it reads them at each replay."""
    step = TrainingStep(TrainConfig(model=TINY), build_detector(TINY, num_classes=3, seed=0))
    parts = step.prepare([MicroBatch(batch(), True)])
    monkeypatch.setattr("model.training.step.anchor_grid", None)
    assert bool(torch.isfinite(step.step(parts, 0.01)).all())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("saved", "here"), [("channels_last", "contiguous_format"), ("contiguous_format", "channels_last")]
)
def test_an_optimizer_goes_on_from_another_device_in_the_memory_order_of_this_one(
    optimizer: Literal["sgd", "adamw"], saved: str, here: str
) -> None:
    """CUDA trains in channels_last, and its fused optimizers take no state in another order than the parameter's."""

    def step_in(order: str) -> TrainingStep:
        config = TrainConfig(model=TINY, schedule=ScheduleConfig(optimizer=optimizer))
        detector = build_detector(TINY, num_classes=3, seed=0).to(memory_format=getattr(torch, order))
        return TrainingStep(config, detector)

    there, goes_on = step_in(saved), step_in(here)
    there.update([MicroBatch(batch(), True)], 0.01)
    goes_on.load_optimizer(there.optimizer.state_dict())
    states = zip(there.optimizer.state.values(), goes_on.optimizer.state.items(), strict=True)
    for before, (parameter, after) in states:
        assert before.keys() == after.keys() != set()
        for name, value in after.items():
            assert torch.equal(value, before[name])
            assert value.shape == () or value.stride() == parameter.stride()


@pytest.mark.parametrize("confidence", [ConfidenceConfig(), ConfidenceConfig(tower="box", loss="gfocal"), None])
@pytest.mark.parametrize("num_boxes", [3, 0])
def test_weighing_all_anchors_gives_the_losses_and_gradients_of_listing_the_positive_ones(
    confidence: ConfidenceConfig | None, num_boxes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, confidence=confidence)
    detector = build_detector(config, num_classes=3, seed=0).double()
    given, grid = batch(), anchor_grid((64, 96))
    truth = GroundTruth(given.boxes[:num_boxes], given.labels[:num_boxes], given.image_index[:num_boxes])
    assigned = max_iou(grid, torch.tensor([[64, 96], [64, 64]]), truth, positive_iou=0.5, negative_iou=0.4)
    results: list[list[Tensor]] = []
    for listed in (samples.positives, lambda assigned: None):
        monkeypatch.setattr(losses, "positives", listed)
        predictions = detector(given.images.double() / 50 - 2)
        found = detector_losses(predictions, grid, Assignment(assigned), truth, loss_normalizer(assigned), config)
        found.total.backward()
        gradients = [part.grad for part in detector.parameters() if part.grad is not None]
        results.append([found.classification, found.box, found.confidence, *gradients])
        detector.zero_grad()
    assert len(results[0]) == len(results[1])
    for one, other in zip(*results, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("num_boxes", [0, 3, 100])
def test_the_boxes_that_fill_up_a_graph_change_no_loss_and_no_gradient(num_boxes: int) -> None:
    detector = build_detector(TINY, num_classes=3, seed=0).double()
    given, grid = batch(), anchor_grid((64, 96))
    low = 40 * torch.rand(num_boxes, 2)
    boxes = torch.cat([low, low + 8 + 30 * torch.rand(num_boxes, 2)], dim=1)
    index, labels = torch.zeros(num_boxes, dtype=torch.int64), torch.zeros(num_boxes, dtype=torch.int64)
    given = replace(given, boxes=boxes, labels=labels, image_index=index)
    truth = GroundTruth(boxes, labels, index)
    assigned = max_iou(grid, torch.tensor([[64, 96], [64, 64]]), truth, positive_iou=0.5, negative_iou=0.4)
    part = Prepared(given, grid, Assignment(assigned), loss_normalizer(assigned), counts=True)
    padded = _with_room(part)
    assert len(padded.batch.boxes) == (128 if num_boxes == 100 else 64)
    results = []
    for one in (part, padded):
        detector.zero_grad()
        there = GroundTruth(one.batch.boxes, one.batch.labels, one.batch.image_index)
        predictions = detector(torch.ones(2, 3, 64, 96, dtype=torch.float64))
        found = detector_losses(predictions, grid, Assignment(assigned), there, one.normalizer, TINY)
        found.total.backward()
        results.append([found.total, *(p.grad for p in detector.parameters() if p.grad is not None)])
    for mine, other in zip(*results, strict=True):
        assert_close(mine, other)


@pytest.mark.parametrize(
    ("num_images", "num_boxes", "by_prediction", "room"),
    [(16, 112, False, 512), (16, 112, True, 288), (2, 14, True, 64), (16, 289, True, 512), (16, 0, True, 288)],
)
def test_a_graph_that_assigns_has_less_room_for_boxes(
    num_images: int, num_boxes: int, by_prediction: bool, room: int
) -> None:
    given = replace(
        batch(),
        images=torch.zeros(num_images, 3, 64, 96, dtype=torch.uint8),
        boxes=torch.zeros(num_boxes, 4),
        labels=torch.zeros(num_boxes, dtype=torch.int64),
        image_index=torch.zeros(num_boxes, dtype=torch.int64),
    )
    grid = anchor_grid((64, 96))
    assignment = None if by_prediction else Assignment(torch.zeros(num_images, len(grid.boxes), dtype=torch.int64))
    padded = _with_room(Prepared(given, grid, assignment, torch.ones(()), counts=True)).batch
    assert len(padded.boxes) == len(padded.labels) == len(padded.image_index) == room


@pytest.mark.parametrize("kind", BY_PREDICTION)
def test_a_rule_that_looks_at_predictions_assigns_after_the_forward_pass_and_divides_gradients_at_the_end(
    kind: str,
) -> None:
    """The update is that of losses divided by the samples of both parts, of which the second one does not count."""
    model = replace(TINY, assignment=AssignmentConfig(kind=kind))  # type: ignore[arg-type]
    detectors = [build_detector(model, num_classes=3, seed=0) for _ in range(2)]
    step = TrainingStep(TrainConfig(model=model, schedule=ScheduleConfig(weight_decay=0.0)), detectors[0])
    given, other = batch(), batch()
    parts = step.prepare([MicroBatch(given, True), MicroBatch(other, True), MicroBatch(other, False)])
    assert all(part.assignment is None for part in parts)
    found = step.step(parts, 1.0)
    grid, sizes = anchor_grid((64, 96)), torch.tensor([[64, 96], [64, 64]])
    truth = GroundTruth(given.boxes, given.labels, given.image_index)
    said, assignments = [], []
    for one in (given, other):
        said.append(detectors[1](normalize(one.images, one.sizes)))
        assignments.append(assign(grid, sizes, truth, model, predicted(said[-1], grid)))
        assert bool((assignments[-1].assigned >= 0).any())
    samples = sum(loss_normalizer(one.assigned) for one in assignments)
    assert isinstance(samples, Tensor)
    expected = [
        detector_losses(one, grid, learns, truth, samples, model) for one, learns in zip(said, assignments, strict=True)
    ]
    sum(one.total for one in expected).backward()  # type: ignore[union-attr]
    for name, place in (("classification", 0), ("box", 1), ("confidence", 2)):
        assert_close(found[place], sum(getattr(one, name).detach().sum() for one in expected), msg=name)
    start = build_detector(model, num_classes=3, seed=0)
    for before, after, mine in zip(*(one.parameters() for one in (start, *detectors)), strict=True):
        if mine.grad is not None:
            assert_close(before - after, mine.grad, rtol=1e-4, atol=1e-6)


class _Replayed:
    """In place of a CUDA graph: does again, on what it was recorded on, what was to be recorded."""

    part: Prepared
    normalizer: Tensor
    sums: Tensor
    accumulate: Accumulate

    def replay(self) -> None:
        self.sums.copy_(self.accumulate(self.part, self.normalizer))


class _Recording(_Graphs):
    def _record(self, part: Prepared, normalizer: Tensor, accumulate: Accumulate) -> Any:
        kept = super()._record(part, normalizer, lambda *_: normalizer.new_zeros(4))  # recording computes nothing
        graph: Any = kept[0]
        graph.accumulate, (graph.part, graph.normalizer, graph.sums) = accumulate, kept[1:]
        return kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_makes_the_updates_that_operations_make_by_whatever_rule_it_assigns(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its room is filled up with boxes, and what it was recorded on is another batch's."""
    for name, value in (
        ("graph_pool_handle", lambda: None),
        ("empty_cache", lambda: None),
        ("CUDAGraph", _Replayed),
        ("graph", lambda *_, **__: nullcontext()),
    ):
        monkeypatch.setattr(f"torch.cuda.{name}", value)
    model = replace(TINY, assignment=AssignmentConfig(kind=kind))  # type: ignore[arg-type]
    config = TrainConfig(model=model, schedule=ScheduleConfig(gradient_clip=1.0))
    updates = [[MicroBatch(batch(), True), MicroBatch(batch(), True)] for _ in range(3)]
    fewer = {name: getattr(updates[2][0].batch, name)[:1] for name in ("boxes", "labels", "image_index")}
    updates[2][0] = MicroBatch(replace(updates[2][0].batch, **fewer), True)
    losses, weights = [], []
    for use_graphs in (False, True):
        step = TrainingStep(config, build_detector(model, num_classes=3, seed=0))
        step.graphs = _Recording() if use_graphs else None
        losses.append(torch.stack([step.update(parts, 0.01) for parts in updates]))
        weights.append([part.detach() for part in step.detector.parameters()])
    assert step.graphs is not None and len(step.graphs._recorded) == 1
    assert_close(*losses, rtol=1e-4, atol=1e-6)
    for one, other in zip(*weights, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)
