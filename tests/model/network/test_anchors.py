"""The anchor grid and the box coder; expected numbers are worked out by hand unless a test says otherwise."""

import math

import torch
from torch.testing import assert_close
from torchvision.ops import box_iou

from model.network.anchors import (
    MAX_LOG_SCALE,
    anchor_grid,
    base_anchors,
    clip,
    decode,
    deltas_of_edges,
    edge_distances,
    encode,
    level_sizes,
    valid_anchors,
)
from model.network.overlaps import aligned_iou, pairwise_iou


def random_boxes(count: int, seed: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 100
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)


def test_a_cell_has_three_ratios_times_three_scales() -> None:
    anchors = base_anchors(8)
    sides = anchors[:, 2:] - anchors[:, :2]
    by_hand = torch.tensor(
        [  # width, height; 32 * 2^(k/3) divided and multiplied by sqrt(ratio)
            [45.25483, 22.62742],
            [57.01752, 28.50876],
            [71.83757, 35.91878],
            [32.0, 32.0],
            [40.31747, 40.31747],
            [50.79683, 50.79683],
            [22.62742, 45.25483],
            [28.50876, 57.01752],
            [35.91878, 71.83757],
        ]
    )
    assert_close(sides, by_hand, atol=1e-4, rtol=0)
    assert_close(anchors[:, :2], -anchors[:, 2:], atol=0, rtol=0)


def test_anchors_run_by_level_row_column_and_anchor_and_have_no_half_cell_offset() -> None:
    grid = anchor_grid((64, 96))
    assert grid.level_sizes == ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))
    assert grid.level_lengths == [864, 216, 54, 18, 9]
    assert grid.boxes.shape == (1161, 4)
    on_p4_row_2_column_3 = 864 + 9 * (2 * 6 + 3)
    assert grid.boxes[on_p4_row_2_column_3 + 3].tolist() == [48 - 32, 32 - 32, 48 + 32, 32 + 32]
    assert grid.boxes[3].tolist() == [-16, -16, 16, 16]
    assert grid.boxes[9 * 13 + 3].tolist() == [8 - 16, 8 - 16, 8 + 16, 8 + 16]


def test_coarse_levels_halve_the_one_before_rounding_up() -> None:
    assert level_sizes((608, 1024)) == ((76, 128), (38, 64), (19, 32), (10, 16), (5, 8))


def test_anchors_are_valid_on_the_cells_of_the_images_own_padded_size() -> None:
    grid = anchor_grid((64, 96))
    valid = valid_anchors(grid, torch.tensor([[32, 64], [64, 96]]))
    assert [int(level.sum()) for level in valid[0].split(grid.level_lengths)] == [4 * 8 * 9, 2 * 4 * 9, 2 * 9, 9, 9]
    assert valid[1].all()
    p3 = valid[0, : grid.level_lengths[0]].view(8, 12, 9)
    assert p3[:4, :8].all() and not p3[4:].any() and not p3[:, 8:].any()


def test_deltas_are_shifts_in_anchor_sides_and_logs_of_ratios() -> None:
    anchor, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 25, 20]])
    assert_close(encode(anchor, box), torch.tensor([[1.0, 0.25, math.log(2), -math.log(2)]]))


def test_decoding_undoes_encoding() -> None:
    anchors, boxes = random_boxes(200, seed=1), random_boxes(200, seed=2)
    near = encode(anchors, boxes)[:, 2:].abs().amax(dim=1) < 4.1
    assert near.sum() > 150
    assert_close(decode(anchors, encode(anchors, boxes))[near], boxes[near], atol=2e-4, rtol=0)


def test_decoding_follows_no_factor_above_62_5() -> None:
    anchor = torch.tensor([[0.0, 0, 10, 10]])
    boxes = decode(anchor.expand(2, 4), torch.tensor([[0.0, 0, 9, -9], [0, 0, math.log(62.5), -math.log(62.5)]]))
    assert_close(boxes[0], torch.tensor([5 - 312.5, 5 - 0.08, 5 + 312.5, 5 + 0.08]), atol=1e-3, rtol=0)
    assert_close(boxes[1], boxes[0], atol=1e-3, rtol=0)


def test_no_gradient_flows_beyond_the_clamp() -> None:
    deltas = torch.tensor([[0.0, 0, 4.2, -4.2], [0.0, 0, 4.1, -4.1]], requires_grad=True)
    weights = torch.tensor([1.0, 2, 3, 4])
    (decode(torch.tensor([[0.0, 0, 10, 10]]).expand(2, 4), deltas) * weights).sum().backward()
    assert deltas.grad is not None
    assert deltas.grad[0, 2:].tolist() == [0, 0]
    assert (deltas.grad[1, 2:] != 0).all()


def test_boxes_are_cut_to_the_image() -> None:
    boxes = torch.tensor([[-5.0, -6, 700, 800], [10, 20, 30, 40], [90, 60, 95, 70]])
    assert clip(boxes, torch.tensor([50, 80])).tolist() == [[0, 0, 80, 50], [10, 20, 30, 40], [80, 50, 80, 50]]


def test_iou_matches_the_hand_calculation() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [5, 5, 5, 5]])
    anchors = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 2, 1]])
    assert_close(pairwise_iou(boxes, anchors), torch.tensor([[1 / 7, 1.0, 0.0, 0.5], [0, 0, 0, 0]]))


def test_iou_matches_torchvision() -> None:
    boxes, anchors = random_boxes(30, seed=3), random_boxes(40, seed=4)
    assert_close(pairwise_iou(boxes, anchors), box_iou(boxes, anchors))
    assert_close(aligned_iou(boxes, anchors[:30]), box_iou(boxes, anchors[:30]).diagonal())


def test_the_gradient_of_a_decoded_boxs_iou_is_that_of_finite_differences() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 20], [5, 5, 25, 15]], dtype=torch.float64)
    boxes = torch.tensor([[1.0, 2, 13, 18], [3, 4, 20, 16]], dtype=torch.float64)
    deltas = torch.tensor([[0.1, 0.0, 0.2, -0.1], [0.0, 0.1, -0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda moved: aligned_iou(decode(anchors, moved), boxes), [deltas])


def test_deltas_of_the_distances_to_a_boxs_edges_decode_to_the_box() -> None:
    anchors = torch.tensor([[0.0, 0, 32, 64], [10.0, 10, 20, 30]])
    boxes = torch.tensor([[4.0, 8, 40, 50], [2.0, 25, 13, 60]])  # the second's centre lies outside of its box
    distances = edge_distances(anchors, boxes)
    assert distances.tolist() == [[12, 24, 24, 18], [13, -5, -2, 40]]
    sides = anchors[:, 2:] - anchors[:, :2]
    assert_close(deltas_of_edges(distances, sides), encode(anchors, boxes))
    assert_close(decode(anchors, deltas_of_edges(distances / 8, sides / 8)), boxes)


def test_edges_that_meet_have_deltas_that_decoding_would_cut_off_anyway() -> None:
    deltas = deltas_of_edges(torch.zeros(1, 4), torch.tensor([[32.0, 64.0]]))
    assert_close(deltas, torch.tensor([[0.0, 0.0, -MAX_LOG_SCALE, -MAX_LOG_SCALE]]))
