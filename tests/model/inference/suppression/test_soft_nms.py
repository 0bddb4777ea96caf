"""Soft-NMS on three boxes worked out by hand, and against ensemble-boxes where that is installed."""

import numpy as np
import pytest

from model.config import InferenceConfig
from tests.model.inference.suppression.references import THREE, crowd, left, ranked

LINEAR = InferenceConfig(suppression="soft_linear")
GAUSSIAN = InferenceConfig(suppression="soft_gaussian")


def test_linear_decay_takes_the_overlap_from_a_score_if_it_is_above_the_limit() -> None:
    found = left(ranked(THREE, [0.9, 0.8, 0.6]), LINEAR)
    # The third keeps 0.6, as 0.5 is not above 0.5, and is kept before the second, which falls to 0.8 * 0.2 * 0.375.
    assert found.places.tolist() == [0, 2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.06], rel=1e-6)


def test_gaussian_decay_lowers_whatever_overlaps() -> None:
    found = left(ranked(THREE, [0.9, 0.8, 0.6]), GAUSSIAN)
    # 0.6 * exp(-0.25 / 0.5); 0.8 * exp(-0.64 / 0.5) * exp(-0.390625 / 0.5)
    assert found.places.tolist() == [0, 2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3639184, 0.1018358], rel=1e-6)


def test_boxes_of_other_classes_lower_nothing() -> None:
    for config in (LINEAR, GAUSSIAN):
        found = left(ranked(THREE, [0.9, 0.8, 0.6], labels=[0, 1, 2]), config)
        assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])


def test_a_lowered_score_that_is_not_above_the_floor_is_dropped() -> None:
    three = ranked(THREE, [0.9, 0.8, 0.6])
    kept = [
        len(left(three, InferenceConfig(suppression="soft_linear", soft_floor=floor, score_threshold=floor)).places)
        for floor in (0.0599, 0.0601)
    ]
    assert kept == [3, 2]


def test_of_scores_that_fall_to_the_same_the_lower_anchor_is_kept_first() -> None:
    # Two pairs of equal boxes and scores: each second one is lowered by 1 - 1/3 twice or once.
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [0, 5, 10, 15], [20, 5, 30, 15]]
    config = InferenceConfig(suppression="soft_linear", nms_iou=0.3)
    for order in ([0, 1, 2, 3], [1, 0, 3, 2], [0, 1, 3, 2]):
        found = left(ranked(np.array(boxes)[order], [0.9, 0.9, 0.6, 0.6]), config)
        assert found.places.tolist() == [0, 1, 2, 3]
        assert found.scores[2:].tolist() == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("kind", ["soft_linear", "soft_gaussian"])
def test_ensemble_boxes_keeps_the_same_boxes_in_the_same_order(kind: str) -> None:
    judge = pytest.importorskip("ensemble_boxes", reason="a judge that is no requirement")
    one = crowd(160, 3, seed=5)
    sound = (one.boxes[:, 2:] > one.boxes[:, :2]).all(axis=1)  # it drops boxes without area
    one = ranked(one.boxes[sound] / 100, one.scores[sound] - np.arange(sound.sum()) * 1e-5, one.labels[sound])
    config = InferenceConfig(suppression=kind, soft_floor=0.04, max_detections=1000)  # type: ignore[arg-type]
    # Its scores are those before, in the order of the lowered ones.
    boxes, scores, labels = judge.soft_nms(
        [one.boxes.astype(np.float64)],
        [one.scores.astype(np.float64)],
        [one.labels],
        method=1 if kind == "soft_linear" else 2,
        iou_thr=0.5,
        sigma=0.5,
        thresh=0.04,
    )
    found = left(one, config)
    assert 30 < len(found.scores) < len(one.labels) - 20
    for label in range(3):
        mine = found.places[one.labels[found.places] == label]
        assert np.array_equal(one.boxes[mine], boxes[labels == label].astype(np.float32))
        assert np.array_equal(one.scores[mine], scores[labels == label].astype(np.float32))
