"""One picture of a data set: a grid of images that shows every class, boxes and names in a colour for each class."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from model.data.faults import DataError
from model.data.files.decoding import decode_image
from model.inference.drawing import DARK, HUES, LIGHT, Color, Pen
from model.inference.fonts import font_for
from orchestrator.data.audit import Audit, boxes_by_class, class_names, class_places

if TYPE_CHECKING:
    from model.data.split import CocoData

COLUMNS = 4
TILE = (400, 300)
"""Width and height that an image is fitted into, in pixels."""
LINE = 22
"""Pixels of a line of text."""
GAP = 8
NUM_IMAGES = 24
"""Images of a sheet, unless the classes need more."""
MOST = 80
"""Images of a sheet at most; what they do not show of many classes is told."""
FEW = 12
"""Boxes up to which each one has its name; of more, those that are wider than it."""
GREY = (110, 110, 110)


@dataclass(frozen=True, slots=True, eq=False)
class Sheet:
    """A contact sheet."""

    picture: Image.Image
    places: tuple[tuple[int, int], ...]
    """The split and the image of each tile, by their places."""
    missing: tuple[str, ...]
    """Classes with boxes that no tile shows."""


def contact_sheet(found: Audit) -> Sheet:
    """Draw a sample that covers every class as far as MOST images do; the same data give the same sheet."""
    names = class_names(found)
    places, missing = choose(found.splits, names)
    colors = class_colors(names)
    tiles = [_tile(found.splits[split], index, colors) for split, index in places]
    total = np.sum([boxes_by_class(data, names) for data in found.splits], axis=0).tolist()
    counts = {name: count for name, count in zip(names, total, strict=True) if count and name not in missing}
    width = COLUMNS * (TILE[0] + GAP) + GAP
    legend = _legend(counts, colors, width)
    height = TILE[1] + LINE + GAP
    sheet = Image.new("RGB", (width, legend.height + -(-len(tiles) // COLUMNS) * height + GAP), LIGHT)
    sheet.paste(legend, (0, 0))
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (GAP + place % COLUMNS * (TILE[0] + GAP), legend.height + place // COLUMNS * height))
    return Sheet(sheet, tuple(places), missing)


def choose(splits: Sequence["CocoData"], names: list[str]) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """Choose images: first those that show classes, the rarest first; then others, evenly over every split.

    Returns:
        (split, image) by their places, in that order; and the classes with boxes that are not among them.
    """
    counts = np.sum([boxes_by_class(data, names) for data in splits], axis=0)
    images_of: dict[int, list[tuple[int, int]]] = {}
    classes_of: dict[tuple[int, int], set[int]] = {}
    for split, data in enumerate(splits):
        labels = class_places(data, names)[data.annotation_labels]
        images = np.repeat(np.arange(len(data)), np.diff(data.offsets))
        for image, label in np.unique(np.stack([images, labels], axis=1), axis=0).tolist():
            images_of.setdefault(label, []).append((split, image))
            classes_of.setdefault((split, image), set()).add(label)
    chosen: dict[tuple[int, int], None] = {}
    shown: set[int] = set()
    for label in sorted(images_of, key=lambda label: (counts[label], label)):
        if label not in shown and len(chosen) < MOST:
            # The one that shows most of what is not shown yet; of equals the first.
            best = max(images_of[label], key=lambda place: len(classes_of[place] - shown))
            chosen[best] = None
            shown |= classes_of[best]
    total = sum(map(len, splits))
    for split, data in enumerate(splits):
        share = max(1, round(NUM_IMAGES * len(data) / total)) - sum(of == split for of, _ in chosen)
        # Without a random draw: the same images every time.
        for index in np.linspace(0, len(data) - 1, max(0, min(share, len(data)))).round().astype(int).tolist():
            if len(chosen) < MOST:
                chosen[split, index] = None
    shown = set().union(*(classes_of.get(place, set()) for place in chosen))
    return sorted(chosen), tuple(names[label] for label in sorted(images_of) if label not in shown)


def class_colors(names: Sequence[str]) -> dict[str, Color]:
    """A colour for each class by its place; the first 45 differ, the first 8 of them far."""
    colors = {}
    for place, name in enumerate(names):
        hue = HUES[2 * place % len(HUES)] / 360
        lightness = (0.5, 0.7, 0.32)[place // len(HUES) % 3]
        red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.9))
        colors[name] = (red, green, blue)
    return colors


def _tile(data: "CocoData", index: int, colors: Mapping[str, Color]) -> Image.Image:
    """An image with its boxes, and its split and name below."""
    tile = Image.new("RGB", (TILE[0], TILE[1] + LINE), LIGHT)
    ink = ImageDraw.Draw(tile)
    name = data.file_names[index]
    caption = f"{data.split} {name}"
    font = font_for(caption, 13)
    while font.getlength(caption) > TILE[0] and len(name) > 1:
        name = name[1:]  # its end tells it apart
        caption = f"{data.split} …{name}"
    ink.text((0, TILE[1] + 3), caption, fill=GREY, font=font)
    try:
        photo = decode_image(data, index)
    except DataError:
        ink.text((GAP, GAP), "does not decode", fill=GREY, font=font)
        return tile
    factor, offset = placement(data, index)
    height, width = (max(1, round(side * factor)) for side in data.sizes[index].tolist())
    photo = photo.resize((width, height), Image.Resampling.BILINEAR)
    _draw_boxes(photo, data, index, factor, colors)
    tile.paste(photo, offset)
    return tile


def placement(data: "CocoData", index: int) -> tuple[float, tuple[int, int]]:
    """The factor by which a tile shows an image, and the pixels to its left and above it."""
    height, width = data.sizes[index].tolist()
    factor = min(TILE[0] / width, TILE[1] / height)
    return factor, ((TILE[0] - max(1, round(width * factor))) // 2, (TILE[1] - max(1, round(height * factor))) // 2)


def _draw_boxes(photo: Image.Image, data: "CocoData", index: int, factor: float, colors: Mapping[str, Color]) -> None:
    rows = np.arange(data.offsets[index], data.offsets[index + 1])
    # Large ones first, so that they hide no small one.
    rows = rows[np.argsort(-data.annotation_boxes[rows, 2:].prod(axis=1), kind="stable")]
    boxes = (data.annotation_boxes[rows] * factor).tolist()
    names = [data.category_names[label] for label in data.annotation_labels[rows].tolist()]
    pen = Pen(photo)
    tags = []
    for (x, y, width, height), name, is_crowd in zip(boxes, names, data.annotation_crowds[rows].tolist(), strict=True):
        corners = (x, y, x + max(width, 1.0), y + max(height, 1.0))
        (pen.dashed if is_crowd else pen.solid)(corners, colors[name])
        if len(rows) <= FEW or pen.width_of(name) <= width:
            tags.append((corners, name, colors[name], False))
    pen.tags(tags)


def _legend(counts: Mapping[str, int], colors: Mapping[str, Color], width: int) -> Image.Image:
    """The colour, the name and the number of boxes of each class, in as many lines as it takes."""
    entries, x, y = [], GAP, GAP
    for name, count in counts.items():
        text = f"{name}  {count:,}"
        wide = LINE + font_for(text, 14).getlength(text) + 3 * GAP
        if x > GAP and x + wide > width:
            x, y = GAP, y + LINE
        entries.append((x, y, text, colors[name]))
        x += round(wide)
    strip = Image.new("RGB", (width, y + LINE + GAP), LIGHT)
    ink = ImageDraw.Draw(strip)
    for x, y, text, color in entries:
        ink.rectangle((x, y + 3, x + 14, y + 17), fill=color, outline=DARK)
        ink.text((x + LINE, y + 2), text, fill=DARK, font=font_for(text, 14))
    return strip
