"""Writes a data set in another format: COCO, YOLO or Pascal VOC, with its images linked or copied."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from model.data.coco import read_coco
from model.data.faults import DataError
from model.data.files.decoding import decode_image, is_turned, open_image, orientation
from model.data.formats.writing import PlaceImage, write_coco, write_voc, write_yolo
from model.data.layout import Layout, find_layout
from model.data.layouts.files import usual_split
from model.data.split import CocoData
from model.paths import named_folder

Written = Literal["coco", "yolo", "voc"]
WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
LOSSES = {
    "coco": (),
    "yolo": ("ids and the areas of masks are not part of the format",),
    "voc": ("ids and the areas of masks are not part of the format", "crowds are marked as difficult objects"),
}
"""What is lost, besides the outlines of masks, which no detector sees."""


def convert(root: Path, out: Path, form: Written, say: Callable[[str], None], *, copy: bool = False) -> None:
    """Write every split of a data set into a new folder, or nothing.

    Data without a split to validate on are written as the two shares that stand for it, called train and val.

    Args:
        root: the data set.
        out: a folder that does not exist yet, or is empty.
        form: what to write.
        say: told what was read otherwise than it is written, what was written and what is lost.
        copy: copy images, where otherwise a second name is given to the same file, if the disk allows it.

    Raises:
        DataError: the data are faulty, do not fit the format, or `out` holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already, and nothing is overwritten; name another folder, or remove it")
    splits = {
        name: _named_from_root(read_coco(root, split)) for name, split in _splits_to_write(find_layout(root)).items()
    }
    lists = {data.category_names for data in splits.values()}
    if len(lists) > 1:
        raise DataError(f"{root}: its splits have different categories; give all of them the same list")
    out.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft = hidden / "data"
        draft.mkdir()  # open to whom the umask says, where mkdtemp lets nobody else in
        place, straightened = _place_image(copy), Counter[str]()
        written = WRITERS[form](draft, splits, _straightened(place, straightened) if form == "yolo" else place)
        os.rename(draft, out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    for name, data in splits.items():
        num_crowds = int(data.annotation_crowds.sum())
        if name not in written:
            say(f"{name}: left out, as {form} has no such split")
            continue
        say(f"{name}: {len(data):,} images, {len(data.annotation_ids):,} boxes")
        if form == "yolo" and num_crowds:
            say(f"{name}: {num_crowds:,} crowds are left out, which YOLO cannot tell from objects")
        if straightened[data.split]:
            say(
                f"{name}: {straightened[data.split]:,} images were written anew, without the EXIF orientation that "
                "their boxes do not follow and that readers of YOLO do"
            )
    for loss in LOSSES[form]:
        say(loss)


def _splits_to_write(layout: Layout) -> dict[str, str]:
    """The split behind each name that is written."""
    shares = {name: split for name, split in layout.splits.items() if split.share is not None}
    if not shares:
        return {name: name for name in layout.splits}
    of = next(iter(shares.values()))
    others = {name: name for name, split in layout.splits.items() if split.annotations != of.annotations}
    return {str(usual_split(name)): name for name in shares} | others


def _named_from_root(data: CocoData) -> CocoData:
    """The data with names counted from their root, where one leads out of the folder of images, as ../images/1.jpg."""
    if not any(os.path.normpath(name).startswith("../") for name in data.file_names):
        return data
    root = named_folder(data.root)
    names = [os.path.relpath(data.folder / name, root).encode() for name in data.file_names]
    return replace(data, folder=root, names=np.array(names))


def _straightened(place: PlaceImage, counts: Counter[str]) -> PlaceImage:
    """Place images as a reader sees them that turns each by its EXIF orientation, and count those written anew."""

    def straight(data: CocoData, index: int, target: Path) -> None:
        height, width = data.sizes[index].tolist()
        with open_image(data.path(index), (height, width)) as image:
            follows = orientation(image) == 1 or is_turned(image, (height, width))
        if follows:
            place(data, index, target)
            return
        counts[data.split] += 1
        target.parent.mkdir(parents=True, exist_ok=True)
        decode_image(data, index).save(target, quality=95)

    return straight


def _place_image(copy: bool) -> Callable[[CocoData, int, Path], None]:
    def place(data: CocoData, index: int, target: Path) -> None:
        source = data.path(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # that of another image of the same file
            return
        if not copy:
            try:
                os.link(os.path.realpath(source), target)  # the file itself, where the data are links
                return
            except OSError:  # another disk, or one without links
                pass
        shutil.copyfile(source, target)

    return place
