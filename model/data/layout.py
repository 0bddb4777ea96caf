"""Where the splits of a data set lie: the layout of a folder, or of one file, is found by looking at it."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from model.data.faults import DataError, UnknownSplit
from model.data.layouts import coco, open_images, voc, yolo
from model.data.layouts.files import ALIASES, IMAGE_SUFFIXES, find_split, folders, holds, is_inside, usual_split
from model.data.layouts.files import Format as Format
from model.data.layouts.files import SplitFiles as SplitFiles

FINDERS = (
    (coco.find_coco, coco.LOOKED_FOR),
    (yolo.find_yolo, yolo.LOOKED_FOR),
    (voc.find_voc, voc.LOOKED_FOR),
    (open_images.find_open_images, open_images.LOOKED_FOR),
)
"""In the order in which they are asked; a folder that holds several formats is read as the first of them."""
OF_FILES = {
    ".json": coco.find_coco,
    ".yaml": yolo.find_yolo,
    ".yml": yolo.find_yolo,
    ".data": yolo.find_yolo,
    ".csv": open_images.find_open_images,
}
"""Which files stand for a data set."""
FORMATS: Mapping[Format, str] = {
    "coco": "COCO",
    "lvis": "LVIS",
    "yolo": "YOLO",
    "voc": "Pascal VOC",
    "open_images": "Open Images",
}
"""Their names for people."""
ARCHIVES = (".7z", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip")
MAX_NAMED = 8
"""Entries of a folder that a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A data set as it lies on the disk."""

    root: Path
    splits: Mapping[str, SplitFiles]
    """By the names that files and folders give them; and the two shares of data that have no split to validate on."""
    train: str | None
    """The split to learn from, unless the user says otherwise; None where no name tells."""
    val: str | None
    """The split to validate on, likewise."""
    notes: tuple[str, ...] = ()
    """What of the splits is left to the user, a sentence each, for people."""


def find_layout(root: Path) -> Layout:
    """Find the splits of a folder, or of the data that one file describes.

    Raises:
        DataError: there is none; the message says what was looked for, and what there is.
    """
    # Whole paths, since parts of them say where labels lie, and for messages.
    splits = _splits(Path(os.path.abspath(root)))
    train, val = _usual(splits, "train"), _usual(splits, "val")
    notes = tuple(_others(splits, train, "train") + _others(splits, val, "val"))
    if len(splits) == 1 or (train is not None and val is None):
        whole = splits[train or next(iter(splits))]
        # The names train and val, unless the whole is called so.
        train, val = ("train", "val") if usual_split(whole.name) is None else ("train-part", "val-part")
        whole = replace(whole, notes=(*whole.notes, *_unused(root, whole, splits)))
        splits[train] = replace(whole, name=train, share="train")
        splits[val] = replace(whole, name=val, share="val")
    return Layout(root=root, splits=splits, train=train, val=val, notes=notes)


def split_files(root: Path, split: str) -> SplitFiles:
    """Find the files of one split, by its own name or another usual one: valid for val.

    Raises:
        DataError: there is no such split; the message says what was looked for, and what there is.
    """
    plain = coco.plain_split(root, split)
    if plain is not None:
        return plain
    try:
        layout = find_layout(root)
    except _NothingFound as error:
        file, folder = root / "annotations" / f"instances_{split}.json", root / split
        missing = [f"file {file}"] if not file.is_file() else []
        missing += [f"folder {folder}"] if not folder.is_dir() else []
        raise DataError(f"{root}: the data set lacks {' and '.join(missing)}; {error}") from None
    found = find_split(layout.splits, split)
    if found is None:
        raise UnknownSplit(root, split, tuple(layout.splits))
    return replace(found, name=split)


def count_images(root: Path, split: str) -> int | None:
    """How many images a split has, about, without reading annotations; None where the data are not there."""
    if coco.plain_split(root, split) is None:
        with suppress(DataError, OSError):
            return _count(root, split)
    folder = root / split
    return len(os.listdir(folder)) if folder.is_dir() else None


@lru_cache(maxsize=64)  # a plan asks for each of its rows, and a YOLO folder may have 100,000 files to list
def _count(root: Path, split: str) -> int:
    files = split_files(root, split)
    whole = len(files.listed) if files.listed is not None else coco.num_listed(files.annotations[0])
    return whole if files.share is None else round(whole * (4 if files.share == "train" else 1) / 5)


def _splits(root: Path) -> dict[str, SplitFiles]:
    if root.is_file():
        finder = OF_FILES.get(root.suffix.lower())
        if root.suffix.lower() in ARCHIVES:
            raise DataError(f"{root}: an archive is not looked into; unpack it, and name the folder")
        if finder is None:
            raise DataError(
                f"{root}: no data set is described by such a file; name the folder of the data, or one of its files "
                f"of {', '.join(OF_FILES)}"
            )
        splits = finder(root)
        if splits:
            return splits
    elif not root.is_dir():
        raise _NothingFound(f"there is no such folder or file as {root}; correct the path of the data")
    else:
        for place, (find, _) in enumerate(FINDERS):
            splits = find(root)
            if splits:
                return _told_of_others(root, splits, [other for other, _ in FINDERS[place + 1 :]])
    raise _NothingFound("\n  ".join([f"no data set was found in {root}", *_looked_for(), *_there(root)]))


def _told_of_others(
    root: Path, splits: dict[str, SplitFiles], others: Sequence[Callable[[Path], dict[str, SplitFiles]]]
) -> dict[str, SplitFiles]:
    """The splits, with a note where the folder holds another format as well."""
    also = [FORMATS[next(iter(found.values())).format] for find in others if (found := _tried(find, root))]
    if not also:
        return splits
    read = FORMATS[next(iter(splits.values())).format]
    note = f"{root}: holds {' and '.join(also)} as well as {read}; {read} is read, and the other left out"
    return {name: replace(split, notes=(*split.notes, note)) for name, split in splits.items()}


class _NothingFound(DataError):
    """No file is that of a format."""


def _unused(root: Path, whole: SplitFiles, splits: Mapping[str, SplitFiles]) -> list[str]:
    """Tell of folders of images that are called like a split which nothing annotates, where another is shared out.

    Raises:
        DataError: the images to train on are not annotated, and those of a split to be scored on are.
    """
    known = {usual_split(name) for name in splits}
    notes = []
    for place in (*folders(root), *folders(root / "images")):
        usual = usual_split(place.name)
        if usual not in ("train", "val") or usual in known:
            continue
        if any(is_inside(place, one.images) or is_inside(one.images, place) for one in splits.values()):
            continue
        if not any(holds(folder, IMAGE_SUFFIXES) for folder in (place, *folders(place))):
            continue
        found = f"{place}: holds images, and nothing that was found annotates them"
        if usual == "train" and usual_split(whole.name) is not None:
            raise DataError(
                f"{found}, but those of {whole.name} ({whole.where}), which would be learnt in their place; add "
                "them where the others are described, or move the folder away"
                + "".join(f"\n  {note}" for note in whole.notes)
            )
        notes.append(f"{found}: left out")
    return notes


def _usual(splits: Mapping[str, SplitFiles], usual: str) -> str | None:
    """The split that is train, val or test: the one of that very name, else the first of a name like it."""
    names = [*ALIASES[usual], *splits]
    return next((name for name in names if name in splits and usual_split(name) == usual), None)


def _others(splits: Mapping[str, SplitFiles], chosen: str | None, usual: str) -> list[str]:
    """Tell of splits that may be meant as well where several are called train, or val."""
    others = [name for name in splits if name != chosen and usual_split(name) == usual]
    if chosen is None or not others:
        return []
    return [
        f"of the splits that are called like {usual}, {chosen} is taken, and {', '.join(others)} left out; choose "
        f"another with train.data.{usual}_split, or join their files"
    ]


def _looked_for() -> list[str]:
    return [f"looked for {text}" for _, text in FINDERS]


def _there(root: Path) -> list[str]:
    """What a folder holds, and a hint where something is nearly a data set."""
    if root.is_file():
        return ["the file is none of these"]
    names = sorted(os.listdir(root))
    if not names:
        return ["the folder is empty"]
    more = f", ... ({len(names):,} in all)" if len(names) > MAX_NAMED else ""
    lines = [f"there is {', '.join(names[:MAX_NAMED])}{more}"]
    for place in (root, *folders(root)):
        if holds(place, IMAGE_SUFFIXES):
            lines.append(f"{place} holds images and no annotations that belong to them{_near(place)}")
    if packed := [name for name in names if name.lower().endswith(ARCHIVES)]:
        lines.append(f"{packed[0]} is an archive, which is not looked into: unpack it")
    nested = [place.name for place in folders(root) if any(_tried(find, place) for find, _ in FINDERS)]
    if nested:
        lines.append(f"{', '.join(nested)} in it would do: name {root / nested[0]}")
    return lines[:MAX_NAMED]


def _near(place: Path) -> str:
    if holds(place, {".txt"}):
        return ": text files lie beside them, but no classes.txt or data.yaml says what YOLO's numbers mean"
    if holds(place, {".json"}):
        return ": JSON files lie beside them, but none has COCO's lists 'images' and 'annotations' (export as COCO)"
    return ""


def _tried(find: Callable[[Path], dict[str, SplitFiles]], place: Path) -> dict[str, SplitFiles]:
    try:
        return find(place)
    except (DataError, OSError):  # what nobody asked for may be faulty, or not be readable
        return {}
