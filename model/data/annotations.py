"""Reads a COCO annotation file: its tables of images and annotations as columns, and the names of its categories."""

import gc
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.faults import DataError

# Polygons alone: a crowd's run lengths are an object, and are left to the parser.
_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*\[[-+\d.,eE\s\[\]]*\]')

MAX_SIDE = 2**24
"""Pixels; up to here float32 holds every coordinate."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Images:
    """The columns of a COCO file's images."""

    ids: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int32]
    """[n, 2], height and width."""

    def take(self, rows: NDArray[np.int64]) -> "Images":
        """These rows, in this order."""
        return Images(ids=self.ids[rows], names=[self.names[row] for row in rows], sizes=self.sizes[rows])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Annotations:
    """The columns of a COCO file's annotations."""

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    """[n, 4], x, y, width and height; NaN where the file has no such four numbers."""
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> "Annotations":
        """These rows, in this order."""
        return Annotations(**{name: getattr(self, name)[rows] for name in self.__slots__})


class Tables(NamedTuple):
    """What the annotation files of a split say, whatever they are written in."""

    images: Images
    annotations: Annotations
    categories: dict[int, str]
    """Names by rising id."""
    notes: tuple[str, ...] = ()
    """What was read otherwise than it is written, a sentence each, for people."""


def read_tables(file: Path) -> Tables:
    """Read a COCO file's images, annotations and categories.

    Raises:
        DataError: the file is not JSON, or is not COCO.
    """
    return tables_of(file, parse_json(file))


def tables_of(file: Path, content: dict[str, Any]) -> Tables:
    """The tables of what a file holds, once it is parsed.

    Raises:
        DataError: it is not COCO.
    """
    tables = {name: _rows(file, content, name) for name in ("images", "annotations", "categories")}
    if not tables["images"]:
        raise DataError(f"{file}: the split is empty: 'images' lists nothing; fetch the file again")
    if not tables["categories"]:
        raise DataError(f"{file}: there is nothing to detect: 'categories' lists nothing; name the categories")
    ids = _integers(file, tables, "categories", "id").tolist()
    if len(set(ids)) < len(ids):
        raise DataError(f"{file}: 'categories' gives one id to several; give every category an id of its own")
    names = _texts(file, tables, "categories", "name")
    return Tables(_images(file, tables), _annotations(file, tables), dict(sorted(zip(ids, names, strict=True))))


def _images(file: Path, tables: "_Tables") -> Images:
    sizes = np.stack([_integers(file, tables, "images", key) for key in ("height", "width")], axis=1)
    for place in np.flatnonzero(((sizes < 1) | (sizes > MAX_SIDE)).any(axis=1)).tolist():
        raise DataError(f"{file}: images[{place}] is {sizes[place].tolist()} (height, width); give its size in pixels")
    ids, names = _integers(file, tables, "images", "id"), _texts(file, tables, "images", "file_name")
    return Images(ids=ids, names=names, sizes=sizes.astype(np.int32))


def _annotations(file: Path, tables: "_Tables") -> Annotations:
    rows = tables["annotations"]
    nowhere = [np.nan] * 4
    boxes = [row.get("bbox") for row in rows]
    flat = [side for box in boxes for side in (box if isinstance(box, list) and len(box) == 4 else nowhere)]
    sides = _numbers(flat).reshape(-1, 4)
    areas = _numbers([row.get("area") for row in rows])
    with np.errstate(over="ignore", invalid="ignore"):
        # COCO's area is that of the mask; where a file has none, the box's stands for it.
        areas = np.where(np.isfinite(areas), areas, sides[:, 2] * sides[:, 3])
    return Annotations(
        ids=_integers(file, tables, "annotations", "id"),
        image_ids=_integers(file, tables, "annotations", "image_id"),
        category_ids=_integers(file, tables, "annotations", "category_id"),
        boxes=sides,
        areas=areas,
        crowds=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=bool),
    )


def parse_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds, less the polygons of segmentations.

    Raises:
        DataError: it is not JSON, or no object.
    """
    text = file.read_bytes()
    collecting = gc.isenabled()
    gc.disable()  # millions of new objects, none of them garbage
    try:
        # Outlines are most of the file and no part of a detector's data.
        content = json.loads(_SEGMENTATION.sub(b'"segmentation":0', text))
    except (ValueError, RecursionError):
        content = _complain(file, text)
    finally:
        if collecting:
            gc.enable()
    if not isinstance(content, dict):
        raise DataError(f"{file}: not COCO: the top level is a {type(content).__name__}, expected an object")
    return content


def _complain(file: Path, text: bytes) -> Any:
    """Parse the text as it stands, for the true place of the mistake."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{file}: not JSON at {place} of {len(text)} bytes ({error.msg}); the file may be cut short: fetch it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error}); fetch the file again") from error


_Tables = dict[str, list[dict[str, Any]]]


def _rows(file: Path, content: dict[str, Any], table: str) -> list[dict[str, Any]]:
    rows = content.get(table)
    if not isinstance(rows, list):
        found = "missing" if rows is None else f"a {type(rows).__name__}"
        raise DataError(f"{file}: not COCO: {table!r} is {found}, expected a list; fetch the file again")
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{file}: not COCO: {table}[{place}] is {row!r:.40}, expected an object; mend the file")
    return rows


def _integers(file: Path, tables: _Tables, table: str, key: str) -> NDArray[np.int64]:
    values = [row.get(key) for row in tables[table]]
    for place, value in enumerate(values):
        # Not isinstance, to which true is a whole number; int64 ends at 2**63.
        if not (type(value) is int or (type(value) is float and value.is_integer())) or abs(value) >= 2**63:
            raise DataError(f"{file}: not COCO: {table}[{place}].{key} is {value!r:.40}, expected a whole number")
    return np.array(values, dtype=np.int64)


def _texts(file: Path, tables: _Tables, table: str, key: str) -> list[str]:
    values = [row.get(key) for row in tables[table]]
    for place, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise DataError(f"{file}: not COCO: {table}[{place}].{key} is {value!r:.40}, expected a text")
    return [str(value) for value in values]


def _numbers(values: list[Any]) -> NDArray[np.float64]:
    """Floats, with NaN for what is none."""
    try:
        return np.array([value if type(value) in (int, float) else np.nan for value in values], dtype=np.float64)
    except OverflowError:  # an integer beyond every float
        return _numbers([None if isinstance(value, int) and abs(value) >= 2**63 else value for value in values])
