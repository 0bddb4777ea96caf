"""IoU-guided NMS on boxes worked out by hand."""

import pytest

from model.config import InferenceConfig
from tests.model.inference.suppression.references import THREE, crowd, left, ranked

GUIDED = InferenceConfig(suppression="iou_guided")


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
    by_confidence, by_vote = left(one, GUIDED), left(one, InferenceConfig(suppression="voting"))
    assert by_confidence.places.tolist() == by_vote.places.tolist()
    assert by_confidence.scores.tolist() == by_vote.scores.tolist()


def test_of_equal_confidences_the_lower_anchor_wins() -> None:
    found = left(ranked(THREE[:2], [0.3, 0.8]), GUIDED)
    # Sorted by score the second comes first, and yet the first wins.
    assert found.boxes.tolist() == [THREE[0]]
    assert found.scores.tolist() == pytest.approx([0.8])
