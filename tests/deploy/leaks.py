"""Looks for secrets where none should be, however they are written."""

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

LOOK_SECONDS = 0.2


def spellings(value: str) -> list[bytes]:
    """Return how the random part of a secret reads as it is, and inside of a longer text in base64."""
    core = value.rpartition("+")[2].encode()
    encoded = [base64.b64encode(b"\0" * shift + core + b"\0" * 3) for shift in range(3)]
    return [core, *(text[4:40] for text in encoded)]  # of whole groups of the core, whatever stands around it


def leaks_in(content: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that a text holds."""
    return [name for name, value in secrets.items() if any(spelling in content for spelling in spellings(value))]


def leaks_below(folder: Path, secrets: Mapping[str, str], kept: Sequence[Path] = ()) -> list[str]:
    """Return "path: name" for each secret in each file of a folder, but for the files where they are kept."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and file not in kept:
            try:
                found += [f"{file}: {name}" for name in leaks_in(file.read_bytes(), secrets)]
            except FileNotFoundError:
                continue  # a socket, or gone meanwhile
    return found


def command_lines() -> set[bytes]:
    """What `ps` shows of every process of the machine."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found.add((entry / "cmdline").read_bytes())
        except OSError:
            continue
    return found


@contextmanager
def watched_command_lines() -> Iterator[set[bytes]]:
    """Yield the command lines of all processes that live meanwhile, but for the shortest lives."""
    seen, ended = command_lines(), Event()

    def watch() -> None:
        while not ended.is_set():
            seen.update(command_lines())
            time.sleep(LOOK_SECONDS)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
