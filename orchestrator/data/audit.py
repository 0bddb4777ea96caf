"""What a data set holds, split by split: images, boxes, sizes, what is learnt and why not the rest, duplicates."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.duplicates import Prints, Twin, prints, twins

if TYPE_CHECKING:
    from model.data.layout import Layout
    from model.data.split import CocoData

SMALL, MEDIUM = 32**2, 96**2
"""Square pixels below which COCO calls an object small, or medium."""
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """What the images themselves say, once all are read."""

    across: tuple[Twin, ...] = ()
    """Images of a split that are like one of a split before it."""
    contained: tuple[tuple[str, str], ...] = ()
    """Pairs of splits of which the first holds all files of the second by intention, as trainval those of train."""
    within: tuple[Twin, ...] = ()
    """Images of a split that are like an earlier one of the same."""
    broken: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Why images do not decode, by split and name."""
    num_images: int = 0
    seconds: float = 0.0
    """That reading, decoding and hashing all of them took."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Audit:
    """A data set as it was found."""

    root: Path
    splits: tuple["CocoData", ...]
    """Those that can be read, what trains first; without what is at fault."""
    formats: Mapping[str, str]
    """What each split is written in."""
    refused: Mapping[str, str]
    """Why the other splits cannot be read, by name."""
    looked: Looked | None
    """None where the images were not read."""
    edges: tuple[int, int]
    """The short and the long edge that images are resized to for training, in pixels."""
    notes: tuple[str, ...] = ()
    """What of the splits is left to the user."""


def audit(
    root: Path,
    edges: tuple[int, int],
    progress: Callable[[int, int], None] | None = None,
    *,
    read_images: bool = True,
) -> Audit:
    """Look at every split of a data set; one that cannot be read does not hide the others.

    Args:
        root: a folder or a file in any format that the project reads.
        edges: see Audit.
        progress: told how many images are read, of how many.
        read_images: decode every image, to find duplicates and what does not decode.

    Raises:
        DataError: no data set is there, or none of its splits can be read.
    """
    from model.data.coco import read_coco
    from model.data.faults import DataError
    from model.data.layout import find_layout

    layout = find_layout(root)
    splits: list[CocoData] = []
    refused = {}
    for name in _in_order(layout):
        try:
            splits.append(read_coco(root, name, faults="quarantine"))
        except DataError as error:
            refused[name] = str(error)
    if not splits:
        raise DataError("\n".join(dict.fromkeys(refused.values())))
    return Audit(
        root=root,
        splits=tuple(splits),
        formats={name: files.format for name, files in layout.splits.items()},
        refused=refused,
        looked=_look(splits, progress or (lambda done, total: None)) if read_images else None,
        edges=edges,
        notes=layout.notes,
    )


def _in_order(layout: "Layout") -> list[str]:
    """The splits: what trains, what is validated on, then the others; without a whole whose shares these two are."""
    shared = [(files.annotations, files.listed) for files in layout.splits.values() if files.share]
    names = [
        name for name, files in layout.splits.items() if files.share or (files.annotations, files.listed) not in shared
    ]
    first = [name for name in (layout.train, layout.val) if name in names]
    return [*first, *(name for name in names if name not in first)]


def _look(splits: list["CocoData"], progress: Callable[[int, int], None]) -> Looked:
    start, total = time.perf_counter(), sum(map(len, splits))
    found: list[Prints] = []
    for data in splits:
        before = sum(len(one.names) for one in found)
        found.append(prints(data, lambda done, before=before: progress(before + done, total)))  # type: ignore[misc]
    seconds = time.perf_counter() - start
    across, contained = [], []
    files = [{name: os.path.realpath(data.folder / name) for name in data.file_names} for data in splits]
    for place, one in enumerate(found):
        for other, others in zip(found[:place], files[:place], strict=True):
            pair, own = twins(one, other), files[place]
            if (whole := _whole_and_part(one.split, own, other.split, others)) is not None:
                contained.append(whole)
                pair = [twin for twin in pair if own[twin.name] != others[twin.other_name]]
            across += pair
    return Looked(
        across=tuple(across),
        contained=tuple(contained),
        within=tuple(twin for one in found for twin in twins(one)),
        broken={one.split: one.broken for one in found if one.broken},
        num_images=total,
        seconds=seconds,
    )


def _whole_and_part(
    split: str, files: Mapping[str, str], other: str, others: Mapping[str, str]
) -> tuple[str, str] | None:
    """Which of two splits holds all files of which; None where neither does, or their names say that they are apart."""
    from model.data.layouts.files import usual_split

    usual = usual_split(split), usual_split(other)
    if None not in usual and usual[0] != usual[1]:
        return None
    first, second = set(files.values()), set(others.values())
    return (split, other) if second <= first else (other, split) if first <= second else None


def learnt(data: "CocoData") -> NDArray[np.bool_]:
    """[annotations], whether a training learns the box."""
    mask: NDArray[np.bool_] = ~np.any(list(data.not_learnt().values()), axis=0)
    return mask


def class_names(found: Audit) -> list[str]:
    """The classes of all splits, in the order of their ids in the first split that has them."""
    return list(dict.fromkeys(name for data in found.splits for name in data.category_names))


def boxes_by_class(data: "CocoData", names: list[str], mask: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """[K], how many boxes of a split each of these classes has; a mask counts some of them alone."""
    labels = class_places(data, names)[data.annotation_labels]
    return np.bincount(labels if mask is None else labels[mask], minlength=len(names))


def images_by_class(data: "CocoData", names: list[str]) -> NDArray[np.int64]:
    """[K], how many images of a split have each of these classes."""
    image = np.repeat(np.arange(len(data)), np.diff(data.offsets))
    pairs = np.unique(image * len(names) + class_places(data, names)[data.annotation_labels])
    return np.bincount(pairs % len(names), minlength=len(names))


def class_places(data: "CocoData", names: list[str]) -> NDArray[np.int64]:
    """[classes of the split], the place of each among these names."""
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[name] for name in data.category_names], dtype=np.int64)


def box_sides(data: "CocoData", edges: tuple[int, int]) -> NDArray[np.float64]:
    """[annotations], the square root of each box's area in pixels of the image as it is resized for training."""
    short, long = edges
    factors = np.minimum(long / data.sizes.max(axis=1), short / data.sizes.min(axis=1))
    sides: NDArray[np.float64] = np.sqrt(data.annotation_boxes[:, 2:].prod(axis=1))
    sides *= np.repeat(factors, np.diff(data.offsets))
    return sides


def count_sizes(data: "CocoData") -> tuple[int, int, int]:
    """How many objects COCO calls small, medium and large: by their area in the file's own pixels, crowds apart."""
    areas = data.annotation_areas[~data.annotation_crowds]
    num_small, num_not_large = int((areas < SMALL).sum()), int((areas < MEDIUM).sum())
    return num_small, num_not_large - num_small, len(areas) - num_not_large
