"""Outputs that are NaN or infinite are refused wherever boxes would be ranked by them, in one line."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import InferenceConfig
from model.data.coco import read_coco
from model.evaluation import scoring
from model.evaluation.examples.candidates import candidates
from model.evaluation.scoring import score
from model.inference import batched, predictor
from model.inference.batched_scores import of_batch
from model.inference.predictor import load
from model.network.anchors import anchor_grid
from model.network.finite import NonFiniteError, are_finite, require_finite_outputs
from model.network.retinanet import Predictions, RetinaNetConf
from model.training.loop import TrainingError
from tests.detectors import MODEL, SIZES, opinionated, save_opinionated
from tests.trainings import CONFIG, run

ONE_LINE = r"^[^\n]*$"
SHAPES = [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]


def maps(channels: int) -> list[Tensor]:
    return [torch.zeros(2, channels, *shape) for shape in SHAPES]


def outputs() -> Predictions:
    return Predictions(maps(9 * 3), maps(9 * 4), maps(9))


def diverged(num_classes: int) -> RetinaNetConf:
    detector = opinionated(num_classes)
    with torch.no_grad():
        for weight in detector.parameters():
            weight.fill_(torch.nan)
    return detector


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["class_logits", "box_deltas", "confidence_logits"])
def test_a_single_number_is_refused_by_its_output_and_level(part: str, value: float) -> None:
    predictions = outputs()
    getattr(predictions, part)[2][1, 5, 2, 1] = value
    with pytest.raises(NonFiniteError, match=rf"^the detector: {part} of level P5 are NaN or infinite in 1 of .*over"):
        require_finite_outputs(opinionated(3), predictions)


def test_finite_outputs_of_any_size_pass_and_nan_among_the_weights_is_named_as_the_cause() -> None:
    predictions = outputs()
    predictions.class_logits[0][0] = 3.4e38  # whose sum is infinite
    require_finite_outputs(opinionated(3), predictions)
    require_finite_outputs(opinionated(3), Predictions(maps(27), maps(36), None))
    predictions.class_logits[0][0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"as are \d+ of its tensors of weights, first backbone.*train\.schedule\.learning_rate$"
    ):
        require_finite_outputs(diverged(3), predictions)


def test_each_output_is_told_apart_on_its_device() -> None:
    found = are_finite([torch.ones(3), torch.tensor([1.0, torch.inf]), torch.tensor([torch.nan], dtype=torch.bfloat16)])
    assert found.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("class_logits", math.nan, "class_logits of level P4 are NaN or infinite"),
        ("box_deltas", math.nan, "box_deltas of level P4 are NaN or infinite"),
        ("box_deltas", math.inf, "box_deltas are NaN or infinite"),  # the box is cut to its image, wherever it is
        ("confidence_logits", -math.inf, "confidence_logits of level P4 are NaN or infinite"),
    ],
)
def test_batched_post_processing_refuses_them_with_the_numbers_that_it_sends_to_the_host(
    part: str, value: float, said: str
) -> None:
    predictions = outputs()
    getattr(predictions, part)[1][0, 0, 3, 3] = value
    grid = anchor_grid((96, 96), torch.device("cpu"), MODEL.anchor_rule)
    where = torch.full((2, 2), 96)
    images = of_batch(predictions, grid, where, torch.ones(2, 2))
    with pytest.raises(NonFiniteError, match=f"^{said}$"):
        list(batched.detect(images, [InferenceConfig()], np.arange(2), np.arange(3)))
    getattr(predictions, part)[1][0, 0, 3, 3] = 0.0
    images = of_batch(predictions, grid, where, torch.ones(2, 2))
    assert list(batched.detect(images, [InferenceConfig()], np.arange(2), np.arange(3)))


def scored(detector: RetinaNetConf, data: Any) -> object:
    return score(detector, data, [InferenceConfig(), InferenceConfig(confidence_exponent=0.0)], SIZES)


def looked_at(detector: RetinaNetConf, data: Any) -> object:
    return candidates(detector, data, [0], SIZES)


@pytest.mark.parametrize("use", [scored, looked_at])
def test_scoring_and_the_lab_refuse_a_diverged_network(use: Callable[..., object], shapes_root: Path) -> None:
    data = read_coco(shapes_root, "val", num_images=2)
    with pytest.raises(NonFiniteError, match=ONE_LINE):
        use(diverged(len(data.category_ids)), data)


def test_scoring_by_batched_kernels_says_whose_outputs_they_are(
    shapes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_coco(shapes_root, "val", num_images=2)
    monkeypatch.setattr(scoring, "_on_cuda", lambda detector: True)
    detector = diverged(len(data.category_ids))
    detector.source = "/runs/epoch-0003"
    with pytest.raises(
        NonFiniteError, match=r"^/runs/epoch-0003: class_logits of level P3 .* of its tensors of weights"
    ):
        score(detector, data, [InferenceConfig()], SIZES, batch_size=2)


def test_a_prediction_names_the_checkpoint(tmp_path: Path) -> None:
    folder = save_opinionated(tmp_path / "epoch-0001", ((1, 2), ("a", "b")))
    found = load(folder, "cpu", {})
    with torch.no_grad():
        next(found.detector.head.parameters()).fill_(torch.inf)
    with pytest.raises(NonFiniteError, match=rf"^{folder}: \w+ of level P3 are NaN or infinite in [\d,]+ of"):
        found(np.zeros((64, 64, 3), np.uint8))


def test_a_training_ends_where_its_validation_is_not_finite_and_keeps_no_checkpoint_of_that_epoch(
    shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil = require_finite_outputs

    def spoilt(
        detector: RetinaNetConf, predictions: Predictions
    ) -> None:  # as by the last update, whose loss was sound
        with torch.no_grad():
            next(detector.parameters()).fill_(torch.nan)
        predictions.class_logits[0][:] = torch.nan
        spoil(detector, predictions)

    monkeypatch.setattr(predictor, "require_finite_outputs", spoilt)
    config = replace(CONFIG, schedule=replace(CONFIG.schedule, epochs=1, lr_drop_epochs=(), validate_every=1))
    with pytest.raises(TrainingError, match=r"^after update 4 and epoch 1, the detector: class_logits of level P3 .*$"):
        run(config, shapes_root, tmp_path)
    assert not list(tmp_path.iterdir())
