"""A split's columns in an Arrow file: a row for each image, which holds its annotations; mapped, never copied."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

Columns = dict[str, NDArray[Any]]
"""By the names that CocoData gives them."""


def write_arrow(file: Path, columns: Columns, card: dict[str, Any]) -> None:
    """Write one record batch, uncompressed, with a JSON card of whatever is no column."""
    column = {name: _arrow(array) for name, array in columns.items()}
    fields = {
        "id": column["annotation_ids"],
        "box": pa.FixedSizeListArray.from_arrays(column["annotation_boxes"], 4),
        "area": column["annotation_areas"],
        "label": column["annotation_labels"],
        "crowd": column["annotation_crowds"],
    }
    images = {
        "id": column["image_ids"],
        "name": column["names"],
        "size": pa.FixedSizeListArray.from_arrays(column["sizes"], 2),
        "annotations": pa.LargeListArray.from_arrays(
            column["offsets"], pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
        ),
    }
    batch = pa.record_batch(images).replace_schema_metadata({"card": json.dumps(card)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def map_arrow(file: Path) -> tuple[Columns, dict[str, Any]]:
    """Columns that are read-only views of the mapped file, and the card.

    Raises:
        OSError: there is no such file.
        Exception: it is damaged; Arrow and JSON raise whatever they meet.
    """
    batch = pa.ipc.open_file(pa.memory_map(str(file))).get_batch(0)
    batch.validate()
    names, lists = batch.column("name"), batch.column("annotations")
    fields = {field.name: column for field, column in zip(lists.type.value_type, lists.values.flatten(), strict=True)}
    columns = {
        "image_ids": _view(batch.column("id"), np.int64),
        "names": _view(names, np.dtype(f"S{names.type.byte_width}")),
        "sizes": _view(batch.column("size").values, np.int32).reshape(-1, 2),
        "offsets": _view(lists.offsets, np.int64),
        "annotation_ids": _view(fields["id"], np.int64),
        "annotation_boxes": _view(fields["box"].values, np.float64).reshape(-1, 4),
        "annotation_areas": _view(fields["area"], np.float64),
        "annotation_labels": _view(fields["label"], np.int16),
        "annotation_crowds": _view(fields["crowd"], np.bool_),
    }
    return columns, json.loads(batch.schema.metadata[b"card"])


# Arrow converts to and from NumPy as well, but imports pandas for it: 30 MB in every process.


def _arrow(array: NDArray[Any]) -> pa.Array:
    """The numbers of an array, flat; texts of one width; a byte for each truth value, of which Arrow makes bits."""
    if array.dtype.kind == "S":
        kind = pa.binary(array.dtype.itemsize)
    else:
        kind = pa.uint8() if array.dtype == np.bool_ else pa.from_numpy_dtype(array.dtype)
    return pa.Array.from_buffers(kind, array.size, [None, pa.py_buffer(np.ascontiguousarray(array).data)])


def _view(array: pa.Array, dtype: DTypeLike) -> NDArray[Any]:
    return np.frombuffer(array.buffers()[-1], dtype=dtype, count=len(array))
