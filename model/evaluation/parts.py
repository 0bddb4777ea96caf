"""Parts of a scoring pass, each of some images under one setting: joined, and written to and read from Parquet."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation.misalignment import BINS, IOUS, PER_IMAGE, SCORES, DroppedTable, Misalignment
from model.foreign import open_parquet, parse_json
from model.inference.table import ABOUT, DetectionTable

TABLES: dict[str, type[Any]] = {
    "detections": DetectionTable,
    "misalignment": Misalignment,
    "dropped": DroppedTable,
    "oracle": DetectionTable,
}
"""What the columns belong to: `dropped.boxes` ..."""
INNER = ("dropped", "oracle")
"""Fields of a misalignment that are tables themselves."""
SHAPES = {
    "boxes": (-1, 4),
    "scores_before": (-1, len(SCORES)),
    "scores_after": (-1, len(SCORES)),
    "ious_before": (-1, len(IOUS)),
    "ious_after": (-1, len(IOUS)),
    "density_before": (BINS, BINS),
    "density_after": (BINS, BINS),
}
"""Shapes of the fields with more than one dimension; a row of the file holds the values of a field flattened."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some images under one inference setting."""

    detections: DetectionTable
    misalignment: Misalignment | None
    """None where boxes were not counted."""


def merge(parts: Sequence[Part]) -> Part:
    """Join parts of different images, whatever their order; none give a part of no image."""
    detections = DetectionTable.concatenate([part.detections for part in parts])
    # One part that was not counted leaves the whole uncounted.
    counted = [part.misalignment for part in parts if part.misalignment is not None]
    if len(counted) < len(parts):
        return Part(detections, None)
    counted = [_nothing(), *counted]  # so that there are columns, of the right types, where a process had no image
    columns = {name: np.concatenate([getattr(one, name) for one in counted]) for name in PER_IMAGE}
    order = np.argsort(columns["image_ids"], kind="stable")
    misalignment = Misalignment(
        **{name: column[order] for name, column in columns.items()},
        density_before=np.sum([one.density_before for one in counted], axis=0),
        density_after=np.sum([one.density_after for one in counted], axis=0),
        dropped=DroppedTable.concatenate([one.dropped for one in counted]),
        oracle=DetectionTable.concatenate([one.oracle for one in counted]),
    )
    return Part(detections, misalignment)


def _nothing() -> Misalignment:
    """The counts of no image."""
    none, by_score, by_iou = (
        np.zeros(0, np.int32),
        np.zeros((0, len(SCORES)), np.int32),
        np.zeros((0, len(IOUS)), np.int32),
    )
    density = np.zeros((BINS, BINS), np.int64)
    return Misalignment(
        image_ids=np.zeros(0, np.int64),
        num_objects=none,
        num_positive_anchors=none,
        num_before=none,
        num_after=none,
        scores_before=by_score,
        scores_after=by_score,
        ious_before=by_iou,
        ious_after=by_iou,
        density_before=density,
        density_after=density,
        dropped=DroppedTable.concatenate([]),
        oracle=DetectionTable.concatenate([]),
    )


def write_parts(file: Path, parts: Sequence[Part], about: Mapping[str, Any]) -> None:
    """Write the parts of one shard, whole or not at all.

    Args:
        file: is replaced once the new one is whole.
        parts: of the same images, with what was counted; one for each setting.
        about: whatever says what they are, as JSON will have it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        pa.table({name: pa.ListArray.from_arrays([0, len(values)], pa.array(values)) for name, values in row.items()})
        for row in map(_columns, parts)
    ]
    schema = rows[0].schema.with_metadata({ABOUT: json.dumps(about)})
    # With the process's number: two processes may score the same shard at once.
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
        for row in rows:  # each in a row group, so that it can be read without the others
            writer.write_table(row)
    partial.replace(file)


def _columns(part: Part) -> dict[str, NDArray[Any]]:
    counts = part.misalignment
    assert counts is not None
    tables = (part.detections, counts, counts.dropped, counts.oracle)
    return {
        f"{name}.{field.name}": np.ravel(getattr(table, field.name))
        for (name, kind), table in zip(TABLES.items(), tables, strict=True)
        for field in fields(kind)
        if field.name not in INNER
    }


def read_about(file: Path, *, whole: bool = False) -> dict[str, Any]:
    """Read what a file says of its parts.

    Args:
        file: that `write_parts` wrote.
        whole: read all of it, to see whether it is sound to its last byte.

    Raises:
        ValueError: the file is not there, cut off, damaged, or none of ours.
    """
    import pyarrow as pa

    try:
        with open_parquet(file) as opened:
            about: dict[str, Any] = parse_json(opened.schema_arrow.metadata[ABOUT])
            if whole:
                opened.read()
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no scored shard, or cut off or damaged ({error})") from error
    return about


def read_part(file: Path, row: int) -> Part:
    """Read the part of one setting.

    Args:
        file: that `write_parts` wrote.
        row: of the setting.

    Raises:
        ValueError: the file is not there, cut off, damaged, or none of ours.
    """
    import pyarrow as pa

    try:
        with open_parquet(file) as opened:
            table = opened.read_row_group(row)
            found = {
                name: {
                    field.name: _values(table, name, field.name) for field in fields(kind) if field.name not in INNER
                }
                for name, kind in TABLES.items()
            }
    except (pa.ArrowException, OSError, KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no scored shard, or cut off or damaged ({error})") from error
    misalignment = Misalignment(
        **found["misalignment"],
        dropped=DroppedTable(**found["dropped"]),
        oracle=DetectionTable(**found["oracle"]),
    )
    return Part(DetectionTable(**found["detections"]), misalignment)


def _values(table: Any, name: str, field: str) -> NDArray[Any]:
    values: NDArray[Any] = table[f"{name}.{field}"].chunk(0).values.to_numpy()
    return values.reshape(SHAPES.get(field, (-1,)))
