"""LaECE, LaACE, D-ECE and LRP: by hand, by loops over detections, and by netcal where it is installed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import CALIBRATION
from model.evaluation.calibration.errors import BINS, calibration, calibration_errors, reliability
from model.evaluation.calibration.outcomes import Outcomes, outcomes
from model.inference.table import DetectionTable
from tests.detections import random_scene, table, write


def fates(rows: list[tuple[int, float, float]], num_objects: list[int]) -> Outcomes:
    """Detections as (label, score, u)."""
    columns = np.array(rows, np.float64).reshape(-1, 3)
    return Outcomes(
        rows=np.arange(len(rows)),
        labels=columns[:, 0].astype(np.int64),
        scores=columns[:, 1],
        ious=columns[:, 2],
        num_objects=np.array(num_objects, np.int64),
    )


def by_loops(found: Outcomes, tau: float = 0.5) -> dict[str, float | None]:
    """The definitions, detection by detection."""
    errors: dict[str, list[float]] = {name: [] for name in CALIBRATION}
    for label, objects in enumerate(found.num_objects.tolist()):
        if not objects:
            continue
        of_class = found.labels == label
        mine = sorted(zip(found.scores[of_class].tolist(), found.ious[of_class].tolist(), strict=True), reverse=True)
        if mine:
            gaps = {"LaECE": 0.0, "D-ECE": 0.0}
            for number in range(BINS):
                inside = [(s, u) for s, u in mine if number <= s * BINS < number + 1 or (s == 1 and number == BINS - 1)]
                if inside:
                    mean = sum(s for s, _ in inside) / len(inside)
                    weight = len(inside) / len(mine)
                    gaps["LaECE"] += weight * abs(mean - sum(u for _, u in inside) / len(inside))
                    gaps["D-ECE"] += weight * abs(mean - sum(u > 0 for _, u in inside) / len(inside))
            for name, gap in gaps.items():
                errors[name].append(gap)
            errors["LaACE"].append(sum(abs(s - u) for s, u in mine) / len(mine))
        least = []
        for threshold in [2.0, *sorted({s for s, _ in mine}, reverse=True)]:
            above = [u for s, u in mine if s >= threshold]
            true = [u for u in above if u > 0]
            wrong = len(above) - len(true) + objects - len(true)
            least.append((sum((1 - u) / (1 - tau) for u in true) + wrong) / (len(true) + wrong))
        errors["LRP"].append(least[-1])
        errors["oLRP"].append(min(least))
    return {name: 100 * sum(of_all) / len(of_all) if of_all else None for name, of_all in errors.items()}


def test_the_errors_of_four_detections_are_those_computed_by_hand(tmp_path: Path) -> None:
    scene = [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 100, 100], "area": 1e4, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [200, 0, 100, 100], "area": 1e4, "iscrowd": 0},
    ]
    data, _ = write(tmp_path, scene, num_images=1)
    found = [
        (1, 2, [0, 0, 100, 60], 0.9),  # u 0.6
        (1, 2, [200, 0, 100, 80], 0.7),  # u 0.8
        (1, 2, [0, 0, 100, 100], 0.69),  # of the bin of 0.7; its object is taken
        (1, 2, [300, 300, 50, 50], 0.3),
    ]
    assert calibration(data, table(found)) == pytest.approx(
        {
            "LaECE": 100 * (0.3 + abs(-0.1 + 0.69) + 0.3) / 4,
            "LaACE": 100 * (0.3 + 0.1 + 0.69 + 0.3) / 4,
            "D-ECE": 100 * (0.1 + abs(-0.3 + 0.69) + 0.3) / 4,
            "LRP": 100 * ((0.4 + 0.2) / 0.5 + 2) / 4,
            "oLRP": 100 * (0.4 + 0.2) / 0.5 / 2,  # of the first two alone
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("seed", range(4))
def test_errors_are_those_of_loops_over_detections(tmp_path: Path, seed: int) -> None:
    annotations, rows = random_scene(seed)
    data, _ = write(tmp_path, annotations, num_images=8)
    ours = outcomes(data, table(rows))
    assert len(set(ours.scores.tolist())) < len(ours.scores)  # ties, between which no threshold lies
    assert calibration_errors(ours) == pytest.approx(by_loops(ours), abs=1e-9)
    # Scores of all values, the ends included.
    spread = replace(ours, scores=np.random.default_rng(seed).random(len(ours.scores)))
    spread.scores[:2] = 0.0, 1.0
    assert calibration_errors(spread) == pytest.approx(by_loops(spread), abs=1e-9)


def test_d_ece_of_one_class_is_netcals() -> None:
    metrics = pytest.importorskip("netcal.metrics")
    generator = np.random.default_rng(0)
    scores, true = generator.random(500), generator.random(500) < 0.4
    found = fates([(0, score, 0.75 * is_true) for score, is_true in zip(scores, true, strict=True)], [300])
    theirs = metrics.ECE(BINS, detection=True).measure(scores, true.astype(int))
    assert calibration_errors(found)["D-ECE"] == pytest.approx(100 * theirs, abs=1e-9)


def test_categories_count_alike_and_those_without_an_object_do_not_count() -> None:
    alone = calibration_errors(fates([(0, 0.9, 0.6), (0, 0.5, 0.0)], [2]))
    others = [(1, 0.8, 0.0), (2, 0.4, 1.0)]
    together = calibration_errors(fates([(0, 0.9, 0.6), (0, 0.5, 0.0), *others], [2, 0, 1]))
    third = calibration_errors(fates([(0, 0.4, 1.0)], [1]))
    assert together == pytest.approx({name: (alone[name] + third[name]) / 2 for name in CALIBRATION})  # type: ignore[operator]


def test_a_category_without_a_detection_is_missed_and_has_no_score_to_judge() -> None:
    errors = calibration_errors(fates([(0, 0.9, 0.6)], [1, 5]))
    assert errors == pytest.approx(
        {"LaECE": 30.0, "LaACE": 30.0, "D-ECE": 10.0, "LRP": (80 + 100) / 2, "oLRP": (80 + 100) / 2}
    )


def test_no_detection_leaves_scores_unjudged_and_every_object_missed(tmp_path: Path) -> None:
    scene = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "area": 81.0, "iscrowd": 0}]
    data, _ = write(tmp_path, scene, num_images=1)
    errors = calibration(data, table([]))
    assert tuple(errors) == CALIBRATION
    assert errors == {"LaECE": None, "LaACE": None, "D-ECE": None, "LRP": 100.0, "oLRP": 100.0}


@pytest.mark.parametrize("crowd", [None, 1])
def test_without_an_object_to_find_there_is_nothing_to_measure(tmp_path: Path, crowd: int | None) -> None:
    scene = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "area": 81.0, "iscrowd": 1}]
    data, _ = write(tmp_path, scene if crowd else [], num_images=2)
    assert calibration(data, table([(1, 2, [0, 0, 9, 9], 0.5)])) == dict.fromkeys(CALIBRATION)


def test_scores_that_are_no_probabilities_have_no_calibration_and_an_lrp() -> None:
    rows = [(0, 0.9, 0.6), (0, 0.5, 0.0)]
    scaled = calibration_errors(fates([(label, 10 * score - 6, iou) for label, score, iou in rows], [2]))
    assert [scaled[name] for name in CALIBRATION[:3]] == [None] * 3
    assert [scaled[name] for name in CALIBRATION[3:]] == [
        calibration_errors(fates(rows, [2]))[name] for name in CALIBRATION[3:]
    ]


def test_no_threshold_lies_between_equal_scores() -> None:
    # By hand: without its equal the first would reach 0.2/0.5 = 0.4; with it (0.4 + 1) / 2.
    errors = calibration_errors(fates([(0, 0.5, 0.8), (0, 0.5, 0.0)], [1]))
    assert errors["oLRP"] == pytest.approx(70.0)


@pytest.mark.parametrize("split", [1, 4])
def test_detections_of_two_shards_give_the_numbers_of_one(tmp_path: Path, split: int) -> None:
    annotations, rows = random_scene(3)
    data, _ = write(tmp_path, annotations, num_images=8)
    found = table(rows)
    whole = DetectionTable.concatenate([found])
    shards = [found.take(found.image_ids > split), found.take(found.image_ids <= split)]
    assert calibration(data, DetectionTable.concatenate(shards)) == calibration(data, whole)


def test_a_reliability_diagram_counts_the_detections_of_all_classes_by_score() -> None:
    bins = reliability(fates([(0, 0.9, 0.6), (1, 0.91, 0.0), (0, 1.0, 0.8), (2, 0.0, 0.0)], [1, 1, 0]))
    assert bins.counts.tolist() == [1] + [0] * 21 + [2, 0, 1]
    assert bins.scores[[0, 22, 24]].tolist() == pytest.approx([0.0, 0.905, 1.0])
    assert bins.ious[[0, 22, 24]].tolist() == pytest.approx([0.0, 0.3, 0.8])
    assert bins.precision[[0, 22, 24]].tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert np.isnan(bins.ious[1:22]).all() and np.isnan(bins.scores[23]) and np.isnan(bins.precision[23])
