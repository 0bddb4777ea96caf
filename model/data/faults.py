"""The kinds of fault that a COCO-format data set may have, and the one error message that lists them all."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FaultKind = Literal[
    "image_duplicate",
    "image_missing",
    "image_broken",
    "image_resized",
    "annotation_duplicate",
    "annotation_stray",
    "category_unknown",
    "box_not_finite",
    "box_empty",
    "box_outside",
]

DESCRIPTIONS: dict[FaultKind, str] = {
    "image_duplicate": "duplicate image ids",
    "image_missing": "images missing",
    "image_broken": "images that do not decode",
    "image_resized": "images of another size than annotated",
    "annotation_duplicate": "duplicate annotation ids",
    "annotation_stray": "annotations of images that are not listed",
    "category_unknown": "annotations of unknown categories",
    "box_not_finite": "boxes that are not four finite numbers",
    "box_empty": "boxes of zero or negative size",
    "box_outside": "boxes that leave their image by more than a pixel",
}
MAX_NAMED = 5
"""Faults of one kind that a message names; the rest it counts."""


class DataError(ValueError):
    """A data set that cannot be used as it is; the message says where, why and what to do."""


class UnknownSplit(DataError):
    """A split that a data set does not have."""

    def __init__(self, root: Path, split: str, splits: tuple[str, ...]) -> None:
        """Take the split that was asked for, and those that there are."""
        super().__init__(root, split, splits)  # all of them, as it comes from other processes by its args
        self.root, self.split, self.splits = root, split, splits

    def __str__(self) -> str:
        """Say it to who has written an experiment file."""
        return (
            f"{self.root}: there is no split {self.split!r}; the data set has {', '.join(self.splits)}; correct "
            f"train_split or val_split (train.data), or add {self.split}"
        )


def no_target(file: Path) -> str | None:
    """Say that a file is a link to what is not there, as after a move or without the disk that it leads to."""
    if not file.is_symlink() or os.path.exists(file):
        return None
    return f"{file} is a link to {os.readlink(file)}, where nothing is; restore that, or take the link away"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One thing that is wrong with a data set."""

    kind: FaultKind
    image_id: int
    annotation_id: int | None = None
    """None where the image itself is at fault."""
    detail: str = ""
    """The number, name or reason that makes it a fault."""

    def __str__(self) -> str:
        name = f"image {self.image_id}" if self.annotation_id is None else f"annotation {self.annotation_id}"
        return f"{name} ({self.detail})" if self.detail else name


def describe(faults: Iterable[Fault]) -> list[str]:
    """One line for each kind: how many, and the first few by name."""
    by_kind: dict[FaultKind, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    kinds = (kind for kind in DESCRIPTIONS if kind in by_kind)
    return [f"{DESCRIPTIONS[kind]} ({len(by_kind[kind])}): {_first(by_kind[kind])}" for kind in kinds]


def named(found: Sequence[str], most: int = MAX_NAMED) -> str:
    """The first few, and how many there are where these are not all."""
    return _first(found, most) + (f" ({len(found)} in all)" if len(found) > most else "")


def _first(found: Sequence[object], most: int = MAX_NAMED) -> str:
    return ", ".join(map(str, found[:most])) + (", ..." if len(found) > most else "")


def refuse(file: Path, faults: Sequence[Fault]) -> None:
    """Raise one DataError that lists every fault; nothing happens where there is none."""
    if not faults:
        return
    way_out = "mend the files, or leave out what is faulty with `faults: quarantine` (setting train.data.faults)"
    if any(fault.kind == "image_duplicate" for fault in faults):
        way_out = "give every image an id of its own; `faults: quarantine` cannot tell which of the duplicates is right"
    head = f"{file}: the data set is faulty in {len(faults)} places"
    raise DataError("\n  ".join([head, *describe(faults), way_out]))
