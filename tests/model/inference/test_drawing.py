"""Boxes on an image, checked pixel by pixel where the picture decides what they must be."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.inference.drawing import NUM_COLORS, Pen, _are_free, color_of, draw

GREY = (128, 128, 128)


def grey(width: int = 640, height: int = 512) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def row(image: Image.Image, y: int, left: int, right: int) -> set[tuple[int, int, int]]:
    return {tuple(pixel) for pixel in np.asarray(image)[y, left:right].tolist()}


def test_a_detection_is_a_solid_outline_in_the_colour_of_its_class() -> None:
    drawn = draw(grey(), [[100, 200, 300, 400]], ["cat"], [0.5])
    assert row(drawn, 200, 100, 301) == row(drawn, 400, 100, 301) == {color_of("cat")}
    assert row(drawn, 300, 150, 250) == {GREY}


def test_the_ground_truth_is_dashed() -> None:
    drawn = draw(grey(), np.zeros((0, 4)), [], truth=([[100, 200, 300, 400]], ["cat"]))
    assert row(drawn, 200, 100, 301) == {color_of("cat"), (255, 255, 255)}


def test_the_better_of_two_boxes_lies_on_top_in_whatever_order_they_come() -> None:
    boxes, labels, scores = torch.tensor([[100, 200, 300, 400], [200, 250, 500, 450]]), ["cat", "dog"], [0.9, 0.3]
    for order in ([0, 1], [1, 0]):
        drawn = draw(grey(), boxes[order], [labels[i] for i in order], torch.tensor(scores)[order])
        assert drawn.getpixel((300, 250)) == color_of("cat")


def test_a_small_image_is_enlarged_by_a_whole_factor_and_its_boxes_with_it() -> None:
    small = grey(200, 100)
    drawn = draw(small, [[10, 40, 150, 90]], ["cat"])
    assert drawn.size == (600, 300)  # 3 is the first whole factor that brings 200 to 512
    assert drawn.getpixel((300, 120)) == drawn.getpixel((450, 200)) == color_of("cat")
    assert small == grey(200, 100)


@pytest.mark.parametrize("box", [[0, 0, 640, 512], [0, 0, 5, 5], [630, 500, 640, 512], [50, 50, 50, 50], [9, 9, 3, 3]])
def test_a_label_stays_within_the_image_whole(box: list[float]) -> None:
    def letters(corners: list[float]) -> int:  # those of this label are white, and nothing else is
        return int((np.asarray(draw(grey(), [corners], ["bottle"], [1.0])) == 255).all(axis=2).sum())

    assert letters(box) == letters([300, 300, 340, 340]) > 20


def test_letters_stand_out_from_their_plate_in_every_colour() -> None:
    from model.inference.drawing import _readable_on

    def luminance(color: tuple[int, int, int]) -> float:  # WCAG 2.2
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    colors = {color_of(str(number)) for number in range(1000)}
    assert len(colors) == 45
    for color in colors:
        dark, light = sorted([luminance(color), luminance(_readable_on(color))])
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_grey_image_is_drawn_upon_in_colour() -> None:
    drawn = draw(Image.new("L", (640, 512), 128), [[100, 200, 300, 400]], ["cat"], [0.5])
    assert drawn.getpixel((200, 200)) == color_of("cat")


def test_boxes_without_their_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw(grey(), [[1, 2, 3, 4], [5, 6, 7, 8]], ["cat"], [0.5])


def crowd(count: int, width: int, height: int) -> list[tuple[float, float, float, float]]:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, (width - 40, height - 40), (count, 2))
    return [tuple(row) for row in np.hstack([corners, corners + generator.uniform(5, 40, (count, 2))]).tolist()]


@pytest.mark.parametrize("below", [False, True])
def test_no_label_of_a_crowd_covers_another_and_none_leaves_the_image(below: bool) -> None:
    boxes = crowd(60, 640, 480)
    plates = Pen(grey(640, 480), 60).tags([(box, f"fish {place}", (9, 9, 9), below) for place, box in enumerate(boxes)])
    placed = [plate for plate in plates if plate is not None]
    assert len(placed) == 60
    for place, (left, top, right, bottom) in enumerate(placed):
        assert 0 <= left < right <= 640 and 0 <= top < bottom <= 480
        for x1, y1, x2, y2 in placed[:place]:
            assert right <= x1 or x2 <= left or bottom <= y1 or y2 <= top


def test_the_best_label_stands_over_its_box_and_the_worst_is_left_out_where_there_is_no_room() -> None:
    box = (100.0, 200.0, 140.0, 230.0)
    plates = Pen(grey(), 1).tags([(box, "fish", (9, 9, 9), False)] * 300)
    assert plates[0] is not None and (plates[0][0], plates[0][3]) == (100, 200)
    assert plates[-1] is None
    drawn = draw(grey(), [box] * 2, ["cat", "dog"], [0.3, 0.9])
    assert drawn.getpixel((101, 198)) == color_of("dog")  # the better one, though it comes second


def test_spots_are_free_that_meet_no_plate_taken_one_by_one() -> None:
    generator = np.random.default_rng(0)
    for number in (0, 1, 40):
        corners = generator.integers(0, 60, (number, 2))
        taken = np.hstack([corners, corners + generator.integers(5, 20, (number, 2))]).astype(float)
        places = generator.integers(0, 70, (100, 2)).astype(float)
        one_by_one = [
            not any(x < right and x + 12 > left and y < bottom and y + 7 > top for left, top, right, bottom in taken)
            for x, y in places
        ]
        assert _are_free(places, (12, 7), taken).tolist() == one_by_one
    assert {True, False} == set(one_by_one)


def test_a_label_that_stands_off_has_a_line_to_its_box() -> None:
    canvas = grey()
    boxes = [(100.0, 200.0, 140.0, 230.0)] * 15
    plates = Pen(canvas, 1).tags([(box, "fish", (250, 0, 0), False) for box in boxes])
    off = [plate for plate in plates if plate and plate[3] < 200]
    assert off
    between = np.asarray(canvas)[int(max(plate[3] for plate in off)) : 199, 90:200]
    assert between.shape[0] == 0 or (between == (250, 0, 0)).all(axis=2).any()


def test_labels_of_many_boxes_are_smaller() -> None:
    assert Pen(grey(1024, 1024), 60).width_of("fish") < Pen(grey(1024, 1024), 5).width_of("fish")


def test_classes_that_are_known_have_different_colours() -> None:
    classes = [f"class {number}" for number in range(NUM_COLORS)]
    assert len({color_of(label) for label in classes}) < NUM_COLORS
    drawn = [draw(grey(), [[100, 200, 300, 400]], [label], classes=classes).getpixel((200, 400)) for label in classes]
    assert len(set(drawn)) == NUM_COLORS
    assert draw(grey(), [[100, 200, 300, 400]], ["cat"], classes=["cat"]).getpixel((200, 400)) == color_of("cat")


@pytest.mark.parametrize(("one", "other"), [("кот", "пёс"), ("γάτα", "ψάρι"), ("kočka", "koťka"), ("گربه", "سگها")])
def test_names_in_other_letters_are_written_in_them(one: str, other: str) -> None:
    def written(text: str) -> list[int]:
        pen = Pen(canvas := Image.new("RGB", (200, 60)))
        pen.text((0, 40, 200, 60), text, (250, 250, 250))
        return np.asarray(canvas).ravel().tolist()

    boxes = "\uffff" * len(one)  # letters that no font has are all one box
    assert written(one) != written(other) and written(one) != written(boxes)
