"""Draws the boxes of an image that NMS kept, and better placed ones that it dropped, above a table of their numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from model.data.files.decoding import decode_image
from model.data.split import CocoData
from model.evaluation.misalignment import WELL_PLACED, DroppedTable
from model.inference.drawing import DARK, LIGHT, Corners, Pen
from model.inference.fonts import font_for
from model.inference.table import DetectionTable

BEST = 3
"""Kept boxes that are shown wherever they lie, the best by score."""
MOST_PLACED = 10
"""Well-placed kept boxes shown at most, the best by score: one for each object."""
MOST_DROPPED = 5
"""Dropped boxes shown at most: those that lost to the best by score."""
SIDE = 768
"""Pixels of the longer side of the image, whatever it was."""
FEW = 8
"""Among more objects than this, one that is narrower than its class name goes without it."""
TRUTH, KEPT, DROPPED = (0, 158, 115), (86, 180, 233), (255, 110, 30)
"""Colours that stay apart in every kind of colour blindness; their lines differ, too."""
MARGIN = 12
FONT, LINE = 17, 24
"""Of the letters beneath the image, in pixels."""
COLUMNS = {"box": 12, "class": 64, "": 230, "p": 470, "c": 540, "score": 620, "IoU": 690}
"""Pixels at which a column of text begins, or one of numbers ends."""
TEXTS = 3
WIDTH = COLUMNS["IoU"] + 2 * MARGIN
GREY, PALE = (105, 105, 105), (255, 240, 228)
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxRow:
    """One box, and what the detector says of it."""

    mark: str
    """A number for a kept box, by score; that of the kept one and a letter for a box dropped for it."""
    beaten_by: str | None
    """The mark of the kept box for which NMS dropped this one; None of a kept box."""
    label: str
    """Its class."""
    box: tuple[float, float, float, float]
    """xyxy pixels of the original image."""
    class_score: float
    confidence: float
    """NaN where the detector has no such branch."""
    score: float
    iou: float
    """With the object of its class that it overlaps most."""


def draw_boxes(data: CocoData, index: int, heads: Mapping[str, tuple[DetectionTable, DroppedTable]]) -> Image.Image:
    """One picture of an image: for each head its boxes on it, side by side, and beneath a line for each box.

    Objects are dashed, kept boxes solid, and the boxes that NMS dropped although they are better placed dotted.

    Args:
        data: the images.
        index: which of them.
        heads: by name, what NMS kept on all images and what it dropped.

    Raises:
        DataError: the image cannot be read.
    """
    photo = ImageOps.contain(decode_image(data, index), (SIDE, SIDE), Image.Resampling.BICUBIC)
    height, width = data.sizes[index].tolist()
    scales = photo.width / width, photo.height / height
    panels = []
    for name, (kept, dropped) in heads.items():
        rows = box_rows(data, index, kept, dropped)
        num_kept = int((kept.image_ids == data.image_ids[index]).sum())
        num_dropped = int(dropped.counts[dropped.image_ids == data.image_ids[index]].sum())
        panels.append((_marked(photo, data, index, rows, scales), _table(name, rows, num_kept, num_dropped)))
    return _join(f"image {data.image_ids[index]} of {data.split}", panels)


def box_rows(data: CocoData, index: int, kept: DetectionTable, dropped: DroppedTable) -> list[BoxRow]:
    """The boxes of one image that are worth a look, best first, each dropped one below the box that beat it.

    Args:
        data: the images.
        index: which of them.
        kept: detections, of this image and of others.
        dropped: what NMS dropped for these detections although it is better placed.
    """
    names = dict(zip(data.category_ids, data.category_names, strict=True))
    image_id = data.image_ids[index]
    here = np.flatnonzero(kept.image_ids == image_id)
    here = here[np.argsort(-kept.scores[here], kind="stable")]
    own = kept.take(here)
    lost = np.flatnonzero(dropped.image_ids == image_id)
    winners = _winners(own, dropped, lost)
    order = np.lexsort((-dropped.ious[lost], winners))[:MOST_DROPPED]
    lost, winners = lost[order], winners[order]
    rows = []
    for number, place in enumerate(_shown(own, winners, len(data.labels(index))), start=1):
        rows.append(_row(own, place, names, str(number), None))
        for letter, which in zip("abcde", lost[winners == place], strict=False):
            rows.append(_row(dropped, which, names, f"{number}{letter}", str(number)))
    return rows


def _winners(own: DetectionTable, dropped: DroppedTable, lost: Ints) -> Ints:
    """The place of the kept box that beat each dropped one."""
    places = {key: place for place, key in enumerate(zip(own.category_ids.tolist(), own.anchors.tolist(), strict=True))}
    keys = zip(dropped.category_ids[lost].tolist(), dropped.kept_anchors[lost].tolist(), strict=True)
    return np.array([places[key] for key in keys], np.int64)


def _shown(own: DetectionTable, winners: Ints, num_objects: int) -> list[int]:
    """Places of the kept boxes to show: the best, well-placed ones, and all that beat a dropped one."""
    well_placed = np.flatnonzero(own.ious >= WELL_PLACED)[: min(num_objects, MOST_PLACED)]
    places: list[int] = np.unique(np.concatenate([np.arange(min(BEST, len(own))), well_placed, winners])).tolist()
    return places


def _row(
    table: DetectionTable | DroppedTable, place: int, names: dict[int, str], mark: str, beaten_by: str | None
) -> BoxRow:
    left, top, right, bottom = table.boxes[place].tolist()
    return BoxRow(
        mark=mark,
        beaten_by=beaten_by,
        label=names[int(table.category_ids[place])],
        box=(left, top, right, bottom),
        class_score=float(table.class_scores[place]),
        confidence=float(table.confidences[place]),
        score=float(table.scores[place]),
        iou=float(table.ious[place]),
    )


def _marked(
    photo: Image.Image, data: CocoData, index: int, rows: Sequence[BoxRow], scales: tuple[float, float]
) -> Image.Image:
    """The image with its objects and boxes; the best boxes lie on top, dropped ones above all."""
    canvas = photo.copy()
    pen = Pen(canvas)
    kept = [(_scaled(row.box, scales), row.mark) for row in rows if row.beaten_by is None]
    dropped = [(_scaled(row.box, scales), row.mark) for row in rows if row.beaten_by is not None]
    truth = [_scaled(box, scales) for box in data.boxes(index).tolist()]
    for corners, _ in reversed(kept):
        pen.solid(corners, KEPT)
    for corners in truth:
        pen.dashed(corners, TRUTH)
    for corners, _ in reversed(dropped):
        pen.dotted(corners, DROPPED)
    for corners, label in zip(truth, data.labels(index).tolist(), strict=True):
        name = data.category_names[label]
        # Names of many objects would cover narrow ones and push marks far from their boxes.
        if len(truth) <= FEW or pen.width_of(name) <= corners[2] - corners[0]:
            pen.text(corners, name, TRUTH, below=True, apart=True)
    for corners, mark in reversed(kept):
        pen.text(corners, mark, KEPT, apart=True)
    for corners, mark in reversed(dropped):
        pen.text(corners, mark, DROPPED, last=True, apart=True)
    return canvas


def _scaled(box: Sequence[float], scales: tuple[float, float]) -> Corners:
    left, top, right, bottom = box
    return left * scales[0], top * scales[1], right * scales[0], bottom * scales[1]


def _table(name: str, rows: Sequence[BoxRow], num_kept: int, num_dropped: int) -> Image.Image:
    """A line for each box: its numbers, and of a dropped one the box that beat it."""
    sheet = Image.new("RGB", (WIDTH, (len(rows) + 3) * LINE + MARGIN), LIGHT)
    ink = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    ink.text((MARGIN, 2), name, fill=DARK, font=font_for(name, FONT + 3))
    shown = sum(row.beaten_by is None for row in rows)
    said = f"shown: {shown} of {num_kept} boxes kept, {len(rows) - shown} of {num_dropped} dropped for worse ones"
    ink.text((MARGIN, LINE + 4), said, fill=GREY, font=font)
    lines = [(tuple(COLUMNS), GREY), *((_cells(row), DROPPED if row.beaten_by else KEPT) for row in rows)]
    for place, (cells, color) in enumerate(lines):
        top = (place + 2) * LINE + MARGIN // 2
        if color == DROPPED:
            ink.rectangle((0, top - 3, WIDTH, top + LINE - 4), fill=PALE)
        if place:
            ink.rectangle((MARGIN - 4, top - 2, MARGIN + 38, top + LINE - 6), fill=color)
        for column, (cell, x) in enumerate(zip(cells, COLUMNS.values(), strict=True)):
            anchor = "ra" if column >= TEXTS else "la"
            ink.text((x, top), cell, fill=DARK if place else GREY, font=font_for(cell, FONT), anchor=anchor)
    return sheet


def _cells(row: BoxRow) -> tuple[str, ...]:
    numbers = (row.class_score, row.confidence, row.score, row.iou)
    what = "kept" if row.beaten_by is None else f"dropped for {row.beaten_by}"
    return (row.mark, row.label, what, *("-" if math.isnan(number) else f"{number:.3f}" for number in numbers))


def _join(title: str, panels: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """The panels side by side below a title that tells the lines apart."""
    column = max(WIDTH, panels[0][0].width) + MARGIN
    top = 2 * LINE + MARGIN
    photo_height = panels[0][0].height
    height = top + photo_height + MARGIN + max(table.height for _, table in panels)
    sheet = Image.new("RGB", (column * len(panels) + MARGIN, height), LIGHT)
    sheet.paste(_legend(title), (MARGIN, 0))
    for place, (photo, table) in enumerate(panels):
        left = MARGIN + place * column
        sheet.paste(photo, (left, top))
        sheet.paste(table, (left, top + photo_height + MARGIN))
    return sheet


def _legend(title: str) -> Image.Image:
    strip = Image.new("RGB", (WIDTH, 2 * LINE + MARGIN), LIGHT)
    pen, font = Pen(strip), ImageFont.load_default(FONT)
    pen.ink.text((0, 6), title, fill=DARK, font=font_for(title, FONT + 3))
    pen.ink.text((WIDTH - 4, 8), "p: class score   c: confidence", fill=GREY, font=font, anchor="ra")
    left, middle = 2.0, 1.5 * LINE + 4
    for stroke, color, text in (
        (pen.dashed, TRUTH, "object"),
        (pen.solid, KEPT, "kept"),
        (pen.dotted, DROPPED, "dropped, though better placed"),
    ):
        stroke((left, middle - 7, left + 34, middle + 7), color)
        pen.ink.text((left + 44, middle), text, fill=DARK, font=font, anchor="lm")
        left += 44 + font.getlength(text) + 28
    return strip
