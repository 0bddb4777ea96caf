"""Every kind of suppression against plain numpy, and what all of them have in common."""

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest

from model.config import InferenceConfig
from model.inference.suppression.kinds import NEEDS_ALL, Ranked, survivors
from model.inference.suppression.nms import keep
from tests.model.inference.suppression.references import crowd, left, ranked, reference

KINDS = [kind for kind in get_args(get_type_hints(InferenceConfig)["suppression"]) if kind != "nms"]
LIMITED = [kind for kind in KINDS if kind not in ("soft_gaussian", "matrix_linear", "matrix_gaussian")]
"""Kinds that know an overlap limit."""


def of_kind(kind: str, **settings: object) -> InferenceConfig:
    return InferenceConfig(suppression=kind, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_plain_numpy_leave_the_same(kind: str) -> None:
    for seed, (num, num_classes, limit) in enumerate(
        [(1, 1, 5), (60, 1, 100), (200, 3, 100), (300, 2, 17), (90, 40, 4)]
    ):
        one = crowd(num, num_classes, seed)
        for iou in (0.0, 0.3, 0.7) if kind in LIMITED else (0.5,):
            config = of_kind(kind, nms_iou=iou, max_detections=limit, score_threshold=0.01)
            found, (places, scores, boxes) = left(one, config), reference(one, config)
            assert found.places.tolist() == places
            assert found.scores.tolist() == pytest.approx(scores, rel=1e-6)
            assert np.array(boxes).reshape(-1, 4) == pytest.approx(found.boxes, rel=1e-5, abs=1e-6)
            assert (np.diff(found.scores) <= 0).all() and len(places) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_nothing(kind: str) -> None:
    found = left(ranked([], []), of_kind(kind))
    assert (found.places.shape, found.scores.shape, found.boxes.shape) == ((0,), (0,), (0, 4))
    assert found.droppers.shape == found.ranks.shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_that_are_equal_or_apart_are_left_as_by_greedy_nms(kind: str) -> None:
    # An overlap is 0 or 1, which every rule takes alike; the Gaussians with a width that lets nothing through.
    places = np.random.default_rng(0).integers(0, 12, 150)
    corners = np.stack([places * 20.0, places * 20.0], axis=1)
    scores = np.random.default_rng(1).permutation(150) / 200 + 0.1
    one = ranked(np.concatenate([corners, corners + 10], axis=1), scores, places % 2, scores)
    narrow = {"suppression_sigma": 0.01} if kind in ("soft_gaussian", "matrix_gaussian") else {}
    found = left(one, of_kind(kind, **narrow))
    assert found.places.tolist() == keep(one.boxes, one.labels, np.float32(0.5), 100).tolist()
    assert np.array_equal(found.scores, one.scores[found.places])
    assert np.array_equal(found.boxes, one.boxes[found.places])
    assert len(found.places) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_best_candidates_decide_alone_is_what_all_decide(kind: str) -> None:
    decided = 0
    for seed in range(4):
        one = crowd(400, 3, seed)
        for limit in (3, 20):
            config = of_kind(kind, max_detections=limit)
            every = left(one, config)
            for above in np.unique(one.scores)[::6]:
                number = int((one.scores > above).sum())
                best = Ranked(
                    one.keys[:number],
                    one.boxes[:number],
                    one.labels[:number],
                    one.confidences[:number],
                    one.num_classes,
                    above,
                )
                found = survivors(best, config)
                if found is not None:
                    decided += 1
                    assert found.places.tolist() == every.places.tolist()
                    assert found.scores.tolist() == every.scores.tolist()
    assert decided == 0 if kind in NEEDS_ALL else decided > 10


@pytest.mark.parametrize("kind", KINDS)
def test_classes_do_not_touch_each_other(kind: str) -> None:
    one = crowd(120, 3, seed=8)
    config = of_kind(kind, max_detections=1000)
    together = left(one, config)
    for label in range(3):
        here = np.flatnonzero(one.labels == label)
        alone = left(
            replace_rows(one, here),
            config,
        )
        mine = together.places[one.labels[together.places] == label]
        assert here[alone.places].tolist() == mine.tolist()


def replace_rows(one: Ranked, rows: np.ndarray) -> Ranked:
    return replace(
        one, keys=one.keys[rows], boxes=one.boxes[rows], labels=one.labels[rows], confidences=one.confidences[rows]
    )


def test_diou_keeps_a_neighbour_whose_centre_lies_apart() -> None:
    # IoU 60 / 140 = 0.429; 16 / (100 + 196) of the diagonal less is 0.375.
    two = ranked([[0, 0, 10, 10], [0, 4, 10, 14]], [0.9, 0.8])
    assert [len(left(two, of_kind("diou", nms_iou=iou)).places) for iou in (0.374, 0.375)] == [1, 2]
    assert keep(two.boxes, two.labels, np.float32(0.42), 9).tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_kinds_that_drop_a_box_for_another_tell_which(kind: str) -> None:
    found = left(crowd(100, 2, seed=1), of_kind(kind))
    if kind.startswith(("soft", "matrix")):
        assert len(found.droppers) == 0
    elif kind == "iou_guided":
        assert set(found.places) <= set(found.droppers)
        assert (np.diff(found.ranks) <= 0).all()
    else:
        assert np.array_equal(found.droppers, found.places) and np.array_equal(found.ranks, found.scores)
