"""Parts of what a scoring pass finds: some images under one setting, and how they become a whole."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.data.coco import CocoData
from model.evaluation.counting import Counts, Seen
from model.evaluation.misalignment import BINS, IOUS, PER_IMAGE, SCORES, DroppedTable, Misalignment
from model.inference.postprocess import Boxes
from model.inference.table import ABOUT, DetectionTable

Columns = TypeVar("Columns", DroppedTable, Misalignment)


@dataclass(frozen=True, slots=True)
class Part:
    """Some images under one inference setting."""

    detections: DetectionTable
    misalignment: Misalignment | None
    """None where boxes were not counted."""


def of_images(data: CocoData, seen: Sequence[Seen]) -> Part:
    """Put together what was seen of some images; they may come in any order."""
    seen = sorted(seen, key=lambda one: one.index)
    detections = DetectionTable.concatenate(
        [_table(data, one.index, one.detections, one.detections.scores, one.ious, one.levels) for one in seen]
    )
    counts = [one.counts for one in seen if one.counts is not None]
    return Part(detections, _misalignment(data, seen, counts) if len(counts) == len(seen) else None)


def merge(parts: Sequence[Part]) -> Part:
    """Join parts of different images, whatever their order."""
    detections = DetectionTable.concatenate([part.detections for part in parts])
    counted = [part.misalignment for part in parts if part.misalignment is not None]
    if len(counted) < len(parts):
        return Part(detections, None)
    dropped = _by_image([one.dropped for one in counted], [field.name for field in fields(DroppedTable)])
    misalignment = Misalignment(
        **_by_image(counted, PER_IMAGE),
        density_before=np.sum([one.density_before for one in counted], axis=0),
        density_after=np.sum([one.density_after for one in counted], axis=0),
        dropped=DroppedTable(**dropped),
        oracle=DetectionTable.concatenate([one.oracle for one in counted]),
    )
    return Part(detections, misalignment)


def _misalignment(data: CocoData, seen: Sequence[Seen], counts: Sequence[Counts]) -> Misalignment:
    def column(values: Sequence[object], *shape: int) -> NDArray[np.int32]:
        return np.array(values, np.int32).reshape(-1, *shape)

    def density(cells: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.bincount(_joined(cells), minlength=BINS * BINS).reshape(BINS, BINS)

    return Misalignment(
        image_ids=data.image_ids[[one.index for one in seen]],
        num_objects=column([one.num_objects for one in seen]),
        num_positive_anchors=column([one.num_positive_anchors for one in seen]),
        num_before=column([one.num_before for one in counts]),
        num_after=column([len(one.detections.scores) for one in seen]),
        scores_before=column([one.scores_before for one in counts], len(SCORES)),
        scores_after=column([one.scores_after for one in counts], len(SCORES)),
        ious_before=column([one.ious_before for one in counts], len(IOUS)),
        ious_after=column([one.ious_after for one in counts], len(IOUS)),
        density_before=density([one.cells_before for one in counts]),
        density_after=density([one.cells_after for one in counts]),
        dropped=_dropped(data, seen, counts),
        oracle=DetectionTable.concatenate(
            [
                _table(data, one.index, boxes, ious, ious, of.oracle_levels)
                for one, of in zip(seen, counts, strict=True)
                for boxes, ious in [of.oracle]
            ]
        ),
    )


def _table(
    data: CocoData,
    index: int,
    boxes: Boxes,
    scores: NDArray[np.float32],
    ious: NDArray[np.float32],
    levels: NDArray[np.int8],
) -> DetectionTable:
    return DetectionTable(
        image_ids=np.full(len(scores), data.image_ids[index]),
        category_ids=np.asarray(data.category_ids, np.int64)[boxes.labels],
        boxes=boxes.boxes,
        scores=scores,
        class_scores=boxes.class_scores,
        confidences=boxes.confidences,
        ious=ious,
        levels=levels,
        anchors=boxes.anchors.astype(np.int32),
    )


def _dropped(data: CocoData, seen: Sequence[Seen], counts: Sequence[Counts]) -> DroppedTable:
    tables = DetectionTable.concatenate(
        [
            _table(data, one.index, of.dropped.boxes, of.dropped.boxes.scores, of.dropped.ious, of.dropped_levels)
            for one, of in zip(seen, counts, strict=True)
        ]
    )
    return DroppedTable(
        **{field.name: getattr(tables, field.name) for field in fields(DetectionTable)},
        kept_anchors=_joined([of.dropped.kept_anchors for of in counts]).astype(np.int32),
        kept_ious=_joined([of.dropped.kept_ious for of in counts]).astype(np.float32),
        objects=_joined([of.dropped.objects for of in counts]).astype(np.int64),
        counts=_joined([of.dropped.counts for of in counts]).astype(np.int32),
    )


def _joined(arrays: Sequence[NDArray[np.generic]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays])


def _by_image(tables: Sequence[Columns], names: Sequence[str]) -> dict[str, Any]:
    """The columns of several tables joined, and sorted by image."""
    whole = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    order = np.argsort(whole["image_ids"], kind="stable")
    return {name: column[order] for name, column in whole.items()}


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
"""Of the fields that are no plain columns; a row of the file holds the values of a field one after the other."""


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
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
        for row in rows:  # each in a row group, so that it can be read without the others
            writer.write_table(row)
    partial.replace(file)


def read_about(file: Path, *, whole: bool = False) -> dict[str, Any]:
    """Read what a file says of its parts.

    Args:
        file: that `write_parts` wrote.
        whole: read all of it, to see whether it is sound to its last byte.

    Raises:
        ValueError: the file is not there, cut off, damaged, or none of ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            about: dict[str, Any] = json.loads(opened.schema_arrow.metadata[ABOUT])
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
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as opened:
            table = opened.read_row_group(row)
            found = {
                name: {
                    field.name: _values(table, name, field.name) for field in fields(kind) if field.name not in INNER
                }
                for name, kind in TABLES.items()
            }
    except (pa.ArrowException, OSError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{file} is no scored shard, or cut off or damaged ({error})") from error
    misalignment = Misalignment(
        **found["misalignment"],
        dropped=DroppedTable(**found["dropped"]),
        oracle=DetectionTable(**found["oracle"]),
    )
    return Part(DetectionTable(**found["detections"]), misalignment)


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


def _values(table: Any, name: str, field: str) -> NDArray[Any]:
    values: NDArray[Any] = table[f"{name}.{field}"].chunk(0).values.to_numpy()
    return values.reshape(SHAPES.get(field, (-1,)))
