"""What one trial has to do, and what its folder on the storage tells of an earlier one."""

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.experiment.plan import STOPPED_EARLY, Evaluation, TrainRun

if TYPE_CHECKING:
    pass

JOURNAL = "metrics.jsonl"
"""The file, in a training's folder, of what it reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTask:
    """All that a trial and its workers have to know."""

    train_run: TrainRun
    evaluations: tuple[Evaluation, ...]
    """The missing ones, scored once the training is complete."""
    is_trained: bool
    """Whether the training is finished in the ledger, and only scored."""
    storage: Path
    """The suite's folder on storage that every node sees; a training has a folder of its key in it."""
    data_root: Path
    weights_file: Path | None
    tracking_uri: str
    judged_by: str | None = None
    """The metric by which its search may stop the training early; None where nothing may."""

    @property
    def folder(self) -> Path:
        """Where Ray Train keeps this training's checkpoints."""
        return self.storage / self.train_run.key

    @property
    def journal(self) -> Path:
        """Where the metrics of this training are kept before they are sent."""
        return self.folder / JOURNAL

    @property
    def run_file(self) -> Path:
        """Where the driver tells the workers the run of this training."""
        return self.folder / "run.json"

    def error_log(self, rank: int | None = None) -> Path:
        """Where a worker writes why it failed, and without a rank, where its trial does."""
        return self.folder / ("error.log" if rank is None else f"error-{rank}.log")

    @property
    def stop_file(self) -> Path:
        """Where the driver tells the trial to end."""
        return self.folder / "stop"

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.train_run.config.schedule.epochs

    def tell_run(self, *, run_id: str = "", error: str = "") -> None:
        """Write which run the workers record to, or why there is none; neither says that MLflow is waited for."""
        draft = self.run_file.with_suffix(".new")
        draft.write_text(json.dumps({"run_id": run_id, "error": error}))
        draft.replace(self.run_file)

    def tell_stop(self) -> None:
        """Ask the trial to end its workers and itself, now or as soon as it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop_file.touch()

    def hears_stop(self) -> bool:
        """Whether the trial is to end."""
        return self.stop_file.exists()

    def hear_run(self, seconds: float = 60.0) -> str:
        """Return the run to record to, which the driver opens while the workers start.

        Raises:
            ValueError: there is none.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.run_file.exists():
                told = json.loads(self.run_file.read_text())
                if told["error"]:
                    raise ValueError(told["error"])
                if told["run_id"]:
                    return str(told["run_id"])
                deadline = time.monotonic() + seconds
            time.sleep(0.1)
        raise ValueError(f"{self.run_file} does not appear; do all nodes see the storage under RNC_HOME?")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that Ray Train has committed in a training's folder."""
    try:
        latest = json.loads((folder / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    except (OSError, ValueError, KeyError):
        return None
    return folder / latest["checkpoint_dir_name"] if latest else None


def epochs_done(folder: Path) -> int:
    """Return how many epochs a training goes on from."""
    checkpoint = last_checkpoint(folder)
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


TRAINING_LOG = "training.log"
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
        with (folder / TRAINING_LOG).open("a") as file:
            file.write(line)


def note_start(folder: Path, num_workers: int, epochs_done: int, num_epochs: int) -> None:
    """Say where the first of the workers runs, and from which epoch it goes on."""
    begun = f"goes on from epoch {epochs_done} of {num_epochs}" if epochs_done else f"begins {num_epochs} epochs"
    workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
    output = _output()
    if (folder / TRAINING_LOG).exists() and not has_ended(folder):
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
        lines = [line[21:] for line in (folder / TRAINING_LOG).read_text(errors="replace").splitlines()]
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
        return (folder / TRAINING_LOG).read_text(errors="replace").splitlines()[-1][21:]
    return ""


def _output() -> str:
    """The file that this process prints to, if it is one."""
    with suppress(OSError):
        path = os.readlink("/proc/self/fd/1")
        return path if path.startswith("/") and Path(path).is_file() else ""
    return ""


State = Literal[
    "waiting", "starting", "training", "scoring", "finished", "failed", "interrupted", "cancelled", "stopped"
]
"""Stopped is what its search decided against."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Where one training stands."""

    label: str
    state: State
    note: str = ""
    """Why it waits, or failed."""
    epoch: float = 0.0
    num_epochs: int
    loss: float | None = None
    ap: float | None = None
    """Of the last validation, 0 to 100."""
    images_per_s: float | None = None
    remaining_s: float | None = None
    """Until the last epoch, at the present pace."""


GOES_ON: tuple[State, ...] = ("starting", "training", "scoring")
"""The states of a training that somebody works on."""
