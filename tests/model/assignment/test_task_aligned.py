"""TOOD's task-aligned assignment: alignments and ties worked out by hand, and a batch against the paper's own loops."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.assignment import task_aligned as module
from model.assignment.samples import INVALID, NEGATIVE, Assignment, GroundTruth, Predicted
from model.assignment.task_aligned import task_aligned
from model.network.anchors import AnchorGrid, anchor_grid, cell_centers, valid_anchors
from model.network.overlaps import pairwise_iou
from tests.assignments import (
    COUNTS,
    SIZES,
    Box,
    of_one_image,
    one_row,
    random_predicted,
    random_truth,
    said,
    truth,
)

BOX = (0, 0, 32, 8)
CELLS = one_row(*((8 * column, 0, 8 * column + 8, 8) for column in range(4)))
"""Four cells whose centres all lie in the box."""


def assigned_to(boxes: list[Box], predicted: Predicted, top_k: int = 13, alpha: float = 1.0, beta: float = 2.0):
    return task_aligned(CELLS, torch.tensor([[8, 32]]), truth(boxes), predicted, top_k=top_k, alpha=alpha, beta=beta)


def of_iou(*ious: float) -> list[Box]:
    """Predictions with such IoUs with the box."""
    return [(0, 0, 32 * iou, 8) for iou in ious]


def test_candidates_are_the_best_aligned_and_the_best_of_them_gets_the_largest_iou_of_its_box() -> None:
    predicted = said(of_iou(0.5, 0.25, 0.75, 0.125), [0.8, 0.8, 0.2, 0.8])
    # s * u^2: 0.2, 0.05, 0.1125, 0.0125
    found = assigned_to([BOX], predicted, top_k=2)
    assert found.assigned[0].tolist() == [0, NEGATIVE, 0, NEGATIVE]
    assert found.alignment is not None
    # Divided by 0.2, and times 0.75, although that is the IoU of another one.
    assert_close(found.alignment, torch.tensor([[0.75, 0.0, 0.1125 / 0.2 * 0.75, 0.0]]))
    by_class = assigned_to([BOX], predicted, top_k=3, beta=0.0)
    assert by_class.assigned[0].tolist() == [0, 0, NEGATIVE, 0]
    by_iou = assigned_to([BOX], predicted, top_k=1, alpha=0.0)
    assert by_iou.assigned[0].tolist() == [NEGATIVE, NEGATIVE, 0, NEGATIVE]


def test_of_equally_aligned_anchors_the_first_are_candidates() -> None:
    assert assigned_to([BOX], said(of_iou(*[0.5] * 4), [0.5] * 4), top_k=3).assigned[0].tolist() == [0, 0, 0, NEGATIVE]


def test_what_misses_the_box_is_no_candidate_however_few_there_are() -> None:
    found = assigned_to([BOX], said([(0, 0, 16, 8), *[(900, 900, 910, 910)] * 3], [0.5] * 4))
    assert found.assigned[0].tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_the_best_aligned_anchors_count_as_candidates_even_where_their_centres_lie_outside() -> None:
    left = (0, 0, 16, 8)  # the box of the first two cells; the others predict it better
    found = assigned_to([left], said([(0, 0, 8, 8), (0, 0, 8, 8), left, left], [0.5] * 4), top_k=3)
    assert found.assigned[0].tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE]


def test_of_several_boxes_an_anchor_learns_the_one_that_its_prediction_overlaps_most() -> None:
    small, large = (0, 0, 16, 8), BOX
    predicted = said([(0, 0, 20, 8), (0, 0, 28, 8), (0, 0, 30, 8), (900, 900, 901, 901)], [0.5] * 4)
    # IoU with small: 0.8, 0.571, 0.533; with large: 0.625, 0.875, 0.9375
    found = assigned_to([small, large], predicted)
    assert found.assigned[0].tolist() == [0, 1, 1, NEGATIVE]
    assert found.alignment is not None
    # The second was a candidate of the small box, too, whose scale it does not change.
    assert_close(found.alignment[0], torch.tensor([0.8, 0.875**2 / 0.9375**2 * 0.9375, 0.9375, 0.0]))
    assert assigned_to([large, large], predicted).assigned[0].tolist() == [0, 0, 0, NEGATIVE]


def test_the_class_of_the_box_decides_whose_score_counts() -> None:
    logits = torch.tensor([[[2.0, -2.0], [-2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]])
    predicted = Predicted(torch.tensor([of_iou(*[0.5] * 4)]), logits)
    given = GroundTruth(torch.tensor([BOX, BOX]).float(), torch.tensor([0, 1]), torch.tensor([0, 0]))
    found = task_aligned(CELLS, torch.tensor([[8, 32]]), given, predicted, top_k=1, alpha=1.0, beta=6.0)
    assert found.assigned[0].tolist() == [0, 1, NEGATIVE, NEGATIVE]


def by_the_book(
    grid: AnchorGrid, boxes: Tensor, labels: Tensor, size: Tensor, predicted: Tensor, logits: Tensor, top_k: int
) -> tuple[list[int], list[float]]:
    """What each anchor of one image learns and how well it is aligned, box by box and anchor by anchor."""
    valid = valid_anchors(grid, size[None])[0].tolist()
    centers = cell_centers(grid).repeat_interleave(9, dim=0).tolist()
    iou, scores = pairwise_iou(boxes, predicted), logits.sigmoid()
    best: dict[int, tuple[float, int]] = {}
    metric = [(scores[:, label] ** 1.0 * iou[place] ** 6.0).tolist() for place, label in enumerate(labels.tolist())]
    for place, (left, top, right, bottom) in enumerate(boxes.tolist()):
        usable = [anchor for anchor in range(len(valid)) if valid[anchor] and metric[place][anchor] > 0]
        for anchor in sorted(usable, key=lambda anchor: (-metric[place][anchor], anchor))[:top_k]:
            x, y = centers[anchor]
            value = float(iou[place, anchor])
            inside = min(x - left, y - top, right - x, bottom - y) > 0.01
            if inside and value > best.get(anchor, (-1.0,))[0]:
                best[anchor] = (value, place)
    aligned = [0.0] * len(valid)
    for place in range(len(boxes)):
        mine = [anchor for anchor, (_, choice) in best.items() if choice == place]
        for anchor in mine:
            largest, overlap = max(metric[place][a] for a in mine), max(float(iou[place, a]) for a in mine)
            aligned[anchor] = metric[place][anchor] / largest * overlap
    choices = [best[anchor][1] if anchor in best else NEGATIVE for anchor in range(len(valid))]
    return [choice if usable else INVALID for choice, usable in zip(choices, valid, strict=True)], aligned


def random_batch() -> tuple[AnchorGrid, GroundTruth, Predicted]:
    generator, grid = torch.Generator().manual_seed(6), anchor_grid((64, 96))
    return grid, random_truth(generator), random_predicted(generator, grid)


@pytest.mark.parametrize("top_k", [13, 100_000])
def test_a_batch_is_assigned_as_its_images_one_by_one_by_the_book(top_k: int) -> None:
    grid, given, predicted = random_batch()
    found = task_aligned(grid, SIZES, given, predicted, top_k=top_k, alpha=1.0, beta=6.0)
    assert found.alignment is not None
    for place in range(len(COUNTS)):
        boxes, labels, first = of_one_image(given, place)
        assigned, aligned = by_the_book(
            grid, boxes, labels, SIZES[place], predicted.boxes[place], predicted.class_logits[place], top_k
        )
        assert [value - first if value >= 0 else value for value in found.assigned[place].tolist()] == assigned
        assert_close(found.alignment[place], torch.tensor(aligned), rtol=1e-5, atol=1e-7)
    assert int((found.assigned >= 0).sum()) > 50


def test_boxes_are_compared_a_few_at_once_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, given, predicted = random_batch()

    def found() -> Assignment:
        return task_aligned(grid, SIZES, given, predicted, top_k=13, alpha=1.0, beta=6.0)

    whole = found()
    monkeypatch.setattr(module, "AT_ONCE", 3)
    parts = found()
    assert torch.equal(whole.assigned, parts.assigned)
    assert_close(whole.alignment, parts.alignment)
