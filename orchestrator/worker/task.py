"""The task of one trial, the files through which driver, trial and workers talk, and the status that is shown."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.config import TrainConfig
from orchestrator.cluster.checkpoints import epoch_of, examine, last_committed, recover
from orchestrator.experiment.plan import Evaluation, TrainRun
from orchestrator.worker.training_log import Lost, epoch_reached, write_event

JOURNAL = "metrics.jsonl"
"""The file, in a training's folder, of the metrics that it reported; what happened to it is in its training.jsonl."""


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
    def num_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.train_run.config.schedule.epochs

    @property
    def folder(self) -> Path:
        """Where Ray Train keeps this training's checkpoints, and driver, trial and workers their files about it."""
        return self.storage / self.train_run.key

    @property
    def journal(self) -> Path:
        """Where the metrics of this training are kept before they are sent."""
        return self.folder / JOURNAL

    @property
    def run_file(self) -> Path:
        """Where the driver tells the workers the run of this training."""
        return self.folder / "run.json"

    @property
    def stop_file(self) -> Path:
        """Where the driver tells the trial to end."""
        return self.folder / "stop"

    def error_log(self, rank: int | None = None) -> Path:
        """Where a worker writes why it failed, and without a rank, where its trial does."""
        return self.folder / ("error.log" if rank is None else f"error-{rank}.log")

    def tell_run(self, *, run_id: str = "", error: str = "") -> None:
        """Write which run the workers record to, or why there is none; neither says that MLflow is waited for."""
        _write(self.run_file, {"run_id": run_id, "error": error})

    @property
    def group_file(self) -> Path:
        """Where the first worker tells the trial the placement group of all."""
        return self.folder / "placement_group.json"

    @property
    def judgement_file(self) -> Path:
        """Where the first worker tells the trial the number of an epoch, and is told that it was judged."""
        return self.folder / "judgement.json"

    def tell_group(self, group: str) -> None:
        """Write the placement group of the workers, so that the trial can end them."""
        _write(self.group_file, {"id": group})

    def hear_group(self) -> str | None:
        """Return the placement group that is to be given back, or None if none is."""
        told = _read(self.group_file)
        return None if told is None else str(told["id"])

    def tell_number(self, epoch: int, value: float) -> None:
        """Write the number of an epoch by which a search may stop the training."""
        _write(self.judgement_file, {"epoch": epoch, "value": value, "is_judged": False})

    def hear_number(self) -> tuple[int, float] | None:
        """Return the epoch and the number that wait for a judgement, or None if none does."""
        told = _read(self.judgement_file)
        return None if told is None or told["is_judged"] else (told["epoch"], told["value"])

    def tell_judged(self) -> None:
        """Write that the number was judged and the training goes on."""
        _write(self.judgement_file, {"is_judged": True})

    def hear_run(self, seconds: float = 60.0) -> str:
        """Return the run to record to, which the driver opens while the workers start.

        Raises:
            ValueError: there is none.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            told = _read(self.run_file)
            if told is not None:
                if told["error"]:
                    raise ValueError(told["error"])
                if told["run_id"]:
                    return str(told["run_id"])
                # The driver is there and waits for MLflow; how long that may take is for its own retries to say.
                deadline = time.monotonic() + seconds
            time.sleep(0.1)
        raise ValueError(f"{self.run_file} does not appear; do all nodes see the storage under RNC_HOME?")

    def tell_stop(self) -> None:
        """Ask the trial to end its workers and itself, now or as soon as it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stop_file.touch()

    def hears_stop(self) -> bool:
        """Whether the trial is to end."""
        return self.stop_file.exists()


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that Ray Train has committed in a training's folder."""
    return last_committed(folder)


def epochs_done(folder: Path) -> int:
    """Return how many epochs a training goes on from."""
    checkpoint = last_committed(folder)
    return epoch_of(checkpoint.name) if checkpoint else 0


def take_up(folder: Path, config: TrainConfig | None, *, is_trained: bool, thorough: bool = False) -> str:
    """Let a training start from its newest sound checkpoint, log what was lost, and return that; empty if nothing was.

    Args:
        folder: of the training.
        config: of the training; None where that is not known.
        is_trained: whether it is finished, and only scored.
        thorough: whether older checkpoints beside a sound one are looked at as well.

    Raises:
        UserError: a file cannot be read or moved for now, or is of another version or training.
    """
    found = examine(folder, config, thorough=thorough)
    if found is not None:
        recover(found)
        lost = Lost(text=found.describe(is_trained=is_trained), epoch=found.epoch)
    elif not is_trained and last_committed(folder) is None and (epoch := epoch_reached(folder)):
        text = f"no checkpoint is left, though its log tells of epoch {epoch}; it begins anew"
        lost = Lost(text=text, epoch=0)
    else:
        return ""
    write_event(folder, lost)
    return lost.text


State = Literal[
    "waiting", "starting", "training", "scoring", "finished", "failed", "interrupted", "cancelled", "stopped"
]
"""Cancelled is also what `rnc submit --prune` ends; stopped is what its search decided against."""


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


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file that others read at any time; they see all of it or none."""
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(content))
    # A rename, as readers on other nodes poll the file and must not see half of it.
    draft.replace(file)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return content
