"""Files that one process of a node makes and all of them read, in a folder of the user's own; and their sha256."""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from model.foreign import require_file

T = TypeVar("T")


def own_folder() -> Path | None:
    """The cache, under RNC_CACHE or the node's temporary directory; None where there can be none to trust.

    What lies there can be made anew, and may be deleted at any time.
    """
    folder = Path(os.environ.get("RNC_CACHE") or tempfile.gettempdir()) / f"retinanet-conf-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    # Under a name that anyone can guess, somebody else may have been first.
    mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return folder if mine else None


def shared(name: str, make: Callable[[], T], write: Callable[[Path, T], None], read: Callable[[Path], T | None]) -> T:
    """What `make` returns, as the file `name` gives it back; of processes that start together, one makes it.

    Args:
        name: of the file; other content needs another name, as a file that is there is never made again.
        make: called where there is no sound file.
        write: puts the content into a file.
        read: gets it out again; None where the file is missing or damaged.
    """
    folder = own_folder()
    if folder is None:
        return make()
    file = folder / name
    found = read(file)
    if found is not None:
        return found
    with _locked(folder / f"{name}.lock"):
        found = read(file)  # another process may have been quicker
        if found is not None:
            return found
        made = make()
        with suppress(OSError):  # full, or read-only: the next process makes it again
            part = folder / f"{name}.part"
            write(part, made)
            # In one step: who reads beside this sees no file, or the whole.
            part.replace(file)
    found = read(file)
    return made if found is None else found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock of this node, if the folder allows one; the kernel frees it when its process ends."""
    try:
        file = path.open("a")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes.

    Raises:
        OSError: it is no file, or cannot be read.
    """
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
