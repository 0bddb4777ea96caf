"""Pascal VOC's layouts: a devkit's JPEGImages/, Annotations/ and ImageSets/Main/, or XML files beside their images."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from model.data.faults import DataError
from model.data.layouts.files import (
    IMAGE_SUFFIXES,
    WHOLE,
    SplitFiles,
    folders,
    holds,
    is_image,
    list_files,
    list_images,
    read_lines,
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
    lists = {file.stem: ids for file in _lists(root) if (ids := _ids(file)) is not None}
    if lists:
        return _splits({name: (images, annotations, ids) for name, ids in lists.items()}, labelmap)
    parts = [folder.name for folder in folders(annotations) if (images / folder.name).is_dir()]
    if parts:
        return _splits({name: (images / name, annotations / name, None) for name in parts}, labelmap)
    return _splits({WHOLE: (images, annotations, None)}, labelmap)


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
        by_stem = {_stem(name): name for name in list_images(images)}
        files = xml[annotations]
        without = sorted(set(by_stem if ids is None else by_stem.keys() & set(ids)) - set(files))
        # An image that a list names belongs to the split: Datumaro writes no XML file for one without objects.
        chosen = set(files if ids is None else ids)
        if not chosen & set(files):
            continue
        pairs = sorted((by_stem.get(stem, stem), files.get(stem)) for stem in chosen)
        splits[split] = SplitFiles(
            name=split,
            format="voc",
            images=images,
            annotations=(*labelmap, *every),
            listed=tuple(name for name, _ in pairs),
            labels=tuple(file for _, file in pairs),
            notes=_unannotated(split, without, ids is not None),
        )
    return splits


def _unannotated(split: str, names: list[str], are_listed: bool) -> tuple[str, ...]:
    if not names:
        return ()
    found = f"{len(names):,} images of {split} have no XML file, such as {names[0]}"
    if are_listed:
        return (f"{found}: they have no objects, as the list names them all the same",)
    return (f"{found}: they are left out as not annotated; an XML file without objects would say that there are none",)


def _lists(root: Path) -> Iterable[Path]:
    for folder in (root / "ImageSets" / "Main", root / "ImageSets"):
        files = sorted(folder.glob("*.txt"))
        if files:
            return files
    return []


def _ids(file: Path) -> list[str] | None:
    """The names in a list of images; None for the list of one class, which says -1, 0 or 1 of each."""
    lines = [line for line in read_lines(file) if line]
    if lines and all(line.rpartition(" ")[2] in ("-1", "0", "1") and " " in line for line in lines):
        return None
    names = [line.strip('"') for line in lines]  # CVAT quotes names with spaces
    return [_stem(name) if is_image(name) else name for name in names]


def _any_xml(folder: Path) -> bool:
    return holds(folder, {".xml"}) or any(holds(place, {".xml"}) for place in folders(folder))


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()
