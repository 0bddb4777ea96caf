"""Pascal VOC's layouts: a devkit's JPEGImages/, Annotations/ and ImageSets/Main/, or XML files beside their images."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from model.data.faults import DataError
from model.data.file_names import find_renamed
from model.data.layouts.files import (
    IMAGE_SUFFIXES,
    WHOLE,
    SplitFiles,
    folders,
    holds,
    is_image,
    list_files,
    list_images,
    matching,
    read_lines,
    usual_split,
    walk,
)

LOOKED_FOR = (
    "Pascal VOC: JPEGImages/, Annotations/ and ImageSets/Main/<split>.txt, images/ and annotations/ of XML files, or "
    "XML files beside their images in the folder or in <split>/"
)
LABELMAPS = ("labelmap.txt", "label_map.txt")
"""What CVAT and Datumaro call the file of class names."""
_IMAGES = ("JPEGImages", "images", "Images", "data")
_ANNOTATIONS = ("Annotations", "annotations", "labels", "xmls")


def find_voc(root: Path) -> dict[str, SplitFiles]:
    """The splits of a folder; none where there is nothing of VOC.

    Raises:
        DataError: there are several devkits, or a list names images that have no annotation.
    """
    kits = [kit for place in (root, root / "VOCdevkit") for kit in folders(place) if (kit / "Annotations").is_dir()]
    if kits and not (root / "Annotations").is_dir():
        if len(kits) > 1:
            raise DataError(f"{root}: holds {len(kits)} data sets of Pascal VOC; name one of them, such as {kits[0]}")
        return find_voc(kits[0])
    annotations = next((root / name for name in _ANNOTATIONS if _any_xml(root / name)), None)
    if annotations is not None:
        images = next((root / name for name in _IMAGES if (root / name).is_dir()), root)
        return _with_folders(root, images, annotations)
    if holds(root, {".xml"}):
        return _splits({WHOLE: (root, root, None)})
    beside = [folder for folder in folders(root) if holds(folder, {".xml"}) and holds(folder, IMAGE_SUFFIXES)]
    return _splits({folder.name: (folder, folder, None) for folder in beside})


def _with_folders(root: Path, images: Path, annotations: Path) -> dict[str, SplitFiles]:
    labelmap = [root / name for name in LABELMAPS if (root / name).is_file()][:1]
    lists = {file: ids for file in _lists(root) if (ids := _ids(file, images.name)) is not None}
    if lists:
        splits = _splits({file.stem: (images, annotations, ids) for file, ids in lists.items()}, labelmap)
        return _without_xml(lists, annotations, splits)
    parts = [folder.name for folder in folders(annotations) if (images / folder.name).is_dir()]
    if parts:
        return _splits({name: (images / name, annotations / name, None) for name in parts}, labelmap)
    if splits := _by_image_folders(images, annotations, labelmap):
        return splits
    return _splits({WHOLE: (images, annotations, None)}, labelmap)


def _without_xml(
    lists: Mapping[Path, list[str]], annotations: Path, splits: dict[str, SplitFiles]
) -> dict[str, SplitFiles]:
    """The splits, with a note on lists that name no image.

    Raises:
        DataError: a list names images, but for testing, of which none is annotated.
    """
    notes = []
    for file, ids in lists.items():
        if file.stem in splits or usual_split(file.stem) == "test":
            continue
        if ids:
            raise DataError(
                f"{file}: names {len(ids):,} images, of which none has an XML file in {annotations}, such as {ids[0]}; "
                "correct the names, or add the files"
            )
        notes.append(f"{file}: names no image: left out")
    return {name: replace(split, notes=(*notes, *split.notes)) for name, split in splits.items()}


def _by_image_folders(images: Path, annotations: Path, labelmap: Iterable[Path]) -> dict[str, SplitFiles]:
    """The splits of images in a folder for each, whose XML files lie together."""
    there = {_stem(name) for name in list_files(annotations, {".xml"})}
    parts = [folder for folder in folders(images) if usual_split(folder.name) and holds(folder, IMAGE_SUFFIXES)]
    named = {folder: [_stem(name) for name in list_images(folder)] for folder in parts}
    if sum(map(len, named.values())) > len({name for names in named.values() for name in names}):
        return {}  # an XML file would be that of images in two splits
    return _splits(
        {
            folder.name: (folder, annotations, [name for name in names if name in there])
            for folder, names in named.items()
        },
        labelmap,
    )


def _splits(
    places: dict[str, tuple[Path, Path, list[str] | None]], labelmap: Iterable[Path] = ()
) -> dict[str, SplitFiles]:
    """The splits of image folder, annotation folder and the names in them, without suffix; None for all."""
    of_annotations = dict.fromkeys(place for _, place, _ in places.values())
    xml = {place: {_stem(name): place / name for name in list_files(place, {".xml"})} for place in of_annotations}
    # All of the data set: the classes are those of all splits.
    every = [file for files in xml.values() for file in files.values()]
    splits = {}
    for split, (images, annotations, ids) in places.items():
        names = list_images(images)
        by_stem = {_stem(name): name for name in names}
        files = xml[annotations]
        # Of several images with the same name, the one that the XML file names is its; see `formats.voc`.
        shared = {stem for stem, times in Counter(map(_stem, names)).items() if times > 1 and stem in files}
        ids, found = (None, ()) if ids is None else _renamed(images, ids, by_stem, files)
        without = sorted(set(by_stem if ids is None else by_stem.keys() & set(ids)) - set(files))
        # An image that a list names belongs to the split: Datumaro writes no XML file for one without objects.
        chosen = set(files if ids is None else ids)
        if not chosen & set(files):
            continue
        pairs = sorted((stem if stem in shared else by_stem.get(stem, stem), files.get(stem)) for stem in chosen)
        splits[split] = SplitFiles(
            name=split,
            format="voc",
            images=images,
            annotations=(*labelmap, *every),
            listed=tuple(name for name, _ in pairs),
            labels=tuple(file for _, file in pairs),
            notes=(
                *found,
                *_unannotated(split, without, ids is not None),
                *_shared(split, sorted(shared & chosen), by_stem),
            ),
        )
    return splits


def _renamed(
    images: Path, ids: Sequence[str], by_stem: Mapping[str, str], files: Mapping[str, Path]
) -> tuple[list[str], tuple[str, ...]]:
    """The names in a list, as the images that they evidently mean have them, and what to tell of it."""
    if all(id in by_stem or id in files for id in ids):
        return list(ids), ()
    found = find_renamed(images, images, [by_stem.get(id, f"{id}.jpg") for id in ids])
    meant = {place: _stem(name) for place, name in found.names.items() if ids[place] not in files}
    return [meant.get(place, id) for place, id in enumerate(ids)], found.notes if meant else ()


def _unannotated(split: str, names: list[str], are_listed: bool) -> tuple[str, ...]:
    if not names:
        return ()
    found = f"{len(names):,} images of {split} have no XML file, such as {names[0]}"
    if are_listed:
        return (f"{found}: they have no objects, as the list names them all the same",)
    return (f"{found}: they are left out as not annotated; an XML file without objects would say that there are none",)


def _shared(split: str, names: list[str], by_stem: Mapping[str, str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (
        f"{len(names):,} XML files of {split} have several images of their name, such as {by_stem[names[0]]}: the one "
        "that <filename> says is taken, and others are left out",
    )


def _lists(root: Path) -> Iterable[Path]:
    for folder in (root / "ImageSets" / "Main", root / "ImageSets"):
        files = matching(folder, "*.txt")
        if files:
            return files
    return []


def _ids(file: Path, folder: str) -> list[str] | None:
    """The names in a list of images, which may begin with their folder's.

    None for the list of one class, which says -1, 0 or 1 of each.
    """
    lines = [line for line in read_lines(file) if line]
    if lines and all(line.rpartition(" ")[2] in ("-1", "0", "1") and " " in line for line in lines):
        return None
    names = [line.strip('"').removeprefix("./").removeprefix(f"{folder}/") for line in lines]  # CVAT quotes spaces
    return [_stem(name) if is_image(name) else _plain(name) for name in names]


def _any_xml(folder: Path) -> bool:
    return any(name.lower().endswith(".xml") for _, _, names in walk(folder) for name in names)


def _stem(name: str) -> str:
    return _plain(PurePosixPath(name).with_suffix("").as_posix())


def _plain(name: str) -> str:
    """A name whose letters with accents are one character each, where macOS writes two."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
