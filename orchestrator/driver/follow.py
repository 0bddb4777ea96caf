"""Follows trainings from their start to their end: opens and ends their runs in MLflow, and shows where they stand."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from model.names import EPOCH, IMAGES_PER_S, LOSS, STARTUP_S, VAL
from orchestrator.cluster.capacity import Cluster, needs
from orchestrator.driver.cancel import PRUNED, prune_asked
from orchestrator.driver.live import Show
from orchestrator.errors import UserError, free_of, is_full
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.tracking.ledger import begin_training, end_training, read_ledger, stop_training
from orchestrator.tracking.reading.live_runs import LiveRuns
from orchestrator.tracking.rest import DiskFull, Refused, ServerAway, retried
from orchestrator.tracking.runs import Tracking, open_tracking
from orchestrator.worker.task import GOES_ON, State, Status, TrainingTask, epochs_done
from orchestrator.worker.training_log import End, EndState, scoring_of, write_event

logger = logging.getLogger(__name__)
WATCH_SECONDS = 2.0
MOST_OF_SERVER = 0.05
"""The share of its time that a server may need for the driver's looks; one that answers slowly is asked less often."""
LONGEST_WATCH_SECONDS = 60.0
Tell = Callable[[Ledger | None, Mapping[str, Status]], None]
"""Is given what MLflow holds, None while it is away, and where each training stands, by train key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How one training ended."""

    key: str
    label: str
    state: State
    error: str = ""
    """The last line of what went wrong, or how a later submit goes on."""
    log: str = ""
    """The file with the rest of it."""
    startup_s: float | None = None
    """From the trial's first line to the first report of its training; None where nothing was trained."""


@dataclass(slots=True)
class _Progress:
    """What the driver knows of a training."""

    state: State = "waiting"
    error: str = ""
    log: str = ""
    stop: str = ""
    """The note under which it was asked to end; empty where it was not."""
    is_decided: bool = False
    """Whether its search asked for that, so that it is not taken up again."""
    run_id: str | None = None
    record: Record | None = None
    """As it was read last."""
    before: Record | None = None
    """As it was when the trial started."""
    refusal: UserError | None = None
    """Why MLflow does not take its run; None where it does."""
    first: tuple[float, float] | None = None
    """When its first sign of life was seen, and the epoch then."""


class Follower:
    """Keeps the state of every training: shows it, writes it to MLflow, and tells trials to end."""

    def __init__(
        self,
        tasks: Sequence[TrainingTask],
        tracking: Tracking,
        cluster: Cluster,
        show: Show,
        tell: Tell,
        keep_server: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks = {task.train_run.key: task for task in tasks}
        self._tracking, self._cluster, self._show, self._tell = tracking, cluster, show, tell
        self._keep_server = keep_server
        self._progress = {key: _Progress() for key in self._tasks}
        self._away: UserError | None = None
        self._live = LiveRuns()
        self._look_seconds = 0.0
        # One thread: a run is begun before it is ended, and Tune's callbacks do not wait for MLflow.
        self._pool = ThreadPoolExecutor(1)
        self._closing = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Draw every few seconds; on leaving without an error, wait until MLflow knows of every end."""
        self.draw()
        thread = threading.Thread(target=self._watch, name="live", daemon=True)
        thread.start()
        try:
            yield
            self._pool.shutdown()
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._closing.set()
            thread.join(WATCH_SECONDS)

    def started(self, key: str) -> None:
        """Open the run of a training while its workers start."""
        progress, task = self._progress[key], self._tasks[key]
        progress.state, progress.before = "starting", progress.record
        with suppress(OSError):  # its trial comes by the same, and tells it as its end
            task.folder.mkdir(parents=True, exist_ok=True)
            # Else workers would record to the run that an earlier start was told, or not know that they are to wait:
            # the one thread comes to `_begin` once others have begun, which takes minutes where MLflow is away.
            task.tell_run()
        if not progress.stop:
            self._pool.submit(self._begin, task)

    def stop_early(self, key: str, reason: str) -> None:
        """End a training that its search decided against."""
        progress = self._progress[key]
        if not progress.stop:
            progress.stop, progress.is_decided = reason, True
            self._tell_stop(key)

    def ended(self, key: str, *, error: str, log: str = "") -> None:
        """Note how a training ended."""
        progress = self._progress[key]
        on_request: EndState = "stopped" if progress.is_decided else "cancelled"
        state: EndState = "failed" if error else on_request if progress.stop else "finished"
        progress.state, progress.error, progress.log = state, error or progress.stop, log
        if progress.error:
            write_event(self._tasks[key].folder, End(state=state, reason=progress.error))
            self._pool.submit(self._close, key)

    def interrupted(self) -> None:
        """Mark the runs of trainings that did not end, after all their processes have ended."""
        for key, task in self._tasks.items():
            progress = self._progress[key]
            if progress.state != "starting":
                continue
            epoch = epochs_done(task.folder)
            progress.state = "interrupted"
            progress.error = f"interrupted; the next submit goes on from epoch {epoch}"
            write_event(task.folder, End(state="interrupted", reason=progress.error))
            if progress.run_id is None or self._away is not None:
                continue  # the next submit closes its run; asking for each would take seconds a row
            try:
                if self._runs(key):
                    end_training(self._tracking, progress.run_id, "KILLED", progress.error)
            except UserError as error:
                self._away = error

    def draw(self) -> None:
        """Show where all trainings stand."""
        ledger, began = None, time.monotonic()
        try:
            self._keep_server()
            ledger = self._live.ledger(self._tracking)
        except UserError as error:  # the server is away; what it last told stands
            self._away = error
        else:
            self._away = None
            for key, progress in self._progress.items():
                progress.record = ledger.trainings.get(key)
                if progress.record is None and progress.run_id is not None and progress.state == "starting":
                    # A server that was set up anew holds no run of it: begin one, which gets the whole journal.
                    progress.run_id = None
                    self._pool.submit(self._begin, self._tasks[key])
            with suppress(UserError):  # it went away, or has only just lost the suite
                self._stop_what_is_asked()
            self._look_seconds = time.monotonic() - began
        free = self._free()
        statuses = {key: self._status(task, free) for key, task in self._tasks.items()}
        with suppress(OSError):  # the terminal is gone, or the pipe; trainings do without
            self._show(list(statuses.values()))
        self._tell(ledger, statuses)

    def ending(self, task: TrainingTask) -> Ending:
        """Say how a training ended."""
        progress = self._progress[task.train_run.key]
        metrics = progress.record.metrics if progress.record and _has_moved(progress) else {}
        return Ending(
            key=task.train_run.key,
            label=task.train_run.label,
            state=progress.state,
            error=progress.error,
            log=progress.log,
            startup_s=metrics.get(STARTUP_S),
        )

    def _begin(self, task: TrainingTask) -> None:
        """Open the run, and tell the workers its id, or why there is none; called again if MLflow has lost the run."""
        progress = self._progress[task.train_run.key]

        def begin() -> str:
            if self._closing.is_set():  # else a Ctrl-C while MLflow is away would wait for it to the end
                raise UserError("interrupted")
            # Looked up each time: a server that comes back empty needs the suite's experiment again.
            self._tracking = open_tracking(self._tracking.uri, self._tracking.suite)
            held = read_ledger(self._tracking, task.train_run.key).trainings.get(task.train_run.key)
            # Only scored: the finished run stays finished.
            if held is not None and task.is_trained:
                return held.run_id
            return begin_training(self._tracking, task.train_run)

        def refused(error: UserError) -> None:
            progress.refusal = error

        try:
            with suppress(OSError):  # a training whose folder takes nothing has a run that says so
                task.tell_run()
            progress.run_id = retried(begin, waits=refused)
            progress.refusal = None
            task.tell_run(run_id=progress.run_id)
        except Exception as error:
            with suppress(OSError):
                task.tell_run(error=str(error))

    def _stop_what_is_asked(self) -> None:
        """Tell trials to end that somebody asked for, through MLflow."""
        prune = prune_asked(self._tracking)
        for key, progress in self._progress.items():
            run = self._tasks[key].train_run
            asked = progress.record.stop if progress.record else ""
            if not asked and prune is not None and prune.takes(key, run.tables):
                asked = PRUNED
            if asked and not progress.stop and progress.state in ("waiting", "starting"):
                progress.stop = asked
                self._tell_stop(key)

    def _tell_stop(self, key: str) -> None:
        with suppress(OSError):  # a training whose folder takes nothing ends by itself at its next checkpoint
            self._tasks[key].tell_stop()

    def _close(self, key: str) -> None:
        progress = self._progress[key]
        if progress.run_id is None or not self._runs(key):
            return
        if progress.state == "stopped":
            stop_training(self._tracking, progress.run_id, progress.error, self._tasks[key].journal)
        else:
            status: Literal["FAILED", "KILLED"] = "FAILED" if progress.state == "failed" else "KILLED"
            end_training(self._tracking, progress.run_id, status, progress.error)

    def _runs(self, key: str) -> bool:
        """Whether the training is unfinished in MLflow; its scoring may have failed after it finished."""
        record = read_ledger(self._tracking, key).trainings.get(key)
        return record is not None and record.status == "RUNNING"

    def _watch(self) -> None:
        while not self._closing.wait(watch_seconds(self._look_seconds)):
            try:
                self.draw()
            except Exception as error:  # the next look may succeed; without any, nobody could cancel a training
                logger.warning("the trainings were not looked at: %s", error)

    def _status(self, task: TrainingTask, free: Mapping[str, float]) -> Status:
        progress = self._progress[task.train_run.key]
        metrics = progress.record.metrics if progress.record else {}
        epoch, state = metrics.get(EPOCH, 0.0), progress.state
        if progress.stop and state == "waiting":
            state = "cancelled"
        if (
            state == "starting"
            and progress.record
            and progress.record.metrics != getattr(progress.before, "metrics", {})
        ):
            state = "training" if epoch < task.num_epochs else "scoring"
            progress.first = progress.first or (time.monotonic(), epoch)
        scored = scoring_of(task.folder) if progress.state == "starting" else ""
        if scored and state == "starting":
            state = "scoring"  # alone, so that its training reports nothing
        return Status(
            label=task.train_run.label,
            state=state,
            note=_why_waiting(task, free)
            if state == "waiting"
            else progress.error or progress.stop or self._why_silent(progress, state) or scored,
            epoch=epoch,
            num_epochs=task.num_epochs,
            loss=metrics.get(LOSS),
            ap=metrics.get(f"{VAL}AP"),
            images_per_s=metrics.get(IMAGES_PER_S) if state == "training" else None,
            remaining_s=_remaining(progress.first, epoch, task.num_epochs) if state == "training" else None,
        )

    def _why_silent(self, progress: _Progress, state: State) -> str:
        if state not in GOES_ON:
            return ""
        refusal = progress.refusal or self._away
        if isinstance(refusal, ServerAway | Refused) and not isinstance(refusal, DiskFull):
            return f"waiting for MLflow at {self._tracking.uri}; nothing is lost meanwhile"
        if refusal is not None:
            return f"{refusal}; nothing is lost meanwhile"
        storage = self._tasks[next(iter(self._tasks))].storage
        return f"{storage}: the disk is full ({free_of(storage)}); free some" if is_full(storage) else ""

    def _free(self) -> dict[str, float]:
        """What of the cluster no training of this submit takes, by name."""
        busy = [
            needs(self._tasks[key].train_run.resources) for key, p in self._progress.items() if p.state == "starting"
        ]
        all_names = {name for task in self._tasks.values() for name in needs(task.train_run.resources)}
        return {name: self._cluster.total(name) - sum(taken[name] for taken in busy) for name in all_names}


def watch_seconds(look: float) -> float:
    """Return how long to wait after a look that took the server at most so many seconds."""
    return min(max(WATCH_SECONDS, look / MOST_OF_SERVER), LONGEST_WATCH_SECONDS)


def _why_waiting(task: TrainingTask, free: Mapping[str, float]) -> str:
    for name, need in needs(task.train_run.resources).items():
        if need > free[name]:
            return f"for {need:g} {name}s, {max(0.0, free[name]):g} free"
    return "for its turn"


def _has_moved(progress: _Progress) -> bool:
    """Whether a training has recorded anything since its trial started."""
    return progress.record is not None and (
        progress.before is None or progress.record.metrics.items() != progress.before.metrics.items()
    )


def _remaining(first: tuple[float, float] | None, epoch: float, num_epochs: int) -> float | None:
    """Seconds to the last epoch at the pace since the first sign of life."""
    if first is None or epoch <= first[1]:
        return None
    return (num_epochs - epoch) * (time.monotonic() - first[0]) / (epoch - first[1])
