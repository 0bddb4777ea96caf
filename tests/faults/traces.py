"""In which moment a training is, and whether it goes on again, told from the files that it leaves."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.tracking.recorder import Metric, read_journal
from orchestrator.worker.task import JOURNAL, epochs_done
from orchestrator.worker.training_log import (
    TRAINING_LOG,
    Again,
    End,
    Entry,
    Epoch,
    Note,
    Scored,
    Scoring,
    Start,
    read_log,
)
from tests.faults.cells import Moment

PROGRESS = (Again, Epoch, Scoring, Scored)
"""Events of a training that works; it has begun again before them."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """One training of a suite, as files show it."""

    folder: Path
    """Of the training, on the suite's storage."""
    scratch: Path
    """The temporary folder of its processes, where checkpoints are written."""
    artifacts: Path
    """Where MLflow keeps files."""
    steps_per_epoch: int
    _read: dict[Path, tuple[Any, Any]] = field(default_factory=dict)

    def holds(self, moment: Moment) -> bool:
        """Whether the training is in a moment."""
        start = self.last_start
        if start is None:
            return False
        match moment:
            case "start":
                return not self._has_updated(start) and not self._events_since(start)
            case "training":
                step = max((metric.step for line in self.journal for metric in line), default=0)
                # In the second epoch or later, so that there is a checkpoint to go back to.
                in_epoch = step > self.steps_per_epoch and step % self.steps_per_epoch > 1
                # What was lost is made again, of which the journal holds the points already.
                is_again = _started(start).epoch > 0 and isinstance(self._last(), Again)
                return ((in_epoch and self._has_updated(start)) or is_again) and not self._is_saving(start)
            case "saving":
                return self._is_saving(start)
            case "uploading":
                return not self._is_finished and self._has_weights_in_mlflow()
            case "scoring":
                return isinstance(self._last(), Scoring)

    def goes_on_since(self, moment: float, *, anew: bool) -> bool:
        """Whether the training has come further since a time in seconds; `anew`, with workers that started since."""
        start = self.last_start
        if anew and (start is None or start.time.timestamp() < moment):
            return False
        since = start.time.timestamp() if anew and start is not None else moment
        done = (entry.time.timestamp() for entry in self.log if _is_progress(entry))
        return any(time > since for time in done) or self._last_point > since

    @property
    def num_workers(self) -> int:
        """Of its last start; 0 before the first."""
        return _started(self.last_start).num_workers if self.last_start else 0

    @property
    def first_worker(self) -> int:
        """The process that writes the log."""
        assert self.last_start is not None
        return _started(self.last_start).process

    @property
    def last_start(self) -> Entry | None:
        """When its workers started last."""
        return next((entry for entry in reversed(self.log) if isinstance(entry.event, Start)), None)

    @property
    def images_again(self) -> list[tuple[float, int]]:
        """How many images were trained on again, with the times of it."""
        return [(one.time.timestamp(), one.event.num_images) for one in self.log if isinstance(one.event, Again)]

    @property
    def log(self) -> list[Entry]:
        """The events so far."""
        return self._cached(self.folder / TRAINING_LOG, lambda: read_log(self.folder))

    @property
    def journal(self) -> list[list[Metric]]:
        """The metrics so far."""
        return self._cached(self.folder / JOURNAL, lambda: read_journal(self.folder / JOURNAL)[0])

    @property
    def _last_point(self) -> float:
        return self.journal[-1][0].timestamp / 1000 if self.journal and self.journal[-1] else 0.0

    @property
    def _is_finished(self) -> bool:
        return any(isinstance(entry.event, End) and entry.event.state == "finished" for entry in self.log)

    def _has_updated(self, start: Entry) -> bool:
        since = start.time.timestamp()
        return self._last_point > since or any(isinstance(event, Again) for event in self._events_since(start))

    def _events_since(self, start: Entry) -> list[Any]:
        return [e.event for e in self.log if e.time > start.time and not isinstance(e.event, Note)]

    def _is_saving(self, start: Entry) -> bool:
        epoch = epochs_done(self.folder) + 1
        if epoch == 1:
            return False  # another training saves its first epoch at the same time
        name, since = f"epoch-{epoch:04d}", start.time.timestamp()
        partial = [*self.scratch.glob(f"tmp*/.{name}-*"), *self.scratch.glob(f"tmp*/{name}"), self.folder / name]
        # Not what an earlier process that was killed has left there.
        return any(_changed(path) > since for path in partial)

    def _has_weights_in_mlflow(self) -> bool:
        try:
            run_id = json.loads((self.folder / "run.json").read_text())["run_id"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(run_id) and any(self.artifacts.glob(f"*/{run_id}/artifacts/checkpoint/*"))

    def _last(self) -> Any:
        return next((entry.event for entry in reversed(self.log) if not isinstance(entry.event, Note)), None)

    def _cached(self, file: Path, read: Callable[[], Any]) -> Any:
        """Read a file anew where it has changed; it is looked at hundreds of times a second."""
        try:
            status = file.stat()
        except OSError:
            return []
        state = (status.st_mtime_ns, status.st_size)
        if self._read.get(file, (None, None))[0] != state:
            self._read[file] = (state, read())
        return self._read[file][1]


def _started(entry: Entry) -> Start:
    assert isinstance(entry.event, Start)
    return entry.event


def _is_progress(entry: Entry) -> bool:
    event = entry.event
    return isinstance(event, PROGRESS) or (isinstance(event, End) and event.state == "finished")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
