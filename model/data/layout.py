"""Where the splits of a data set lie: the layout of a folder, or of one file, is found by looking at it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.data.faults import DataError

Format = Literal["coco"]
"""What the annotations are written in; a reader of `formats/` for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFiles:
    """The files of one split."""

    name: str
    format: Format
    images: Path
    """The folder from which the names of image files count."""
    annotations: tuple[Path, ...]
    """Every file whose content decides what the annotations are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A data set as it lies on the disk."""

    root: Path
    splits: Mapping[str, SplitFiles]


def find_layout(root: Path) -> Layout:
    """Find the splits of a folder.

    Raises:
        DataError: there is none.
    """
    files = sorted((root / "annotations").glob("instances_*.json"))
    splits = {(name := file.stem.removeprefix("instances_")): split_files(root, name) for file in files}
    if not splits:
        raise DataError(f"{root}: no annotations; expected annotations/instances_<split>.json")
    return Layout(root=root, splits=splits)


def split_files(root: Path, split: str) -> SplitFiles:
    """Find the files of one split.

    Raises:
        DataError: there is no such split; the message says what was looked for, and what there is.
    """
    file = root / "annotations" / f"instances_{split}.json"
    missing = [f"file {file}"] if not file.is_file() else []
    missing += [f"folder {root / split}"] if not (root / split).is_dir() else []
    if missing:
        raise DataError(
            f"{root}: the data set lacks {' and '.join(missing)}; expected images in <root>/<split>/ and "
            "annotations in <root>/annotations/instances_<split>.json; mend the data root or the name of the split"
        )
    return SplitFiles(name=split, format="coco", images=root / split, annotations=(file,))
