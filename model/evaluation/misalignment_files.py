"""What a scoring pass counted, as Parquet files in one folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation.misalignment import BINS, IOUS, SCORES, DroppedTable, Misalignment
from model.inference.table import ABOUT, CORNERS, read_detections, write_detections

COUNTS, DENSITY, DROPPED, ORACLE = FILES = ("counts.parquet", "density.parquet", "dropped.parquet", "oracle.parquet")
"""By image; by bin of score and IoU; what NMS dropped for something worse; what it would keep if it knew the IoUs."""
PER_IMAGE = ("num_objects", "num_positive_anchors", "num_before", "num_after")
ABOVE = {"scores_before": SCORES, "scores_after": SCORES, "ious_before": IOUS, "ious_after": IOUS}
"""Columns of an image, one for each threshold: `scores_before > 0.05`."""
DENSITIES = ("density_before", "density_after")
DROPPED_TYPES: dict[str, type[np.generic]] = {
    "image_ids": np.int64,
    "category_ids": np.int64,
    "scores": np.float32,
    "class_scores": np.float32,
    "confidences": np.float32,
    "ious": np.float32,
    "levels": np.int8,
    "anchors": np.int32,
    "kept_anchors": np.int32,
    "kept_ious": np.float32,
    "objects": np.int64,
    "counts": np.int32,
}
"""Columns of a dropped box, beside its corners."""
Columns = dict[str, NDArray[Any]]


def write_misalignment(folder: Path, misalignment: Misalignment, about: Mapping[str, Any]) -> list[Path]:
    """Write FILES into a folder, compressed, and return them; `about` says whose they are, as JSON will have it."""
    counts: Columns = {name: getattr(misalignment, name) for name in ("image_ids", *PER_IMAGE)}
    for name, thresholds in ABOVE.items():
        values = getattr(misalignment, name)
        counts |= {_above(name, one): np.ascontiguousarray(values[:, k]) for k, one in enumerate(thresholds)}
    dropped = misalignment.dropped
    corners = {corner: np.ascontiguousarray(dropped.boxes[:, place]) for place, corner in enumerate(CORNERS)}
    _write(folder / COUNTS, counts, about)
    _write(folder / DENSITY, {name: getattr(misalignment, name).ravel() for name in DENSITIES}, about)
    _write(folder / DROPPED, corners | {name: getattr(dropped, name) for name in DROPPED_TYPES}, about)
    write_detections(misalignment.oracle, folder / ORACLE, about)
    return [folder / name for name in FILES]


def read_misalignment(folder: Path) -> Misalignment:
    """Read back what `write_misalignment` wrote.

    Raises:
        ValueError: a file is missing, cut off, damaged, or none of ours.
    """
    above = [_above(name, one) for name, thresholds in ABOVE.items() for one in thresholds]
    counts = _read(folder / COUNTS, {"image_ids": np.int64, **dict.fromkeys((*PER_IMAGE, *above), np.int32)})
    density = _read(folder / DENSITY, dict.fromkeys(DENSITIES, np.int64))
    if len(density[DENSITIES[0]]) != BINS * BINS:
        raise ValueError(f"{folder / DENSITY} has {len(density[DENSITIES[0]])} bins, expected {BINS} times {BINS}")
    dropped = _read(folder / DROPPED, dict.fromkeys(CORNERS, np.float32) | DROPPED_TYPES)
    boxes = np.column_stack([dropped.pop(corner) for corner in CORNERS])
    return Misalignment(
        **{name: counts[name] for name in ("image_ids", *PER_IMAGE)},
        **{name: np.column_stack([counts[_above(name, one)] for one in ABOVE[name]]) for name in ABOVE},
        **{name: density[name].reshape(BINS, BINS) for name in DENSITIES},
        dropped=DroppedTable(boxes=boxes, **dropped),
        oracle=read_detections(folder / ORACLE)[0],
    )


def _above(name: str, threshold: float) -> str:
    return f"{name} > {threshold:g}"


def _write(file: Path, columns: Columns, about: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    partial = file.with_name(f".{file.name}.partial")
    table = pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(about)})
    pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    partial.replace(file)


def _read(file: Path, types: Mapping[str, type[np.generic]]) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, page_checksum_verification=True)
        columns: Columns = {name: table[name].to_numpy() for name in types}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{file} holds no counts of a scoring pass, or is cut off or damaged: {error}") from error
    wrong = [name for name, kind in types.items() if columns[name].dtype != kind]
    if wrong:
        raise ValueError(f"{file} has other types than expected, in: {', '.join(wrong)}")
    return columns
