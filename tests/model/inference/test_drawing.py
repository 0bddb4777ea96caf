"""Boxes on an image, checked pixel by pixel where the picture decides what they must be."""

import numpy as np
import pytest
import torch
from PIL import Image

from model.inference.drawing import color_of, draw

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
