"""Early stopping of a search's trainings: Ray Tune's ASHA judges the metric that they report epoch by epoch.

ASHA only decides; the follower of the trainings ends them in the way of `rnc cancel`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from model.names import EPOCH, VAL
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import STOPPED_EARLY, Plan
from orchestrator.tracking.recorder import read_journal
from orchestrator.worker.task import JOURNAL, TrainingTask

TUNE_EPOCH = "epoch"
"""The name under which Tune gets the number of whole epochs."""
StopEarly = Callable[[str, str], None]
"""Ends the training of a train key, and is told why."""


class AshaPerSearch(FIFOScheduler):
    """Starts all trials in their order, and asks the ASHA of each search about its own."""

    def __init__(self, plan: Plan, storage: Path, stop: StopEarly) -> None:
        """Let every search know what its trainings reported earlier, as their journals in `storage` tell."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._stop = stop
        self._metrics: dict[str, str] = {}
        self._judges: dict[str, ASHAScheduler] = {}
        for experiment in plan.experiments:
            self._add_search(plan, experiment, storage)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores its scheduler; nothing of this one outlives the process

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """A trial has told the number of an epoch, and waits for the answer; or it has returned."""
        key = trial.config["key"]
        if key in self._judges and TUNE_EPOCH in result and self._decision(key, result) == self.STOP:
            metric = self._metrics[key]
            self._stop(key, f"{STOPPED_EARLY} by ASHA after epoch {result[TUNE_EPOCH]} ({metric} {result[metric]:.1f})")
        # Never STOP: Tune would kill the trial, and with Ray's dashboard off nothing frees the placement group of the
        # workers that it started; the next trial would wait for ever.
        return self.CONTINUE

    def _add_search(self, plan: Plan, experiment: Experiment, storage: Path) -> None:
        search = experiment.search
        if search is None or search.asha is None:
            return
        own = [run for key, run in plan.trainings.items() if plan.search_of(key) is search]
        judge = ASHAScheduler(
            time_attr=TUNE_EPOCH,
            metric=search.metric,
            mode="max",
            # Not below the grace period, which ASHA asserts.
            max_t=max([search.asha.grace_epochs, *(run.config.schedule.epochs for run in own)]),
            grace_period=search.asha.grace_epochs,
            reduction_factor=search.asha.reduction_factor,
            stop_last_trials=False,  # and so no training is judged twice by one rung
        )
        for run in own:
            self._judges[run.key], self._metrics[run.key] = judge, search.metric
            judge.on_trial_add(None, _trial(run.key))  # type: ignore[arg-type]
            with suppress(OSError):  # a journal that cannot be read; its training tells what is wrong with its folder
                for result in _earlier(storage / run.key / JOURNAL, search.metric, run.config.schedule.epochs):
                    self._decision(run.key, result)

    def _decision(self, key: str, result: Mapping[str, Any]) -> str:
        return self._judges[key].on_trial_result(None, _trial(key), dict(result))  # type: ignore[arg-type]


def report_to_tune(task: TrainingTask) -> None:
    """Tell Tune, from the trial, the number of an epoch if one waits; return when it was judged."""
    number = task.hear_number()
    if number is not None and task.judged_by is not None:
        epoch, value = number
        tune.report({TUNE_EPOCH: epoch, task.judged_by: value})
        # A worker waits for this answer; one that is to be stopped has to wait on, or it would report its last epoch.
        if not task.hears_stop():
            task.tell_judged()


def _result(metrics: Mapping[str, float], metric: str, num_epochs: int) -> dict[str, Any] | None:
    epoch, value = round(metrics[EPOCH]), metrics.get(f"{VAL}{metric}", math.nan)
    return {TUNE_EPOCH: epoch, metric: value} if epoch < num_epochs and not math.isnan(value) else None


def _earlier(journal: Path, metric: str, num_epochs: int) -> Iterator[dict[str, Any]]:
    for line in read_journal(journal)[0]:
        metrics = {point.name: point.value for point in line}
        if f"{VAL}{metric}" in metrics and (result := _result(metrics, metric, num_epochs)):
            yield result


def _trial(key: str) -> SimpleNamespace:
    """Return what ASHA reads of a trial; the id is the train key, so that a resumed training is judged as the same."""
    return SimpleNamespace(trial_id=key)
