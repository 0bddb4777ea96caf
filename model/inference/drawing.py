"""Draws detections, and the ground truth if wanted, on a photograph."""

import colorsys
import math
import zlib
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from model.inference.fonts import font_for

SMALLEST = 512
"""Pixels of the longer side; a smaller image is enlarged by a whole factor, or its labels would cover it."""
NUM_SPOTS = 5
"""Positions, side by side, that are tried for a label that must not cover another."""
FEW = 12
"""Boxes of an image up to which labels have their full size."""
REACH = 6
"""Lines of text, and half widths of a label, by which it may stand away from its box."""
DARK, LIGHT = (0, 0, 0), (255, 255, 255)
HUES = (0, 20, 38, 52, 75, 120, 158, 180, 197, 214, 235, 262, 285, 312, 335)
"""In degrees, in steps that look about equal to the eye."""
LIGHTNESSES = (0.35, 0.5, 0.7)
NUM_COLORS = len(HUES) * len(LIGHTNESSES)
Color = tuple[int, int, int]
Corners = tuple[float, float, float, float]


def draw(
    image: Image.Image,
    boxes: ArrayLike,
    labels: Sequence[str],
    scores: ArrayLike | None = None,
    *,
    truth: tuple[ArrayLike, Sequence[str]] | None = None,
    classes: Sequence[str] = (),
) -> Image.Image:
    """A copy of the image with a box for each detection, the best on top, and dashed ones for the ground truth.

    No label covers another: it stands at its box where there is room, or else near by, with a line to it. Where there
    is no room at all, the label of the worse box is left out.

    Args:
        image: of any mode; an image with a longer side below 512 pixels is enlarged by a whole factor.
        boxes: [D, 4] xyxy, in pixels of `image`.
        labels: the class of each box; one class has one colour in every image.
        scores: [D], 0 to 1; None leaves them out.
        truth: boxes [G, 4] and their classes.
        classes: all that the data have, in their order: no two of the first 45 have one colour then.
    """
    factor = -(-SMALLEST // max(image.size)) if max(image.size) < SMALLEST else 1
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor))
    real = list(zip(_corners(truth[0], factor), truth[1], strict=True)) if truth else []
    detections = list(zip(_corners(boxes, factor), labels, _numbers(scores, len(labels)), strict=True))
    detections.sort(key=lambda detection: detection[2] or 0.0)
    pen, colors = Pen(canvas, len(real) + len(detections)), _Palette(classes)
    for corners, label in real:
        pen.dashed(corners, colors[label])
    for corners, label, _ in detections:
        pen.solid(corners, colors[label])
    # After all lines, so that none runs through a label; the best first, which find the best places.
    tags = [
        (corners, label if score is None else f"{label} {score:.2f}", label, False)
        for corners, label, score in detections
    ]
    tags = [*reversed(tags), *((corners, label, label, True) for corners, label in real)]
    pen.tags([(corners, text, colors[label], below) for corners, text, label, below in tags])
    return canvas


def color_of(label: str) -> Color:
    """The colour of a class, which depends on its name alone."""
    return _color(_code(label))


class _Palette(dict[str, Color]):
    """Colours by class: those of their names, and the next one where another class has it already."""

    def __init__(self, classes: Sequence[str]) -> None:
        taken: set[int] = set()
        for label in classes:
            code = _code(label)
            # 16 has no factor in common with 45, so that these are all colours; each step brings another hue.
            tried = ((code + step * 16) % NUM_COLORS for step in range(NUM_COLORS))
            taken.add(code := next((one for one in tried if one not in taken), code))
            self[label] = _color(code)

    def __missing__(self, label: str) -> Color:
        return color_of(label)


def _code(label: str) -> int:
    """0 to 44; not by hash(), which gives a text another number in every process."""
    return zlib.crc32(label.encode()) % NUM_COLORS


def _color(code: int) -> Color:
    hue, lightness = HUES[code % len(HUES)] / 360, LIGHTNESSES[code // len(HUES)]
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.9))
    return red, green, blue


class Pen:
    """Lines and letters as large as the image asks for; every line has a dark rim, to be seen on any background."""

    def __init__(self, canvas: Image.Image, num_tags: int = 1) -> None:
        """Write smaller where there are to be many tags."""
        self.size = canvas.size
        self.line = max(2, round(max(canvas.size) / 320))
        crowd = min(1.0, max(0.7, math.sqrt(FEW / max(1, num_tags))))
        self.height = max(11, round(max(canvas.size) / 48 * crowd))
        self.ink = ImageDraw.Draw(canvas)
        self.plates: list[Corners] = []

    def solid(self, corners: Corners, color: Color) -> None:
        """A line of the colour."""
        left, top, right, bottom = corners
        self.ink.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=self.line + 2)
        self.ink.rectangle(corners, outline=color, width=self.line)

    def dashed(self, corners: Corners, color: Color) -> None:
        """Dashes of the colour on white."""
        left, top, right, bottom = corners
        sides = [(left, top, right, top), (left, bottom, right, bottom)]
        sides += [(left, top, left, bottom), (right, top, right, bottom)]
        for side in sides:
            self.ink.line(side, fill=LIGHT, width=self.line)
            for dash in _dashes(side, 4 * self.line):
                self.ink.line(dash, fill=color, width=self.line)

    def dotted(self, corners: Corners, color: Color) -> None:
        """Dots of the colour, each with a dark rim."""
        left, top, right, bottom = corners
        sides = [(left, top, right, top), (left, bottom, right, bottom)]
        sides += [(left, top, left, bottom), (right, top, right, bottom)]
        for radius, fill in ((0.8 * self.line + 1, DARK), (0.8 * self.line, color)):
            for side in sides:
                for x, y, *_ in _dashes(side, round(1.75 * self.line)):
                    self.ink.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def text(
        self, corners: Corners, text: str, color: Color, *, below: bool = False, last: bool = False, apart: bool = False
    ) -> None:
        """Write on a plate of the colour: over the box, or under it, and within the image in any case.

        Args:
            corners: of the box.
            text: to write.
            color: of the plate.
            below: under the box.
            last: at its right end.
            apart: beside plates that were put apart before, where they would cover each other, but not far off.
        """
        left, top, right, bottom = self._bounds(text)
        width, height = right - left + 2 * self.line, bottom - top + 2 * self.line
        x = max(0.0, min(corners[2] - width if last else corners[0], self.size[0] - width))
        y = corners[3] if below else corners[1] - height
        y = max(0.0, min(y, self.size[1] - height))
        if apart:
            spots = [x + place * (-width if last else width) for place in range(NUM_SPOTS)]
            inside = [spot for spot in spots if 0 <= spot <= self.size[0] - width]
            x = next((spot for spot in inside if not self._covers((spot, y, spot + width, y + height))), x)
            self.plates.append((x, y, x + width, y + height))
        self.ink.rectangle((x, y, x + width, y + height), fill=color)
        self._write((x + self.line - left, y + self.line - top), text, _readable_on(color))

    def tags(self, tags: Sequence[tuple[Corners, str, Color, bool]]) -> list[Corners | None]:
        """Write tags of boxes so that none covers another, the first at the best places.

        Args:
            tags: of each the box, the text, its colour, and whether it should rather stand under the box.

        Returns:
            Where each stands; None where there was no room.
        """
        taken = np.zeros((0, 4))
        plates: list[Corners | None] = []
        bounds = [self._bounds(text) for _, text, _, _ in tags]
        for (corners, _, _, below), (left, top, right, bottom) in zip(tags, bounds, strict=True):
            size = math.ceil(right - left) + 2 * self.line, math.ceil(bottom - top) + 2 * self.line
            plate = None
            for spots in (_at_edges(corners, size, below), _around(corners, size)):
                # Whole pixels, so that tags side by side share none.
                places = np.floor(np.clip(spots, 0, [max(0, self.size[axis] - size[axis]) for axis in (0, 1)]))
                free = np.flatnonzero(_are_free(places, size, taken))
                if len(free):
                    found = np.concatenate([places[free[0]], places[free[0]] + size])
                    taken = np.vstack([taken, found])
                    plate = tuple(found.tolist())
                    break
            plates.append(plate)
        for (corners, _, color, _), plate in zip(tags, plates, strict=True):
            if plate is not None:
                self._lead(corners, plate, color)
        for (_, text, color, _), plate, (left, top, _, _) in zip(tags, plates, bounds, strict=True):
            if plate is not None:
                self.ink.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=color)
                place = plate[0] + self.line - left, plate[1] + self.line - top
                self._write(place, text, _readable_on(color))
        return plates

    def width_of(self, text: str) -> float:
        """Pixels that a text takes."""
        return float(font_for(text, self.height).getlength(text))

    def _bounds(self, text: str) -> Corners:
        return self.ink.textbbox((0, 0), text, font=font_for(text, self.height))

    def _write(self, place: tuple[float, float], text: str, color: Color) -> None:
        self.ink.text(place, text, fill=color, font=font_for(text, self.height))

    def _lead(self, corners: Corners, plate: Corners, color: Color) -> None:
        """Draw a line from a tag to its box, where they do not touch."""
        ends = []
        for low, high, first, last in zip(corners[:2], corners[2:], plate[:2], plate[2:], strict=True):
            # The nearest points of two spans; where they share some, the middle of that.
            middle = (max(low, first) + min(high, last)) / 2
            ends.append((high, first) if high < first else (low, last) if last < low else (middle, middle))
        (x1, x2), (y1, y2) = ends
        if abs(x2 - x1) + abs(y2 - y1) > self.line:
            self.ink.line((x1, y1, x2, y2), fill=DARK, width=self.line + 1)
            self.ink.line((x1, y1, x2, y2), fill=color, width=max(1, self.line - 1))

    def _covers(self, plate: Corners) -> bool:
        """Whether a plate would cover one of those that were put apart."""
        left, top, right, bottom = plate
        return any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in self.plates)


def _at_edges(corners: Corners, size: tuple[int, int], below: bool) -> NDArray[np.float64]:
    """[S, 2] where the upper left corner of a tag may be, so that it touches its box; the best first."""
    left, top, right, bottom = corners
    width, height = size
    over = [(left, top - height), (right - width, top - height), (left, top)]
    under = [(left, bottom), (right - width, bottom), (left, bottom - height)]
    beside = [(right, top), (left - width, top), (right, bottom - height), (left - width, bottom - height)]
    return np.array([*under, *over, *beside] if below else [*over, *under, *beside])


def _around(corners: Corners, size: tuple[int, int]) -> NDArray[np.float64]:
    """[S, 2] the same further off, the nearest to its place over the box first."""
    width, height = size
    spots: NDArray[np.float64] = np.array((corners[0], corners[1] - height)) + _steps() * np.array((width / 2, height))
    return spots


@cache
def _steps() -> NDArray[np.int64]:
    """[S, 2] half widths and lines by which a tag stands off, the nearest first."""
    reach = np.arange(-REACH, REACH + 1)
    steps = np.stack(np.meshgrid(reach, reach), axis=-1).reshape(-1, 2)
    return steps[np.argsort((steps**2).sum(axis=1), kind="stable")]


def _are_free(places: NDArray[np.float64], size: tuple[int, int], taken: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[S] whether a tag of a size, its upper left corner at [S, 2], covers none of the plates [P, 4] that are taken."""
    # The 169 spots around a box have 13 columns and 13 rows: each is compared with the plates once, and a product of
    # matrices counts for each spot the plates that are met in both. Spot by spot, 1,000 boxes take seconds.
    met, line_of = [], []
    for axis in (0, 1):
        starts, lines = np.unique(places[:, axis], return_inverse=True)
        met.append((starts[:, None] < taken[:, axis + 2]) & (starts[:, None] + size[axis] > taken[:, axis]))
        line_of.append(lines)
    covered = met[0].astype(np.float32) @ met[1].T.astype(np.float32)
    free: NDArray[np.bool_] = covered[line_of[0], line_of[1]] == 0
    return free


def _readable_on(color: Color) -> Color:
    """Black or white, whichever stands out more (WCAG's relative luminance)."""
    parts = [part / 255 for part in color]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Where black and white contrast alike: (L + 0.05)^2 = 1.05 * 0.05.
    return DARK if luminance > 0.179 else LIGHT


def _dashes(side: Corners, length: int) -> Iterator[Corners]:
    """Every other piece of a line."""
    start, stop = np.array(side[:2]), np.array(side[2:])
    distance = float(np.abs(stop - start).sum())
    for begin in np.arange(0.0, distance, 2 * length):
        ends = [start + (stop - start) * min(1.0, at / distance) for at in (begin, begin + length)]
        yield float(ends[0][0]), float(ends[0][1]), float(ends[1][0]), float(ends[1][1])


def _corners(boxes: ArrayLike, factor: int) -> list[Corners]:
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * factor
    return [(left, top, max(left, right), max(top, bottom)) for left, top, right, bottom in array.tolist()]


def _numbers(scores: ArrayLike | None, count: int) -> list[float | None]:
    if scores is None:
        return [None] * count
    return [float(score) for score in np.asarray(scores).reshape(-1)]
