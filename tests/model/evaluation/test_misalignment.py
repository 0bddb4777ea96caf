"""How well scores say how well boxes are placed: by hand, and as scipy has it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from model.data.split import CocoData
from model.evaluation.coco.metrics import evaluate
from model.evaluation.misalignment import (
    STATISTICS,
    average_ranks,
    calibration_error,
    of_detections,
    rank_correlation,
    statistics,
)
from model.inference.table import DetectionTable
from tests.detections import random_scene, table, write
from tests.misalignments import dropped, misalignment

Box = tuple[float, float, float, float]
OBJECT = (100.0, 100.0, 100.0, 100.0)


def one_object(root: Path, num_images: int = 1) -> CocoData:
    annotation = {"id": 1, "image_id": 1, "category_id": 2, "bbox": OBJECT, "area": 1e4, "iscrowd": 0}
    return write(root, [annotation], num_images)[0]


def with_ious(found: DetectionTable, ious: list[float]) -> DetectionTable:
    return replace(found, ious=np.array(ious, np.float32))


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert average_ranks(np.array([0.5, 0.1, 0.5, 0.9], np.float32)).tolist() == [2.5, 1.0, 2.5, 4.0]


def test_rank_correlation_with_ties_is_that_of_a_hand_calculation() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.1], np.float32)  # ranks 4, 2.5, 2.5, 1: from their mean 1.5, 0, 0, -1.5
    ious = np.array([0.7, 0.8, 0.2, 0.2], np.float32)  # ranks 3, 4, 1.5, 1.5: 0.5, 1.5, -1, -1
    assert rank_correlation(scores, ious) == pytest.approx(2.25 / np.sqrt(4.5 * 4.5))


@pytest.mark.parametrize("levels", [4, 50, 10**6])
def test_rank_correlation_is_that_of_scipy(levels: int) -> None:
    generator = np.random.default_rng(levels)
    first, noise = ((generator.integers(0, levels, 2000) / levels).astype(np.float32) for _ in range(2))
    second = first + noise
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    np.testing.assert_array_equal(average_ranks(first), rankdata(first))


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.5]])
def test_no_rank_correlation_exists_of_less_than_two_different_scores(scores: list[float]) -> None:
    assert rank_correlation(np.array(scores, np.float32), np.linspace(0, 1, len(scores), dtype=np.float32)) is None


def test_calibration_error_is_that_of_a_hand_calculation() -> None:
    scores = np.array([0.75, 0.78125, 0.25, 1.0, 0.9375], np.float32)
    ious = np.array([0.5, 1.0, 0.5, 0.75, 1.0], np.float32)
    # Bin 0.7 to 0.8: |1.53125 - 1.5|; bin 0.2 to 0.3: 0.25; the last bin, which 1 belongs to: |1.9375 - 1.75|.
    assert calibration_error(scores, ious) == pytest.approx(100 * (0.03125 + 0.25 + 0.1875) / 5)


def test_a_score_that_is_the_iou_is_calibrated_and_ranks_perfectly() -> None:
    ious = np.linspace(0, 1, 101, dtype=np.float32)
    assert calibration_error(ious, ious) == 0.0
    assert rank_correlation(ious, ious) == pytest.approx(1.0)
    assert calibration_error(ious[:0], ious[:0]) is None


def test_the_oracle_puts_the_best_placed_box_first(tmp_path: Path) -> None:
    data = one_object(tmp_path)
    # The better box comes second: precision 1/2 from its thresholds on, 1 at those that the first one reaches as well.
    found = with_ious(
        table([(1, 2, (100.0, 100.0, 100.0, 62.0), 0.9), (1, 2, (100.0, 100.0, 100.0, 92.0), 0.8)]), [0.62, 0.92]
    )
    assert evaluate(data, found)["AP"] == pytest.approx(100 * (3 * 1 + 6 * 0.5) / 10)  # 0.50, 0.55, 0.60; 0.65 ... 0.90
    said = of_detections(data, found)
    assert said["oracle_AP"] == pytest.approx(100 * 9 / 10)
    assert said["rank_correlation"] == pytest.approx(-1.0)


def test_badly_placed_boxes_do_not_count_where_well_placed_ones_are_ranked(tmp_path: Path) -> None:
    rows = [(1, 2, OBJECT, score) for score in (0.9, 0.8, 0.7, 0.6)]
    said = of_detections(one_object(tmp_path), with_ious(table(rows), [0.5, 0.7, 0.6, 0.49]))
    assert said["rank_correlation_well_placed"] == pytest.approx(1 - 6 * 6 / 24)  # ranks 1, 3, 2 against 3, 2, 1
    assert said["rank_correlation"] == pytest.approx(1 - 6 * 6 / 60)  # ranks 2, 4, 3, 1 against 4, 3, 2, 1


def test_what_nms_dropped_is_counted_by_image_and_by_object(tmp_path: Path) -> None:
    data = one_object(tmp_path, num_images=4)
    counted = misalignment((1, 3, 0, 4), dropped([0, 0, 5], [2, 1, 3]), table([(1, 2, OBJECT, 1.0)]))
    said = statistics(data, with_ious(table([(1, 2, OBJECT, 0.3)]), [1.0]), counted)
    assert tuple(said) == STATISTICS
    assert said["dropped_better"] == 6 / 4
    assert said["objects_lost"] == 100 * 2 / 8
    assert said["oracle_nms_AP"] == pytest.approx(100.0)
    assert said["rank_correlation"] is None


def test_images_without_objects_have_no_share_of_lost_ones(tmp_path: Path) -> None:
    data = write(tmp_path, [], num_images=2)[0]
    said = statistics(data, table([(1, 2, OBJECT, 0.3), (2, 2, OBJECT, 0.2)]), misalignment((0, 0)))
    assert said["objects_lost"] is None and said["oracle_AP"] is None and said["dropped_better"] == 0
    nothing = statistics(data, table([]), misalignment((0, 0)))
    assert nothing["ece"] is None and nothing["rank_correlation"] is None


@pytest.mark.parametrize("seed", range(3))
def test_the_true_ious_rank_random_boxes_better_than_random_scores(tmp_path: Path, seed: int) -> None:
    annotations, rows = random_scene(seed)
    data = write(tmp_path, annotations, num_images=8)[0]
    found = table(rows)
    ious = np.zeros(len(found), np.float32)
    for place, (image, category, box, _) in enumerate(rows):
        truths = [
            a["bbox"]
            for a in annotations
            if a["image_id"] == image and a["category_id"] == category and not a["iscrowd"]
        ]
        ious[place] = max((overlap(box, truth) for truth in truths), default=0.0)
    ours, oracle = evaluate(data, found)["AP50"], evaluate(data, replace(found, scores=ious))["AP50"]
    assert ours is not None and oracle is not None and oracle > ours


def overlap(a: list[float], b: list[float]) -> float:
    sides = [min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)
