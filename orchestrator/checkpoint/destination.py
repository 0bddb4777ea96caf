"""The folder that a checkpoint is fetched into: new, it appears whole; else it is filled, the card last."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.data.cache import file_sha256
from model.names import CARD, WEIGHTS
from orchestrator import names
from orchestrator.errors import UserError

HIDDEN = ".pull-"
"""How the name of a folder begins in which a pull gathers its files; a kill leaves it."""


def held(folder: Path, digest: str) -> bool:
    """Whether a folder holds the weights of a digest already; not where it is empty or missing.

    Raises:
        UserError: it holds something else.
    """
    if not folder.exists():
        return False
    if folder.is_dir() and all(path.name.startswith(HIDDEN) for path in folder.iterdir()):
        return False
    weights = folder / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != digest:
        raise UserError(
            f"{folder} holds {'other weights' if weights.is_file() else 'something else'}; remove it, or name another "
            "folder with --output"
        )
    return True


@contextmanager
def gathering(folder: Path) -> Iterator[Path]:
    """Yield a folder to gather files in on the file system of the final one; it is gone afterwards, unless renamed."""
    # A folder that is there may be a mount: a file system of its own, and a name that no rename can replace.
    place = folder if folder.is_dir() else folder.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=place))
    except OSError as error:
        raise UserError(f"cannot write to {place} ({error.strerror}); name another place with --output") from error
    try:
        partial = hidden / "checkpoint"
        partial.mkdir()  # open to whom the umask says, where mkdtemp lets nobody else in: the folder may be shared
        yield partial
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def keep(partial: Path, folder: Path, digest: str) -> None:
    """Move what was gathered to its final place: as a whole where the folder is new, or else file by file.

    Raises:
        UserError: something else was put there meanwhile.
    """
    if not folder.exists():
        try:
            partial.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another pull, which was first
                raise
    held(folder, digest)
    (folder / names.DETECTIONS_FILE).unlink(missing_ok=True)  # those of another row
    # Weights first, by which the next pull knows the folder; the card last, without which it is no checkpoint.
    for file in sorted(partial.iterdir(), key=lambda file: (file.name == CARD, file.name != WEIGHTS)):
        os.replace(file, folder / file.name)
