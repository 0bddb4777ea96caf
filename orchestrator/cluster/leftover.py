"""Ends what outlives a Ray of our own whose driver was killed: for a minute or more its agents hold memory and ports.

A driver signs the folder of its Ray session. A process belongs to a session if it holds a file of that folder open, or
names it in its command line; names of processes alone say nothing, as another Ray may run beside ours.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from orchestrator.process import exists_here, this_process

SIGNATURE = "rnc_driver"
"""The file, in the folder of a Ray session, that names the driver which started it."""
END_SECONDS = 5.0


def sign(session: Path) -> None:
    """Note that this process started the Ray session of a folder."""
    with suppress(OSError):  # only a later look for what is left of it finds less
        (session / SIGNATURE).write_text(this_process())


def withdraw() -> None:
    """Take the signatures of this process back, once its Ray has ended with all its processes."""
    for file in ray_folder().glob(f"session_*/{SIGNATURE}"):
        with suppress(OSError):
            if file.read_text() == this_process():
                file.unlink()


def ray_folder() -> Path:
    """Return the folder in which a Ray of our own keeps those of its sessions."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def orphaned_sessions() -> list[Path]:
    """Return the sessions whose drivers, processes of this user and this host, are gone."""
    # Once each: Ray links the newest as session_latest.
    signed = {file.resolve() for file in ray_folder().glob(f"session_*/{SIGNATURE}")}
    return [file.parent for file in sorted(signed) if _is_orphaned(file)]


def end_leftovers() -> list[str]:
    """End the processes of orphaned sessions, and return their numbers and names."""
    sessions = orphaned_sessions()
    found = processes_of(sessions) if sessions else []
    ended = []
    for process in found:
        with suppress(psutil.Error):
            ended.append(f"{process.pid} {process.name()}")
            process.kill()  # by number and start, so that none is hit that took the number since
    _, alive = psutil.wait_procs(found, END_SECONDS)
    if not alive:
        for session in sessions:
            with suppress(OSError):
                (session / SIGNATURE).unlink()
    return ended


def processes_of(sessions: Sequence[Path]) -> list[psutil.Process]:
    """Return this user's processes of some Ray sessions, but for this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is somebody else's
            if process.pid != os.getpid() and process.uids().real == os.getuid() and _belongs(process, sessions):
                found.append(process)
    return found


def _belongs(process: psutil.Process, sessions: Sequence[Path]) -> bool:
    places = [*process.cmdline(), *(file.path for file in process.open_files())]
    return any(
        f"{session}{os.sep}" in place or place.endswith(str(session)) for session in sessions for place in places
    )


def _is_orphaned(signature: Path) -> bool:
    try:
        return signature.stat().st_uid == os.getuid() and exists_here(signature.read_text()) is False
    except OSError:
        return False
