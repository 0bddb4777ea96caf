"""SimOTA: how many anchors a box takes, and which; costs are worked out by hand beside them."""

import math

import pytest
import torch

from model.assignment import costs, sim_ota
from model.assignment.samples import INVALID, NEGATIVE, Predicted
from model.network.anchors import STRIDES, cell_centers, valid_anchors
from model.network.overlaps import pairwise_iou
from tests.scenes import Box, Scene, drawn, hand_made, own_numbers

BOX: Box = (0, 0, 40, 40)  # its centre is (20, 20)
HALF: Box = (0, 0, 40, 20)
FIFTH: Box = (0, 0, 40, 8)
MISS: Box = (200, 200, 210, 210)


def around(x: float, y: float) -> Box:
    return (x - 16, y - 16, x + 16, y + 16)


def assigned(scene: Scene, *, top_k: int = 10, radius: float = 1.0, iou_weight: float = 3.0) -> torch.Tensor:
    return sim_ota.sim_ota(
        scene.grid,
        scene.padded_sizes,
        scene.truth,
        scene.predicted,
        top_k=top_k,
        radius=radius,
        iou_weight=iou_weight,
    )


def taken(scene: Scene, **settings: float) -> list[int]:
    found: list[int] = assigned(scene, **settings)[0].tolist()  # type: ignore[arg-type]
    return found


NEAR = [around(20, 20), around(24, 20), around(20, 24), around(16, 20)]  # less than 8 pixels from the centre


def test_a_box_takes_as_many_anchors_as_its_ious_add_up_to() -> None:
    logits = [[0.0]] * 4
    assert taken(hand_made(NEAR, [BOX], [HALF, BOX, HALF, MISS], logits)) == [0, 0, NEGATIVE, NEGATIVE]  # 2
    # 0.5 + 1 + 0.2 = 1.7; one whole anchor
    assert taken(hand_made(NEAR, [BOX], [HALF, BOX, FIFTH, MISS], logits)) == [NEGATIVE, 0, NEGATIVE, NEGATIVE]
    # The best two alone add up to 2; of the equal ones the first is taken.
    assert taken(hand_made(NEAR, [BOX], [BOX] * 4, logits), top_k=2) == [0, 0, NEGATIVE, NEGATIVE]


def test_a_box_that_no_prediction_meets_takes_its_cheapest_anchor() -> None:
    scene = hand_made(NEAR, [BOX], [MISS] * 4, [[0.0], [0.0], [0.5], [0.0]])
    assert taken(scene) == [NEGATIVE, NEGATIVE, 0, NEGATIVE]


def test_the_class_cost_looks_at_the_other_classes_as_well() -> None:
    # ln 2 twice = 1.386; ln(1 + e^-2) + ln(1 + e^3) = 0.127 + 3.049: more, although the own class is surer
    scene = hand_made(NEAR[:2], [BOX], [FIFTH, FIFTH], [[0.0, 0.0], [2.0, 3.0]])
    assert taken(scene) == [0, NEGATIVE]
    # as class 1: ln(1 + e^-3) + ln(1 + e^2) = 0.049 + 2.127
    scene = hand_made(NEAR[:2], [BOX], [FIFTH, FIFTH], [[0.0, 0.0], [2.0, 3.0]], labels=[1])
    assert taken(scene) == [0, NEGATIVE]
    scene = hand_made(NEAR[:2], [BOX], [FIFTH, FIFTH], [[0.0, 0.0], [-2.0, 3.0]], labels=[1])  # 0.127 + 0.049
    assert taken(scene) == [NEGATIVE, 0]


def test_the_weight_decides_between_class_and_iou() -> None:
    # IoU 0.5 at logit 2: 0.127 + w * 0.693; IoU 0.8 at logit -1: 1.313 + w * 0.223; equal at w = 2.52
    scene = hand_made(NEAR[:2], [BOX], [HALF, (0, 0, 40, 32)], [[2.0], [-1.0]])
    assert taken(scene, iou_weight=3.0) == [NEGATIVE, 0]
    assert taken(scene, iou_weight=2.0) == [0, NEGATIVE]


def test_anchors_in_the_box_and_near_its_centre_come_before_all_others() -> None:
    anchors = [around(36, 20), around(20, 20), around(100, 100)]  # in the box but far; near; neither
    scene = hand_made(anchors, [BOX], [BOX, FIFTH, BOX], [[9.0], [-9.0], [9.0]])
    assert taken(scene) == [NEGATIVE, 0, NEGATIVE]  # IoUs of 1 + 0.2: one anchor
    scene = hand_made(anchors, [BOX], [BOX, BOX, BOX], [[-9.0], [-9.0], [9.0]])
    assert taken(scene) == [0, 0, NEGATIVE]  # two, of which only one is near; the third is no candidate
    assert taken(scene, radius=20.0) == [0, 0, 0]  # 160 pixels are near: three IoUs of 1


def test_an_anchor_near_the_centre_of_a_small_box_is_a_candidate_outside_of_it() -> None:
    small: Box = (18, 18, 19, 19)
    scene = hand_made([around(20, 20), around(32, 20)], [small], [small, small], [[0.0], [0.0]])
    assert taken(scene) == [0, NEGATIVE]  # 1.5 and 13.5 pixels from the centre; 8 are near


def test_candidates_of_other_boxes_count_as_well() -> None:
    # The second anchor lies in the other box alone. The first box has IoU 1 with both, and takes both; the other wants
    # the first anchor, as all cost it the same, but has to pay more.
    other: Box = (100, 0, 140, 40)
    scene = hand_made([around(20, 20), around(110, 20)], [BOX, other], [BOX, BOX], [[0.0], [0.0]])
    assert taken(scene) == [0, 0]
    scene = hand_made([around(20, 20), around(110, 20)], [BOX], [BOX, BOX], [[0.0], [0.0]])
    assert taken(scene) == [0, NEGATIVE]


def test_of_several_boxes_the_cheapest_gets_an_anchor() -> None:
    wide: Box = (0, 0, 40, 44)
    scene = hand_made(NEAR[:1], [wide, BOX], [BOX], [[0.0]])  # IoU 0.91 and 1
    assert taken(scene) == [1]
    scene = hand_made(NEAR[:1], [BOX, wide], [BOX], [[0.0]])
    assert taken(scene) == [0]
    assert taken(hand_made(NEAR[:1], [BOX, BOX], [BOX], [[0.0]])) == [0]  # the first of equal ones
    assert taken(hand_made(NEAR[:1], [BOX, BOX], [BOX], [[0.0, 1.0]], labels=[0, 1])) == [1]
    assert taken(hand_made(NEAR[:1], [BOX, BOX], [BOX], [[0.0, -1.0]], labels=[0, 1])) == [0]


def test_only_boxes_with_area_take_anchors() -> None:
    scene = hand_made(NEAR[:2], [(20, 20, 20, 20), BOX, (20, 10, 20, 30)], [BOX, HALF], [[0.0], [0.0]])
    assert taken(scene) == [1, NEGATIVE]
    assert taken(hand_made(NEAR[:2], [(20, 20, 20, 20)], [BOX, HALF], [[0.0], [0.0]])) == [NEGATIVE] * 2
    # Nor do they make candidates for others: with two, the box would take both.
    scene = hand_made([NEAR[0], around(100, 100)], [BOX, (100, 100, 100, 100)], [BOX, BOX], [[0.0], [0.0]])
    assert taken(scene) == [0, NEGATIVE]


def test_extreme_logits_and_perfect_boxes_keep_the_order_of_costs() -> None:
    scene = hand_made(NEAR, [BOX], [BOX, BOX, BOX, BOX], [[200.0], [-200.0], [300.0], [100.0]])
    assert taken(scene) == [0] * 4
    # The costs at 100 to 300 are all 0, and the first is taken; at -200 it is 200.
    scene = hand_made(NEAR, [BOX], [FIFTH] * 4, [[-200.0], [200.0], [300.0], [-100.0]])
    assert taken(scene) == [NEGATIVE, 0, NEGATIVE, NEGATIVE]


def by_the_book(scene: Scene, *, top_k: int, radius: float, iou_weight: float) -> tuple[list[int], int, int]:
    """The rule for one image, box by box; how many anchors several boxes wanted, and how many one got that did not."""
    valid = valid_anchors(scene.grid, scene.padded_sizes)[0].tolist()
    centers = cell_centers(scene.grid).repeat_interleave(scene.grid.anchors_per_cell, dim=0).tolist()
    lengths = zip(STRIDES, scene.grid.level_lengths, strict=True)
    strides = [stride for stride, length in lengths for _ in range(length)]
    boxes, labels = scene.truth.boxes.tolist(), scene.truth.labels.tolist()
    iou = pairwise_iou(scene.truth.boxes, scene.predicted.boxes[0]).tolist()
    logits = scene.predicted.class_logits[0].double().tolist()

    def lies(place: int, box: list[float]) -> bool:
        (x, y), (left, top, right, bottom) = centers[place], box
        return left < x < right and top < y < bottom

    def region(place: int, box: list[float]) -> list[float]:
        x, y, reach = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, radius * strides[place]
        return [x - reach, y - reach, x + reach, y + reach]

    def cost(box: int, place: int) -> float:
        entropies = [math.log1p(math.exp(-x if k == labels[box] else x)) for k, x in enumerate(logits[place])]
        return sum(entropies) - iou_weight * math.log(iou[box][place] + 1e-7)

    candidates = [
        place
        for place in range(len(centers))
        if valid[place] and any(lies(place, box) or lies(place, region(place, box)) for box in boxes)
    ]
    keys: dict[tuple[int, int], tuple[bool, float, int]] = {}
    takers: dict[int, list[int]] = {}
    for number, box in enumerate(boxes):
        for place in candidates:
            both = lies(place, box) and lies(place, region(place, box))
            keys[number, place] = (not both, cost(number, place), number)
        best = sorted((iou[number][place] for place in candidates), reverse=True)[:top_k]
        cheapest = sorted(candidates, key=lambda place: keys[number, place][:2])
        for place in cheapest[: max(1, int(sum(best)))]:
            takers.setdefault(place, []).append(number)
    result = [NEGATIVE if usable else INVALID for usable in valid]
    for place, numbers in takers.items():
        all_boxes = [keys[number, place] for number in range(len(boxes))]
        result[place] = numbers[0] if len(numbers) == 1 else min(all_boxes)[2]
    wanted = [place for place, numbers in takers.items() if len(numbers) > 1]
    return result, len(wanted), sum(result[place] not in takers[place] for place in wanted)


COUNTS = (20, 0, 6, 30)


@pytest.mark.parametrize("seed", [5, 6])
def test_a_batch_is_assigned_as_its_images_one_by_one_by_the_book(seed: int) -> None:
    scene = drawn(COUNTS, seed=seed)
    settings = {"top_k": 10, "radius": 2.5, "iou_weight": 3.0}
    found = own_numbers(assigned(scene, **settings), COUNTS)  # type: ignore[arg-type]
    conflicts = 0
    for place in range(len(COUNTS)):
        expected, contested, _ = by_the_book(scene.images([place]), **settings)  # type: ignore[arg-type]
        assert found[place] == expected
        conflicts += contested
    assert conflicts > 3
    assert {NEGATIVE, INVALID, 0} <= {value for row in found for value in row}
    assert max(found[3]) > 19


def test_a_box_that_did_not_want_an_anchor_gets_it_where_others_fight_and_it_is_cheapest_there() -> None:
    # As in the released code: the third box is content with cheaper anchors.
    scene = drawn((30,), seed=2)
    expected, contested, strangers = by_the_book(scene, top_k=3, radius=2.5, iou_weight=3.0)
    assert (contested, strangers) == (3, 2)
    assert taken(scene, top_k=3, radius=2.5) == expected


def test_an_image_is_assigned_the_same_whatever_else_is_in_its_batch() -> None:
    scene = drawn(COUNTS)
    whole = own_numbers(assigned(scene, radius=2.5), COUNTS)
    order = [3, 1, 0, 2]
    turned = own_numbers(assigned(scene.images(order), radius=2.5), [COUNTS[place] for place in order])
    assert turned == [whole[place] for place in order]
    assert own_numbers(assigned(scene.images([2]), radius=2.5), [6]) == whole[2:3]
    assert torch.equal(assigned(scene.filled_up(9), radius=2.5), assigned(scene, radius=2.5))


@pytest.mark.parametrize("block", [1, 5000])
def test_boxes_are_assigned_the_same_however_many_are_handled_at_once(block: int, monkeypatch) -> None:
    scene = drawn(COUNTS)
    at_once = assigned(scene)
    monkeypatch.setattr(sim_ota, "BLOCK", block)
    monkeypatch.setattr(costs, "BLOCK", block)
    assert torch.equal(assigned(scene), at_once)


def test_float64_predictions_are_assigned_like_float32() -> None:
    scene = drawn(COUNTS)
    exact = Predicted(scene.predicted.boxes.double(), scene.predicted.class_logits.double())
    precise = Scene(scene.grid, scene.padded_sizes, scene.truth, exact)
    assert torch.equal(assigned(precise), assigned(scene))
