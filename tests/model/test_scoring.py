"""One pass for many settings, on any number of processes, gives the same bits as one pass for each."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import model.scoring
from model.anchors import anchor_grid
from model.checkpoint import save_checkpoint
from model.config import DataConfig, InferenceConfig, ModelConfig, TrainConfig
from model.data import CocoData, collate, load_sample, padded_shape, read_coco, resize_shape
from model.detector import RetinaNetConf, build_detector
from model.evaluation import METRICS, DetectionTable
from model.postprocess import detect
from model.scoring import Scores, load_detector, score
from model.transforms import normalize
from tests.processes import run_processes

MODEL = ModelConfig(
    backbone="resnet18_quarter", backbone_norm="group", channels=16, tower_depth=1, tower_norm="group", frozen_stages=0
)
SIZES = DataConfig(short_edge=64, long_edge=128)
SETTINGS = [
    InferenceConfig(),
    InferenceConfig(confidence_exponent=0.0),
    InferenceConfig(fusion="product"),
    InferenceConfig(confidence_exponent=0.0, min_confidence=0.5),
    InferenceConfig(fuse_small_levels=False, nms_pre=60),
    InferenceConfig(confidence_exponent=0.8, max_detections=3, nms_iou=0.3),
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=7)


@pytest.fixture(scope="module")
def together(data: CocoData) -> list[Scores]:
    torch.set_num_threads(1)
    return score(opinionated(data), data, SETTINGS, SIZES)


def opinionated(data: CocoData) -> RetinaNetConf:
    """A detector whose scores spread from 0 to 1, though it learnt nothing."""
    detector = build_detector(MODEL, len(data.category_ids), seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in detector.head.named_parameters():
            if name in ("class_logits.weight", "confidence_logits.weight", "box_deltas.weight"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
        detector.head.class_logits.bias.fill_(-3.0)  # type: ignore[union-attr]
    return detector.eval()


def same_bits(one: DetectionTable, other: DetectionTable) -> bool:
    names = ("image_ids", "category_ids", "boxes", "scores", "anchors")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_every_setting_gets_the_detections_of_a_pass_of_its_own(data: CocoData, together: list[Scores]) -> None:
    for setting, joint in zip(SETTINGS, together, strict=True):
        (alone,) = score(opinionated(data), data, [setting], SIZES)
        assert joint.inference == alone.inference == setting
        assert same_bits(joint.detections, alone.detections)
        assert joint.metrics == alone.metrics
        assert len(alone.detections.scores) > 10
    for place, one in enumerate(together):
        assert not any(same_bits(one.detections, other.detections) for other in together[:place])


def score_here(rank: int, shapes_root: Path, folder: Path) -> None:
    data = read_coco(shapes_root, "val", num_images=7)
    scores = score(opinionated(data), data, SETTINGS, SIZES)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(scores))


@pytest.mark.slow
def test_two_processes_give_the_detections_and_numbers_of_one(
    shapes_root: Path, together: list[Scores], tmp_path: Path
) -> None:
    run_processes(2, score_here, shapes_root, tmp_path)
    for rank in range(2):
        apart: list[Scores] = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        for one, two in zip(together, apart, strict=True):
            assert same_bits(one.detections, two.detections)
            assert one.metrics == two.metrics


def test_each_detection_is_what_the_image_alone_gives(data: CocoData, together: list[Scores]) -> None:
    detector = opinionated(data)
    for index in range(len(data)):
        sample = load_sample(data, index, SIZES.short_edge, SIZES.long_edge, flip=False)
        batch = collate([sample], pad_to=padded_shape(*sample.size))
        with torch.no_grad():
            predictions = detector(normalize(batch.images, batch.sizes))
        grid = anchor_grid(padded_shape(*sample.size))
        (found,) = detect(predictions, grid, batch.sizes, batch.sizes / batch.original_sizes, SETTINGS[0])
        table = together[0].detections
        rows = table.image_ids == data.image_ids[index]
        assert np.array_equal(table.boxes[rows], found.boxes.numpy())
        assert np.array_equal(table.scores[rows], found.scores.numpy())
        assert np.array_equal(table.anchors[rows], found.anchors.numpy())
        assert table.category_ids[rows].tolist() == [data.category_ids[label] for label in found.labels]
        height, width = data.sizes[index].tolist()
        assert (table.boxes[rows] >= 0).all()
        assert (table.boxes[rows] <= np.array([width, height] * 2) * 1.00001).all()


@pytest.mark.parametrize("limit", [1, 8])
def test_images_are_padded_to_their_own_size(
    data: CocoData, together: list[Scores], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.scoring, "_batch_limit", lambda _: limit)
    detector = opinionated(data)
    shapes: list[tuple[int, int]] = []

    def see(_: object, inputs: tuple[torch.Tensor]) -> None:
        shapes.extend([(inputs[0].shape[2], inputs[0].shape[3])] * len(inputs[0]))

    detector.register_forward_pre_hook(see)
    (scores,) = score(detector, data, SETTINGS[:1], SIZES)
    own = [padded_shape(*resize_shape(height, width, 64, 128)) for height, width in data.sizes.tolist()]
    assert sorted(shapes) == sorted(own)
    assert len(set(own)) == 2
    assert np.allclose(scores.detections.scores, together[0].detections.scores, atol=1e-5)


def test_decoding_in_other_processes_changes_nothing(data: CocoData, together: list[Scores]) -> None:
    (apart,) = score(opinionated(data), data, SETTINGS[:1], SIZES, num_loader_processes=2)
    assert same_bits(apart.detections, together[0].detections)


def test_scoring_tells_of_its_progress_and_leaves_the_mode_of_the_detector(data: CocoData) -> None:
    detector, seen = opinionated(data), []
    for training in (True, False):
        detector.train(training)
        score(detector, data, SETTINGS[:1], SIZES, progress=lambda done, total: seen.append((done, total)))
        assert detector.training is training
    assert seen == [(done, 7) for done in range(1, 8)] * 2


def test_a_detector_that_finds_nothing_scores_zero(data: CocoData) -> None:
    (scores,) = score(opinionated(data), data, [InferenceConfig(score_threshold=1.0)], SIZES)
    assert len(scores.detections.scores) == 0
    assert tuple(scores.metrics) == METRICS
    assert scores.metrics["AP"] == 0.0


def test_without_a_branch_only_class_scores_can_be_had(data: CocoData) -> None:
    plain = build_detector(replace(MODEL, confidence=None), len(data.category_ids), seed=0)
    assert score(plain, data, [InferenceConfig(confidence_exponent=0.0)], SIZES)
    with pytest.raises(ValueError, match=r"set inference\.confidence_exponent to 0"):
        score(plain, data, [InferenceConfig()], SIZES)


def test_a_checkpoints_detector_predicts_as_the_one_that_was_saved(data: CocoData, tmp_path: Path) -> None:
    detector = opinionated(data)
    folder = save_checkpoint(
        tmp_path / "one",
        weights=detector.state_dict(),
        config=TrainConfig(model=MODEL),
        epoch=1,
        step=1,
        categories=(data.category_ids, data.category_names),
        data_fingerprint=data.fingerprint,
        optimizer={},
    )
    loaded = load_detector(folder)
    assert not loaded.training
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = detector(images), loaded(images)
    for kind in ("class_logits", "box_deltas", "confidence_logits"):
        assert all(torch.equal(*pair) for pair in zip(getattr(one, kind), getattr(other, kind), strict=True))
