"""Reads and checks a data set: annotations are parsed once per node, image files checked on request."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.config import DataConfig
from model.data.annotations import Annotations, Images
from model.data.cache import shared
from model.data.faults import DataError, Fault, FaultKind, describe, refuse
from model.data.files.inspection import OtherSizeError, Traits, inspect, notes
from model.data.formats.reading import read_split
from model.data.layout import SplitFiles, split_files
from model.data.split import COLUMNS, CocoData, Columns, assemble, read_data, write_data

FORMAT = 1
"""Rises whenever the same annotation file gives other data, or the cached file another layout."""
SETTLED_NS = 2_000_000_000
"""An annotation file that changed so lately is not cached: it may change again under the same time stamp."""
MAX_OVERHANG = 1.0
"""Pixels by which a box may leave its image and count as sound; it is clipped without a report."""


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
    """Read a split of a data set in any format that `layout` finds; of COCO, `<split>/` and annotations/.

    Args:
        root: the folder of the data set, or a file that describes it.
        split: such as `val2017`.
        num_images: take the first images by id only; None takes all.
        faults: raise one DataError that lists every fault, or leave out what is faulty and tell of it in the result.
        check_images: open every image; without it only the annotations are checked.

    Raises:
        DataError: something is faulty that is to be refused, or that no quarantine can mend.
    """
    if faults not in ("refuse", "quarantine"):
        raise ValueError(f"faults is {faults!r}, expected 'refuse' or 'quarantine'")
    files = split_files(root, split)
    identity: list[Any] = [num_images, faults]
    data = _shared(files, identity, root, partial(_parse, files, root, num_images, faults, check_images))
    of_images, told = _checked(files, data) if check_images else ([], ())
    if faults == "refuse":
        refuse(files.where, of_images)
    if of_images:
        identity.append([asdict(fault) for fault in of_images])
        data = _shared(files, identity, root, partial(_without, files.where, data, of_images))
    object.__setattr__(data, "notes", (*data.notes, *told))  # no copy, which would not claim the file
    return data


def _checked(files: SplitFiles, data: CocoData) -> tuple[list[Fault], tuple[str, ...]]:
    return check_files(files.images, Images(ids=data.image_ids, names=data.file_names, sizes=data.sizes))


def _parse(files: SplitFiles, root: Path, num_images: int | None, faults: str, check_images: bool) -> CocoData:
    """Read and judge the annotations; images are checked only to tell of their faults as well."""
    file = files.where
    listed, annotations, categories, _ = read_split(files)
    ids, first, copies = np.unique(listed.ids, return_index=True, return_counts=True)
    images = listed.take(first)
    chosen = images.take(np.arange(len(ids))[:num_images])

    duplicates = [Fault(kind="image_duplicate", image_id=id) for id in ids[copies > 1].tolist()]
    of_rows = annotation_faults(annotations, images, tuple(categories))
    not_chosen = set(ids[len(chosen.ids) :].tolist())
    of_rows = {row: fault for row, fault in of_rows.items() if fault.image_id not in not_chosen}
    if duplicates or (of_rows and faults == "refuse"):
        of_images = check_files(files.images, chosen)[0] if check_images else []
        refuse(file, [*duplicates, *of_images, *of_rows.values()])
    columns = _columns(chosen, _quarantined(annotations, of_rows, chosen), categories)
    return assemble(root, files.name, files.images, columns, categories, tuple(of_rows.values()))


def _without(file: Path, data: CocoData, of_images: Sequence[Fault]) -> CocoData:
    """The data without the images at fault and their annotations."""
    found = (*of_images, *data.faults)
    keep = ~np.isin(data.image_ids, [fault.image_id for fault in of_images])
    if not keep.any():
        lines = [
            f"{file}: no image is left of {len(data)}",
            *describe(found),
            "restore the images, or mend the list",
        ]
        raise DataError("\n  ".join(lines))
    counts = np.diff(data.offsets)
    rows = np.repeat(keep, counts)
    columns = {
        name: getattr(data, name)[rows if name.startswith("annotation") else keep]
        for name in COLUMNS
        if name != "offsets"
    }
    columns["names"] = np.array(columns["names"].tolist())  # as wide as the longest that is left
    columns["offsets"] = np.concatenate([[0], counts[keep].cumsum()])
    categories = dict(zip(data.category_ids, data.category_names, strict=True))
    return assemble(data.root, data.split, data.folder, columns, categories, found)


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


def _columns(images: Images, annotations: Annotations, categories: dict[int, str]) -> Columns:
    place = np.searchsorted(images.ids, annotations.image_ids)
    return {
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


def _shared(files: SplitFiles, identity: list[Any], root: Path, make: Callable[[], CocoData]) -> CocoData:
    """What `make` gets from the annotation files, from the node's cache where it can be cached."""
    stamps = _stamps(files)
    if stamps is None:
        return make()
    key = json.dumps([FORMAT, files.name, stamps, identity])
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    return shared(name, make, write_data, partial(read_data, root=root, split=files.name, folder=files.images))


def _stamps(files: SplitFiles) -> list[Any] | None:
    """What tells a change of any file that the tables depend on; None where one changed too lately."""
    folders: dict[Path, str] = {}  # resolved once each: there may be 100,000 files in them
    stamps: list[Any] = [files.format, files.share]
    for file in files.sources:
        try:
            status = os.stat(file)
        except FileNotFoundError:  # an image that is listed only: the check of images tells of it
            stamps.append([str(file)])
            continue
        if time.time_ns() - status.st_mtime_ns < SETTLED_NS:
            return None
        folder = folders.setdefault(file.parent, "") or str(file.parent.resolve())
        folders[file.parent] = folder
        # ctime as well: a copy may bring its time of change along, and other content may be as long.
        stamps.append([f"{folder}/{file.name}", status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return stamps


def annotation_faults(annotations: Annotations, images: Images, category_ids: Sequence[int]) -> dict[int, Fault]:
    """Find the annotations that no detector should see; each is named for its first fault only.

    Args:
        annotations: all of a file.
        images: all of a file, by rising id.
        category_ids: the categories of the file.

    Returns:
        The fault of each faulty row.
    """
    image = np.searchsorted(images.ids, annotations.image_ids).clip(max=len(images.ids) - 1)
    stray = images.ids[image] != annotations.image_ids
    bounds = images.sizes[image, ::-1]
    low, high = annotations.boxes[:, :2], annotations.boxes[:, :2] + annotations.boxes[:, 2:]
    first = np.zeros(len(stray), dtype=bool)
    first[np.unique(annotations.ids, return_index=True)[1]] = True
    slack = MAX_OVERHANG + 1e-6  # x + width is rounded
    with np.errstate(invalid="ignore"):
        found: dict[FaultKind, NDArray[np.bool_] | np.bool_] = {
            "annotation_duplicate": ~first,
            "annotation_stray": stray,
            "category_unknown": ~np.isin(annotations.category_ids, np.array(category_ids)),
            "box_not_finite": ~np.isfinite(high).all(axis=1),
            "box_empty": (annotations.boxes[:, 2:] <= 0).any(axis=1),
            "box_outside": ((low < -slack) | (high > bounds + slack)).any(axis=1),
        }
    faults: dict[int, Fault] = {}
    # An annotation is named for its first fault: one of no listed image has no size to compare its box with.
    for kind, rows in found.items():
        for row in np.flatnonzero(rows).tolist():
            faults.setdefault(row, _annotation_fault(kind, annotations, row))
    return dict(sorted(faults.items()))


def _annotation_fault(kind: FaultKind, annotations: Annotations, row: int) -> Fault:
    image_id, annotation_id = int(annotations.image_ids[row]), int(annotations.ids[row])
    detail = f"image {image_id}"
    if kind.startswith("box"):
        detail += f", bbox {[round(value, 2) for value in annotations.boxes[row].tolist()]}"
    elif kind == "category_unknown":
        detail += f", category {int(annotations.category_ids[row])}"
    return Fault(kind=kind, image_id=image_id, annotation_id=annotation_id, detail=detail)


def check_files(folder: Path, images: Images, num_threads: int = 16) -> tuple[list[Fault], tuple[str, ...]]:
    """Find the images that are missing, cut short, or of another size than annotated, and tell how others are read.

    Returns:
        Faults, and sentences for people; see model.data.files.inspection.
    """
    paths = [folder / name for name in images.names]
    with ThreadPoolExecutor(num_threads) as pool:
        found = list(pool.map(_check_image, paths, images.ids.tolist(), images.sizes.tolist()))
    sound = [one for one in found if isinstance(one, Traits)]
    return [one for one in found if isinstance(one, Fault)], tuple(notes(sound))


def _check_image(path: Path, image_id: int, size: Sequence[int]) -> Fault | Traits:
    height, width = size
    try:
        return inspect(path, (height, width))
    except FileNotFoundError:
        return Fault(kind="image_missing", image_id=image_id, detail=path.name)
    except OtherSizeError as error:
        return Fault(kind="image_resized", image_id=image_id, detail=f"{path.name}: {error}")
    except Exception as error:  # a decoder raises whatever its format's parser meets
        reason = str(error) if isinstance(error, DataError) else type(error).__name__
        return Fault(kind="image_broken", image_id=image_id, detail=f"{path.name}: {reason}")
