"""Matrix NMS on boxes worked out by hand."""

import numpy as np
import pytest

from model.config import InferenceConfig
from model.inference.suppression.kinds import survivors
from tests.model.inference.suppression.references import THREE, crowd, ranked

LINEAR = InferenceConfig(suppression="matrix_linear")
GAUSSIAN = InferenceConfig(suppression="matrix_gaussian")


def test_a_box_is_lowered_by_the_worst_of_the_better_ones_less_what_those_suffer() -> None:
    found = survivors(ranked(THREE, [0.9, 0.8, 0.6]), LINEAR)
    assert found is not None
    # The third: the smaller of (1 - 0.5) / 1 by the first, and (1 - 0.625) / (1 - 0.8) by the second; 0.8 * (1 - 0.8).
    assert found.places.tolist() == [0, 2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3, 0.16], rel=1e-6)


def test_the_gaussian_decays_by_the_square_of_the_overlap() -> None:
    found = survivors(ranked(THREE, [0.9, 0.8, 0.6]), GAUSSIAN)
    assert found is not None
    # 0.6 * exp(-0.25 / 0.5), 0.8 * exp(-0.64 / 0.5)
    assert found.places.tolist() == [0, 2, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3639184, 0.2224298], rel=1e-6)


def test_what_lies_over_a_box_that_suffers_much_itself_is_spared() -> None:
    # The second overlaps the first by 0.8; the third the second by 0.25, and the first by 1 / 6.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 8, 10, 10], [0, 6, 10, 10]]
    found = survivors(ranked(boxes, [0.9, 0.8, 0.7, 0.6]), LINEAR)
    assert found is not None
    by_place = dict(zip(found.places.tolist(), found.scores.tolist(), strict=True))
    assert by_place[2] == pytest.approx(0.7 * (1 - 0.2))
    # By the first 1 - 0.4, by the second (1 - 0.2) / 0.2, by the third (1 - 0.5) / (1 - 0.2).
    assert by_place[3] == pytest.approx(0.6 * 0.6)


@pytest.mark.parametrize("config", [LINEAR, GAUSSIAN])
def test_equal_boxes_are_no_division_by_zero(config: InferenceConfig) -> None:
    found = survivors(ranked([THREE[0]] * 3, [0.9, 0.8, 0.7]), config)
    assert found is not None
    gaussian = np.exp(-2.0)
    expected = [0.9] if config is LINEAR else [0.9, 0.8 * gaussian, 0.7 * gaussian]  # (1 - 1) is not above the floor
    assert found.scores.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("limit", [1, 3, 10])
@pytest.mark.parametrize("kind", ["matrix_linear", "matrix_gaussian"])
def test_the_best_few_are_the_first_of_all(kind: str, limit: int) -> None:
    one = crowd(300, 3, seed=2)
    every = survivors(one, InferenceConfig(suppression=kind, max_detections=300))  # type: ignore[arg-type]
    few = survivors(one, InferenceConfig(suppression=kind, max_detections=limit))  # type: ignore[arg-type]
    assert every is not None and few is not None and len(every.places) > limit
    assert few.places.tolist() == every.places[:limit].tolist()
    assert few.scores.tolist() == every.scores[:limit].tolist()
