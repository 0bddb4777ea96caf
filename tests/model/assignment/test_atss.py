"""ATSS: candidates, thresholds and ties worked out by hand, and a batch against the algorithm's own loops."""

import torch
from torch import Tensor

from model.assignment.atss import atss
from model.assignment.samples import INVALID, NEGATIVE, GroundTruth
from model.network.anchors import AnchorGrid, anchor_grid, cell_centers, valid_anchors
from model.network.overlaps import pairwise_iou
from tests.assignments import COUNTS, SIZES, Box, of_one_image, one_row, random_truth, truth

BOX = (0, 0, 10, 10)


def about(x: float, y: float, side: float) -> Box:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def assigned_to(grid: AnchorGrid, *images: list[Box], top_k: int = 9) -> Tensor:
    size = torch.tensor([[8, 8 * len(grid.boxes)]]).expand(len(images), 2)
    return atss(grid, size, truth(*images), top_k=top_k)


def test_the_threshold_is_the_mean_and_the_standard_deviation_of_the_candidates() -> None:
    # IoU 1, 0.81, 0.16, 0.16: mean 0.5325, deviation sqrt(0.5873 / 3) = 0.4425, and of all four 0.3832.
    grid = one_row(*(about(5, 5, side) for side in (10, 9, 4, 4)))
    assert assigned_to(grid, [BOX])[0].tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE]
    # IoU 1, 0.9025, 0.16, 0.16: mean 0.5556, deviation 0.4585 with three degrees of freedom: nobody reaches 1.014.
    grid = one_row(*(about(5, 5, side) for side in (10, 9.5, 4, 4)))
    assert assigned_to(grid, [BOX])[0].tolist() == [NEGATIVE] * 4
    # IoU 0.25 for all: their deviation is 0, and all reach the mean.
    grid = one_row(*(about(5, 5, 5) for _ in range(3)))
    assert assigned_to(grid, [BOX])[0].tolist() == [0, 0, 0]


def test_candidates_are_the_nearest_cells_and_of_equally_near_ones_the_first() -> None:
    # Centres 6 and 2 left of the box's, on it, 2 right of it; all fit it equally well but the last, which is poor.
    grid = one_row(about(14, 5, 10), about(18, 5, 10), about(22, 5, 10), about(20, 5, 2))
    box = about(20, 5, 30)
    # The last is nearest and has the lower IoU, so that with one candidate it is the best there is.
    assert assigned_to(grid, [box], top_k=1)[0].tolist() == [NEGATIVE, NEGATIVE, NEGATIVE, 0]
    assert assigned_to(grid, [box], top_k=2)[0].tolist() == [NEGATIVE] * 4  # 1/9 and 1/225: mean 0.058, deviation 0.075
    tied = one_row(about(18, 5, 10), about(22, 5, 10), about(14, 5, 10))
    assert assigned_to(tied, [box], top_k=1)[0].tolist() == [0, NEGATIVE, NEGATIVE]
    assert assigned_to(tied, [box], top_k=2)[0].tolist() == [0, 0, NEGATIVE]


def test_an_anchor_whose_centre_is_not_inside_the_box_does_not_learn_it() -> None:
    edge, inside = about(10, 5, 10), about(9.5, 5, 10)
    assert assigned_to(one_row(edge), [BOX])[0].tolist() == [NEGATIVE]
    assert assigned_to(one_row(inside), [BOX])[0].tolist() == [0]


def test_of_several_boxes_an_anchor_learns_the_one_that_it_overlaps_most_and_the_first_of_equals() -> None:
    grid = one_row(about(5, 5, 10))
    near, far = about(5, 5, 9), about(5, 5, 20)  # IoU 0.81 and 0.25
    assert assigned_to(grid, [near, far], [far, near])[:, 0].tolist() == [0, 3]
    assert assigned_to(grid, [near, near])[0].tolist() == [0]


def test_cells_beyond_an_images_own_padding_are_no_candidates() -> None:
    grid = one_row(*(about(8 * column + 4, 4, 8) for column in range(4)))
    given = truth([(10, 0, 30, 8)], [(10, 0, 30, 8)])
    assigned = atss(grid, torch.tensor([[8, 32], [8, 16]]), given, top_k=1)
    # The third cell is nearest, but lies beyond the second image.
    assert assigned.tolist() == [[NEGATIVE, NEGATIVE, 0, NEGATIVE], [NEGATIVE, 1, INVALID, INVALID]]


def test_a_box_that_no_anchor_is_centred_in_is_learnt_by_none() -> None:
    grid = one_row(about(4, 4, 8), about(12, 4, 8))
    assert assigned_to(grid, [(900, 900, 910, 910)], [(5, 0, 7, 8)], [(6, 6, 6, 6)]).tolist() == [[NEGATIVE] * 2] * 3


def by_the_book(grid: AnchorGrid, boxes: Tensor, size: Tensor, top_k: int) -> list[int]:
    """Algorithm 1 of the paper for one image, box by box and level by level, with nine anchors a cell."""
    valid = valid_anchors(grid, size[None])[0]
    centers, iou = cell_centers(grid).double(), pairwise_iou(boxes, grid.boxes)
    best = [(-1.0, NEGATIVE)] * len(valid)
    for place, box in enumerate(boxes.double()):
        candidates, start = [], 0
        for height, width in grid.level_sizes:
            cells = [cell for cell in range(start, start + height * width) if valid[9 * cell]]
            start += height * width
            distance = {cell: float((centers[cell] - (box[:2] + box[2:]) / 2).square().sum()) for cell in cells}
            nearest = sorted(cells, key=lambda cell: (distance[cell], cell))[:top_k]
            candidates += [9 * cell + anchor for cell in nearest for anchor in range(9)]
        values = iou[place, candidates].double()
        threshold = values.mean() + values.std()
        for anchor, value in zip(candidates, values.tolist(), strict=True):
            x, y = centers[anchor // 9].tolist()
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if inside and value >= threshold and value > best[anchor][0]:
                best[anchor] = (value, place)
    return [choice if usable else INVALID for (_, choice), usable in zip(best, valid.tolist(), strict=True)]


def test_a_batch_is_assigned_as_its_images_one_by_one_by_the_book() -> None:
    grid, given = anchor_grid((64, 96)), random_truth(torch.Generator().manual_seed(5))
    for top_k in (9, 1, 1000):  # more than a level has cells
        assigned = atss(grid, SIZES, given, top_k=top_k)
        for place in range(len(COUNTS)):
            boxes, _, first = of_one_image(given, place)
            local = [value - first if value >= 0 else value for value in assigned[place].tolist()]
            assert local == by_the_book(grid, boxes, SIZES[place], top_k)
        assert {NEGATIVE, INVALID, 7} <= set(assigned.flatten().tolist()) and int(assigned.max()) > 7, top_k


def test_a_batch_without_boxes_is_all_background() -> None:
    none = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    grid = anchor_grid((64, 96))
    assigned = atss(grid, SIZES, none, top_k=9)
    assert torch.equal(assigned == NEGATIVE, valid_anchors(grid, SIZES))
    assert torch.equal(assigned == INVALID, ~valid_anchors(grid, SIZES))
