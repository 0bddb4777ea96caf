"""How many images fit into a GPU's memory, by updates that run out of it where a test says so."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import TrainConfig
from model.training import memory
from model.training.step import TrainingStep
from tests.trainings import CONFIG

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("room", "most", "fits"), [(5, 16, 5), (0, 16, 0), (15, 16, 15), (16, 16, 16), (1, 2, 1), (3, 1, 1)]
)
def test_the_largest_number_that_fits_is_found_by_halves(room: int, most: int, fits: int) -> None:
    tried: list[int] = []

    def update(number: int) -> None:
        tried.append(number)
        if number > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert memory.largest_that_fits(update, most) == fits
    assert tried[0] == 1 and len(tried) == len(set(tried)) <= 2 + 4  # the two ends, and halves of 16


def test_a_lack_of_memory_that_ends_a_graph_is_told_by_what_it_came_of() -> None:
    def update(number: int) -> None:
        try:
            if number > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        finally:  # as torch.cuda.graph does
            if number > 2:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    assert memory.largest_that_fits(update, 4) == 2


def test_another_error_than_a_lack_of_memory_is_not_taken_for_one() -> None:
    def update(number: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        memory.largest_that_fits(update, 4)


@pytest.mark.parametrize("use_graphs", [True, False])
def test_updates_of_the_largest_shape_are_tried_as_the_training_makes_them_and_leave_the_weights_finite(
    use_graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    weights: list[Tensor] = []
    real = TrainingStep.update

    class Step(TrainingStep):
        def __init__(self, *arguments: Any, **how: Any) -> None:
            assert how == {"use_graphs": use_graphs}
            super().__init__(*arguments, **how)

    monkeypatch.setattr(memory, "TrainingStep", Step)

    def update(step: TrainingStep, parts: Any, rate: float) -> Tensor:
        (part,) = parts
        shapes.append(tuple(part.batch.images.shape))
        if len(part.batch.images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        losses = real(step, parts, rate)
        weights.extend(step.detector.parameters())
        return losses

    monkeypatch.setattr(TrainingStep, "update", update)
    assert memory.largest_batch(CONFIG, 6, 8, device=CPU, use_graphs=use_graphs) == 3
    lying, upright = (3, 64, 96), (3, 96, 64)  # edges 64 and 96, both whole strides
    whole = [(count, *shape) for count in (1, 2, 3) for shape in (lying, lying, upright)]
    assert shapes == [*whole[:3], (8, *lying), (4, *lying), *whole[3:]]
    assert all(bool(torch.isfinite(weight).all()) for weight in weights)


def test_a_detector_that_does_not_fit_leaves_no_room_for_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(memory, "build_detector", build)
    assert memory.largest_batch(CONFIG, 6, 8, device=CPU) == 0


@pytest.mark.slow
def test_a_process_of_its_own_tells_the_number_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config: TrainConfig = replace(CONFIG, model=replace(CONFIG.model, confidence=None))
    assert memory.ask_largest_batch(config, 6, 2) == 2  # a CPU has room for two
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert memory.ask_largest_batch(config, 6, 2) is None
