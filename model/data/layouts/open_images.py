"""Open Images' layouts: CSV files of boxes, with images in a folder for each split, as published or from FiftyOne."""

from pathlib import Path

from model.data.faults import DataError
from model.data.layouts.files import (
    IMAGE_SUFFIXES,
    WHOLE,
    SplitFiles,
    folders,
    holds,
    list_images,
    matching,
    usual_split,
)

LOOKED_FOR = (
    "Open Images: a CSV file with the columns ImageID, LabelName, XMin, XMax, YMin, YMax, such as "
    "<split>-annotations-bbox.csv, with images in <split>/"
)
COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
_CLASSES = ("*class-descriptions*.csv", "*/*class-descriptions*.csv", "metadata/classes.csv", "*/metadata/classes.csv")


def find_open_images(root: Path) -> dict[str, SplitFiles]:
    """The splits of a folder, or of one CSV file; none where no CSV file is Open Images'.

    Raises:
        DataError: the images of a CSV file are nowhere.
    """
    if root.is_file():
        home, files = root.parent, [root] if is_boxes(root) else []
    else:
        home, files = (
            root,
            [file for pattern in ("*.csv", "*/*.csv", "*/*/*.csv") for file in matching(root, pattern)],
        )
        files = [file for file in files if is_boxes(file)]
    damaged = [] if root.is_file() else [file for file in _named(home) if file not in files]
    if damaged:
        raise DataError(
            f"{damaged[0]}: is called like the boxes of Open Images and has not their columns ({', '.join(COLUMNS)}); "
            "the file may be cut short: fetch it again"
        )
    names = [_split_name(file, home) for file in files]
    if len(set(names)) < len(names):
        names = [file.relative_to(home).with_suffix("").as_posix() for file in files]
    descriptions = [file for pattern in _CLASSES for file in matching(home, pattern)][:1]
    splits = {}
    for name, file in zip(names, files, strict=True):
        images = _image_folder(home, file, name)
        others = [other for other in files if other != file]
        splits[name] = SplitFiles(
            name=name,
            format="open_images",
            images=images,
            annotations=(file, *others, *descriptions),
            listed=tuple(list_images(images)),
        )
    return splits


def _named(home: Path) -> list[Path]:
    return [
        file for pattern in ("*-annotations-bbox*.csv", "*/*-annotations-bbox*.csv") for file in matching(home, pattern)
    ]


def is_boxes(file: Path) -> bool:
    """Say whether a CSV file has the columns of Open Images' boxes."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        head = opened.readline(4096).decode("utf-8-sig", errors="replace")
    return set(COLUMNS) <= {name.strip().strip('"') for name in head.split(",")}


def _split_name(file: Path, home: Path) -> str:
    usual = usual_split(file.stem)
    if usual is not None:
        return usual
    parents = [part for part in file.relative_to(home).parts[:-1] if usual_split(part)]
    return parents[-1] if parents else WHOLE


def _image_folder(home: Path, file: Path, split: str) -> Path:
    alike = [folder for folder in folders(home) if usual_split(folder.name) == usual_split(split) is not None]
    places = [place for folder in alike for place in (folder, folder / "data", folder / "images")]
    places += [
        home / "images" / folder.name for folder in folders(home / "images") if usual_split(folder.name) == split
    ]
    places += [file.parent.parent / "data", home / "images", home / "data", home]
    for place in places:
        if holds(place, IMAGE_SUFFIXES):
            return place
    raise DataError(
        f"{file}: its images are nowhere; looked in {', '.join(map(str, dict.fromkeys(places)))}; put those that you "
        f"want to use into {home / split}"
    )
