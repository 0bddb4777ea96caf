"""Finds image files under the names that annotation files have for them, as other systems and tools write names."""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from model.data.layouts.files import IMAGE_SUFFIXES, walk
from model.paths import OutsideError, inside, named_folder

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:")
Parts = tuple[str, ...]
"""The folders of a path."""
MOST_FILES = 200_000
"""Files of the data folder that are looked through for the place of a missing one."""
MOST_COMPARED = 20_000
"""Names that a missing one is compared with."""


@dataclass(frozen=True, slots=True)
class Found:
    """Files that lie under other names than the annotations have."""

    names: Mapping[int, str] = field(default_factory=dict)
    """The name to read instead, counted from the folder, by the place of an image in the list."""
    notes: tuple[str, ...] = ()
    """The same for people."""
    outside: tuple[int, ...] = ()
    """The images whose names lead out of the data folder, and stand for no file in it."""


def find_renamed(root: Path, folder: Path, names: Sequence[str]) -> Found:
    """Find the evident file for each name that is none as it is written.

    That is the one file under the folder that differs in nothing but the folders before it, the form of letters
    (Unicode, case, URL escapes), or the kind of image; two names never share one. A lost file is not such a one: what
    lies in a folder of other names, or is an image of another kind where this kind is there, stands for no other.

    Args:
        root: the data folder; a name that leads out of it is never followed.
        folder: from which names count.
        names: of all images of a split.
    """
    absent = _absent(root, folder, names)
    if not absent:
        return Found()
    files, parts = _Files(folder), [_parts(name) or [""] for name in names]
    written = {tuple(folders) for *folders, _ in parts}
    missing = set(absent)
    taken = {_plain(name) for place, name in enumerate(names) if place not in missing}
    found: dict[int, str] = {}
    for level in _LEVELS:
        asked = missing
        if level is _stem:
            # A set is converted as a whole: beside images of its own kind, another kind is a mask or a depth.
            kept = {_kind(name) for place, name in enumerate(names) if place not in missing}
            asked = {place for place in missing if _kind(names[place]) not in kept}
        if not asked:
            continue
        places = _Places(files.paths, written, level)
        hits = {
            place: file
            for place in asked
            if (file := places.evident(parts[place], _is_elsewhere(names[place]))) and file not in taken
        }
        times = Counter(hits.values())
        hits = {place: file for place, file in hits.items() if times[file] == 1}
        found |= hits
        taken |= set(hits.values())
        missing -= set(hits)
    outside = tuple(place for place in sorted(missing) if leads_out(root, folder, names[place]))
    if not found:
        return Found(outside=outside)
    first = min(found)
    note = (
        f"{len(found)} of {len(names)} images lie under other names than the annotations have, and were found in "
        f"{folder}: such as {_printable(names[first])!r} at {_printable(found[first])!r}"
    )
    return Found(dict(sorted(found.items())), (note,), outside)


def where_it_may_be(root: Path, folder: Path, names: Sequence[str]) -> Callable[[str], str]:
    """Return a function that says of a missing name which file there may be meant; nothing where none is near."""
    files, elsewhere = _Files(folder), _Files(root if root.is_dir() else root.parent, MOST_FILES)
    listed = {_plain(name) for name in names}

    def look(name: str) -> str:
        if leads_out(root, folder, name) and os.path.lexists(folder / name):
            return "; the name leads out of the data folder, where no file is read"
        for among in (files, elsewhere):
            if same := among.alike(name):
                which = ", ".join(_printable(str(among.folder / file)) for file in same[:3])
                return f"; there is {which}{', ...' if len(same) > 3 else ''}"
        free = [file for file in files.paths if file not in listed][:MOST_COMPARED]
        stems = {_stem(file): file for file in free}
        near = difflib.get_close_matches(_stem(name), list(stems), n=1)
        return f"; the nearest is {_printable(str(folder / stems[near[0]]))}" if near else ""

    return look


def _absent(root: Path, folder: Path, names: Sequence[str]) -> list[int]:
    """The places of names that are no file in their folder, or lead out of the data."""
    if not any("/" in name for name in names):
        # One listing: to ask for each file takes five times as long, and more over a network.
        here = _listing(folder)
        return [place for place, name in enumerate(names) if name not in here]
    listings: dict[str, set[str]] = {}
    absent = []
    for place, name in enumerate(names):
        parent, _, last = name.rpartition("/")
        if parent not in listings:
            listings[parent] = set() if leads_out(root, folder, name) else _listing(folder / parent)
        if last not in listings[parent]:
            absent.append(place)
    return absent


def leads_out(root: Path, folder: Path, name: str) -> bool:
    """Whether a name is absolute, or climbs out of the data folder; links within it are its owner's affair."""
    try:
        inside(folder, name, named_folder(root))
    except OutsideError:
        return True
    return False


def _listing(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


class _Files:
    """The files under a folder, by the last part of their names at each level of likeness."""

    def __init__(self, folder: Path, most: int | None = None) -> None:
        self.folder, self.most = folder, most
        self._by_key: dict[Callable[[str], str], dict[str, list[str]]] = {}

    @cached_property
    def paths(self) -> list[str]:
        """Counted from the folder, sorted."""
        found = []
        for file in _walk(self.folder):
            found.append(file)
            if len(found) == self.most:
                break
        return sorted(found)

    def alike(self, name: str) -> list[str]:
        """All files of such a name, in whatever folder."""
        *_, last = _parts(name) or [""]
        return next((found for level in _LEVELS if (found := self._alike(last, level))), [])

    def _alike(self, last: str, key: Callable[[str], str]) -> list[str]:
        if key not in self._by_key:
            by_key: dict[str, list[str]] = {}
            for file in self.paths:
                by_key.setdefault(key(file.rpartition("/")[2]), []).append(file)
            self._by_key[key] = by_key
        return self._by_key[key].get(key(last), []) if last else []


class _Places:
    """The files under a folder as names may look for them, at one level of likeness.

    A folder here is meant by the names whose own folders end as its path does, for as many folders as those of any
    name; and a name looks where as many agree as anywhere here. So the frame 3 of a camera is not taken from another
    camera's folder, whether its own folder lacks it or is absent as a whole; and where nothing agrees, the folders of
    another machine say nothing of those here. Each file is looked at once, not once for each name.
    """

    def __init__(self, files: Iterable[str], written: Iterable[Parts], key: Callable[[str], str]) -> None:
        self.key = key
        self._here: set[Parts] = set()
        # By what a folder shares with names, and the last part; two files are as ambiguous as many.
        self._whole: dict[tuple[Parts, str], list[str]] = {}
        self._deeper: dict[tuple[Parts, str], list[str]] = {}
        meant = {end for folders in written for end in self._ends(folders)}
        known: dict[str, tuple[Parts, bool]] = {}
        for file in files:
            folder, _, last = file.rpartition("/")
            if folder not in known:
                ends = self._ends(folder.split("/") if folder else ())
                self._here.update(ends)
                shared = next((end for end in ends if end in meant), ())
                known[folder] = shared, shared == ends[0]
            shared, is_whole = known[folder]
            among = (self._whole if is_whole else self._deeper).setdefault((shared, key(last)), [])
            if len(among) < 2 and _is_utf8(file):  # no annotation file can name another
                among.append(file)

    def evident(self, parts: Sequence[str], is_elsewhere: bool) -> str | None:
        """The one file whose name is alike and whose folders do not speak against it."""
        *folders, last = parts
        ends = self._ends(folders)
        shared = next((end for end in ends if end in self._here), ())
        place = shared, self.key(last)
        found = self._whole.get(place, [])
        # A name of this machine means its folders: those of the file may go on before them, and not be others.
        if is_elsewhere or shared == ends[0]:
            found = found + self._deeper.get(place, [])
        return found[0] if last and len(found) == 1 else None

    def _ends(self, folders: Sequence[str]) -> list[Parts]:
        """The last folders of a path, as this level writes them: all of them, one less, and so on to none."""
        alike = tuple(map(self.key, folders))
        return [alike[start:] for start in range(len(alike) + 1)]


def _walk(folder: Path) -> Iterator[str]:
    for where, _, files in walk(folder):
        start = os.path.relpath(where, folder)
        yield from files if start == "." else (f"{start}/{file}" for file in files)


def _parts(name: str) -> list[str]:
    """The folders and the last part of a name as any system or web server writes it."""
    if _URL.match(name):
        # Not urllib's urlsplit, which raises of what is no host.
        name = re.split("[?#]", _URL.sub("", name, count=1), maxsplit=1)[0].partition("/")[2]
    name = _DRIVE.sub("", name.replace("\\", "/"), count=1) if _DRIVE.match(name) else name.replace("\\", "/")
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _is_elsewhere(name: str) -> bool:
    return bool(name.startswith(("/", "\\")) or _URL.match(name) or _DRIVE.match(name))


def _plain(name: str) -> str:
    return os.path.normpath(name)


def _as_text(part: str) -> str:
    return part if part.isascii() else unicodedata.normalize("NFC", part)


def _unescaped(part: str) -> str:
    return _as_text(unquote(part) if "%" in part else part).strip()


def _any_case(part: str) -> str:
    return _unescaped(part).casefold()


def _any_suffix(name: str) -> str:
    last = _any_case(name)
    return f"{_stem(last)}{_kind(last)}"


def _stem(name: str) -> str:
    last = _any_case(name.rpartition("/")[2])
    start, suffix = os.path.splitext(last)
    return start if suffix in IMAGE_SUFFIXES else last


def _kind(name: str) -> str:
    """The suffix of an image's name in the form that is usual for its kind; empty for another name."""
    suffix = os.path.splitext(_any_case(name))[1]
    return _USUAL_SUFFIXES.get(suffix, suffix) if suffix in IMAGE_SUFFIXES else ""


_USUAL_SUFFIXES = {".jfif": ".jpg", ".jpe": ".jpg", ".jpeg": ".jpg", ".tiff": ".tif"}
_LEVELS: tuple[Callable[[str], str], ...] = (_as_text, _unescaped, _any_case, _any_suffix, _stem)
"""What two names may differ in, from hardly anything to the kind of image."""


def _is_utf8(name: str) -> bool:
    # What is not UTF-8 on the disk, Python reads with lone surrogates.
    return name.isascii() or _printable(name) == name


def _printable(name: str) -> str:
    """A name of the disk as text; one that is not UTF-8 with its bytes written out."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
