"""The files of one split, and what finders of all formats need to look through folders."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.data.faults import DataError
from model.foreign import NoFileError, require_file

Format = Literal["coco", "lvis", "yolo", "voc", "open_images"]
"""What the annotations are written in; a reader in formats/ for each, and `annotations` for COCO."""
Share = Literal["train", "val"]

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What exporters call the three usual splits."""
WHOLE = "all"
"""The split of data that name none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFiles:
    """The files of one split."""

    name: str
    format: Format
    images: Path
    """The folder from which the names of image files count."""
    annotations: tuple[Path, ...]
    """Every file whose content decides what the annotations are."""
    listed: tuple[str, ...] | None = None
    """The names of the images, sorted, where folders or lists say which there are; None where `annotations` do."""
    labels: tuple[Path | None, ...] = ()
    """The annotation file of each listed image, in a format that has one for each; None where it has no objects."""
    share: Share | None = None
    """The part of these images that the split holds, where data are one split."""
    notes: tuple[str, ...] = ()
    """What was found elsewhere than it is said to be, a sentence each, for people."""

    @property
    def where(self) -> Path:
        """What messages name: the annotation file, or the folder that holds them all."""
        if len(self.annotations) == 1:
            return self.annotations[0]
        return Path(os.path.commonpath([file.parent for file in self.annotations]))

    def sources(self) -> Iterator[str]:
        """Every file that the tables depend on: the annotations, and images whose sizes their headers may say."""
        # Texts, since 200,000 paths would cost more than what is asked about them.
        yield from map(str, self.annotations)
        yield from (f"{self.images}/{name}" for name in self.listed or ())


def usual_split(name: str) -> str | None:
    """Return train, val or test for a name that says so, such as valid, train2017 or mine_train; None for another."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((usual for usual, names in ALIASES.items() if not set(words).isdisjoint(names)), None)


def find_split(splits: Mapping[str, SplitFiles], name: str) -> SplitFiles | None:
    """Return the split of this name, or else the one that another exporter would give this name."""
    if name in splits:
        return splits[name]
    names = next((names for names in ALIASES.values() if name.lower() in names), ())
    # In any case of letters, as CVAT's Train, where one alone is called so.
    alike = {usual: [one for one in splits if one.lower() == usual] for usual in (name.lower(), *names)}
    return next((splits[found[0]] for found in alike.values() if len(found) == 1), None)


def is_image(name: str) -> bool:
    """Say whether a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def list_files(folder: Path, suffixes: Iterable[str]) -> list[str]:
    """The names of files with one of these suffixes, sorted, counted from the folder, and of its folders' files."""
    wanted, found = frozenset(suffixes), []
    for place, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        prefix = os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        found += [prefix + name for name in names if _suffix(name) in wanted and not name.startswith(".")]
    return sorted(found)


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder that fit a pattern, sorted, but those whose names begin with a dot, as macOS writes."""
    return [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(".") and file.is_file()]


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk that follows links to folders, and goes into each of them once on its way."""
    above: dict[str, tuple[str, ...]] = {}
    for place, folders, names in os.walk(folder, followlinks=True):
        way = (*above.pop(place, ()), os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(f"{place}/{name}") not in way]
        yield place, folders, names
        above |= {os.path.join(place, name): way for name in folders}


def list_images(folder: Path) -> list[str]:
    """The names of the images of a folder and of its folders."""
    return list_files(folder, IMAGE_SUFFIXES)


def read_lines(file: Path) -> list[str]:
    """The lines of a text, without the space around them.

    Raises:
        DataError: it is not UTF-8, or no file.
    """
    try:
        require_file(file)
        text = file.read_text(encoding="utf-8-sig")
    except NoFileError as error:
        raise DataError(f"{file}: {error.strerror} of text; take it away") from error
    except UnicodeDecodeError as error:
        around = error.object[max(0, error.start - 20) : error.start + 20]
        raise DataError(f"{file}: not UTF-8 at byte {error.start}, in {around!r}; save it as UTF-8") from error
    return [line.strip() for line in text.splitlines()]


def holds(folder: Path, suffixes: Iterable[str]) -> bool:
    """Say whether a folder itself holds a file with one of these suffixes."""
    wanted = frozenset(suffixes)
    try:
        with os.scandir(folder) as entries:
            return any(_suffix(entry.name) in wanted and not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def is_inside(path: Path, folder: Path) -> bool:
    """Say whether a path is that of a folder or of something in it, links not followed."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()
