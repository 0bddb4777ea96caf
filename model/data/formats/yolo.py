"""Reads YOLO's label files: a class number and a box in fractions of the image on each line, or a polygon's corners.

Oriented boxes (eight numbers) and polygons become the upright boxes around them; of poses the box is taken.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.annotations import Tables
from model.data.checks import MANY, MIN_CENTRES, NEARLY_ALL
from model.data.faults import DataError, no_target
from model.data.formats.sizes import Headers, read_headers
from model.data.formats.tables import make_tables
from model.data.layouts.files import SplitFiles
from model.data.layouts.yolo import other_count, read_classes, read_yaml
from model.foreign import NoFileError, require_file

MAX_CLASS = 2**31
"""Beyond any number of classes, and still a number of 64 bits."""


class _Lines(NamedTuple):
    """What the lines of all label files say."""

    images: list[int]
    numbers: list[int]
    """Of the lines in their files."""
    classes: list[int]
    boxes: list[tuple[float, float, float, float]]
    """Centre, width and height, in fractions of the image."""
    kinds: Counter[str]
    unclear: dict[int, tuple[float, float, float, float]]
    """The boxes of triangles, by row, that are tracks of the first object where others are tracked."""


def read_yolo(files: SplitFiles) -> Tables:
    """Read the label files of a split; category ids are the class numbers, from 0.

    Raises:
        DataError: a line is none of YOLO's, the class names are missing, or the boxes are in pixels.
    """
    names, num_keypoints = _classes(files.annotations[0])
    lines = _Lines([], [], [], [], Counter(), {})
    for image, label in enumerate(files.labels):
        if label is not None:
            _read_lines(label, image, num_keypoints, lines)
    if lines.kinds["track"]:
        lines.kinds.update(track=len(lines.unclear), polygon=-len(lines.unclear))
        for row, box in lines.unclear.items():
            lines.boxes[row] = box
    listed = list(files.listed or ())
    boxes = np.array(lines.boxes, dtype=np.float64).reshape(-1, 4)
    _require_fractions(files, boxes)
    _require_centres(files, boxes)
    headers = read_headers(files.images, listed)
    of_boxes = np.array(lines.images, dtype=np.int64)
    sizes, to_undo = _as_read(headers)
    return make_tables(
        listed,
        sizes,
        images=lines.images,
        boxes=_pixels(_as_stored(boxes, to_undo[of_boxes]), sizes[of_boxes]),
        category_ids=lines.classes,
        crowds=np.zeros(len(boxes), dtype=bool),
        categories=dict(enumerate(names)),
        notes=_notes(files, lines.kinds),
        written=_written(files, lines, boxes, len(names)),
    )


def _classes(file: Path) -> tuple[list[str], int]:
    """The names by class number, and how many numbers of a line are keypoints, 0 for none."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        return _checked(file, read_classes(file)), 0
    document = read_yaml(file)
    names_by_id = document.get("names")
    if isinstance(names_by_id, dict):
        if not all(_is_class(key) for key in names_by_id):
            raise DataError(f"{file}: names is {names_by_id!r:.80}, expected a name for each class number from 0")
        by_id = {int(key): name for key, name in names_by_id.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise DataError(f"{file}: names numbers its classes {sorted(by_id)[:8]}, expected 0 to {len(by_id) - 1}")
        names_by_id = [by_id[place] for place in range(len(by_id))]
    if not isinstance(names_by_id, list) or not all(isinstance(name, str) for name in names_by_id):
        raise DataError(f"{file}: names is {names_by_id!r:.80}, expected a list of class names")
    said = document.get("nc")
    if isinstance(said, str) and other_count(said.strip(), len(names_by_id)):
        raise DataError(f"{file}: nc is {said:.40}, and there are {len(names_by_id)} names; correct either")
    shape = document.get("kpt_shape")
    try:
        num_keypoints = int(np.prod([int(str(side)) for side in shape])) if isinstance(shape, list) else 0
    except ValueError:
        raise DataError(f"{file}: kpt_shape is {shape!r:.40}, expected two numbers") from None
    return _checked(file, names_by_id), num_keypoints


def _is_class(text: object) -> bool:
    """Whether a text is the number of a class; Python itself reads no number of more than 4,300 digits."""
    return re.fullmatch(r"[0-9]{1,10}", str(text)) is not None


def _checked(file: Path, names: list[str]) -> list[str]:
    if not names:
        raise DataError(f"{file}: there is nothing to detect: it names no class; name the classes")
    if "" in names:
        raise DataError(f"{file}: class {names.index('')} has no name; give it one")
    return names


def _read_lines(file: Path, image: int, num_keypoints: int, lines: _Lines) -> None:
    try:
        require_file(file)
        with open(file, "rb") as opened:
            text = opened.read()
    except NoFileError as error:
        kind = str(error.strerror).partition(",")[0]
        raise DataError(f"{file}: {kind}, expected a text file of labels; take it away") from error
    except OSError as error:
        if (reason := no_target(file)) is None:
            raise
        raise DataError(reason) from error
    for place, line in enumerate(text.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            numbers = [float(word) for word in words]
            label = int(numbers[0])
        except (ValueError, OverflowError):
            raise _no_line(file, place, line) from None
        if label != numbers[0] or not 0 <= label < MAX_CLASS:
            raise _no_line(file, place, line)
        if len(numbers) == 5:
            box = tuple(numbers[1:])
        elif num_keypoints and len(numbers) == 5 + num_keypoints:
            box = tuple(numbers[1:5])
            lines.kinds["pose"] += 1
        elif len(numbers) == 6 or _is_track(numbers):
            if not 0 <= numbers[5] <= 1:
                raise DataError(
                    f"{file}: line {place} is {line.decode(errors='replace')!r:.80}, whose sixth number is no "
                    "confidence from 0 to 1; if it is an angle, write the four corners of the box"
                )
            box = tuple(numbers[1:5])
            lines.kinds["confidence" if len(numbers) == 6 else "track"] += 1
        elif len(numbers) >= 7 and len(numbers) % 2:
            xs, ys = numbers[1::2], numbers[2::2]
            low, high = (min(xs), min(ys)), (max(xs), max(ys))
            box = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1])
            if len(numbers) == 7 and numbers[6] == 1:
                lines.unclear[len(lines.boxes)] = (numbers[1], numbers[2], numbers[3], numbers[4])
            lines.kinds["oriented" if len(numbers) == 9 else "polygon"] += 1
        else:
            raise _no_line(file, place, line)
        lines.images.append(image)
        lines.numbers.append(place)
        lines.classes.append(label)
        lines.boxes.append(box)  # type: ignore[arg-type]


def _is_track(numbers: list[float]) -> bool:
    """Whether a line of Ultralytics' tracking ends in a confidence and a number of the object, counted from 1.

    A triangle has the same count of numbers, and its last is at most 1, the lower edge of the image.
    """
    return len(numbers) == 7 and numbers[6] > 1 and numbers[6].is_integer()


def _no_line(file: Path, place: int, line: bytes) -> DataError:
    return DataError(
        f"{file}: line {place} is {line.decode(errors='replace')!r:.80}, expected a class number from 0 and a box in "
        "fractions of the image (centre x, centre y, width, height), or the corners of a polygon"
    )


def _require_fractions(files: SplitFiles, boxes: NDArray[np.float64]) -> None:
    # One box that leaves its image is a fault like others; of pixels, nearly all numbers are far above 1.
    beyond = (boxes > 2).any(axis=1)
    if len(boxes) and beyond.mean() > 0.5:
        first = boxes[int(np.argmax(beyond))].tolist()
        raise DataError(
            f"{files.where}: {int(beyond.sum()):,} of {len(boxes):,} boxes are far outside of 0 to 1, the first is "
            f"{first}: they look like pixels; YOLO's boxes are fractions of the image"
        )


def _require_centres(files: SplitFiles, boxes: NDArray[np.float64]) -> None:
    """Refuse boxes of another form, where many leave their images: clipped or not, the others would be wrong."""
    first, second = boxes[:, :2], boxes[:, 2:]
    slack = 1e-3
    with np.errstate(invalid="ignore", over="ignore"):
        leaves = ((first - second / 2 < -slack) | (first + second / 2 > 1 + slack)).any(axis=1)
        starts = (first > -slack).all(axis=1)
        corners = starts & ((second > first) & (second < 1 + slack)).all(axis=1)
        upper_left = starts & ((second > 0) & (first + second < 1 + slack)).all(axis=1)
    if not len(boxes) or leaves.sum() < MIN_CENTRES or leaves.mean() < MANY:
        return
    forms = {
        "like corners (x1, y1, x2, y2)": corners,
        "as if x and y were the upper left corner": upper_left,
    }
    for form, fits in forms.items():
        if fits.mean() >= NEARLY_ALL:
            raise DataError(
                f"{files.where}: boxes look {form}, and not like centre x, centre y, width and height: as these, "
                f"{int(leaves.sum()):,} of {len(boxes):,} leave their image, the first is "
                f"{boxes[int(np.argmax(leaves))].tolist()}; write the centre and the size; no quarantine can mend them"
            )


def _written(files: SplitFiles, lines: _Lines, boxes: NDArray[np.float64], num_classes: int) -> dict[int, str]:
    """What a file has, and where, by the rows that the checks may find fault with."""
    classes = np.array(lines.classes, dtype=np.int64)
    with np.errstate(invalid="ignore", over="ignore"):
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        inside = ((half > 0) & (centre - half > -1e-3) & (centre + half < 1 + 1e-3)).all(axis=1)
    odd = np.flatnonzero(~inside | (classes >= num_classes)).tolist()
    values = {row: lines.classes[row] if lines.classes[row] >= num_classes else list(lines.boxes[row]) for row in odd}
    where = {row: f"{files.labels[lines.images[row]]}, line {lines.numbers[row]}" for row in odd}
    return {row: f"{value} in {where[row]}" for row, value in values.items()}


def _as_read(headers: Headers) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The sizes of images as they are read, and the orientation that is left for boxes to undo, 1 for none.

    Labels are drawn on pictures as people see them, and Ultralytics reads these so. A size whose sides are swapped has
    an image turned; other orientations leave no trace in a size, and their images are read as stored.
    """
    sizes, orientations = headers
    is_turned = (orientations >= 5) & (sizes[:, 0] != sizes[:, 1])  # 5 to 8 swap the sides
    return np.where(is_turned[:, None], sizes[:, ::-1], sizes), np.where(is_turned, 1, orientations)


def _as_stored(boxes: NDArray[np.float64], orientations: NDArray[np.int32]) -> NDArray[np.float64]:
    """Centre boxes [n, 4] in fractions of the picture that people see -> of the stored one (EXIF 2.32, tag 0x0112)."""
    stored = np.where((orientations >= 5)[:, None], boxes[:, [1, 0, 3, 2]], boxes)
    for side, mirrored in enumerate(((2, 3, 7, 8), (3, 4, 6, 7))):
        stored[:, side] = np.where(np.isin(orientations, mirrored), 1 - stored[:, side], stored[:, side])
    return stored


def _pixels(boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Centre boxes [n, 4] in fractions, with their images' sizes [n, 2] -> x, y, width, height in pixels."""
    centre, side = boxes[:, :2], boxes[:, 2:]
    scale = sizes[:, ::-1].astype(np.float64)
    return np.concatenate([(centre - side / 2) * scale, side * scale], axis=1)


def _notes(files: SplitFiles, kinds: Counter[str]) -> tuple[str, ...]:
    unlabelled = sum(label is None for label in files.labels)
    notes = [f"{unlabelled:,} of {len(files.labels):,} images have no label file: they have no objects"]
    texts = {
        "polygon": "{} polygons are read as the boxes around them",
        "oriented": "{} shapes of four corners (oriented boxes) are read as the upright boxes around them",
        "pose": "of {} poses the boxes are read",
        "track": "{} lines end in a confidence and the number of a tracked object, which are ignored",
        "confidence": "{} lines end in a sixth number, which is taken for a confidence and ignored",
    }
    notes = notes if unlabelled else []
    return (*notes, *(text.format(f"{kinds[kind]:,}") for kind, text in texts.items() if kinds[kind]))
