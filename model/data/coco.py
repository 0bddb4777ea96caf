"""Reads and checks a data set: annotations are parsed once per node, image files checked on request."""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from model.config import DataConfig
from model.data.annotations import Annotations, Images
from model.data.cache import shared
from model.data.checks import annotation_faults, box_notes, names_alike, other_form
from model.data.faults import MAX_NAMED, DataError, Fault, describe, named, no_target, refuse
from model.data.file_names import Found, find_renamed, leads_out, where_it_may_be
from model.data.files.decoding import NUM_THREADS
from model.data.files.inspection import OtherSizeError, Traits, inspect, notes
from model.data.formats.reading import read_split
from model.data.layout import SplitFiles, split_files
from model.data.split import COLUMNS, MIN_SIDE, CocoData, Columns, assemble, read_data, write_data

FORMAT = 5
"""Rises whenever the same annotation file gives other data, or the cached file another layout."""
SETTLED_NS = 2_000_000_000
"""An annotation file that changed so lately is not cached: it may change again under the same time stamp."""


def read_for_training(root: Path, config: DataConfig, *, check_images: bool = False) -> CocoData:
    """Read the split that a training learns from; see read_coco.

    Raises:
        DataError: as read_coco does, and where there is no box to learn.
    """
    data = _read_as(root, config, config.train_split, config.num_train_images, check_images)
    require_boxes(data)
    return data


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
    # Not cached, as it depends on the images that are there; where something is found, so is the data under its name.
    found = find_renamed(root, files.images, data.file_names)
    if found.names:
        identity.append(list(found.names.items()))
        data = _shared(files, identity, root, partial(_renamed, data, found))
    of_images: list[Fault] = []
    told: tuple[str, ...] = ()
    if check_images or found.outside:
        images = Images(ids=data.image_ids, names=data.file_names, sizes=data.sizes)
        # What leads out of the data is refused even where nobody asks whether images are there.
        chosen = images if check_images else images.take(np.array(found.outside))
        of_images, told = check_files(root, files.images, chosen, boxes_follow=files.format == "yolo")
    if faults == "refuse":
        refuse(files.where, of_images)
    if of_images:
        identity.append([asdict(fault) for fault in of_images])
        data = _shared(files, identity, root, partial(_without, files.where, data, of_images))
    if told:
        object.__setattr__(data, "notes", (*data.notes, *told))  # no copy, which would not claim the file
    return data


def _parse(files: SplitFiles, root: Path, num_images: int | None, faults: str, check_images: bool) -> CocoData:
    """Read and judge the annotations; images are checked only to tell of their faults as well."""
    file = files.where
    listed, annotations, categories, notes = read_split(files)
    annotations, num_repeated = _once(annotations)
    if num_repeated:
        notes += (f"annotations: {num_repeated} rows repeat another, id included; each counts once",)
    ids, first = np.unique(listed.ids, return_index=True)
    images = listed.take(first)
    chosen = images.take(np.arange(len(ids))[:num_images])

    duplicates = _duplicates(listed, images)
    if len(ids) < len(listed.ids) and not duplicates:
        notes += (f"images: {len(listed.ids) - len(ids)} of {len(listed.ids)} rows repeat another; each counts once",)
    if files.format in ("coco", "lvis") and (form := other_form(annotations, images)) is not None:
        raise DataError(f"{file}: {form}; no quarantine can mend them")
    of_rows = annotation_faults(annotations, images, tuple(categories))
    not_chosen = set(ids[len(chosen.ids) :].tolist())
    of_rows = {row: fault for row, fault in of_rows.items() if fault.image_id not in not_chosen}
    if duplicates or (of_rows and faults == "refuse"):
        of_images = check_files(root, files.images, _found(root, files.images, chosen))[0] if check_images else []
        refuse(file, [*duplicates, *of_images, *of_rows.values()])
    sound = _quarantined(annotations, of_rows, chosen)
    columns, notes = (
        _columns(chosen, sound, categories),
        (*notes, *names_alike(categories), *_worth_a_look(chosen, sound)),
    )
    return assemble(root, files.name, files.images, columns, categories, tuple(of_rows.values()), notes)


def _worth_a_look(images: Images, annotations: Annotations) -> list[str]:
    """Tell of what is sound by itself and seldom meant."""
    notes = box_notes(annotations, images)
    if len(set(images.names)) < len(images.names):
        names = [name for name, times in Counter(images.names).items() if times > 1]
        notes.append(f"files that several images name, each with objects of its own: {named(names)}")
    if len(annotations.ids) and annotations.crowds.all():
        notes.append("every box is a crowd (iscrowd is 1): there is nothing to find, and no AP")
    return notes


def _once(annotations: Annotations) -> tuple[Annotations, int]:
    """The annotations without those that repeat another in everything, and how many these are."""
    _, first, place = np.unique(annotations.ids, return_index=True, return_inverse=True)
    if len(first) == len(annotations.ids):
        return annotations, 0
    of_id = first[place]
    same = of_id != np.arange(len(of_id))
    for name in ("image_ids", "category_ids", "areas", "crowds"):
        column = getattr(annotations, name)
        same &= column == column[of_id]
    same &= (annotations.boxes == annotations.boxes[of_id]).all(axis=1)
    return annotations.take(np.flatnonzero(~same)), int(same.sum())


def _duplicates(listed: Images, images: Images) -> list[Fault]:
    """The ids that stand for several images; an image that is listed several times alike counts once."""
    if len(images.ids) == len(listed.ids):
        return []
    place = np.searchsorted(images.ids, listed.ids)
    differs = (listed.sizes != images.sizes[place]).any(axis=1)
    differs |= np.array([name != images.names[one] for name, one in zip(listed.names, place.tolist(), strict=True)])
    return [Fault(kind="image_duplicate", image_id=id) for id in np.unique(listed.ids[differs]).tolist()]


def _found(root: Path, folder: Path, images: Images) -> Images:
    """The images under the names of their files."""
    names = images.names.copy()
    for place, name in find_renamed(root, folder, names).names.items():
        names[place] = name
    return Images(ids=images.ids, names=names, sizes=images.sizes)


def _renamed(data: CocoData, found: Found) -> CocoData:
    """The data with the names under which files were found."""
    names = data.file_names
    for place, name in found.names.items():
        names[place] = name
    columns = {name: getattr(data, name) for name in COLUMNS}
    columns["names"] = np.array([name.encode() for name in names])
    categories = dict(zip(data.category_ids, data.category_names, strict=True))
    return assemble(data.root, data.split, data.folder, columns, categories, data.faults, (*data.notes, *found.notes))


def require_boxes(data: CocoData) -> None:
    """Refuse a split of which a training would learn nothing.

    Raises:
        DataError: the message has the count of boxes by the reason why they are not learnt, and the likely cause.
    """
    count = data.learnt()
    if count.boxes:
        return
    causes = {
        "give iscrowd: 1 to groups of objects alone; some exporters set it on every mask": count.crowds,
        "boxes that lie beside their image may count from 1, or be of another image": count.outside,
        "boxes under a pixel may be written in another unit, such as fractions of the image": count.under_a_pixel,
        f"images with a side under {MIN_SIDE} pixels do not train; use larger ones": count.in_small_images,
        "give every annotation an area above 0, or none at all": count.without_area,
    }
    way_out = max(causes, key=lambda cause: causes[cause])
    if not count.total:
        way_out = "annotate some images, or take more of them (train.data.num_train_images)"
    if len(data.faults) > count.total:
        way_out = "mend what is faulty: it is nearly all there is"
    head = f"{split_files(data.root, data.split).where}: split {data.split!r} has no box to learn: {count}"
    raise DataError("\n  ".join([head, *data.notes, *describe(data.faults), way_out]))


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
    return assemble(data.root, data.split, data.folder, columns, categories, found, data.notes)


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
            # Of a mask what is left is not known, but never more than its box; COCO's sizes are told by it.
            annotations.areas[row] = min(annotations.areas[row], (high - low).clip(0).prod())
            keep[row] = (high > low).all()
        else:
            keep[row] = False
    rows = np.flatnonzero(keep)
    return annotations.take(rows[np.argsort(place[rows], kind="stable")])


def _columns(images: Images, annotations: Annotations, categories: dict[int, str]) -> Columns:
    place = np.searchsorted(images.ids, annotations.image_ids)
    label = np.int16 if len(categories) <= 2**15 else np.int32  # the fingerprint takes the type in
    return {
        "image_ids": images.ids,
        "names": np.array([name.encode() for name in images.names]),
        "sizes": images.sizes,
        "offsets": np.searchsorted(place, np.arange(len(images.ids) + 1)).astype(np.int64),
        "annotation_ids": annotations.ids,
        "annotation_boxes": annotations.boxes,
        "annotation_areas": annotations.areas,
        "annotation_labels": np.searchsorted(list(categories), annotations.category_ids).astype(label),
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
    folders: dict[str, str] = {}  # resolved once each: there may be 100,000 files in them
    stamps: list[Any] = [files.format, files.share, files.notes]
    latest = time.time_ns() - SETTLED_NS
    for file in files.sources():
        try:
            status = os.stat(file)
        except FileNotFoundError:  # an image that is listed only: the check of images tells of it
            stamps.append(file)
            continue
        if status.st_mtime_ns > latest:
            return None
        folder, _, name = file.rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        # ctime as well: a copy may bring its time of change along, and other content may be as long.
        stamps.append((folders[folder], name, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return stamps


def check_files(
    root: Path, folder: Path, images: Images, *, boxes_follow: bool = False
) -> tuple[list[Fault], tuple[str, ...]]:
    """Find the images that are missing, cut short, or of another size than annotated, and tell how others are read.

    Returns:
        Faults, and sentences for people; see model.data.files.inspection.
    """
    paths = [None if leads_out(root, folder, name) else folder / name for name in images.names]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(_check_file, paths, images.ids.tolist(), images.sizes.tolist()))
    missing = [place for place, one in enumerate(found) if isinstance(one, Fault) and one.kind == "image_missing"]
    look = where_it_may_be(root, folder, images.names) if missing else None
    for number, place in enumerate(missing):
        name = images.names[place]
        # A message names the first few alone, and to look for one takes a while.
        near = look(name) if look is not None and number < MAX_NAMED else ""
        path = paths[place]
        detail = (path and no_target(path)) or f"{name}, looked for in {folder}{near}"
        found[place] = Fault(kind="image_missing", image_id=int(images.ids[place]), detail=detail)
    sound = [one for one in found if isinstance(one, Traits)]
    return [one for one in found if isinstance(one, Fault)], tuple(notes(sound, boxes_follow=boxes_follow))


def _check_file(path: Path | None, image_id: int, size: Sequence[int]) -> Fault | Traits:
    if path is None:
        return Fault(kind="image_missing", image_id=image_id)
    height, width = size
    try:
        return inspect(path, (height, width))
    except FileNotFoundError:
        return Fault(kind="image_missing", image_id=image_id, detail=str(path))
    except OtherSizeError as error:
        return Fault(kind="image_resized", image_id=image_id, detail=f"{path}: {error}")
    except Exception as error:  # a decoder raises whatever its format's parser meets
        if no_target(path) is not None:  # a link to itself
            return Fault(kind="image_missing", image_id=image_id, detail=str(path))
        reason = str(error) if isinstance(error, DataError) else type(error).__name__
        return Fault(kind="image_broken", image_id=image_id, detail=f"{path}: {reason}")
