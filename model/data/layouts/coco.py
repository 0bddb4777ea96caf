"""COCO's JSON in the layouts that exporters give it: plain, Roboflow's, CVAT's, Label Studio's, VIA's, one file; LVIS.

Which folder holds the images is found by looking where the first names of the file exist.
"""

import json
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from model.data.faults import DataError
from model.data.layouts.files import WHOLE, SplitFiles, folders, is_inside, usual_split
from model.foreign import NoFileError, require_file

_IMAGES = re.compile(rb'"images"\s*:\s*\[')
_ANNOTATIONS = re.compile(rb'"annotations"\s*:\s*\[')
_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_URL = re.compile(rb'"coco_url"\s*:\s*("(?:[^"\\]|\\.)*")')
_FEDERATED = re.compile(rb'"(neg_category_ids|not_exhaustive_category_ids)"')
_SPLIT = re.compile(r"(?<![a-z])(train|training|valid|validation|val|test|testing)(\d*)(?![a-z])")
_SPACE = b"\xef\xbb\xbf \t\r\n\0"
_NO_BOXES = ("captions_", "image_info_", "panoptic_", "stuff_")
"""Beginnings of COCO's files that are no detection data."""
_KEYPOINTS = "person_keypoints_"
"""The beginning of those that hold people alone, taken where nothing else is there."""
FEW_FILES = 50
"""JSON files in a folder, above which they are one for each image, and not COCO."""
SPREAD = 50
"""Names that are looked for, from the whole of a file, where none of the first is there."""
LOOKED_FOR = (
    "COCO: annotations/instances_<split>.json with images in <split>/ or images/, <split>/_annotations.coco.json, "
    "any COCO file with its images beside it or in images/"
)


def find_coco(root: Path) -> dict[str, SplitFiles]:
    """The splits of a folder, or of one file; none where no file is COCO.

    Raises:
        DataError: a file is COCO and its images are nowhere, or the file named is not COCO.
    """
    if root.is_file():
        within = root.parent.parent if root.parent.name.lower() in ("annotations", "labels") else root.parent
        split = _split_name(root, within)
        return {split: _split(within, root, split, must_exist=True)}
    candidates = list(_candidates(root))
    kinds = {file: _kind(file) for file in candidates}
    sound = {_split_name(file, root) for file, kind in kinds.items() if kind == "coco"}
    # Beside sound files alone: a training's log may be called like a split, too, in a folder of another format.
    files = [
        file
        for file, kind in kinds.items()
        if kind == "coco" or (kind == "damaged" and sound and _split_name(file, root) not in sound)
    ]
    names = [_split_name(file, root) for file in files]
    if len(set(names)) < len(names):
        names = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    # Where others are there, the images of one split may be elsewhere: it is told when that one is asked for.
    must = len(files) == 1
    splits = {name: _split(root, file, name, must_exist=must) for name, file in zip(names, files, strict=True)}
    left = [file for file in candidates if file not in files and _SPLIT.search(file.stem.lower())]
    notes = tuple(f"{file}: is not COCO, whose lists are 'images' and 'annotations': left out" for file in left[:3])
    return {name: replace(split, notes=notes) for name, split in splits.items()} if notes else splits


def plain_split(root: Path, split: str) -> SplitFiles | None:
    """COCO's own layout, by its names alone, as every process of a training asks for it."""
    file = root / "annotations" / f"instances_{split}.json"
    if file.is_file() and (root / split).is_dir():
        return SplitFiles(name=split, format="coco", images=root / split, annotations=(file,))
    return None


def num_listed(file: Path) -> int:
    """How many images a COCO file lists, about: a cheap count, without parsing it."""
    names: int = _scan(file, lambda text: sum(1 for _ in _NAME.finditer(text)))
    return names or _scan(file, lambda text: sum(1 for _ in _URL.finditer(text)))


def coco_urls_name(url: str) -> str:
    """The name of an LVIS image, counted from COCO's folder: its splits mix those of COCO."""
    return "/".join(PurePosixPath(url).parts[-2:])


def _candidates(root: Path) -> Iterator[Path]:
    """JSON files that may be COCO: in the root, in annotations/, and in each of its folders."""
    plain = sorted((root / "annotations").glob("instances_*.json"))
    if plain:
        yield from plain
        # A slip in one file's name must not give its split to shares of another.
        known = {usual_split(_split_name(file, root)) for file in plain}
        for file in sorted((root / "annotations").glob("*.json")):
            usual = None if file.name.startswith((*_NO_BOXES, _KEYPOINTS)) else usual_split(_split_name(file, root))
            if usual is not None and usual not in known and file.is_file() and _kind(file) is not None:
                yield file
        return
    for folder in (root, *folders(root)):
        files = [file for file in sorted(folder.glob("*.json")) if file.is_file()]
        files = [file for file in files if not file.name.startswith(_NO_BOXES)]
        if len(files) <= FEW_FILES:
            yield from [file for file in files if not file.name.startswith(_KEYPOINTS)] or files


def _split_name(file: Path, root: Path) -> str:
    stem = file.stem.removeprefix("instances_").removeprefix(_KEYPOINTS)
    if stem != file.stem:
        return stem
    found = _SPLIT.search(stem.lower())
    if found is not None:
        return found[0]
    if file.parent != root and file.parent.name != "annotations":
        return file.parent.name
    return WHOLE if stem in ("_annotations.coco", "annotations", "coco", "labels", "result") else stem


def _split(root: Path, file: Path, split: str, *, must_exist: bool) -> SplitFiles:
    plain = plain_split(root, split)
    if plain is not None and plain.annotations == (file,):
        return plain
    lvis = _is_lvis(file)
    return SplitFiles(
        name=split,
        format="lvis" if lvis else "coco",
        images=_image_folder(root, file, split, lvis, must_exist),
        annotations=(file,),
    )


def _image_folder(root: Path, file: Path, split: str, lvis: bool, must_exist: bool) -> Path:
    """The folder in which the first names are files; else that in which their last parts are."""
    usual = usual_split(split)
    aliases = [split, *(folder.name for folder in folders(root) if usual and usual_split(folder.name) == usual)]
    by_name = [place for name in dict.fromkeys(aliases) for place in (root / name, root / "images" / name)]
    beside = [file.parent, file.parent / "images", file.parent / "data"]
    within = [root / "images", root / "data", root / "images" / "default", root]
    there = [folder for folder in dict.fromkeys([*by_name, *beside, *within]) if folder.is_dir()]
    names = _some_names(file, lvis)
    best = _where_most_are(names, there)
    if not best and names:  # the first ones may be lost
        names += _some_names(file, lvis, spread=True)
        best = _where_most_are(names, there)
    # Masks or depths have the names of their images.
    if best and best[0] in by_name[2:] and any(not is_inside(best[0], other) for other in best[1:]):
        raise DataError(
            f"{file}: its images may be those of {' or '.join(map(str, best))}, which have files of the same "
            f"names; call the folder of the images {by_name[0]}"
        )
    if best:
        return best[0]
    # The check of images says which are missing, and the reader what is wrong with a file that names none.
    if by_name[0].is_dir() or not names:
        return by_name[0]
    if must_exist and _where_most_are(names, folders(root)):
        return root  # each image is found by its name
    if not must_exist:
        # Not in the folder of another split, whose images may have the same names.
        free = [folder for folder in folders(root) if usual_split(folder.name) is None]
        best = _where_most_are(names, free)
        return best[0] if len(best) == 1 else by_name[0]
    looked = ", ".join(str(folder) for folder in there)
    raise DataError(
        f"{file}: its images are nowhere (the first is {names[0]!r}); looked in {looked}; put them into {by_name[0]}"
    )


def _where_most_are(names: Sequence[str], there: Sequence[Path]) -> list[Path]:
    """The folders in which most of these names are files as they are written; else with slashes; else by their ends."""
    evident = [name.replace("\\", "/") for name in names]
    for form in (names, evident, [name.rsplit("/", 1)[-1] for name in evident]):
        found = [sum(_has(folder, name) for name in form) for folder in there]
        if any(found):
            return [folder for folder, count in zip(there, found, strict=True) if count == max(found)]
    return []


def _has(folder: Path, name: str) -> bool:
    # An absolute name is a file whatever the folder. Not Path.is_file, which raises where a name is too long for one.
    return os.path.isfile(folder / name) and (not os.path.isabs(name) or is_inside(Path(name), folder))


def _some_names(file: Path, lvis: bool, *, spread: bool = False) -> list[str]:
    """The first few names of a file; or some from its beginning to its end."""
    pattern = _URL if lvis else _NAME

    def some(text: Any) -> list[bytes]:
        if not spread:
            return [found[1] for found in islice(pattern.finditer(text), 5)]
        written = [found[1] for found in pattern.finditer(text)]
        return written[:: max(1, len(written) // SPREAD)]

    # Not within the scan: an error's traceback would hold the matches, and they the mapped file, which must be closed.
    written: list[bytes] = _scan(file, some)
    try:
        names = [json.loads(name) for name in written]
    except ValueError:  # bytes that are no UTF-8: the reader tells of them
        return []
    return [coco_urls_name(name) for name in names] if lvis else names


def _kind(file: Path) -> Literal["coco", "damaged"] | None:
    """Whether a file is COCO, or may be: to pass over a damaged split would train on another one in its place.

    Without both lists a file is taken for COCO by its name, or where it is no whole JSON and has one of them, and for
    damaged where it has none and is called like a split; the reader says what is wrong.
    """
    is_named = file.name.startswith("instances_") or file.name == "_annotations.coco.json"

    def tables(text: Any) -> Literal["coco", "damaged"] | None:
        begin = text[:64].lstrip(_SPACE)
        found = [pattern.search(text) is not None for pattern in (_IMAGES, _ANNOTATIONS)]
        if is_named or (all(found) and begin.startswith(b"{")):
            return "coco"
        is_whole = begin.startswith((b"{", b"[")) and text[-64:].rstrip(_SPACE).endswith((b"}", b"]"))
        if is_whole:
            return None
        return "coco" if any(found) else "damaged" if _SPLIT.search(file.stem.lower()) else None

    kind: Literal["coco", "damaged"] | None = _scan(file, tables)
    return kind


def _is_lvis(file: Path) -> bool:
    def federated(text: Any) -> bool:
        images = _IMAGES.search(text)
        # Every image says it, so that the first ones are enough.
        return images is not None and _FEDERATED.search(text, images.start(), images.start() + 2**20) is not None

    return bool(_scan(file, federated))


def _scan(file: Path, look: Callable[[Any], Any]) -> Any:
    """What `look` finds in a mapped file; an empty one is looked at as well."""
    try:
        require_file(file)
    except NoFileError as error:
        raise DataError(f"{file}: {error.strerror} of annotations; take it away") from error
    with file.open("rb") as opened:
        try:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # empty
            return look(b"")
        with mapped:
            encoding = json.detect_encoding(mapped[:4])
            if not encoding.startswith("utf-8"):  # JSON's other ones, in which no pattern would be found
                return look(mapped[:].decode(encoding, errors="replace").encode(errors="replace"))
            return look(mapped)
