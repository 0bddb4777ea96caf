"""The anchors that training would assign objects, as a scoring pass counts them on batches of any size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import model.evaluation.batch_scoring
from model.assignment.assign import assign
from model.assignment.samples import GroundTruth, Predicted, predicted
from model.config import ModelConfig
from model.data.coco import read_coco
from model.data.images import Batch, collate, load_sample, normalize, padded_shape
from model.data.split import CocoData
from model.evaluation.scoring import score
from model.network.anchors import anchor_grid
from model.network.retinanet import RetinaNetConf
from tests.assignments import BY_PREDICTION, KINDS, rule
from tests.detectors import MODEL, SETTINGS, SIZES, opinionated


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=7)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_positive_anchors_are_those_that_training_would_assign_by_the_predictions_of_the_pass(
    data: CocoData, kind: str, batch_size: int
) -> None:
    (one,) = score(assigns_by(kind, data), data, SETTINGS[:1], SIZES, batch_size=batch_size)
    assert one.misalignment is not None
    assert one.misalignment.num_positive_anchors.tolist() == positive_anchors(kind, data)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kind", BY_PREDICTION)
def test_batches_of_a_gpu_count_positive_anchors_by_the_predictions_of_each_precision(
    data: CocoData, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    count = model.evaluation.batch_scoring._num_positive_anchors

    def counted(rules: ModelConfig, batch: Batch, said: Predicted) -> Tensor:
        asked.append(float(said.class_logits.double().sum()))
        return count(rules, batch, said)

    monkeypatch.setattr(model.evaluation.batch_scoring, "_num_positive_anchors", counted)
    rounded = [SETTINGS[0], replace(SETTINGS[0], precision="bfloat16"), SETTINGS[1]]
    exact, brief, other = (
        one.misalignment.num_positive_anchors.tolist()  # type: ignore[union-attr]
        for one in score(assigns_by(kind, data), data, rounded, SIZES, batch_size=2)
    )
    assert exact == other == pytest.approx(positive_anchors(kind, data), abs=2)  # rounded otherwise in a batch
    assert brief == pytest.approx(exact, rel=0.5)
    of_both, asked = set(asked), []
    score(assigns_by(kind, data), data, SETTINGS[:1], SIZES, batch_size=2)
    assert set(asked) < of_both and len(of_both) == 2 * len(asked) > 0


def assigns_by(kind: str, data: CocoData) -> RetinaNetConf:
    return opinionated(len(data.category_ids), replace(MODEL, assignment=rule(kind).assignment))


def positive_anchors(kind: str, data: CocoData) -> list[int]:
    """Of each image, one by one."""
    numbers, detector = [], assigns_by(kind, data)
    for place in range(len(data.image_ids)):
        sample = load_sample(data, place, SIZES.short_edge, SIZES.long_edge, flip=False)
        one = collate([sample], pad_to=padded_shape(*sample.size))
        grid = anchor_grid(one.shape)
        with torch.no_grad():
            said = predicted(detector(normalize(one.images, one.sizes)), grid)
        truth = GroundTruth(one.boxes, one.labels, one.image_index)
        numbers.append(int((assign(grid, torch.tensor([one.shape]), truth, detector.config, said).assigned >= 0).sum()))
    return numbers
