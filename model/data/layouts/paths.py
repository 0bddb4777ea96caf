"""The paths that a data.yaml, an obj.data or a list of images writes, and the folders and files that they mean.

They are taken as written, from the file's own folder, from its `path`, or absolute. They lead out of the file's folder
only where the user named the file itself, and not the folder that it was found in, which may be anybody's. Where
nothing is there, as after a move from another machine, the longest end of the path that exists below the file's folder
is taken, and told; nothing else outside that folder is ever looked at.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from model.data.faults import DataError
from model.data.layouts.files import IMAGE_SUFFIXES, SplitFiles, is_inside, list_images, read_lines, usual_split

_DESCRIBING = (".yaml", ".yml", ".data")


@dataclass(frozen=True)
class Paths:
    """How paths that a file writes are understood."""

    file: Path
    bases: list[Path]
    """Folders from which they count; the last is the file's own."""
    within: Path | None = None
    """The folder that no path may lead out of; None where the user named the file."""
    notes: list[str] = field(default_factory=list)

    def folder_of(self, base: str) -> Path | None:
        """The folder that `path` names; None where it names that of another machine, and paths count from the file."""
        own = self.file.parent
        written = Path(os.path.expanduser(base.replace("\\", "/")))
        there = Path(os.path.normpath(own / written))
        if os.path.isdir(there):
            return self._allowed(there, base, "path")
        if written.name not in ("", own.name):
            self.notes.append(f"{self.file}: path is {base}, which is not there: paths count from {own}")
        return None

    def resolve(self, entry: str, key: str) -> Path | None:
        """The folder or file that an entry names; None where there is none."""
        written = entry.replace("\\", "/")
        own = self.bases[-1]
        climbing = re.sub(r"^(\.\./)+", "", written)
        # Roboflow writes ../train/images for the train/images beside its data.yaml.
        beside = own / climbing
        if climbing != written and os.path.exists(beside):
            return Path(os.path.normpath(beside))
        for base in self.bases:
            place = Path(os.path.normpath(base / os.path.expanduser(written)))
            # Not Path.exists, which raises where a name is too long for a file.
            if os.path.exists(place):
                return self._allowed(place, entry, key)
        parts = PurePosixPath(written).parts
        for start in range(1, len(parts)):
            place = own.joinpath(*parts[start:])
            # images/ stands for no other split's images where valid/images is asked for.
            if _names_split(parts[:start]) and not _names_split(parts[start:]):
                break
            if ".." not in parts[start:] and os.path.exists(place):
                self.notes.append(f"{self.file}: {key} is {entry}, which is not there: {place} was taken")
                return place
        return None

    def _allowed(self, place: Path, entry: str, key: str) -> Path:
        within = self.within
        # The folder may be a link, and the file say where that leads.
        if within is None or is_inside(place, within) or is_inside(place.resolve(), within.resolve()):
            return place
        raise DataError(
            f"{self.file}: {key} is {entry}, which leads out of {within}, the folder that was named; name "
            f"{self.file if self.file.suffix in _DESCRIBING else 'a file that describes the data'} itself, to let it "
            "say where data are"
        )

    def images(self, place: Path) -> Iterator[str]:
        """The paths of the images of a folder, or of the list in a file."""
        if place.is_dir():
            yield from absolute_images(place)
            return
        if place.suffix.lower() in IMAGE_SUFFIXES:
            yield str(place)
            return
        lists = Paths(place, [place.parent, *self.bases], self.within)
        known: dict[str, Path | None] = {}
        for line in read_lines(place):
            folder, _, name = line.replace("\\", "/").rpartition("/")
            if not name:
                continue
            if folder not in known:
                known[folder] = lists.resolve(folder or ".", "a line")
            where = known[folder]
            if where is None:
                raise DataError(f"{place}: lists {line}, whose folder is nowhere below {self.bases[-1]}")
            yield f"{where}/{name}"
        self.notes.extend(lists.notes)

    def told(self, splits: dict[str, SplitFiles]) -> dict[str, SplitFiles]:
        """The splits with what was found elsewhere, of any of them, or not at all."""
        notes = tuple(dict.fromkeys(self.notes))
        return {name: replace(split, notes=(*notes, *split.notes)) for name, split in splits.items()}


def absolute_images(folder: Path) -> list[str]:
    """The paths of the images of a folder and of its folders."""
    return [f"{folder}/{name}" for name in list_images(folder)]


def _names_split(parts: Sequence[str]) -> bool:
    return any(usual_split(part) for part in parts)
