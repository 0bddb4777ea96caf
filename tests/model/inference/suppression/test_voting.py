"""Box voting and IoU-guided NMS on boxes worked out by hand."""

import numpy as np
import pytest

from model.config import InferenceConfig
from model.inference.suppression.kinds import Ranked, Survivors, survivors
from tests.model.inference.suppression.references import crowd, ranked

VOTING = InferenceConfig(suppression="voting")
GUIDED = InferenceConfig(suppression="iou_guided")
# IoUs: 0.8 of the first two, 0.5 of the first and the last, 0.625 of the last two.
THREE = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5]]


def left(one: Ranked, config: InferenceConfig) -> Survivors:
    found = survivors(one, config)
    assert found is not None
    return found


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


def test_the_most_confident_box_wins_and_takes_the_best_score() -> None:
    found = left(ranked(THREE, [0.9, 0.8, 0.6], confidences=[0.2, 0.9, 0.3]), GUIDED)
    assert found.places.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.9])
    # The last overlaps the winner by no more than 0.5, and wins next.
    found = left(ranked(THREE, [0.5, 0.8, 0.9], confidences=[0.9, 0.2, 0.3]), GUIDED)
    three = ranked(THREE, [0.5, 0.8, 0.9], confidences=[0.9, 0.2, 0.3])
    assert three.boxes[found.places].tolist() == [THREE[2], THREE[0]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])


def test_winners_that_the_limit_cuts_off_are_still_told_in_the_order_in_which_they_won() -> None:
    apart = [[0, 0, 5, 5], [10, 0, 15, 5], [20, 0, 25, 5]]
    one = ranked(apart, [0.9, 0.8, 0.6], confidences=[0.2, 0.9, 0.3])
    found = left(one, InferenceConfig(suppression="iou_guided", max_detections=2))
    assert found.places.tolist() == [0, 1]
    assert found.droppers.tolist() == [1, 2, 0]
    assert found.ranks.tolist() == pytest.approx([0.9, 0.3, 0.2])


def test_confidences_that_rank_as_the_scores_do_are_greedy_nms() -> None:
    one = crowd(200, 3, seed=6)
    one = ranked(one.boxes, one.scores, one.labels, one.scores)
    by_confidence, by_vote = left(one, GUIDED), left(one, VOTING)
    assert by_confidence.places.tolist() == by_vote.places.tolist()
    assert by_confidence.scores.tolist() == by_vote.scores.tolist()


def test_of_equal_confidences_the_lower_anchor_wins() -> None:
    found = left(ranked(THREE[:2], [0.3, 0.8]), GUIDED)
    # Sorted by score the second comes first, and yet the first wins.
    assert found.boxes.tolist() == [THREE[0]]
    assert found.scores.tolist() == pytest.approx([0.8])
