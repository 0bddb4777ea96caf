"""The table of detections that everything behind NMS works on, and its Parquet file."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from model.foreign import open_parquet, parse_json

TYPES: dict[str, type[np.generic]] = {
    "image_ids": np.int64,
    "category_ids": np.int64,
    "boxes": np.float32,
    "scores": np.float32,
    "class_scores": np.float32,
    "confidences": np.float32,
    "ious": np.float32,
    "levels": np.int8,
    "anchors": np.int32,
}
"""The dtype of each column of a DetectionTable."""
CORNERS = ("x1", "y1", "x2", "y2")
ABOUT = b"retinanet-conf"
"""The key in Parquet's metadata under which a file says of which data and settings its detections are."""
MAGIC = b"PAR1"
"""What every Parquet file begins and ends with."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionTable:
    """Detections of one image or of many, best first within an image; boxes in pixels of the original images."""

    types: ClassVar[Mapping[str, type[np.generic]]] = TYPES
    """The dtype of each column."""

    image_ids: NDArray[np.int64]
    """[D] COCO image ids."""
    category_ids: NDArray[np.int64]
    """[D] the data set's own category ids."""
    boxes: NDArray[np.float32]
    """[D, 4] xyxy."""
    scores: NDArray[np.float32]
    """[D] the fused scores that ranked the boxes."""
    class_scores: NDArray[np.float32]
    """[D] the probability of the class."""
    confidences: NDArray[np.float32]
    """[D] the object confidence; NaN where the detector has no such branch."""
    ious: NDArray[np.float32]
    """[D] with the object of its image and category that it overlaps most, crowds left out; 0 where there is none, or
    where nobody has compared them yet."""
    levels: NDArray[np.int8]
    """[D] of the feature pyramid that the box came from, 3 to 7."""
    anchors: NDArray[np.int32]
    """[D] flat index of the anchor that the box came from."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: NDArray[Any]) -> Self:
        """Those rows, by place or by mask."""
        return type(self)(**{name: getattr(self, name)[rows] for name in self.types})

    @classmethod
    def concatenate(cls, tables: Sequence[Self]) -> Self:
        """One table of all, sorted by image id, whatever the order in which workers finished."""
        # First in the row, so that columns have their types even where there are no tables.
        empty = cls(**{name: np.zeros((0, 4) if name == "boxes" else 0, kind) for name, kind in cls.types.items()})
        columns = {name: np.concatenate([getattr(table, name) for table in (empty, *tables)]) for name in cls.types}
        return cls(**columns).take(np.argsort(columns["image_ids"], kind="stable"))

    @staticmethod
    def plain(
        image_ids: NDArray[np.int64],
        category_ids: NDArray[np.int64],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> "DetectionTable":
        """Detections of which no more is known: the score is that of the class, the rest NaN or 0."""
        count = len(scores)
        return DetectionTable(
            image_ids=image_ids,
            category_ids=category_ids,
            boxes=boxes,
            scores=scores,
            class_scores=scores,
            confidences=np.full(count, np.nan, np.float32),
            ious=np.zeros(count, np.float32),
            levels=np.zeros(count, np.int8),
            anchors=np.zeros(count, np.int32),
        )


def write_detections(table: DetectionTable, file: Path, about: Mapping[str, Any]) -> None:
    """Write a Parquet file, compressed, with a row for each detection.

    Args:
        table: what to write.
        file: is replaced once the new one is whole.
        about: whatever says what these are, as JSON will have it.
    """
    columns: dict[str, NDArray[Any]] = {}
    for name in TYPES:
        columns |= split_corners(table.boxes) if name == "boxes" else {_singular(name): getattr(table, name)}
    write_columns(file, columns, about)


def split_corners(boxes: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Boxes [n, 4] as the four columns CORNERS."""
    return {corner: np.ascontiguousarray(boxes[:, place]) for place, corner in enumerate(CORNERS)}


def write_columns(file: Path, columns: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Write a Parquet file, compressed and with checksums, whole or not at all; `about` goes into its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = file.with_name(f".{file.name}.partial")
    table = pa.table(dict(columns)).replace_schema_metadata({ABOUT: json.dumps(about)})
    # With checksums, or a flipped byte would go unnoticed.
    pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    partial.replace(file)


def read_detections(file: Path) -> tuple[DetectionTable, dict[str, Any]]:
    """Read back what `write_detections` wrote, and what it says of itself.

    Raises:
        ValueError: the file is not there, cut off, damaged, of an earlier form, or none of ours.
    """
    import pyarrow as pa

    try:
        _require_whole(file)
        with open_parquet(file) as opened:
            said = (opened.schema_arrow.metadata or {}).get(ABOUT)
            if said is None:
                _refuse_strangers(file, opened.schema_arrow.names)
            about: dict[str, Any] = parse_json(said)
            arrow = opened.read(columns=[name for name in opened.schema_arrow.names if name in _COLUMNS])
        columns = {name: arrow[_singular(name)].to_numpy() for name in TYPES if name != "boxes"}
        boxes = np.column_stack([arrow[corner].to_numpy() for corner in CORNERS])
    except _StrangerError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())})") from error
    table = DetectionTable(boxes=boxes, **columns)
    wrong = [name for name, kind in TYPES.items() if getattr(table, name).dtype != kind]
    if wrong:
        raise ValueError(f"{file} has other types than detections have, in: {', '.join(map(_singular, wrong))}")
    return table, about


class _StrangerError(ValueError):
    """A file that is no table of detections, or no file at all."""


def _require_whole(file: Path) -> None:
    if not file.is_file():
        raise _StrangerError(f"{file} is not there, or no file")
    with file.open("rb") as stream:
        begin = stream.read(len(MAGIC))
        stream.seek(-min(len(MAGIC), file.stat().st_size), os.SEEK_END)
        end = stream.read()
    if begin != MAGIC:
        raise _StrangerError(f"{file} is no Parquet file, so it holds no detections")
    if end != MAGIC or file.stat().st_size < 3 * len(MAGIC):
        raise _StrangerError(f"{file} is cut off: it begins as a Parquet file and does not end as one")


def _refuse_strangers(file: Path, columns: list[str]) -> NoReturn:
    if {"image_id", "category_id", *CORNERS, "score"} <= set(columns):
        raise _StrangerError(
            f"{file} holds detections of an earlier form, which does not say of which data and settings they are"
        )
    raise _StrangerError(f"{file} holds no detections, but columns {', '.join(columns)}")


def _singular(name: str) -> str:
    return {"category_ids": "category_id", "boxes": "box"}.get(name, name.removesuffix("s"))


_COLUMNS = {*CORNERS, *(_singular(name) for name in TYPES)}
"""Of a file of detections; what else stands there is not read."""
