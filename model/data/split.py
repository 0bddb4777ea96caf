"""One split of a COCO-format data set as flat columns, which all processes of a node map from one Arrow file."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from model.data.faults import DataError, Fault
from model.paths import OutsideError, inside, named_folder

LEAST_SIDE = 0.01
"""Pixels that a box must reach into its image to be learnt."""
MIN_SIDE = 32
"""Images with a shorter side do not train, as in the released code."""
NOT_LEARNT = ("crowd", "area 0", "under a pixel", "outside", "small image")
"""Why boxes are not learnt: they are crowds, have no area, have a side under a pixel, touch nothing of their image, or
their image has a side under MIN_SIDE."""
Columns = dict[str, NDArray[Any]]
"""By the names that CocoData gives them."""
COLUMNS = (
    "image_ids",
    "names",
    "sizes",
    "offsets",
    "annotation_ids",
    "annotation_boxes",
    "annotation_areas",
    "annotation_labels",
    "annotation_crowds",
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoData:
    """One split: the images selected, by rising id, and their annotations as columns over all images.

    Where a file is behind them, the columns are views of it, read-only and shared by all processes of the node.
    """

    root: Path
    """The data set's folder, or the one file that it was found by."""
    split: str
    folder: Path
    """Where image files lie; names count from here."""
    image_ids: NDArray[np.int64]
    """[n], rising."""
    names: NDArray[np.bytes_]
    """[n], file names in UTF-8."""
    sizes: NDArray[np.int32]
    """[n, 2], height and width."""
    category_ids: tuple[int, ...]
    """The ids of the file, rising; a label is a place in this row."""
    category_names: tuple[str, ...]
    offsets: NDArray[np.int64]
    """[n + 1]; image i owns the annotations offsets[i] to offsets[i + 1]."""
    annotation_ids: NDArray[np.int64]
    annotation_boxes: NDArray[np.float64]
    """[annotations, 4], x, y, width, height as the file has them."""
    annotation_areas: NDArray[np.float64]
    annotation_labels: NDArray[np.int16] | NDArray[np.int32]
    """int32 where there are more categories than int16 counts."""
    annotation_crowds: NDArray[np.bool_]
    fingerprint: str
    """sha256 over all of the above but root, split and folder: annotations, names and sizes of images, not pixels."""
    faults: tuple[Fault, ...] = ()
    """What was left out or clipped because it is faulty."""
    notes: tuple[str, ...] = ()
    """What was read otherwise than it is written, or is worth a look, a sentence each; no part of the fingerprint."""
    file: Path | None = field(default=None, init=False)
    """The Arrow file that the columns are views of; pickling sends its path in their stead."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.file is not None and self.file.is_file():
            # A spawned DataLoader worker grows by 0.1 MB with the path, by 48.9 MB with the columns (train2017).
            return _reopen, (self.file, self.root, self.split, self.folder, self.fingerprint)
        return object.__reduce_ex__(self, protocol)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def file_names(self) -> list[str]:
        """The name of each image's file, counted from the folder."""
        return [name.decode() for name in self.names.tolist()]

    def path(self, index: int) -> Path:
        """Where an image is.

        Raises:
            DataError: its name leads out of the data set.
        """
        name: bytes = self.names[index]
        try:
            # Readers refuse such a name before; here none gets by, whoever made the columns.
            return inside(self.folder, name.decode(), named_folder(self.root))
        except OutsideError as error:
            raise DataError(f"{self.root}: image {int(self.image_ids[index])}: {error}; mend its name") from error

    def boxes(self, index: int) -> NDArray[np.float32]:
        """The boxes to learn, xyxy [G, 4], clipped to the image; no crowds, nothing under a pixel."""
        return self.truth(index)[0]

    def labels(self, index: int) -> NDArray[np.int64]:
        """The label of each box to learn, [G], from 0."""
        return self.truth(index)[1]

    def truth(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The boxes to learn and their labels, in one look for who loads thousands of images a second."""
        rows = slice(*self.offsets[index : index + 2].tolist())
        boxes = _clipped(self.annotation_boxes[rows], self.sizes[index])
        crowd, no_area, small, outside = self._left_out(rows, boxes)
        learn = ~(crowd | no_area | small | outside)
        return boxes[learn], self.annotation_labels[rows][learn].astype(np.int64)

    def learnt(self) -> "Learnt":
        """Count the boxes that a training learns, and the others by the reason."""
        counts = [int(mask.sum()) for mask in self.not_learnt().values()]
        total = len(self.annotation_ids)
        return Learnt(total - sum(counts), total, *counts)

    def not_learnt(self) -> dict[str, NDArray[np.bool_]]:
        """Return the boxes that no training learns, each for the first of NOT_LEARNT's reasons: [annotations] masks."""
        sizes = np.repeat(self.sizes, np.diff(self.offsets), axis=0)
        clipped = _clipped(self.annotation_boxes, sizes)
        masks = (*self._left_out(slice(None), clipped), sizes.min(axis=1) < MIN_SIDE)
        reasons, left = {}, np.ones(len(sizes), dtype=bool)
        for reason, mask in zip(NOT_LEARNT, masks, strict=True):
            reasons[reason] = left & mask
            left &= ~mask
        return reasons

    def _left_out(self, rows: slice, clipped: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
        """Return NOT_LEARNT's masks but the last over some annotations; the same rules as in the released code."""
        wide, high = (self.annotation_boxes[rows, side] for side in (2, 3))
        left, top, right, bottom = clipped.T
        # What lies beside its image has no width in it, or none that is left once it is resized and mirrored in single
        # precision: max-IoU would give it every anchor.
        outside = (right - left < LEAST_SIDE) | (bottom - top < LEAST_SIDE)
        return [self.annotation_crowds[rows], ~(self.annotation_areas[rows] > 0), (wide < 1) | (high < 1), outside]

    def coco_dict(self) -> dict[str, Any]:
        """The selected images and all their annotations, crowds included, as an evaluator takes them."""
        image_ids = np.repeat(self.image_ids, np.diff(self.offsets))
        # COCO's evaluation takes an annotation of id 0 for none at all, so ids start from 1.
        shift = max(0, 1 - int(self.annotation_ids.min(initial=1)))
        columns = zip(
            # Not in NumPy, where the sum of two ids of 64 bits may be beyond them.
            [id + shift for id in self.annotation_ids.tolist()],
            image_ids.tolist(),
            np.array(self.category_ids, dtype=np.int64)[self.annotation_labels].tolist(),
            self.annotation_boxes.tolist(),
            self.annotation_areas.tolist(),
            self.annotation_crowds.astype(int).tolist(),
            strict=True,
        )
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        images = zip(self.image_ids.tolist(), self.file_names, self.sizes.tolist(), strict=True)
        categories = zip(self.category_ids, self.category_names, strict=True)
        return {
            "images": [{"id": id, "file_name": name, "height": h, "width": w} for id, name, (h, w) in images],
            "annotations": [dict(zip(keys, row, strict=True)) for row in columns],
            "categories": [{"id": id, "name": name} for id, name in categories],
        }


@dataclass(frozen=True, slots=True)
class Learnt:
    """How many boxes of a split a training learns, and why not the others."""

    boxes: int
    """That are learnt."""
    total: int
    crowds: int
    without_area: int
    under_a_pixel: int
    outside: int
    in_small_images: int

    def __str__(self) -> str:
        return (
            f"{self.boxes} of {self.total} boxes are learnt: {self.crowds} crowds, {self.without_area} of area 0, "
            f"{self.under_a_pixel} under a pixel, {self.outside} outside their image, {self.in_small_images} in images "
            f"under {MIN_SIDE} px"
        )


def _clipped(boxes: NDArray[np.float64], sizes: NDArray[Any]) -> NDArray[np.float32]:
    """Return boxes, [G, 4] xywh, as xyxy clipped to images of a (height, width) each or in common."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    bounds = np.concatenate([sizes[..., ::-1], sizes[..., ::-1]], axis=-1)
    clipped: NDArray[np.float32] = np.clip(corners, 0.0, bounds).astype(np.float32)
    return clipped


def category_differences(first: CocoData, second: CocoData) -> list[str]:
    """Say of each category that two splits do not share what either has; empty where the lists are the same."""
    names = [dict(zip(data.category_ids, data.category_names, strict=True)) for data in (first, second)]

    def has(place: int, id: int) -> str:
        return repr(names[place][id]) if id in names[place] else "missing"

    differing = sorted(id for id in {*names[0], *names[1]} if has(0, id) != has(1, id))
    return [f"{id} is {has(0, id)} in {first.split} and {has(1, id)} in {second.split}" for id in differing]


def assemble(
    root: Path,
    split: str,
    folder: Path,
    columns: Columns,
    categories: dict[int, str],
    faults: tuple[Fault, ...],
    notes: tuple[str, ...] = (),
) -> CocoData:
    """Data in memory, with the fingerprint of their content."""
    return CocoData(
        root=root,
        split=split,
        folder=folder,
        category_ids=tuple(categories),
        category_names=tuple(categories.values()),
        fingerprint=_fingerprint(columns, categories),
        faults=faults,
        notes=notes,
        **columns,
    )


def renumbered(data: CocoData, categories: dict[int, str]) -> CocoData:
    """The same images and objects, whose classes have the ids and the order of `categories`, which has their names."""
    place_of = {name: place for place, name in enumerate(categories.values())}
    labels = np.array([place_of[name] for name in data.category_names], dtype=data.annotation_labels.dtype)
    columns = {name: getattr(data, name) for name in COLUMNS}
    columns["annotation_labels"] = labels[data.annotation_labels]
    return assemble(data.root, data.split, data.folder, columns, categories, data.faults, data.notes)


def write_data(file: Path, data: CocoData) -> None:
    """Write the data to an Arrow file, all but root, split and folder."""
    card = {
        "categories": list(zip(data.category_ids, data.category_names, strict=True)),
        "faults": [asdict(fault) for fault in data.faults],
        "fingerprint": data.fingerprint,
        "notes": data.notes,
    }
    write_arrow(file, {name: getattr(data, name) for name in COLUMNS}, card)


def read_data(file: Path, root: Path, split: str, folder: Path) -> CocoData | None:
    """Data mapped from a file that holds what was written there; None where none does."""
    try:
        data = _mapped(file, root, split, folder)
        categories = dict(zip(data.category_ids, data.category_names, strict=True))
        sound = data.fingerprint == _fingerprint({name: getattr(data, name) for name in COLUMNS}, categories)
    except Exception:  # missing, or damaged in whatever way
        return None
    return data if sound else None


def _mapped(file: Path, root: Path, split: str, folder: Path) -> CocoData:
    columns, card = map_arrow(file)
    data = CocoData(
        root=root,
        split=split,
        folder=folder,
        category_ids=tuple(id for id, _ in card["categories"]),
        category_names=tuple(name for _, name in card["categories"]),
        fingerprint=card["fingerprint"],
        faults=tuple(Fault(**fault) for fault in card["faults"]),
        notes=tuple(card["notes"]),
        **columns,
    )
    object.__setattr__(data, "file", file)  # no argument, so that a changed copy does not claim the file
    return data


def _reopen(file: Path, root: Path, split: str, folder: Path, fingerprint: str) -> CocoData:
    """What another process of this node has mapped."""
    try:
        data = _mapped(file, root, split, folder)
    except Exception as error:  # missing, or damaged in whatever way
        raise DataError(f"{file}: cached annotations went away ({error}); start again") from error
    if data.fingerprint != fingerprint:
        raise DataError(f"{file}: cached annotations changed under a running process; start again")
    return data


def _fingerprint(columns: Columns, categories: dict[int, str]) -> str:
    digest = hashlib.sha256(json.dumps([[int(id), name] for id, name in categories.items()]).encode())
    for name in COLUMNS:
        column = np.ascontiguousarray(columns[name])
        digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
        digest.update(column.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrow(file: Path, columns: Columns, card: dict[str, Any]) -> None:
    """Write one record batch, uncompressed so that it can be mapped, with a JSON card of whatever is no column."""
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
        "annotation_labels": _view(fields["label"], f"i{fields['label'].type.bit_width // 8}"),
        "annotation_crowds": _view(fields["crowd"], np.bool_),
    }
    return columns, json.loads(batch.schema.metadata[b"card"])


def _arrow(array: NDArray[Any]) -> pa.Array:
    """The numbers of an array, flat; texts of one width; a byte for each truth value, of which Arrow makes bits."""
    # Arrow converts to and from NumPy as well, but imports pandas for it: 30 MB in every process.
    if array.dtype.kind == "S":
        kind = pa.binary(array.dtype.itemsize)
    else:
        kind = pa.uint8() if array.dtype == np.bool_ else pa.from_numpy_dtype(array.dtype)
    return pa.Array.from_buffers(kind, array.size, [None, pa.py_buffer(np.ascontiguousarray(array).data)])


def _view(array: pa.Array, dtype: DTypeLike) -> NDArray[Any]:
    return np.frombuffer(array.buffers()[-1], dtype=dtype, count=len(array))
