"""Reads Pascal VOC's XML files.

Corners are taken as they are written, since labelling tools write the edges of the box that was drawn: width is
xmax - xmin. In files of the devkit itself, whose <database> is "The VOC...", corners are the first and last pixel,
counted from 1, so that xmin = 1 is the left edge, 0, and xmax = width the right one.
"""

from contextlib import suppress
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from model.data.annotations import MAX_SIDE, Tables
from model.data.checks import MANY, NEARLY_ALL
from model.data.faults import DataError, no_target
from model.data.file_names import find_renamed
from model.data.formats.sizes import image_sizes
from model.data.formats.tables import make_tables
from model.data.layouts.files import SplitFiles, is_image, read_lines
from model.foreign import NoFileError, require_file

_SIDES = ("xmin", "ymin", "xmax", "ymax")
NOTHING = "background"
"""A class of segmentation masks, which labelmap.txt lists as well; no object is one."""
_NO_BOX = (np.nan,) * 4


def read_voc(files: SplitFiles) -> Tables:
    """Read the XML files of a split; categories are those of labelmap.txt, then the others in files of all splits.

    They are numbered from 1, those of the files by their sorted names.

    Raises:
        DataError: a file is not VOC's XML, or no file names an object.
    """
    trees = {file: read_xml(file) for file in files.annotations if file.suffix.lower() == ".xml"}
    used = {name for file, tree in trees.items() for name in _names(file, tree)}
    mapped = [name for file in files.annotations if file not in trees for name in _mapped(file) if name != NOTHING]
    names = list(dict.fromkeys([*mapped, *sorted(used)]))
    if not names:
        raise DataError(f"{files.where}: there is nothing to detect: no XML file names an object")
    ids = {name: place for place, name in enumerate(names, start=1)}
    nothing = Element("annotation")  # of an image without a file
    own = [(file, nothing if file is None else trees[file]) for file in files.labels]
    listed = [_image_name(name, tree) for name, (_, tree) in zip(files.listed or (), own, strict=True)]
    objects = [(image, one) for image, (_, tree) in enumerate(own) for one in tree.findall("object")]
    from_devkit = [(tree.findtext("source/database") or "").strip().startswith("The VOC") for _, tree in own]
    difficult = [_is_true(one.findtext("difficult")) for _, one in objects]
    boxes = [_box(one, from_devkit[image]) for image, one in objects]
    sizes = _sizes(files, listed, [tree for _, tree in own])
    sides = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    bounds = sizes[[image for image, _ in objects], ::-1].reshape(-1, 2)
    _require_corners(files, sides, bounds)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = sides[:, :2], sides[:, :2] + sides[:, 2:]
        inside = np.all((sides[:, 2:] > 0) & (low > -0.5) & (high < bounds + 0.5), axis=1).tolist()
    return make_tables(
        listed,
        sizes,
        images=[image for image, _ in objects],
        boxes=boxes,
        category_ids=[ids[(one.findtext("name") or "").strip()] for _, one in objects],
        # VOC counts a difficult object neither as found nor as missed, and of what COCO's evaluation knows a crowd
        # alone is so; like a crowd it is not learnt.
        crowds=difficult,
        categories={id: name for name, id in ids.items()},
        notes=_notes(sum(difficult), sum(from_devkit), len(own)),
        written={
            row: f"{_written(one)} in {own[image][0]}" for row, (image, one) in enumerate(objects) if not inside[row]
        },
    )


def read_xml(file: Path) -> Element:
    """The root of an XML file, which may define no entities, so that none can grow without end.

    Raises:
        DataError: it is not XML, declares a document type, or is no annotation.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(name: str, *_: object) -> None:
        raise DataError(f"{file}: declares a document type ({name}), which VOC's files do not; take it out")

    parser.StartDoctypeDeclHandler = refuse
    content = b""
    try:
        require_file(file)
        content = file.read_bytes()
        parser.Parse(content, True)
        root = builder.close()
    except NoFileError as error:
        raise DataError(f"{file}: {error.strerror} of XML; take it away") from error
    except OSError as error:
        if (reason := no_target(file)) is None:
            raise
        raise DataError(reason) from error
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not XML ({error}); {_cause(str(error), content)}") from error
    if root.tag != "annotation":
        raise DataError(f"{file}: not Pascal VOC: the top element is {root.tag!r}, expected 'annotation'")
    return root


def _cause(error: str, content: bytes) -> str:
    """What a file that is not XML most likely suffers from, and the way out."""
    if "encoding" not in error and "invalid token" not in error:
        return "the file may be cut short: write it again"
    with suppress(UnicodeDecodeError):
        if "encoding" not in error and content.decode():
            return "a name there may have an & or a <, which XML writes &amp; and &lt;, or a control character"
    return "a name there may be in another encoding than the first line says: save the file as UTF-8"


def _mapped(file: Path) -> list[str]:
    """The names of labelmap.txt, whose lines are NAME:COLOUR:PARTS:ACTIONS."""
    return [line.split(":")[0].strip() for line in read_lines(file) if line and not line.startswith("#")]


def _names(file: Path, tree: Element) -> list[str]:
    names = [(one.findtext("name") or "").strip() for one in tree.findall("object")]
    if "" in names:
        raise DataError(f"{file}: object {names.index('') + 1} has no <name>; give it one, or take it out")
    return names


def _image_name(name: str, tree: Element) -> str:
    """The image of an XML file: the one called like it, else the one that it names."""
    if is_image(name):
        return name
    folder = name.rpartition("/")[0]
    said = (tree.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return f"{folder}/{said}".lstrip("/") if said else f"{name}.jpg"


def _box(one: Element, from_devkit: bool) -> tuple[float, ...]:
    """x, y, width and height of an object; NaN where it has no four numbers, which the checks tell of."""
    try:
        left, top, right, bottom = (float(one.findtext(f"bndbox/{side}") or "nan") for side in _SIDES)
    except ValueError:
        return _NO_BOX
    if from_devkit:
        left, top = left - 1, top - 1
    return left, top, right - left, bottom - top


def _require_corners(files: SplitFiles, boxes: NDArray[np.float64], bounds: NDArray[np.int32]) -> None:
    """Refuse data whose corners are swapped, or whose third and fourth numbers are width and height.

    Of the latter some boxes would be read, and be wrong.
    """
    first, size = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    with np.errstate(invalid="ignore", over="ignore"):
        turned = (boxes[:, 2:] <= 0).any(axis=1)
        swapped = (boxes[:, 2:] < 0).all(axis=1) & (first < bounds + 1.5).all(axis=1) & (size > -1.5).all(axis=1)
        fits = ((first > -1.5) & (size > 0) & (first + size < bounds + 1.5)).all(axis=1)
    # Width and height are smaller than x and y in some boxes, and seldom in all.
    if len(boxes) and swapped.mean() >= NEARLY_ALL:
        example = [*first[swapped][0].tolist(), *size[swapped][0].tolist()]
        raise DataError(
            f"{files.where}: the corners are swapped: xmin, ymin are beyond xmax, ymax (the four are "
            f"{example}); write the upper left one first; no quarantine can mend them"
        )
    if len(boxes) and turned.mean() >= MANY and fits.mean() >= NEARLY_ALL:
        example = [*first[turned][0].tolist(), *size[turned][0].tolist()]
        raise DataError(
            f"{files.where}: xmax and ymax look like a box's width and height (xmin, ymin, xmax, ymax are {example}); "
            "write its right and lower edge; no quarantine can mend them"
        )


def _sizes(files: SplitFiles, names: list[str], trees: list[Element]) -> NDArray[np.int32]:
    """[n, 2], height and width: as the files say, or from the images where one says none."""
    sizes = np.zeros((len(names), 2), dtype=np.int64)
    for place, tree in enumerate(trees):
        try:
            sizes[place] = [int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width")]
        except (ValueError, OverflowError):
            sizes[place] = 0
    unsaid = np.flatnonzero(((sizes < 1) | (sizes > MAX_SIDE)).any(axis=1))
    found = find_renamed(files.images, files.images, names).names if len(unsaid) else {}
    sizes[unsaid] = image_sizes(files.images, [found.get(place, names[place]) for place in unsaid.tolist()])
    return sizes.astype(np.int32)


def _written(one: Element) -> str:
    """What an object has for a box."""
    found = one.find("bndbox")
    return "none" if found is None else f"[{', '.join(f'{side.tag} {side.text}' for side in found)}]"


def _is_true(text: str | None) -> bool:
    return (text or "").strip().lower() in ("1", "true", "yes")


def _notes(num_difficult: int, num_devkit: int, num_files: int) -> tuple[str, ...]:
    notes = []
    if num_difficult:
        notes.append(f"{num_difficult:,} objects marked difficult are read as crowds: not learnt, and not scored")
    if num_devkit:
        notes.append(f"{num_devkit:,} of {num_files:,} XML files are of VOC's devkit: their pixels are counted from 1")
    return tuple(notes)
