"""Errors that a user can fix, what the operating system refuses to write among them, and exit codes."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from orchestrator.homes import home_of

Say = Callable[[str], None]
"""Tells a person something beside the output of a command, a line at a time."""
BAD_INPUT = 2
"""The exit code where something that a user can mend stopped a verb before it began."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 and SIGINT's number, 2."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
REFUSALS = (*FULL, *NO_FOLDER, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors that mean that a place cannot be written to, or not any more; a second try ends like the first."""
FULL_WORDS = re.compile(r"database or disk is full|no space left on device|disk quota exceeded", re.IGNORECASE)
"""How SQLite and servers tell of a full disk."""
FULL_BYTES = 1_000_000
"""A disk with less than this free takes no record any more."""


class UserError(Exception):
    """A mistake in a file, a setting or the surroundings; shown as its message, without a traceback.

    The message names the file, the setting, the value and the way out. Several mistakes stand one to a line.
    """


def refusal(error: OSError) -> str | None:
    """Say which place cannot be written to, or is no place, and the way out; None of an error of another kind."""
    number = errno_of(error)
    if number == errno.ENAMETOOLONG:
        name = str(error.filename or "")
        shown = " ".join(name[:80].split())
        return f"{shown}…: no name can have {len(name):,} letters; write several names as several arguments"
    if number not in REFUSALS:
        return None
    place = str(error.filename or "")
    if not place:
        # As pyarrow has it, by which Ray copies: "Cannot create directory '/x/y': [Errno 1] ..."
        place = next((found for found in re.findall(r"'(/[^']+)'", str(error))), "")
    if not place:
        return _nameless(number)
    setting = setting_of(place)
    elsewhere = f", or set {setting} to another place" if setting else ""
    if number == errno.EDQUOT:
        return f"{place}: the quota of the disk is used up; free some of it{elsewhere}"
    if number == errno.ENOSPC:
        return f"{place}: the disk is full{_brackets(free_of(place))}; free some{elsewhere}"
    if number in NO_FOLDER:
        return f"{_in_the_way(place)}; move it away{elsewhere}"
    immutable = " and attributes (lsattr)" if number == errno.EPERM else ""
    return f"{place}: no access ({os.strerror(number)}); change its permissions{immutable}{elsewhere}"


def is_full(place: str | Path) -> bool:
    """Whether the disk of a place takes next to nothing any more; a quota does not show."""
    there = _nearest(place)
    if there is None:
        return False
    disk = shutil.disk_usage(there)
    return disk.free < FULL_BYTES <= disk.total  # some file systems over a network tell 0 for both


def errno_of(error: OSError) -> int:
    """Return the errno of an error, which pyarrow tells in words alone; 0 where there is none."""
    told = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)
    return error.errno or (int(told[1]) if told else 0)


def free_of(place: str | Path) -> str:
    """Say how much of the disk of a place is free, as "12 MB of 3.4 GB are free"; empty where nobody can tell."""
    there = _nearest(place)
    if there is None:
        return ""
    disk = shutil.disk_usage(there)
    return f"{_amount(disk.free)} of {_amount(disk.total)} are free"


def setting_of(place: str) -> str:
    """Name the variable that moves a place elsewhere; empty of a place that none moves, or a name without folder."""
    folders = _folders()
    within = [folder for folder in folders if Path(place).is_relative_to(folder)]
    # The deepest, as RNC_HOME may lie in HOME.
    return folders[max(within, key=lambda one: len(one.parts))] if within else ""


def _folders() -> dict[Path, str]:
    return {
        home_of(os.environ): "RNC_HOME",
        Path(tempfile.gettempdir()): "TMPDIR",
        Path(os.path.expanduser("~")): "HOME",
    }


def _nameless(number: int) -> str:
    """Say what an error means that names no place, as that of a write has it."""
    what = "the disk is full" if number in FULL else os.strerror(number)
    full = [f"{name} ({folder}: {free_of(folder)})" for folder, name in _folders().items() if is_full(folder)]
    if number in FULL and full:
        return f"{what}: {', '.join(full)}; free some, or set {'it' if len(full) == 1 else 'them'} to another place"
    return f"{what}, where the output goes or in one of RNC_HOME, HOME and TMPDIR; free some, or set them to others"


def _nearest(place: str | Path) -> Path | None:
    return next((folder for folder in (Path(place), *Path(place).parents) if folder.exists()), None)


def _in_the_way(place: str) -> str:
    """Name the file that is in the way of a place below it."""
    path = Path(place)
    in_the_way = next((one for one in (*reversed(path.parents), path) if one.is_file()), path)
    return f"{in_the_way} is a file, expected a folder" if in_the_way.is_file() else f"{in_the_way} is there already"


def _brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _amount(number: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
