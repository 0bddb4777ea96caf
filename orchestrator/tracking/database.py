"""Looks whether the embedded server's database can be read, before the server does and answers in SQLite's words."""

from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import UserError

FILE = "mlflow.db"
HEADER = b"SQLite format 3\0"
MALFORMED = ("database disk image is malformed", "file is not a database")
"""How SQLite calls a damaged file."""


def require_sound_database(folder: Path) -> None:
    """Refuse to start a server on a database that is cut, emptied, something else, or out of reach.

    A cut is seen by the number of pages in the header, whatever the size of the file; pages that changed within are for
    the server to find.

    Args:
        folder: of the server, with the database and the artifacts; without a database there is nothing to refuse.

    Raises:
        UserError: the message says how to go on.
    """
    import sqlite3

    file = folder / FILE
    try:
        with file.open("r+b") as opened:  # as the server will
            header = opened.read(len(HEADER))
            size = file.stat().st_size
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise UserError(way_out(folder, "it is a folder")) from None
    except OSError as error:
        raise UserError(
            f"{file} cannot be read and written ({error.strerror}); give this user access to it, or set RNC_HOME to "
            "another folder, where nothing is recorded yet"
        ) from error
    if size == 0:
        # SQLite makes an empty file first; one beside artifacts once held their records.
        if any((folder / "artifacts").glob("*")):
            raise UserError(way_out(folder, "it is empty"))
        return
    if header != HEADER:
        raise UserError(way_out(folder, f"it is no SQLite database, but {size:,} bytes of something else"))
    try:
        connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=5.0)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return  # locked, or with a transaction to be undone, which the server does
    except sqlite3.DatabaseError as error:
        raise UserError(way_out(folder, f"{error}; it has {size:,} bytes")) from error


def way_out(folder: Path, why: str) -> str:
    """Say that the embedded server's database is damaged, and how to go on."""
    file, beside = folder / FILE, sorted(folder.glob(f"{FILE}-*"))
    moved = " ".join(str(path) for path in (file, *beside))
    return (
        f"{file} is damaged ({why}): it holds all that was recorded in this RNC_HOME. Bring it back from a backup, or "
        f"move it away: mkdir -p {folder}/damaged && mv {moved} {folder}/damaged. Then the next `rnc submit` records "
        f"everything again from the checkpoints in {folder.parent / 'ray'}, and trains only what has none there"
    )


def damaged_database(uri: str) -> str:
    """Say that a server which runs cannot read its database."""
    return (
        f"MLflow at {uri} cannot read its database, which is damaged; bring it back from a backup. The own one of an "
        f"RNC_HOME is mlflow/{FILE} there: `rnc ui --stop`, then move it away, and the next `rnc submit` records "
        "everything again from the checkpoints in RNC_HOME/ray, and trains only what has none there"
    )
