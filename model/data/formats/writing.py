"""Writers of COCO's JSON, YOLO's text files and Pascal VOC's XML, as the tools that made them popular read them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np

from model.data.faults import DataError
from model.data.formats.voc import NOTHING
from model.data.layouts.files import is_image, usual_split
from model.data.layouts.labels import label_file
from model.data.split import CocoData

_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""What XML 1.0 cannot write, not even escaped."""
_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
Splits = dict[str, CocoData]
PlaceImage = Callable[[CocoData, int, Path], None]
"""Puts the file of an image of some data at a path."""


def write_coco(folder: Path, splits: Splits, place: PlaceImage) -> set[str]:
    """Write <split>/ and annotations/instances_<split>.json; ids stay what they are."""
    (folder / "annotations").mkdir()
    for name, data in splits.items():
        content = {"info": {"description": data.root.name}, **data.coco_dict()}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "annotations" / f"instances_{name}.json").write_text(text, encoding="utf-8")
        for index, file_name in enumerate(data.file_names):
            place(data, index, folder / name / _safe(data, file_name))
    return set(splits)


def write_yolo(folder: Path, splits: Splits, place: PlaceImage) -> set[str]:
    """Write images/<split>/, labels/<split>/ and data.yaml, which knows train, val and test; return these splits.

    Numbers have 12 digits: a box comes back within a billionth of its image.
    """
    usual = {name: key for name in splits if (key := usual_split(name)) is not None}
    if len(set(usual.values())) < len(usual):
        raise DataError(f"data.yaml has one train, val and test, and there are {', '.join(usual)}; take some out")
    for name in usual:
        data = splits[name]
        _require_own_stems(data)
        for index, file_name in enumerate(data.file_names):
            safe = _safe(data, file_name)
            place(data, index, folder / "images" / name / safe)
            height, width = data.sizes[index].tolist()
            # Not simply below labels/: where a name has a folder called images, readers change that one.
            label = Path(label_file(f"{folder}/images/{name}/{safe}"))
            label.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                f"{one} {' '.join(_digits(side) for side in _centred(box, height, width))}\n"
                for one, box, is_crowd in _objects(data, index)
                if not is_crowd
            ]
            label.write_text("".join(lines))
    names = next(iter(splits.values())).category_names
    # Without `path`, Ultralytics counts from the folder of the file, wherever that is taken.
    lines = [f"{usual[name]}: {_quoted(f'images/{name}')}" for name in usual]
    lines += [f"nc: {len(names)}", "names:", *(f"  {place}: {_quoted(name)}" for place, name in enumerate(names))]
    (folder / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return set(usual)


def write_voc(folder: Path, splits: Splits, place: PlaceImage) -> set[str]:
    """Write JPEGImages/, Annotations/, ImageSets/Main/<split>.txt and labelmap.txt, which keeps the classes' order.

    Corners are the edges of boxes, with 12 digits, where the devkit has whole pixels.
    """
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    names = next(iter(splits.values())).category_names
    if bad := [name for name in names if not _is_mapped(name)]:
        raise DataError(f"class {bad[0]!r} cannot be written to a line of labelmap.txt; give it another name")
    if len(set(names)) < len(names):
        raise DataError(f"class {max(names, key=names.count)!r} is listed twice, which VOC would join; rename either")
    labelmap = ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in names)]
    (folder / "labelmap.txt").write_text("\n".join(labelmap) + "\n", encoding="utf-8")
    for data in splits.values():
        _require_own_stems(data)
        if bad := [name for name in data.file_names if _NO_XML.search(name)]:
            raise DataError(f"{data.root}: image {bad[0]!r} has a character that XML cannot hold; rename it")
    stems = [stem for data in splits.values() for stem in _stems(data)]
    # All images share one folder: splits that use the same names get folders in it.
    apart = len(set(stems)) < len(stems)
    for split, data in splits.items():
        ids = []
        for index, file_name in enumerate(data.file_names):
            safe = f"{split}/{_safe(data, file_name)}" if apart else _safe(data, file_name)
            place(data, index, folder / "JPEGImages" / safe)
            xml = (folder / "Annotations" / safe).with_suffix(".xml")
            xml.parent.mkdir(parents=True, exist_ok=True)
            tree = ElementTree(_annotation(data, index, safe))
            indent(tree)
            tree.write(xml, encoding="utf-8")
            ids.append(PurePosixPath(safe).with_suffix("").as_posix())
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")
    return set(splits)


def _is_mapped(name: str) -> bool:
    """Whether a reader of labelmap.txt finds a class of this name there, and a parser of XML in an object."""
    is_line = name == name.strip() and len(name.splitlines()) == 1 and ":" not in name
    return is_line and not name.startswith("#") and name != NOTHING and not _NO_XML.search(name)


def _annotation(data: CocoData, index: int, name: str) -> Element:
    height, width = data.sizes[index].tolist()
    top = Element("annotation")
    SubElement(top, "folder").text = str(PurePosixPath("JPEGImages", name).parent)
    SubElement(top, "filename").text = PurePosixPath(name).name
    size = SubElement(top, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        SubElement(size, key).text = str(value)
    for label, (left, top_edge, box_width, box_height), is_crowd in _objects(data, index):
        one = SubElement(top, "object")
        SubElement(one, "name").text = data.category_names[label]
        SubElement(one, "difficult").text = str(int(is_crowd))
        box = SubElement(one, "bndbox")
        corners = (left, top_edge, left + box_width, top_edge + box_height)
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            SubElement(box, key).text = _digits(value)
    return top


def _objects(data: CocoData, index: int) -> Iterator[tuple[int, list[float], bool]]:
    """Label, box (x, y, width, height) and crowd of each annotation of an image."""
    start, stop = data.offsets[index : index + 2].tolist()
    rows = slice(start, stop)
    labels, crowds = data.annotation_labels[rows].tolist(), data.annotation_crowds[rows].tolist()
    yield from zip(labels, data.annotation_boxes[rows].tolist(), crowds, strict=True)


def _centred(box: list[float], height: int, width: int) -> list[float]:
    left, top, box_width, box_height = box
    return [(left + box_width / 2) / width, (top + box_height / 2) / height, box_width / width, box_height / height]


def _digits(value: float) -> str:
    return np.format_float_positional(float(f"{value:.12g}"), trim="-")


def _quoted(text: str) -> str:
    """A text of YAML: JSON's are, but for characters that YAML takes for ends of lines or does not allow."""
    return _NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _safe(data: CocoData, name: str) -> str:
    """An image's name, which stays below the folder that it is written to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{data.root}: image {name} leads out of its folder; give it a name below {data.folder}")
    return str(path)


def _require_own_stems(data: CocoData) -> None:
    """Two images must not share a label file, and readers have to see each image."""
    seen: dict[str, str] = {}
    for name, stem in zip(data.file_names, _stems(data), strict=True):
        if seen.get(stem) == name:
            raise DataError(f"{data.root}: several images are called {name}, and would share one label file; join them")
        if seen.setdefault(stem, name) != name:
            raise DataError(f"{data.root}: {seen[stem]} and {name} would share one label file; rename either")
        if not is_image(name) or any(part.startswith(".") for part in PurePosixPath(name).parts):
            raise DataError(
                f"{data.root}: {name} would be passed over by readers that list a folder's images: they know them by "
                "suffixes such as .jpg, and pass over names that begin with a dot; rename it"
            )


def _stems(data: CocoData) -> list[str]:
    return [PurePosixPath(name).with_suffix("").as_posix() for name in data.file_names]
