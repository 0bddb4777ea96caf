"""The candidates of an image; expected values come from NMS of all there are, and from a scoring pass."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import InferenceConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.counting import Objects, objects_of
from model.evaluation.examples.candidates import EXPONENTS, Candidates, candidates
from model.evaluation.scoring import Scores, score
from model.inference.fusion import fuse_scores
from model.inference.suppression.nms import overlap
from model.inference.table import DetectionTable
from tests.detectors import MODEL, SIZES, opinionated, with_objects_where_it_finds_some

Pairs = list[tuple[int, int]]


@pytest.fixture(scope="module")
def data(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    drawn = read_coco(shapes_root, "val", num_images=4)
    return with_objects_where_it_finds_some(tmp_path_factory.mktemp("found"), drawn)


@pytest.fixture(scope="module")
def found(data: CocoData) -> list[Candidates]:
    return candidates(opinionated(len(data.category_ids)), data, [0, 2], SIZES)


def ranked(one: Candidates, config: InferenceConfig) -> tuple[np.ndarray, np.ndarray]:
    """The places of the candidates under a setting, best first, and the score of each place."""
    p, c = one.class_scores, one.confidences
    scores = fuse_scores(p, np.log(p), np.log(c), config)
    here = np.flatnonzero(one.exponents >> EXPONENTS.index(config.confidence_exponent) & 1)
    return here[np.argsort(-scores[here], kind="stable")], scores


def kept(one: Candidates, config: InferenceConfig) -> list[int]:
    places: list[int] = []
    for i in ranked(one, config)[0].tolist():
        same = [k for k in places if one.labels[k] == one.labels[i]]
        if not any(overlap(one.boxes[k], one.boxes[i]) > np.float32(config.nms_iou) for k in same):
            places.append(i)
    return places[: config.max_detections]


def num_better(one: Candidates, objects: Objects, config: InferenceConfig) -> int:
    """Candidates that fall to a kept box which overlaps their object less."""
    order, places, number = ranked(one, config)[0].tolist(), kept(one, config), 0
    for rank, i in enumerate(order):
        own = [g for g, label in enumerate(objects.labels) if label == one.labels[i]]
        ious = [overlap(one.boxes[i], objects.boxes[g]) for g in own]
        same = [k for k in places if one.labels[k] == one.labels[i] and order.index(k) < rank]
        by = next((k for k in same if overlap(one.boxes[k], one.boxes[i]) > np.float32(config.nms_iou)), None)
        if by is not None and ious and max(ious) >= 0.5:
            number += int(max(ious) > overlap(one.boxes[by], objects.boxes[own[int(np.argmax(ious))]]))
    return number


def pairs(data: CocoData, table: DetectionTable, index: int) -> Pairs:
    own = table.take(table.image_ids == data.image_ids[index])
    labels = np.searchsorted(data.category_ids, own.category_ids)
    return list(zip(own.anchors.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.9])
def test_nms_of_the_candidates_keeps_what_nms_of_all_keeps(data: CocoData, found: list[Candidates], iou: float) -> None:
    configs = [InferenceConfig(confidence_exponent=e, nms_iou=iou) for e in (0.0, 0.25, 0.4, 0.5, 0.75, 1.0)]
    passes = score(opinionated(len(data.category_ids)), data, configs, SIZES)
    for one, index in zip(found, (0, 2), strict=True):
        for config, scores in zip(configs, passes, strict=True):
            places = kept(one, config)
            own = list(zip(one.anchors[places].tolist(), one.labels[places].tolist(), strict=True))
            assert own == pairs(data, scores.detections, index)
            assert len(own) > 20


def test_a_candidate_says_what_the_detections_say(data: CocoData, found: list[Candidates]) -> None:
    (scores,) = score(opinionated(len(data.category_ids)), data, [InferenceConfig()], SIZES)
    own = scores.detections.take(scores.detections.image_ids == data.image_ids[0])
    places = kept(found[0], InferenceConfig())
    for name in ("boxes", "class_scores", "confidences", "levels"):
        np.testing.assert_array_equal(getattr(found[0], name)[places], getattr(own, name))
    np.testing.assert_array_equal(ranked(found[0], InferenceConfig())[1][places], own.scores)


def test_the_best_box_that_nms_drops_for_a_worse_one_is_among_them(data: CocoData, found: list[Candidates]) -> None:
    chosen = [InferenceConfig(confidence_exponent=e) for e in (0.0, 0.4, 1.0)]
    scores: list[Scores] = score(opinionated(len(data.category_ids)), data, chosen, SIZES)
    number = 0
    for one, index in zip(found, (0, 2), strict=True):
        there = set(zip(one.anchors.tolist(), one.labels.tolist(), strict=True))
        for of_setting in scores:
            assert of_setting.misalignment is not None
            dropped = of_setting.misalignment.dropped
            own = dropped.image_ids == data.image_ids[index]
            labels = np.searchsorted(data.category_ids, dropped.category_ids[own])
            missing = set(zip(dropped.anchors[own].tolist(), labels.tolist(), strict=True)) - there
            assert not missing
            number += own.sum()
    assert number > 3


def test_as_many_better_boxes_fall_as_the_pass_counts(data: CocoData, found: list[Candidates]) -> None:
    chosen = [InferenceConfig(confidence_exponent=e) for e in (0.0, 0.4, 1.0)]
    total = 0
    for config, scores in zip(chosen, score(opinionated(len(data.category_ids)), data, chosen, SIZES), strict=True):
        assert scores.misalignment is not None
        dropped = scores.misalignment.dropped
        for one, index in zip(found, (0, 2), strict=True):
            expected = int(dropped.counts[dropped.image_ids == data.image_ids[index]].sum())
            assert num_better(one, objects_of(data, index), config) == expected
            total += expected
    assert total > 10


def test_a_pair_is_there_once(found: list[Candidates]) -> None:
    for one in found:
        assert (np.diff(one.anchors.astype(np.int64) * 1000 + one.labels) > 0).all()


def test_a_head_without_a_branch_has_one_exponent(data: CocoData) -> None:
    plain = opinionated(len(data.category_ids), replace(MODEL, confidence=None))
    (one,) = candidates(plain, data, [1], SIZES)
    assert np.isnan(one.confidences).all()
    assert set(one.exponents.tolist()) == {1}
    (scores,) = score(plain, data, [InferenceConfig(confidence_exponent=0.0)], SIZES)
    places = kept(one, InferenceConfig(confidence_exponent=0.0))
    own = list(zip(one.anchors[places].tolist(), one.labels[places].tolist(), strict=True))
    assert own == pairs(data, scores.detections, 1)
