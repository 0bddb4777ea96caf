"""Reading a COCO-format data set into flat arrays that a process holds, hashes and sends cheaply."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.checks import annotation_faults, image_faults
from model.coco_file import Annotations, Images, read_tables
from model.config import DataConfig
from model.faults import DataError, Fault, describe, refuse


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoData:
    """One split: the images selected, by rising id, and their annotations as columns over all images."""

    root: Path
    split: str
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
    annotation_labels: NDArray[np.int16]
    annotation_crowds: NDArray[np.bool_]
    fingerprint: str
    """sha256 over all of the above but root and split, so over what training and evaluation see."""
    faults: tuple[Fault, ...] = ()
    """What was left out or clipped because it is faulty."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def file_names(self) -> list[str]:
        """The name of each image's file, inside the folder of the split."""
        return [name.decode() for name in self.names.tolist()]

    def path(self, index: int) -> Path:
        """Where an image is."""
        name: bytes = self.names[index]
        return self.root / self.split / name.decode()

    def boxes(self, index: int) -> NDArray[np.float32]:
        """The boxes to learn, xyxy [G, 4], clipped to the image; no crowds, nothing under a pixel."""
        rows = self._rows_to_learn(index)
        low, side = self.annotation_boxes[rows, :2], self.annotation_boxes[rows, 2:]
        corners = np.concatenate([low, low + side], axis=1)
        height, width = self.sizes[index].tolist()
        boxes: NDArray[np.float32] = np.clip(corners, 0.0, [width, height, width, height]).astype(np.float32)
        return boxes

    def labels(self, index: int) -> NDArray[np.int64]:
        """The label of each box to learn, [G], from 0."""
        labels: NDArray[np.int64] = self.annotation_labels[self._rows_to_learn(index)].astype(np.int64)
        return labels

    def _rows_to_learn(self, index: int) -> NDArray[np.int64]:
        start, stop = self.offsets[index : index + 2].tolist()
        learn = ~self.annotation_crowds[start:stop] & (self.annotation_areas[start:stop] > 0)
        learn &= (self.annotation_boxes[start:stop, 2:] >= 1).all(axis=1)
        rows: NDArray[np.int64] = np.flatnonzero(learn) + start
        return rows

    def coco_dict(self) -> dict[str, Any]:
        """The selected images and all their annotations, crowds included, as an evaluator takes them."""
        image_ids = np.repeat(self.image_ids, np.diff(self.offsets))
        # COCO's evaluation takes an annotation of id 0 for none at all, so ids start from 1.
        ids = self.annotation_ids + max(0, 1 - int(self.annotation_ids.min(initial=1)))
        columns = zip(
            ids.tolist(),
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


def read_for_training(root: Path, config: DataConfig, *, check_images: bool = False) -> CocoData:
    """Read the split that a training learns from; see read_coco."""
    return _read_as(root, config, config.train_split, config.num_train_images, check_images)


def read_for_scoring(root: Path, config: DataConfig, split: str, *, check_images: bool = False) -> CocoData:
    """Read a split to score a training on, with as many images as its config says of that split; see read_coco."""
    limits = {config.train_split: config.num_train_images, config.val_split: config.num_val_images}
    return _read_as(root, config, split, limits.get(split), check_images)


def _read_as(root: Path, config: DataConfig, split: str, num_images: int | None, check_images: bool) -> CocoData:
    # Whatever is left out for its images has to be left out by every reader.
    check = check_images or config.faults == "quarantine"
    return read_coco(root, split, num_images=num_images, faults=config.faults, check_images=check)


def read_coco(
    root: Path,
    split: str,
    *,
    num_images: int | None = None,
    faults: Literal["refuse", "quarantine"] = "refuse",
    check_images: bool = True,
) -> CocoData:
    """Read images `root/split/` and annotations `root/annotations/instances_<split>.json`.

    Args:
        root: the folder of the data set.
        split: such as `val2017`.
        num_images: take the first images by id only; None takes all.
        faults: raise one DataError that lists every fault, or leave out what is faulty and tell of it in the result.
        check_images: open every image; without it only the annotations are checked.

    Raises:
        DataError: something is faulty that is to be refused, or that no quarantine can mend.
    """
    if faults not in ("refuse", "quarantine"):
        raise ValueError(f"faults is {faults!r}, expected 'refuse' or 'quarantine'")
    file = root / "annotations" / f"instances_{split}.json"
    _require_present(file, root / split)
    listed, annotations, categories = read_tables(file)
    ids, first, copies = np.unique(listed.ids, return_index=True, return_counts=True)
    images = listed.take(first)
    chosen = images.take(np.arange(len(ids))[:num_images])

    duplicates = [Fault(kind="image_duplicate", image_id=id) for id in ids[copies > 1].tolist()]
    of_images = image_faults(root / split, chosen) if check_images else []
    of_rows = annotation_faults(annotations, images, tuple(categories))
    not_chosen = set(ids[len(chosen.ids) :].tolist())
    of_rows = {row: fault for row, fault in of_rows.items() if fault.image_id not in not_chosen}
    found = [*duplicates, *of_images, *of_rows.values()]
    if faults == "refuse" or duplicates:
        refuse(file, found)

    left_out = [fault.image_id for fault in of_images]
    kept = chosen.take(np.flatnonzero(~np.isin(chosen.ids, left_out)))
    if not len(kept.ids):
        lines = [
            f"{file}: no image is left of {len(chosen.ids)}",
            *describe(found),
            "restore the images, or mend the list",
        ]
        raise DataError("\n  ".join(lines))
    return _assemble(root, split, kept, _quarantined(annotations, of_rows, kept), categories, tuple(found))


def _require_present(file: Path, folder: Path) -> None:
    missing = [f"file {file}"] if not file.is_file() else []
    missing += [f"folder {folder}"] if not folder.is_dir() else []
    if missing:
        raise DataError(
            f"{file.parent.parent}: the data set lacks {' and '.join(missing)}; expected images in <root>/<split>/ and "
            "annotations in <root>/annotations/instances_<split>.json; mend the data root or the name of the split"
        )


def _quarantined(annotations: Annotations, faults: dict[int, Fault], images: Images) -> Annotations:
    """The sound annotations of these images, sorted by image; those that leave an image are clipped to it."""
    place = np.searchsorted(images.ids, annotations.image_ids).clip(max=len(images.ids) - 1)
    keep = images.ids[place] == annotations.image_ids
    for row, fault in faults.items():
        if fault.kind == "box_outside" and keep[row]:
            low, side = np.split(annotations.boxes[row], 2)
            limit = images.sizes[place[row], ::-1]
            low, high = np.clip(low, 0, limit), np.clip(low + side, 0, limit)
            annotations.boxes[row] = [*low, *(high - low)]
            keep[row] = (high > low).all()
        else:
            keep[row] = False
    rows = np.flatnonzero(keep)
    return annotations.take(rows[np.argsort(place[rows], kind="stable")])


def _assemble(
    root: Path,
    split: str,
    images: Images,
    annotations: Annotations,
    categories: dict[int, str],
    faults: tuple[Fault, ...],
) -> CocoData:
    place = np.searchsorted(images.ids, annotations.image_ids)
    columns: dict[str, NDArray[Any]] = {
        "image_ids": images.ids,
        "names": np.array([name.encode() for name in images.names]),
        "sizes": images.sizes,
        "offsets": np.searchsorted(place, np.arange(len(images.ids) + 1)).astype(np.int64),
        "annotation_ids": annotations.ids,
        "annotation_boxes": annotations.boxes,
        "annotation_areas": annotations.areas,
        "annotation_labels": np.searchsorted(list(categories), annotations.category_ids).astype(np.int16),
        "annotation_crowds": annotations.crowds,
    }
    digest = hashlib.sha256(json.dumps([[int(id), name] for id, name in categories.items()]).encode())
    for name, column in columns.items():
        digest.update(f"{name} {column.dtype.str} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return CocoData(
        root=root,
        split=split,
        category_ids=tuple(categories),
        category_names=tuple(categories.values()),
        fingerprint=digest.hexdigest(),
        faults=faults,
        **columns,
    )
