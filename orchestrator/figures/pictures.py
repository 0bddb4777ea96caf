"""Pictures of images with boxes: what NMS kept and dropped of chosen ones, and detections beside the ground truth."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model.data.files.decoding import decode_image
from model.inference.drawing import draw
from orchestrator.errors import UserError
from orchestrator.figures.page import html_image

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.evaluation.misalignment import DroppedTable
    from model.evaluation.scoring import Scores
    from model.inference.table import DetectionTable

logger = logging.getLogger(__name__)
NUM_IMAGES = 3
"""Pictures that an evaluation gets."""
QUALITY = 75
"""Of the WebP pictures within a page."""
NUM_EXAMPLES = 4
"""Images of the sheet that a training gets after each validation."""
TILE = 512
"""Pixels of the longer side of an image on that sheet."""
MIN_SCORE = 0.3
MOST = 8
"""Detections drawn on one image of it, the best."""


def parse_image_ids(text: str) -> tuple[int, ...]:
    """Read the ids of `--image-ids`.

    Raises:
        UserError: one of them is no number.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.removeprefix("-").isdecimal():
            raise UserError(f"--image-ids {text}: {word!r} is no image id, expected numbers such as 42,57")
    return tuple(dict.fromkeys(int(word) for word in words))


def choose_images(data: "CocoData", count: int, image_ids: Sequence[int] = ()) -> list[int]:
    """Places of the images with these ids, or else of the first ones by id.

    Raises:
        UserError: there is no such image.
    """
    if not image_ids:
        return list(range(min(count, len(data))))
    places = {id: place for place, id in enumerate(data.image_ids.tolist())}
    unknown = [str(id) for id in image_ids if id not in places]
    if unknown:
        raise UserError(
            f"--image-ids: {', '.join(unknown)} not among the {len(data)} images of {data.root}, split {data.split}, "
            f"that are looked at; their ids run from {data.image_ids[0]} to {data.image_ids[-1]}"
        )
    return [places[id] for id in image_ids]


def example_indices(data: "CocoData", count: int = NUM_EXAMPLES) -> list[int]:
    """Pick images that have something to detect, spread evenly over the split; the same ones every time."""
    with_objects = np.flatnonzero(np.diff(data.offsets))
    chosen = with_objects if len(with_objects) else np.arange(len(data))
    # Without a random draw: every training and evaluation of a data set shows the same images.
    places = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)
    return [int(index) for index in chosen[np.unique(places)]]


def write_pictures(
    folder: Path,
    data: "CocoData",
    places: Sequence[int],
    heads: "Mapping[str, tuple[DetectionTable, DroppedTable]]",
    progress: Callable[[int, int], None],
) -> list[str]:
    """Write ID.png for each image, all heads side by side, and return each as HTML that needs no file.

    Raises:
        OSError: the folder cannot be written to.
    """
    from model.evaluation.examples.pictures import draw_boxes

    folder.mkdir(exist_ok=True)
    drawn = []
    for done, place in enumerate(places):
        progress(done, len(places))
        picture, image_id = draw_boxes(data, place, heads), data.image_ids[place]
        picture.save(folder / f"{image_id}.png")
        small = io.BytesIO()
        picture.save(small, "WEBP", quality=QUALITY)
        drawn.append(html_image(small.getvalue(), "webp", f"Boxes kept and dropped on image {image_id}"))
    progress(len(places), len(places))
    return drawn


def write_examples(folder: Path, data: "CocoData", scores: "Scores", label: str) -> list[Path]:
    """Write boxes-ID.png of three images, the same ones for every evaluation of the data, so that they compare.

    A picture that cannot be drawn is left out.
    """
    from model.evaluation.examples.pictures import draw_boxes

    assert scores.misalignment is not None
    heads = {label: (scores.detections, scores.misalignment.dropped)}
    files = []
    for place in example_indices(data, NUM_IMAGES):
        file = folder / f"boxes-{data.image_ids[place]}.png"
        try:
            draw_boxes(data, place, heads).save(file, compress_level=1)  # 30 ms instead of 110 ms, a quarter larger
        except Exception as error:  # good to have, and the numbers stand
            logger.warning("%s is left out: %s", file.name, error)
        else:
            files.append(file)
    return files


def draw_examples(data: "CocoData", detections: "DetectionTable | None") -> Image.Image:
    """Draw the examples side by side, two in a line: ground truth dashed, detections with their scores.

    Args:
        data: the validation images.
        detections: on all of them; None draws the ground truth alone.
    """
    return _side_by_side([_draw(data, index, detections) for index in example_indices(data)])


def _draw(data: "CocoData", index: int, detections: "DetectionTable | None") -> Image.Image:
    names = dict(zip(data.category_ids, data.category_names, strict=True))
    own = slice(data.offsets[index], data.offsets[index + 1])
    real = data.annotation_boxes[own] + np.pad(data.annotation_boxes[own, :2], ((0, 0), (2, 0)))  # xywh -> xyxy
    truth = real, [data.category_names[label] for label in data.annotation_labels[own]]
    image = decode_image(data, index)
    if detections is None:
        drawn = draw(image, [], [], truth=truth)
    else:
        mine = (detections.image_ids == data.image_ids[index]) & (detections.scores >= MIN_SCORE)
        best = np.flatnonzero(mine)[np.argsort(-detections.scores[mine], kind="stable")][:MOST]
        labels = [names[category] for category in detections.category_ids[best].tolist()]
        drawn = draw(image, detections.boxes[best], labels, detections.scores[best], truth=truth)
    drawn.thumbnail((TILE, TILE))
    return drawn


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
