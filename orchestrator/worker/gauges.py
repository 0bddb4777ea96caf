"""Prometheus metrics of a running suite, through those that every node of a Ray cluster exports.

Ray puts `ray_` before each name. A gauge vanishes by itself some 20 seconds after it was set for the last time, so that
nothing of a suite stays behind.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.experiment.plan import Ledger, Plan, why_evaluation_is_missing
from orchestrator.worker.task import GOES_ON, State, Status
from orchestrator.worker.training_log import losses_of

GAUGES = {
    "rnc_rows": "Rows of the tables of a suite.",
    "rnc_rows_done": "Those that are measured, or whose training its search stopped.",
    "rnc_training_active": "1 while the workers of a training should make updates, else 0.",
    "rnc_images_per_second": "What a training takes in, by its last report; 0 while it does not train.",
    "rnc_restarts_total": "How often a training started again after its process or node was lost.",
    "rnc_lost_images_total": "Images that were trained on again, because no checkpoint held what they taught.",
    "rnc_mlflow_up": "1 while MLflow answers the driver, else 0.",
    "rnc_storage_bytes": "Size of the file system that holds the checkpoints.",
    "rnc_storage_free_bytes": "Free bytes of the file system that holds the checkpoints.",
}
"""What the driver sets, with its help text."""
UPDATES = "rnc_training_updates_total"
"""What the first worker of each training counts."""
PEAK_MEMORY = "rnc_gpu_peak_memory_bytes"
"""What the first worker of each training on GPUs sets; how busy a GPU is, Ray itself exports of each node."""


class GaugeValue(NamedTuple):
    """A number of one gauge, and the labels under which Prometheus keeps it."""

    name: str
    value: float
    tags: Mapping[str, str]


class SuiteGauges:
    """The gauges of a suite, which its driver sets at every look."""

    def __init__(self, plan: Plan, storage: Path) -> None:
        """Take the plan, and the suite's folder of trainings."""
        self._suite, self._storage, self._ledger = plan.suite, storage, Ledger()
        self._losses: dict[str, tuple[State, tuple[int, int]]] = {}  # of each training, and its state when it was read
        self._rows = [
            [(evaluation.train_key, evaluation.key) for evaluation in plan.evaluations_of(experiment.name, row.label)]
            for experiment in plan.experiments
            for row in experiment.rows
        ]

    def tell(self, ledger: Ledger | None, statuses: Mapping[str, Status]) -> None:
        """Set the gauges; a failure is ignored, as monitoring must not end a suite.

        Args:
            ledger: what MLflow holds; None while it is away.
            statuses: of the trainings that the driver runs, by train key.
        """
        with suppress(Exception):
            for value in self.values(ledger, statuses):
                _gauge(value.name, tuple(value.tags)).set(value.value, dict(value.tags))

    def values(self, ledger: Ledger | None, statuses: Mapping[str, Status]) -> Iterator[GaugeValue]:
        """Yield the value of every gauge, with the ledger as it was read last while MLflow is away."""
        suite = {"suite": self._suite}
        yield GaugeValue("rnc_mlflow_up", float(ledger is not None), suite)
        ledger = self._ledger = self._ledger if ledger is None else ledger
        yield GaugeValue("rnc_rows", len(self._rows), suite)
        yield GaugeValue(
            "rnc_rows_done", sum(all(_is_done(ledger, *keys) for keys in row) for row in self._rows), suite
        )
        for key, status in statuses.items():
            tags = suite | {"train_key": key}
            # The log of a training that nobody works on stays as it is: with thousands of them most files are spared.
            if status.state in GOES_ON or self._losses.get(key, ("", ()))[0] != status.state:
                self._losses[key] = status.state, losses_of(self._storage / key)
            num_restarts, num_images = self._losses[key][1]
            yield GaugeValue("rnc_training_active", float(status.state in ("starting", "training")), tags)
            yield GaugeValue("rnc_images_per_second", status.images_per_s or 0.0, tags)
            # Totals are gauges, too: Ray's counters cannot begin at 0, so Prometheus would not see their first step.
            yield GaugeValue("rnc_restarts_total", num_restarts, tags)
            yield GaugeValue("rnc_lost_images_total", num_images, tags)
        disk = shutil.disk_usage(self._storage)
        yield GaugeValue("rnc_storage_bytes", disk.total, suite)
        yield GaugeValue("rnc_storage_free_bytes", disk.free, suite)


class Updates:
    """Counts the updates of a training, those that are made again included."""

    def __init__(self, suite: str, train_key: str, done: int) -> None:
        """Take what to count, and the update from which the training goes on."""
        self._tags, self._done = {"suite": suite, "train_key": train_key}, done

    def reach(self, step: int) -> None:
        """Count up to so many updates; a failure is ignored, as monitoring must not end a training."""
        # Ray's counter refuses an increment of 0.
        if step > self._done:
            with suppress(Exception):  # outside Ray, as in a notebook, there is nothing to tell it to
                _counter().inc(step - self._done, self._tags)
            self._done = step


def tell_peak_memory(suite: str, train_key: str, mib: float) -> None:
    """Set the most memory that a training has held on its GPU; a failure is ignored, as in `Updates`."""
    with suppress(Exception):
        _peak_memory().set(mib * 2**20, {"suite": suite, "train_key": train_key})


def _is_done(ledger: Ledger, train_key: str, evaluation_key: str) -> bool:
    training = ledger.trainings.get(train_key)
    if training is not None and training.status == "STOPPED":
        return True
    return why_evaluation_is_missing(ledger, train_key, evaluation_key) is None


@cache
def _gauge(name: str, tag_keys: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, GAUGES[name], tag_keys)


@cache
def _peak_memory() -> Any:
    from ray.util.metrics import Gauge

    text = "The most memory that torch has held for the first worker of a training on its GPU."
    return Gauge(PEAK_MEMORY, text, ("suite", "train_key"))


@cache
def _counter() -> Any:
    from ray.util.metrics import Counter

    return Counter(
        UPDATES, "Updates that a training made, those made again after a loss included.", ("suite", "train_key")
    )
