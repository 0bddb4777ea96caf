"""Reads a COCO annotation file: its tables of images and annotations as columns, and the names of its categories."""

import gc
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.data.faults import DataError, named
from model.foreign import NoFileError, require_file

# Polygons alone: a crowd's run lengths are an object, and are left to the parser.
_SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*\[[-+\d.,eE\s\[\]]*\]')
_WHOLE = re.compile(r"[-+]?\d+(\.0*)?", re.ASCII)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}

MAX_SIDE = 2**24
"""Pixels; up to here float32 holds every coordinate."""
MAX_AREA = 1e10
"""Square pixels, up to which COCO's evaluation counts an object."""
EXACT = 2**53
"""From here on a decimal number has lost the last digits of an id."""

MOST_ROWS = 20
"""Rows of a column that a refusal names; the rest it counts."""


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
    written: Mapping[int, str] = field(default_factory=dict)
    """What the file has, by row, in the place of a box that is not four finite numbers."""

    def take(self, rows: NDArray[np.int64]) -> "Annotations":
        """These rows, in this order."""
        places = {row: place for place, row in enumerate(rows.tolist()) if row in self.written} if self.written else {}
        columns = {name: getattr(self, name)[rows] for name in self.__slots__ if name != "written"}
        return Annotations(**columns, written={place: self.written[row] for row, place in places.items()})


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

    Numbers and flags that are written as text are read where they can mean one thing only, and told in the notes.

    Raises:
        DataError: the file is not JSON, or is not COCO; whatever cannot be read is named at once.
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
    columns = {name: _Columns(name, rows) for name, rows in tables.items()}
    images = _images(columns["images"])
    annotations = _annotations(columns["annotations"])
    categories = _categories(columns["categories"])
    problems = [problem for table in columns.values() for problem in table.problems]
    if problems:
        raise DataError("\n  ".join([f"{file}: not COCO: {problems[0]}", *problems[1:], _way_out(problems)]))
    notes = [note for table in columns.values() for note in table.notes]
    return Tables(images, annotations, categories, tuple(notes))


def _way_out(problems: Sequence[str]) -> str:
    if any(".id is" in problem or "_id is" in problem for problem in problems):
        return "mend the file: an id is a whole number; number anew what has names or hashes, alike in all tables"
    return "mend the file, or export it again"


def _images(table: "_Columns") -> Images:
    ids, names = table.integers("id"), table.texts("file_name")
    sizes = np.stack([table.integers(key) for key in ("height", "width")], axis=1)
    outside = np.flatnonzero(((sizes < 1) | (sizes > MAX_SIDE)).any(axis=1) & ~table.is_bad("height", "width"))
    if len(outside):
        found = named([f"images[{row}] is {sizes[row].tolist()} (height, width)" for row in outside.tolist()])
        table.problems.append(f"{found}; give the size in pixels")
    return Images(ids=ids, names=names, sizes=sizes.clip(0, MAX_SIDE).astype(np.int32))


def _categories(table: "_Columns") -> dict[int, str]:
    ids, names = table.integers("id").tolist(), table.texts("name", or_number=True)
    by_id: dict[int, list[str]] = {}
    for id, name in zip(ids, names, strict=True):
        by_id.setdefault(id, []).append(name)
    differing = {id: list(dict.fromkeys(of_id)) for id, of_id in by_id.items() if len(set(of_id)) > 1}
    if differing and not table.problems:
        found = named([f"{id} ({', '.join(map(repr, of_id))})" for id, of_id in differing.items()])
        table.problems.append(f"'categories' gives one id to several: {found}; give every category an id of its own")
    elif len(by_id) < len(ids):
        again = named([f"{id} {of_id[0]!r}" for id, of_id in by_id.items() if len(of_id) > 1])
        table.notes.append(f"categories listed several times with the same name count once: {again}")
    return {id: by_id[id][0] for id in sorted(by_id)}


def _annotations(table: "_Columns") -> Annotations:
    boxes = table.values("bbox")
    nowhere = [np.nan] * 4
    flat = [side for box in boxes for side in (box if isinstance(box, list) and len(box) == 4 else nowhere)]
    sides = _floats(flat).reshape(-1, 4)
    odd = np.flatnonzero(~np.isfinite(sides).all(axis=1)).tolist()
    return Annotations(
        ids=table.integers("id", numbered_if_absent=True),
        image_ids=table.integers("image_id"),
        category_ids=table.integers("category_id"),
        boxes=sides,
        areas=_areas(table, sides),
        crowds=table.flags("iscrowd"),
        written={row: _shown(boxes[row]) for row in odd},
    )


def _areas(table: "_Columns", sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """COCO's area is that of the mask; where a file has none that can be, the box's stands for it."""
    values = table.values("area")
    areas = _floats(values)
    with np.errstate(over="ignore", invalid="ignore"):
        of_boxes = sides[:, 2] * sides[:, 3]
        is_box = np.isfinite(of_boxes) & (sides[:, 2:] > 0).all(axis=1)
    as_text = {row: _number(values[row]) for row in np.flatnonzero(~np.isfinite(areas)).tolist()}
    as_text = {row: number for row, number in as_text.items() if number is not None}
    areas[list(as_text)] = list(as_text.values())
    table.note("area", sorted(as_text), "numbers written as text, read as numbers")
    odd = ~np.isfinite(areas) | ((areas <= 0) & is_box)
    told = [row for row in np.flatnonzero(odd & is_box).tolist() if values[row] is not None]
    table.note("area", told, "no area above 0; the area of the box is taken")
    # COCO's evaluation would leave out what is larger, and count an area in fractions as small.
    far = ~odd & is_box & (areas > MAX_AREA)
    table.note("area", np.flatnonzero(far).tolist(), "beyond any image; the area of the box is taken")
    fractions = ~odd & is_box & (of_boxes >= 4)
    fractions &= bool((areas[fractions] <= 1).all())
    table.note("area", np.flatnonzero(fractions).tolist(), "a fraction of the image; the area of the box is taken")
    return np.where(odd | far | fractions, of_boxes, areas)


def parse_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds, less the polygons of segmentations.

    Raises:
        DataError: it is not JSON, or no object.
    """
    try:
        require_file(file)
    except NoFileError as error:
        raise DataError(f"{file}: {error.strerror} of annotations; take it away, or name another") from error
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
    except UnicodeDecodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise DataError(
            f"{file}: not JSON in {error.encoding.upper()} at byte {error.start} of {len(text)}, in {around!r}; a name "
            "there may be in an older encoding such as Latin-1: save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{file}: not JSON at {place} of {len(text)} bytes ({error.msg}); the file may be cut short: fetch it again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{file}: not JSON of annotations (nested too deeply); fetch the file again") from error
    except ValueError as error:  # as a number of more digits than Python reads
        raise DataError(f"{file}: not JSON ({error}); fetch the file again") from error


def _rows(file: Path, content: dict[str, Any], table: str) -> list[dict[str, Any]]:
    rows = content.get(table)
    if not isinstance(rows, list):
        found = "missing" if rows is None else f"a {type(rows).__name__}"
        raise DataError(f"{file}: not COCO: {table!r} is {found}, expected a list; fetch the file again")
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{file}: not COCO: {table}[{place}] is {row!r:.40}, expected an object; mend the file")
    return rows


class _Columns:
    """The columns of one table; collects what was read otherwise than written, and what cannot be read at all."""

    def __init__(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.table, self.rows = table, rows
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._bad: dict[str, list[int]] = {}

    def values(self, key: str) -> list[Any]:
        """As they are; None where a row has no such key."""
        return [row.get(key) for row in self.rows]

    def integers(self, key: str, *, numbered_if_absent: bool = False) -> NDArray[np.int64]:
        """Whole numbers, exact to the last digit; 0 where there is none, which is a problem then."""
        values = self.values(key)
        if set(map(type, values)) <= {int}:  # not isinstance, to which true is a whole number
            try:
                return self._in_range(key, np.array(values, dtype=np.int64))
            except OverflowError:
                pass
        if numbered_if_absent and not any(key in row for row in self.rows):
            self.note(key, range(len(values)), "absent; numbered from 1 in the order of the file")
            return np.arange(1, len(values) + 1)
        read = [_whole(value) for value in values]
        self._complain(key, [row for row, number in enumerate(read) if number is None], "a whole number")
        far = [row for row, number in enumerate(read) if number is not None and abs(number) >= 2**63]
        self._complain(key, far, "a whole number of 64 bits, so below 2^63")
        lost = [row for row in range(len(read)) if isinstance(values[row], float) and EXACT <= abs(values[row]) < 2**63]
        self._complain(key, lost, "a whole number: a decimal one beyond 2^53 has lost its last digits")
        texts = [row for row, value in enumerate(values) if isinstance(value, str) and read[row] is not None]
        self.note(key, texts, "whole numbers written as text, read as numbers")
        return np.array([0 if number is None or abs(number) >= 2**63 else number for number in read], dtype=np.int64)

    def _in_range(self, key: str, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        least = np.flatnonzero(numbers == -(2**63)).tolist()  # which has no opposite among 64 bits
        self._complain(key, least, "a whole number of 64 bits, so below 2^63")
        return numbers

    def flags(self, key: str) -> NDArray[np.bool_]:
        """Truth values; false where a row has no such key."""
        values = [row.get(key, 0) for row in self.rows]
        if set(map(type, values)) <= {int, bool}:
            numbers = np.array([min(max(value, -1), 2) for value in values], dtype=np.int8)
            self._complain(key, np.flatnonzero((numbers < 0) | (numbers > 1)).tolist(), "0 or 1")
            are_one: NDArray[np.bool_] = numbers == 1
            return are_one
        read = [_flag(value) for value in values]
        self._complain(key, [row for row, flag in enumerate(read) if flag is None], "0 or 1")
        texts = [row for row, value in enumerate(values) if isinstance(value, str) and read[row] is not None]
        self.note(key, texts, "0 and 1 written as text, read as numbers")
        self.note(key, [row for row, value in enumerate(values) if value is None], "null, read as 0")
        return np.array([bool(flag) for flag in read], dtype=bool)

    def texts(self, key: str, *, or_number: bool = False) -> list[str]:
        """Texts that are not empty, and that UTF-8 can write."""
        values = self.values(key)
        if or_number:
            numbers = [row for row, value in enumerate(values) if type(value) is int]
            self.note(key, numbers, "whole numbers, read as text")
            values = [str(value) if type(value) is int else value for value in values]
        bad = [row for row, value in enumerate(values) if not isinstance(value, str) or not value]
        self._complain(key, bad, "a text")
        # Python writes a file name that is not UTF-8 with lone surrogates, which nothing can print or store.
        odd = [row for row, value in enumerate(values) if isinstance(value, str) and not _is_text(value)]
        self._complain(key, odd, "a text in UTF-8: rename what it names")
        return [value if isinstance(value, str) and _is_text(value) else "" for value in values]

    def is_bad(self, *keys: str) -> NDArray[np.bool_]:
        """The rows, [n], of which one of these is a problem already."""
        bad = np.zeros(len(self.rows), dtype=bool)
        bad[[row for key in keys for row in self._bad.get(key, [])]] = True
        return bad

    def note(self, key: str, rows: Sequence[int], what: str) -> None:
        """Tell of rows that are read otherwise than they are written; nothing of none."""
        if len(rows):
            first = f"{self.table}[{rows[0]}].{key}"
            value = f" {_shown(self.rows[rows[0]][key])}" if key in self.rows[rows[0]] else ""
            self.notes.append(f"{self.table}.{key} of {len(rows)} of {len(self.rows)} rows: {what} ({first}{value})")

    def _complain(self, key: str, rows: Sequence[int], expected: str) -> None:
        if rows:
            self._bad.setdefault(key, []).extend(rows)
            found = [f"{self.table}[{row}].{key} is {_cut(repr(self.rows[row].get(key)))}" for row in rows]
            self.problems.append(f"{named(found, MOST_ROWS)}, expected {expected}")


def _whole(value: Any) -> int | None:
    """The whole number that this means beyond doubt."""
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) < 100 and _WHOLE.fullmatch(text := value.strip()):
        return int(text.partition(".")[0])
    return None


def _flag(value: Any) -> bool | None:
    if value is None:
        return False
    if type(value) in (bool, int, float):
        return {0: False, 1: True}.get(value)
    return _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """The finite number that a text means."""
    try:
        number = float(value) if isinstance(value, str) and "_" not in value else np.nan
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _is_text(value: str) -> bool:
    return _NO_TEXT.search(value) is None


def _floats(values: list[Any]) -> NDArray[np.float64]:
    """Floats, with NaN for what is none."""
    try:
        if not set(map(type, values)) <= {int, float}:
            values = [value if type(value) in (int, float) else np.nan for value in values]
        return np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond every float
        return _floats([None if type(value) is int and abs(value) >= 2**63 else value for value in values])


def _shown(value: Any) -> str:
    """A value as the file has it, cut where it is long."""
    return _cut(json.dumps(value))


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
