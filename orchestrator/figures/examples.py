"""Example detections of a validation, drawn with the ground truth on one picture."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from model.data.coco import CocoData
from model.inference.drawing import draw
from model.inference.table import DetectionTable

NUM_EXAMPLES = 4
TILE = 512
"""Pixels of an example's longer side."""
MIN_SCORE = 0.3
MOST = 8
"""Detections drawn on one image, the best."""


def example_indices(data: CocoData, count: int = NUM_EXAMPLES) -> list[int]:
    """Pick images that have something to detect, spread evenly over the split; the same ones every time."""
    with_objects = np.flatnonzero(np.diff(data.offsets))
    chosen = with_objects if len(with_objects) else np.arange(len(data))
    places = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)
    return [int(index) for index in chosen[np.unique(places)]]


def draw_examples(data: CocoData, detections: DetectionTable | None) -> Image.Image:
    """Draw the examples side by side, two in a line: ground truth dashed, detections with their scores.

    Args:
        data: the validation images.
        detections: on all of them; None draws the ground truth alone.
    """
    return _side_by_side([_draw(data, index, detections) for index in example_indices(data)])


def _draw(data: CocoData, index: int, detections: DetectionTable | None) -> Image.Image:
    names = dict(zip(data.category_ids, data.category_names, strict=True))
    own = slice(data.offsets[index], data.offsets[index + 1])
    real = data.annotation_boxes[own] + np.pad(data.annotation_boxes[own, :2], ((0, 0), (2, 0)))  # xywh -> xyxy
    truth = real, [data.category_names[label] for label in data.annotation_labels[own]]
    with Image.open(data.path(index)) as image:
        if detections is None:
            picture = draw(image, [], [], truth=truth)
        else:
            mine = (detections.image_ids == data.image_ids[index]) & (detections.scores >= MIN_SCORE)
            best = np.flatnonzero(mine)[np.argsort(-detections.scores[mine], kind="stable")][:MOST]
            labels = [names[category] for category in detections.category_ids[best].tolist()]
            picture = draw(image, detections.boxes[best], labels, detections.scores[best], truth=truth)
    picture.thumbnail((TILE, TILE))
    return picture


def _side_by_side(pictures: Sequence[Image.Image], columns: int = 2, gap: int = 4) -> Image.Image:
    lines = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in line) for line in lines]
    width = max(sum(picture.width + gap for picture in line) for line in lines) - gap
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(lines) - 1)), "white")
    top = 0
    for line, height in zip(lines, heights, strict=True):
        left = 0
        for picture in line:
            sheet.paste(picture, (left, top))
            left += picture.width + gap
        top += height + gap
    return sheet
