"""Keeps results that were measured on other data out of one table: where the data lie is no part of any key."""

from collections.abc import Iterator
from typing import NamedTuple

from model.config import DataConfig
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Plan


class Reading(NamedTuple):
    """What decides which data are read, but for their content."""

    dataset: str
    split: str
    num_images: int | None
    faults: str


class Measured(NamedTuple):
    """Data on which something was trained or scored."""

    what: str
    reading: Reading
    fingerprint: str


def training_reading(data: DataConfig) -> Reading:
    """Return what a training reads."""
    return Reading(data.dataset, data.train_split, data.num_train_images, data.faults)


def scoring_reading(data: DataConfig, split: str) -> Reading:
    """Return what an evaluation on a split reads."""
    limits = {data.train_split: data.num_train_images, data.val_split: data.num_val_images}
    return Reading(data.dataset, split, limits.get(split), data.faults)


def measured(plan: Plan, ledger: Ledger) -> list[Measured]:
    """Return on which data the finished results of a plan rest, as far as that was recorded."""
    return list(_measured(plan, ledger))


def require_same_data(reading: Reading, fingerprint: str, results: list[Measured]) -> None:
    """Refuse data that are read as those of a result are, and are others; nothing is lost.

    Raises:
        UserError: the message names the split, a result, both fingerprints and the ways out.
    """
    for result in results:
        if result.reading == reading and result.fingerprint != fingerprint:
            raise UserError(
                f"split {reading.split} of {reading.dataset} has changed: {result.what} rests on data of fingerprint "
                f"{result.fingerprint[:12]}, now it has {fingerprint[:12]}, and numbers of both would stand in one "
                "table. Bring the old data back; or give the new data another split name (train.data.train_split, "
                "train.data.val_split); or give the experiment another suite, which begins anew"
            )


def _measured(plan: Plan, ledger: Ledger) -> Iterator[Measured]:
    for key, run in plan.trainings.items():
        record = ledger.trainings.get(key)
        if record is not None and record.status == "FINISHED" and record.data_fingerprint:
            yield Measured(f"training {run.label!r}", training_reading(run.config.data), record.data_fingerprint)
    for key, evaluation in plan.evaluations.items():
        record = ledger.evaluations.get(key)
        if record is not None and record.status == "FINISHED" and record.data_fingerprint:
            data, place = plan.trainings[evaluation.train_key].config.data, evaluation.places[0]
            what = f"evaluation {place.label!r} of {place.table}"
            yield Measured(what, scoring_reading(data, evaluation.split), record.data_fingerprint)
