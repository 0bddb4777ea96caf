"""PAA: which candidates of a box learn it; a judge is scikit-learn's Gaussian mixture, which the released code uses."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from model.assignment import costs, paa
from model.assignment.max_iou import max_iou
from model.assignment.samples import INVALID, NEGATIVE, GroundTruth, Predicted
from model.network.anchors import AnchorGrid, valid_anchors
from model.network.overlaps import pairwise_iou
from tests.scenes import Box, Scene, drawn, hand_made, own_numbers

BOX: Box = (0, 0, 40, 40)
ANCHOR: Box = (4, 4, 36, 36)  # IoU 0.64
COUNTS = (20, 0, 6, 30)


def assigned(scene: Scene, *, top_k: int = 9, iou: float = 0.1) -> torch.Tensor:
    return paa.paa(scene.grid, scene.padded_sizes, scene.truth, scene.predicted, top_k=top_k, iou=iou)


def costing(cost: float) -> Box:
    """A predicted box with a GIoU of 1 - cost with BOX: it covers so much less of it."""
    return (0, 0, 40, 40 * (1 - cost))


def with_costs(*values: float) -> Scene:
    """Candidates of one box that cost so much, from 4 on: alpha * -ln p, as p is e^(-16) or less."""
    count = len(values)
    return hand_made([ANCHOR] * count, [BOX], [BOX] * count, [[-value / paa.FOCAL_ALPHA] for value in values])


def learning(scene: Scene, **settings: float) -> list[int]:
    return (assigned(scene, **settings)[0] >= 0).nonzero()[:, 0].tolist()  # type: ignore[arg-type]


def test_a_box_is_learnt_up_to_the_most_probable_cost_of_the_cheaper_gaussian() -> None:
    # The cheap three are 4.1 on average, which is most probable; what costs more is background.
    assert learning(with_costs(4.0, 4.1, 4.2, 9.0, 9.5, 10.0)) == [0, 1]
    assert learning(with_costs(9.5, 4.2, 9.0, 4.0, 10.0, 4.1)) == [3, 5]
    # 4.12 on average: 4.1 is nearest to it
    assert learning(with_costs(4.0, 4.05, 4.1, 4.2, 4.25, 9.0, 9.5, 10.0)) == [0, 1, 2]


def test_candidates_of_equal_cost_are_treated_alike() -> None:
    assert learning(with_costs(5.0, 5.0, 5.0, 5.0)) == [0, 1, 2, 3]
    assert learning(with_costs(4.0, 9.0, 4.1, 9.5, 4.1, 4.2, 10.0)) == [0, 2, 4]


def test_a_single_candidate_learns_its_box_whatever_it_costs() -> None:
    assert learning(hand_made([ANCHOR], [BOX], [(500, 500, 501, 501)], [[-50.0]])) == [0]


def test_the_class_decides_where_boxes_lie_equally_well() -> None:
    logits = [[-3.0], [3.0], [3.0], [-3.0]]
    assert learning(hand_made([ANCHOR] * 4, [BOX], [BOX] * 4, logits)) == [1, 2]
    others = [[3.0, 3.0], [3.0, -3.0], [3.0, -3.0], [3.0, 3.0]]  # equally sure of the own class, not of the other
    assert learning(hand_made([ANCHOR] * 4, [BOX], [BOX] * 4, others)) == [1, 2]
    assert learning(hand_made([ANCHOR] * 4, [BOX], [BOX] * 4, others, labels=[1])) == [0, 3]


def test_an_anchor_costs_focal_loss_plus_one_minus_giou() -> None:
    scene = hand_made([ANCHOR] * 2, [BOX], [costing(0.5), BOX], [[0.0, 0.0], [math.log(3), -math.log(3)]])
    found = paa._costs(scene.predicted, scene.truth, torch.zeros(1, 2, dtype=torch.int64))
    # p = 1/2 of both classes: (0.25 + 0.75) * 0.5^2 * ln 2; p = 3/4 and 1/4: (0.25 + 0.75) * 0.25^2 * ln 4/3
    by_hand = torch.tensor([[0.25 * math.log(2) + 0.5, 0.0625 * math.log(4 / 3)]])
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=0)


def test_only_anchors_that_reach_the_iou_are_candidates_but_for_the_best() -> None:
    far: Box = (30, 30, 62, 62)  # IoU 0.0396 with the box
    scene = hand_made([ANCHOR, far], [BOX], [costing(0.5), BOX], [[0.0], [0.0]])
    assert learning(scene) == [0]
    assert learning(scene, iou=0.03) == [1]
    assert learning(hand_made([far, far], [BOX], [costing(0.5), BOX], [[0.0], [0.0]])) == [1]  # both are its best
    assert learning(hand_made([far], [BOX], [BOX], [[0.0]])) == [0]


def test_an_anchor_belongs_to_the_box_that_it_overlaps_most() -> None:
    lower: Box = (0, 14, 40, 54)  # IoU with the first anchor: 0.49
    scene = hand_made([ANCHOR, (4, 18, 36, 50)], [BOX, lower], [lower, lower], [[0.0], [0.0]])
    assert assigned(scene)[0].tolist() == [0, 1]  # although the first anchor's prediction is the other box


def levels(*values: Sequence[float]) -> Scene:
    """Candidates of one box with these costs on P3, P4, ..."""
    flat = [value for level in values for value in level]
    scene = with_costs(*flat)
    sizes = tuple((1, len(values[place])) if place < len(values) else (0, 0) for place in range(5))
    grid = AnchorGrid(scene.grid.boxes, sizes)
    return Scene(grid, torch.tensor([[8, 1000]]), scene.truth, scene.predicted)


def test_each_level_gives_its_cheapest_candidates() -> None:
    # The cheap ones are 4.12 on average.
    given = ([4.0, 4.05, 4.1, 4.2, 9.0], [4.25, 9.5, 10.0])
    assert learning(levels(*given)) == [0, 1, 2]
    # 4 and 4.05, 4.25 and 9.5: 4.1 on average are the cheap three
    assert learning(levels(*given), top_k=2) == [0, 1]
    assert learning(levels(*given), top_k=4) == [0, 1, 2]
    # Of equal ones the lower place, on each level
    assert learning(levels([5.0, 5.0, 5.0], [5.0, 5.0]), top_k=1) == [0, 3]


def test_only_boxes_with_area_take_part() -> None:
    scene = with_costs(4.0, 4.1, 4.2, 9.0, 9.5, 10.0)
    assert torch.equal(assigned(scene.filled_up(3)), assigned(scene))
    line = hand_made([ANCHOR, ANCHOR], [(20, 0, 20, 40)], [BOX, BOX], [[0.0], [0.0]])
    assert learning(line) == []


def test_an_image_is_assigned_the_same_whatever_else_is_in_its_batch() -> None:
    scene = drawn(COUNTS)
    whole = own_numbers(assigned(scene), COUNTS)
    order = [3, 1, 0, 2]
    turned = own_numbers(assigned(scene.images(order)), [COUNTS[place] for place in order])
    assert turned == [whole[place] for place in order]
    assert own_numbers(assigned(scene.images([2])), [6]) == whole[2:3]
    assert torch.equal(assigned(scene.filled_up(9)), assigned(scene))
    assert set(range(6)) <= set(whole[2])  # every box is learnt


@pytest.mark.parametrize("block", [7, 5000])
def test_anchors_are_assigned_the_same_however_much_is_handled_at_once(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = drawn(COUNTS)
    at_once = assigned(scene)
    monkeypatch.setattr(costs, "BLOCK", block)
    monkeypatch.setattr(paa, "BLOCK", block)
    assert torch.equal(assigned(scene), at_once)


@pytest.mark.parametrize("iou", [0.1, 0.4])
def test_anchors_belong_to_boxes_by_max_iou_assignment(iou: float) -> None:
    scene = drawn(COUNTS)
    # On a raster of 4 pixels many anchors tie.
    truth = GroundTruth((scene.truth.boxes / 4).round() * 4, scene.truth.labels, scene.truth.image_index)
    by_max_iou = max_iou(scene.grid, scene.padded_sizes, truth, positive_iou=iou, negative_iou=iou)
    valid = valid_anchors(scene.grid, scene.padded_sizes)
    assert torch.equal(paa._owners(scene.grid, valid, truth, iou).masked_fill(~valid, INVALID), by_max_iou)


def scikit_learns(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights, means and variances of the mixture that the released code fits; the cost up to which a box is learnt."""
    mixture = pytest.importorskip("sklearn.mixture").GaussianMixture
    rows = np.sort(values.astype(np.float64))[:, None]
    fitted = mixture(
        2, weights_init=[0.5, 0.5], means_init=[rows.min(0), rows.max(0)], precisions_init=[[[1.0]], [[1.0]]]
    ).fit(rows)
    cheaper = fitted.predict(rows) == 0
    most_probable = np.where(cheaper, fitted.score_samples(rows), -np.inf).argmax()
    limit = rows[most_probable, 0] if cheaper.any() else np.inf
    return np.stack([fitted.weights_, fitted.means_[:, 0], fitted.covariances_[:, 0, 0]]), limit


def test_mixtures_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    values, usable = np.zeros((80, 45), np.float32), np.zeros((80, 45), bool)
    for row in range(len(values)):
        count = generator.integers(2, 46)
        dear = generator.random(count) < generator.random()
        values[row, :count] = generator.gamma(2, 0.3, count) + dear * generator.random(count) * 3
        usable[row, :count] = True
        order = generator.permutation(45)
        values[row], usable[row] = values[row, order], usable[row, order]
    fitted = paa.fit_mixture(torch.from_numpy(values), torch.from_numpy(usable))
    limits = paa._highest_cost(torch.from_numpy(values), torch.from_numpy(usable))
    ours = torch.stack([fitted.weights, fitted.means, fitted.variances], dim=1).numpy()
    for row in range(len(values)):
        theirs, limit = scikit_learns(values[row][usable[row]])
        np.testing.assert_allclose(ours[row], theirs, atol=1e-9, rtol=1e-9)
        assert limits[row] == np.float32(limit)


def by_the_book(scene: Scene, *, top_k: int, iou: float) -> list[int]:
    """The rule for one image, box by box, with torchvision's losses."""
    valid = valid_anchors(scene.grid, scene.padded_sizes)[0]
    overlaps = pairwise_iou(scene.truth.boxes, scene.grid.boxes).masked_fill(~valid, -1.0)
    most, owner = overlaps.max(dim=0)
    owner[most < iou] = NEGATIVE
    for number, row in enumerate(overlaps):
        owner[row == row.max()] = number
    result = torch.where(valid, NEGATIVE, INVALID)
    predicted, logits = scene.predicted.boxes[0], scene.predicted.class_logits[0]
    for number, box in enumerate(scene.truth.boxes):
        target = torch.zeros_like(logits)
        target[:, scene.truth.labels[number]] = 1
        cost = sigmoid_focal_loss(logits, target).sum(dim=1) + generalized_box_iou_loss(
            box.expand_as(predicted), predicted
        )
        candidates = []
        for level in torch.arange(len(valid)).split(scene.grid.level_lengths):
            own = level[owner[level] == number]
            candidates += own[cost[own].argsort()[:top_k]].tolist()
        if candidates:
            limit = scikit_learns(cost[candidates].numpy())[1] if len(candidates) > 1 else np.inf
            result[[place for place in candidates if float(cost[place]) <= limit]] = number
    return result.tolist()


@pytest.mark.parametrize("seed", [5, 6])
def test_a_batch_is_assigned_as_its_images_one_by_one_by_the_book(seed: int) -> None:
    scene = drawn(COUNTS, seed=seed)
    found = own_numbers(assigned(scene), COUNTS)
    for place in range(len(COUNTS)):
        if COUNTS[place]:
            assert found[place] == by_the_book(scene.images([place]), top_k=9, iou=0.1)
    assert {NEGATIVE, INVALID, 0, 29} <= {value for row in found for value in row}


def test_float64_predictions_are_assigned_like_float32() -> None:
    scene = drawn(COUNTS)
    exact = Predicted(scene.predicted.boxes.double(), scene.predicted.class_logits.double())
    precise = Scene(scene.grid, scene.padded_sizes, scene.truth, exact)
    assert torch.equal(assigned(precise), assigned(scene))
