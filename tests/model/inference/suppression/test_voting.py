"""Box voting on boxes worked out by hand."""

import numpy as np
import pytest

from model.config import InferenceConfig
from tests.model.inference.suppression.references import THREE, crowd, left, ranked

VOTING = InferenceConfig(suppression="voting")


def test_a_winner_moves_towards_what_it_drops() -> None:
    found = left(ranked(THREE, [0.9, 0.8, 0.6]), VOTING)
    assert found.places.tolist() == [0, 2]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    # 0.8 * exp(-0.2^2 / 0.025) = 0.1615172 is the weight of the second: (0.9 * 10 + 0.1615172 * 8) / 1.0615172.
    assert found.boxes[0].tolist() == pytest.approx([0, 0, 10, 9.695686], rel=1e-6)
    assert found.boxes[1].tolist() == THREE[2]


def test_what_two_winners_overlap_votes_for_the_better_one() -> None:
    boxes = [[0, 0, 10, 10], [0, 6, 10, 16], [0, 3, 10, 13]]  # IoUs 0.25; 0.538 of the last with both
    found = left(ranked(boxes, [0.9, 0.8, 0.7]), InferenceConfig(suppression="voting", suppression_sigma=1.0))
    assert found.places.tolist() == [0, 1]
    assert found.boxes[1].tolist() == boxes[1]
    assert 0.5 < found.boxes[0, 1] < 2


def test_boxes_behind_the_last_that_is_kept_still_vote() -> None:
    one = ranked([THREE[0], [50, 50, 60, 60], THREE[1]], [0.9, 0.85, 0.8])
    (box,) = left(one, InferenceConfig(suppression="voting", max_detections=1)).boxes
    assert box.tolist() == pytest.approx([0, 0, 10, 9.695686], rel=1e-6)


def test_a_narrow_vote_is_nms_with_its_own_boxes() -> None:
    one = crowd(200, 2, seed=4)
    found = left(one, InferenceConfig(suppression="voting", suppression_sigma=1e-12))
    assert np.array_equal(found.boxes, one.boxes[found.places])
    moved = left(one, VOTING)
    assert np.array_equal(moved.places, found.places) and not np.array_equal(moved.boxes, found.boxes)
