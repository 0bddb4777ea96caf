"""What the ledger holds of each row of a table: numbers by seed, their resamples, and why not more."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from orchestrator.experiment.keys import row_keys
from orchestrator.experiment.load import Experiment, Row
from orchestrator.experiment.plan import STOPPED_EARLY, Ledger, why_evaluation_is_missing, why_training_is_missing

if TYPE_CHECKING:
    from orchestrator.report.bootstrap import Resamples
    from orchestrator.report.intervals import Estimate, Sample


PAPERS_DATA = "COCO val2017"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measured:
    """One row of a table, measured as far as it is."""

    row: Row
    by_seed: Mapping[int, Mapping[str, float]]
    """The numbers of each seed that the ledger holds; those of misalignment as `misalignment/ece`."""
    resampled: Mapping[int, "Resamples"]
    """[3, resamples] of each such seed whose matches are known."""
    state: str
    """Why it is not complete; empty for a row that is."""

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds; None where there is nothing to measure, or nothing measured."""
        values = self._values(metric)
        return fmean(values) if values else None

    def std(self, metric: str) -> float | None:
        """Return the sample standard deviation over seeds; None of less than two."""
        values = self._values(metric)
        return stdev(values) if len(values) > 1 else None

    def estimate(self, metric: str) -> "Estimate | None":
        """Return the mean with its 95 % interval; None where it is not known."""
        from orchestrator.report.intervals import estimate

        sample = self._sample(metric)
        return estimate(sample) if sample else None

    def difference(self, other: "Measured", metric: str) -> "Estimate | None":
        """Return how far it is above another row, with the 95 % interval; None where that is not known."""
        from orchestrator.report.intervals import difference

        ours, theirs = self._sample(metric), other._sample(metric)
        return difference(ours, theirs) if ours and theirs else None

    def _values(self, metric: str) -> list[float]:
        return [numbers[metric] for numbers in self.by_seed.values() if metric in numbers]

    def _sample(self, metric: str) -> "Sample | None":
        if not self.resampled:
            return None
        from orchestrator.report.intervals import RESAMPLED, Sample

        if metric not in RESAMPLED:
            return None
        place = RESAMPLED.index(metric)
        return Sample(
            measured={seed: numbers[metric] for seed, numbers in self.by_seed.items() if metric in numbers},
            resampled={seed: numbers[place] for seed, numbers in self.resampled.items()},
        )


def measure(
    experiment: Experiment, ledger: Ledger, resampled: "Mapping[str, Resamples] | None" = None
) -> tuple[Measured, ...]:
    """Gather the rows of a table; `resampled` by evaluation key."""
    return tuple(_measure(row, ledger, resampled or {}) for row in experiment.rows)


def data_of(row: Row) -> str:
    """Name what a row is measured on."""
    data = row.train.data
    is_coco = data.dataset == "coco" and row.split in ("train2017", "val2017", "test-dev2017")
    name = f"{'COCO' if is_coco else data.dataset} {row.split}"
    return name if data.num_val_images is None else f"{name}, first {data.num_val_images} images"


def _measure(row: Row, ledger: Ledger, resampled: "Mapping[str, Resamples]") -> Measured:
    reasons: dict[int, str] = {}
    found: dict[int, Mapping[str, float]] = {}
    known: dict[int, Resamples] = {}
    for seed, trained, scored in row_keys(row):
        reason = why_evaluation_is_missing(ledger, trained, scored)
        if reason is None:
            found[seed] = {**ledger.evaluations[scored].metrics, **ledger.evaluations[scored].misalignment}
            known |= {seed: resampled[scored]} if scored in resampled else {}
        elif reason.startswith("waits"):
            reasons[seed] = why_training_is_missing(ledger, trained) or reason
        else:
            reasons[seed] = reason
    return Measured(row=row, by_seed=found, resampled=known, state=_state(row, reasons))


def _state(row: Row, reasons: Mapping[int, str]) -> str:
    if not reasons:
        return ""
    why = "; ".join(f"{reason} (seed {seed})" if len(row.seeds) > 1 else reason for seed, reason in reasons.items())
    if len(set(reasons.values())) == 1 and len(reasons) == len(row.seeds):
        why = next(iter(reasons.values()))
    if done := len(row.seeds) - len(reasons):
        return f"{done} of {len(row.seeds)} seeds: {why}"
    if why.startswith(STOPPED_EARLY):
        return why
    return "not run" if why == "never run" else f"not run: {why}"
