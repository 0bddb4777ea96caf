"""The log that a training keeps in its folder for people to read: a line for each start, epoch and end."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.experiment.plan import STOPPED_EARLY

NAME = "training.log"
ENDINGS = ("finished", "failed", "interrupted", "cancelled", "pruned", "scored", STOPPED_EARLY)
"""How the last line of a training begins that nobody works on."""
SCORING = "scoring: "
CUT_OFF = "what ran before ended without a word: its process was killed, or its node lost"
AGAIN = " images are trained again"
TELL_SECONDS = 60.0
SHOWN = {"train/loss": "loss {:.3f}", "val/AP": "AP {:.1f}", "perf/images_per_s": "{:.1f} images/s"}


def note(folder: Path, text: str) -> None:
    """Append a line; a full or missing disk must not end a training."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {' '.join(text.split())}\n"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / NAME).open("a") as file:
            file.write(line)


def note_start(folder: Path, num_workers: int, epochs_done: int, num_epochs: int) -> None:
    """Say where the first of the workers runs, and from which epoch it goes on."""
    begun = f"goes on from epoch {epochs_done} of {num_epochs}" if epochs_done else f"begins {num_epochs} epochs"
    workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
    output = _output()
    if (folder / NAME).exists() and not has_ended(folder):
        note(folder, CUT_OFF)
    note(
        folder,
        f"started on {workers}, the first as process {os.getpid()} on {socket.gethostname()}; {begun}"
        + (f"; output in {output}" if output else ""),
    )


def note_again(folder: Path, num_images: int) -> None:
    """Say how many images were trained on since the checkpoint that a training goes on from."""
    if num_images > 0:
        note(folder, f"{num_images:,}{AGAIN}")


def losses_of(folder: Path) -> tuple[int, int]:
    """Return how often a training was cut off and started again, and how many images it was trained on again."""
    try:
        lines = [line[21:] for line in (folder / NAME).read_text(errors="replace").splitlines()]
    except OSError:
        return 0, 0
    again = [line.removesuffix(AGAIN).replace(",", "") for line in lines if line.endswith(AGAIN)]
    return lines.count(CUT_OFF), sum(int(number) for number in again if number.isdecimal())


def note_epoch(folder: Path, epoch: float, num_epochs: int, metrics: Mapping[str, float]) -> None:
    """Say how an epoch ended."""
    numbers = [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
    note(folder, ", ".join([f"epoch {round(epoch)}/{num_epochs}", *numbers]))


class ScoringLog:
    """Says how far a scoring pass is, ten times in all or once a minute."""

    def __init__(self, folder: Path, split: str, num_settings: int) -> None:
        """Begin a pass over a split."""
        self._folder, self._split, self._num_settings = folder, split, num_settings
        self._tenth, self._told = -1, 0.0

    def tell(self, done: int, total: int) -> None:
        """Take note of (images done, images in all)."""
        tenth, now = 10 * done // max(1, total), time.monotonic()
        if tenth > self._tenth or now - self._told > TELL_SECONDS:
            self._tenth, self._told = tenth, now
            settings = "1 setting" if self._num_settings == 1 else f"{self._num_settings:,} settings"
            note(self._folder, f"{SCORING}{done:,} of {total:,} images of {self._split}, {settings}")


def scoring_of(folder: Path) -> str:
    """Return how far the scoring is that the last line tells of; empty where it tells of something else."""
    line = _last_line(folder)
    return line.removeprefix(SCORING) if line.startswith(SCORING) else ""


def has_ended(folder: Path) -> bool:
    """Whether the last line says that the training came to an end, of whatever kind."""
    return _last_line(folder).startswith(ENDINGS)


def output_of(line: str) -> Path | None:
    """Return the file that a start's line names for what the worker prints."""
    _, found, path = line.partition("; output in ")
    return Path(path.strip()) if found else None


def _last_line(folder: Path) -> str:
    with suppress(OSError, IndexError):
        return (folder / NAME).read_text(errors="replace").splitlines()[-1][21:]
    return ""


def _output() -> str:
    """The file that this process prints to, if it is one."""
    with suppress(OSError):
        path = os.readlink("/proc/self/fd/1")
        return path if path.startswith("/") and Path(path).is_file() else ""
    return ""
