"""YOLO's layouts: data.yaml as Ultralytics and Roboflow write it, Darknet's obj.data, or classes.txt and folders."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from model.data.faults import DataError
from model.data.layouts.files import (
    ALIASES,
    IMAGE_SUFFIXES,
    WHOLE,
    SplitFiles,
    folders,
    holds,
    is_image,
    list_images,
    matching,
    read_lines,
)
from model.data.layouts.labels import CLASS_FILES, LabelFiles, label_file, labelled
from model.data.layouts.paths import Paths, absolute_images
from model.foreign import NoFileError, read_yaml_text

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LOOKED_FOR = (
    "YOLO: data.yaml with names and train, val; obj.data; or classes.txt with images/ and labels/, or with images and "
    "text files side by side"
)
_SPLIT_KEYS = tuple(name for names in ALIASES.values() for name in names)


def find_yolo(root: Path) -> dict[str, SplitFiles]:
    """The splits of a folder, or those that a data.yaml or obj.data names; none where there is nothing of YOLO.

    Raises:
        DataError: what the file says is not there, or a split has no label file at all.
    """
    if root.is_file():
        if root.suffix == ".data":
            return _by_darknet(root)
        is_of_splits = bool(set(read_yaml(root)) & set(_SPLIT_KEYS))
        return _by_yaml(root) if is_of_splits else _by_folders(root.parent, root)
    usual = [file for name in YAML_FILES if (file := root / name).is_file()]
    named = {file: document for file in usual if "names" in (document := read_yaml(file))}
    others = [file for file in matching(root, "*.y*ml") if file not in usual]
    named |= {file: document for file in others if "names" in (document := _tried(file))}
    for file, document in named.items():
        if set(document) & set(_SPLIT_KEYS) and (file in usual or _is_of_images(file, document)):
            return _by_yaml(file, root)
    for file in matching(root, "*.data"):
        if file.name == "obj.data" or _is_darknet(file):
            return _by_darknet(file, root)
    # supervision's data.yaml names classes alone; a recipe of something else has names as well, and no labels.
    names = next((file for file in named if file in usual), None) or _class_file(root) or next(iter(named), None)
    return {} if names is None else _by_folders(root, names)


def _tried(file: Path) -> dict[str, object]:
    """The top of a YAML file that may be of anything, and is not YOLO's where it cannot be read."""
    try:
        return read_yaml(file)
    except (DataError, OSError):
        return {}


def _is_of_images(file: Path, document: Mapping[str, object]) -> bool:
    """Whether a YAML file of any name is YOLO's: a place that it names is there, or images and labels, and no classes.

    The recipe of a soup or of a training may have names and splits as well.
    """
    paths = Paths(file, [file.parent])
    base = document.get("path")
    if isinstance(base, str) and base.strip() and (there := paths.folder_of(base)) is not None:
        paths.bases.insert(0, there)
    entries = [
        entry for key in _SPLIT_KEYS for entry in _as_list(document.get(key)) if isinstance(entry, str) and entry
    ]
    if any(paths.resolve(entry, "") is not None for entry in entries):
        return True
    try:
        return _class_file(file.parent) is None and bool(_by_folders(file.parent, file))
    except DataError:
        return False


def _is_darknet(file: Path) -> bool:
    """Whether a file has a line of Darknet's: profilers and others call their files .data, too."""
    try:
        keys = {line.partition("=")[0].strip() for line in read_lines(file) if "=" in line}
    except (DataError, OSError):
        return False
    return "names" in keys or not keys.isdisjoint(_SPLIT_KEYS)


class _Texts(yaml.BaseLoader):
    """Texts, lists and mappings alone; refuses a key that stands twice, of which others take the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.YAMLError(f"{key!r} stands twice in one mapping{node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, object]:
    """The top of a YAML file; every scalar is a text, so that a class may be called `no`. Empty where it is no mapping.

    Raises:
        DataError: it is not YAML, or says more than it holds.
    """
    try:
        content = read_yaml_text(file, "data sets need names and folders alone")
        # Aliases of aliases double with each line: a file of a kilobyte would take all memory.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, _Texts)):
            raise DataError(f"{file}: has YAML aliases (*name), which no data set needs; write the values out")
        document = yaml.load(content, _Texts)
    except DataError:
        raise
    except NoFileError as error:
        raise DataError(f"{file}: {error.strerror} of YAML; take it away") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: not YAML ({reason}); mend the file") from error
    return document if isinstance(document, dict) else {}


def other_count(said: str, count: int) -> bool:
    """Whether a text is a whole number and another one, of however many digits, which Python reads 4,300 of."""
    return said.isdigit() and (said.lstrip("0") or "0") != str(count)


def read_classes(file: Path) -> list[str]:
    """The names in a text of one class a line; blank lines at its end are none."""
    names = read_lines(file)
    while names and not names[-1]:
        names.pop()
    return names


def _by_yaml(file: Path, within: Path | None = None) -> dict[str, SplitFiles]:
    document = read_yaml(file)
    paths = Paths(file, [file.parent], within)
    base, way_out = document.get("path"), "correct the path"
    if isinstance(base, str) and base.strip():
        if (there := paths.folder_of(base)) is not None:
            paths.bases.insert(0, there)
        else:
            way_out = (
                f"path is {base}, which is not there (Ultralytics looks for it in its datasets_dir): let path name the "
                "whole way to the folder of the data, or put the file into it"
            )
    splits: dict[str, SplitFiles] = {}
    for key in _SPLIT_KEYS:
        entries = document.get(key)
        if entries in (None, "", []):
            continue
        places = [paths.resolve(entry, key) for entry in _texts(file, key, entries)]
        if None in places:
            if key in ALIASES["train"]:
                raise DataError(f"{file}: {key} is {entries}, which is nowhere below {file.parent}; {way_out}")
            paths.notes.append(f"{file}: {key} is {entries}, which is not there: left out")
            continue
        images = [image for place in places if place is not None for image in paths.images(place)]
        if not _any_image(paths, key, images, entries):
            continue
        whole = all(place is not None and place.is_dir() for place in places)
        splits |= labelled(key, images, (file,), optional=key in ALIASES["test"], whole_folders=whole)
    if not splits:
        raise DataError(f"{file}: names no split with images; give it train: and val:, folders of images")
    return paths.told(splits)


def _any_image(paths: Paths, key: str, images: Sequence[str], entry: object) -> bool:
    """Whether a split has images; one to validate on that has none is told of, one to train on is refused."""
    if images:
        return True
    found = f"{paths.file}: {key} is {entry}, where there is no image"
    if key in ALIASES["train"]:
        raise DataError(f"{found}; correct the path, or put images there")
    paths.notes.append(f"{found}: left out")
    return False


def _by_darknet(file: Path, within: Path | None = None) -> dict[str, SplitFiles]:
    """Darknet's obj.data: lines `train = data/train.txt`, `names = data/obj.names`."""
    pairs = (line.partition("=") for line in read_lines(file))
    entries = {key.strip(): value.strip() for key, equals, value in pairs if equals and value.strip()}
    paths = Paths(file, [file.parent], within)
    names = paths.resolve(entries.get("names", "obj.names"), "names")
    if names is None or not names.is_file():
        raise DataError(f"{file}: names is {entries.get('names')!r}, no file below {file.parent}; correct the path")
    said, num_names = entries.get("classes", ""), sum(1 for line in read_lines(names) if line)
    if other_count(said, num_names):
        raise DataError(f"{file}: classes is {said:.40}, and {names} lists {num_names}; correct either")
    splits: dict[str, SplitFiles] = {}
    for key in _SPLIT_KEYS:
        if key not in entries:
            continue
        place = paths.resolve(entries[key], key)
        if place is None:
            paths.notes.append(f"{file}: {key} is {entries[key]}, which is not there: left out")
            continue
        images = list(paths.images(place))
        if _any_image(paths, key, images, entries[key]):
            splits |= labelled(key, images, (names, file), optional=key in ALIASES["test"])
    if not splits:
        raise DataError(f"{file}: names no list of images that is there; give it train = ..., a file of their paths")
    return paths.told(splits)


def _by_folders(root: Path, names: Path) -> dict[str, SplitFiles]:
    """Splits of a folder that holds a file of class names and no other description."""
    lists = [file for file in matching(root, "*.txt") if file.stem in _SPLIT_KEYS]
    if lists:
        paths = Paths(names, [root], root)
        found = {file.stem: list(paths.images(file)) for file in lists}
    elif _any_labelled(root / "images"):
        found = {WHOLE: absolute_images(root / "images")}
    elif subfolders := folders(root / "images"):
        found = {folder.name: absolute_images(folder) for folder in subfolders}
    elif _any_labelled(root):
        found = {WHOLE: [str(root / name) for name in list_images(root) if "/" not in name]}
    else:
        found = {folder.name: absolute_images(folder) for folder in folders(root)}
    if names.suffix not in (".yaml", ".yml"):
        names = _agreed(root, names, {os.path.dirname(image) for images in found.values() for image in images})
    splits: dict[str, SplitFiles] = {}
    for name, images in found.items():
        # A list is the user's word, as data.yaml is; of a folder without labels `find_layout` tells.
        optional = not lists or name in ALIASES["test"]
        splits |= labelled(name, images, (names,), optional=optional, whole_folders=not lists)
    return splits


def _any_labelled(folder: Path) -> bool:
    """Whether an image in a folder itself has labels: a picture of the whole may lie beside folders of splits."""
    if not holds(folder, IMAGE_SUFFIXES):
        return False
    label_of = LabelFiles()
    return any(label_of(f"{folder}/{name}") for name in sorted(os.listdir(folder)) if is_image(name))


def _class_file(root: Path) -> Path | None:
    places = [root, root / "labels", *folders(root / "labels"), *folders(root)]
    places += [folder / "labels" for folder in folders(root)]
    return next((file for place in places for file in _class_files(place)), None)


def _class_files(folder: Path) -> list[Path]:
    files = [*(folder / name for name in CLASS_FILES), *matching(folder, "*.names")]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def _agreed(root: Path, names: Path, image_folders: Iterable[str]) -> Path:
    """The longest list of classes among those beside images and labels, or the one found elsewhere.

    labelImg writes one into each folder.

    Raises:
        DataError: two of them give a number to different classes.
    """
    places = [root, root / "labels"]
    for folder in sorted(image_folders):
        places += [Path(label_file(f"{folder}/any")).parent, Path(folder), Path(folder, "labels")]
    files = [file for place in dict.fromkeys(places) for file in _class_files(place)]
    lists = {file: read_classes(file) for file in files or [names]}
    # A class that is added while labelling lengthens the list of its folder alone, and moves no number.
    longest = max(lists, key=lambda file: len(lists[file]))
    for file, lines in lists.items():
        for number, (one, other) in enumerate(zip(lines, lists[longest], strict=False)):
            if one != other:
                raise DataError(
                    f"{file}: class {number} is {one!r}, and in {longest} {other!r}: a label's number would mean two "
                    "things; number all labels by one list, and take the other away"
                )
    return longest


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _texts(file: Path, key: str, value: object) -> list[str]:
    values = _as_list(value)
    if not all(isinstance(one, str) and one.strip() for one in values):
        raise DataError(f"{file}: {key} is {value!r:.60}, expected a folder, a list of folders, or a .txt of images")
    return [str(one).strip() for one in values]
