"""The rows of an experiment as measured: means over seeds, intervals, and differences to the row beside each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from model.config import CALIBRATION, METRICS
from model.names import LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE
from orchestrator.experiment.cost.seeds import looks
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import (
    RUNNING,
    STOPPED_EARLY,
    Ledger,
    row_keys,
    why_evaluation_is_missing,
    why_training_is_missing,
)
from orchestrator.experiment.prepare import require_one_version
from orchestrator.experiment.rows import Row, SeedRule

if TYPE_CHECKING:
    from orchestrator.report.statistics.intervals import Estimate, SeedValues
    from orchestrator.report.statistics.resamples import Resamples


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowResult:
    """The numbers of one row of a table, as far as it is measured."""

    row: Row
    by_seed: Mapping[int, Mapping[str, float]]
    """The numbers of each seed that the ledger holds: those of misalignment as `misalignment/ece`, those of CALIBRATION
    where they were measured, and losses of the last updates as `train/loss_box`."""
    resampled: Mapping[int, "Resamples"]
    """[rows, resamples] of each such seed whose matches are known; see resamples.ROWS."""
    state: str
    """Why it is not complete; empty for a row that is."""
    seed_rule: SeedRule | None = None
    """How seeds are added to it; None where they are listed."""
    is_resampled: bool = True
    """Whether resamples were asked for, so that those that lack are lost."""
    fingerprints: frozenset[str] = frozenset()
    """Of the images that its seeds were scored on, as far as that was recorded."""

    def mean(self, metric: str) -> float | None:
        """Return the mean over seeds; None where there is nothing to measure, or nothing measured."""
        values = self._values(metric)
        return fmean(values) if values else None

    def std(self, metric: str) -> float | None:
        """Return the sample standard deviation over seeds; None of less than two."""
        values = self._values(metric)
        return stdev(values) if len(values) > 1 else None

    def estimate(self, metric: str, level: float = 0.95) -> "Estimate | None":
        """Return the mean with its interval; None where it is not known."""
        from orchestrator.report.statistics.intervals import estimate

        values = self._seed_values(metric)
        found = estimate(values, level) if values else None
        if found is None or metric not in METRICS + CALIBRATION:
            return found
        # No detector has an AP below 0 or above 100, which the scatter of a small one would reach.
        return replace(found, low=max(0.0, found.low), high=min(100.0, found.high))

    def knows_images(self, metric: str) -> bool:
        """Say whether its intervals of a metric hold what other images would do, and not the scatter of seeds alone."""
        values = self._seed_values(metric)
        return values is not None and bool(values.resampled)

    @property
    def num_images(self) -> int:
        """The images that it was scored on; 0 where that is not known, or not the same for all its seeds."""
        return self._counted("num_images")

    @property
    def num_with_objects(self) -> int:
        """Those of them with an object to find."""
        return self._counted("num_with_objects")

    def is_on_images_of(self, other: "RowResult") -> bool:
        """Say whether another row is measured on the same images, without which there is no difference of both."""
        return data_of(self.row) == data_of(other.row) and len(self.fingerprints | other.fingerprints) < 2

    def gap(self, other: "RowResult", metric: str) -> float | None:
        """Return the value of `difference` also where no interval is known; None where nothing can be compared."""
        from orchestrator.report.statistics.intervals import seed_pairs

        if not self.is_on_images_of(other):
            return None
        ours, theirs = (
            {seed: numbers[metric] for seed, numbers in row.by_seed.items() if metric in numbers}
            for row in (self, other)
        )
        gaps = [ours[one] - theirs[another] for one, another in seed_pairs(ours, theirs)]
        return fmean(gaps) if gaps else None

    def difference(self, other: "RowResult", metric: str, level: float = 0.95) -> "Estimate | None":
        """Return how far it is above another row, with its interval; None where that is not known.

        Of rows with other seeds it is the difference on the seeds that both have. Where seeds are added until a row is
        decided, an interval of 95 % at the seed where that ended would cheat: it is then what the intervals of all
        looks so far have in common, each at the level of its look (see `experiment.seeds.looks`). Once a look excludes
        0, so does this, though further seeds may move the mean out of it. Looks that have nothing in common leave the
        last one. Before the first look there is no interval.
        """
        if not self.is_on_images_of(other):
            return None
        rule = self.seed_rule or other.seed_rule
        paired = [seed for seed in self.by_seed if seed in other.by_seed]
        if rule is None or len(paired) < rule.at_least:
            # To a row with listed seeds, which gets no more of them, nobody will look again.
            is_open = self.seed_rule is not None and other.seed_rule is not None
            return None if is_open else self._difference(other, metric, level)
        found = None
        for look in looks(rule, len(paired)):
            ours, theirs = (row.of_seeds(paired[: look.num_seeds]) for row in (self, other))
            latest = ours._difference(theirs, metric, look.level)
            if latest is None:
                return None
            low, high = latest.low, latest.high
            if found is not None and max(low, found.low) <= min(high, found.high):
                low, high = max(low, found.low), min(high, found.high)
            found = replace(latest, low=low, high=high)
        return found

    def _difference(self, other: "RowResult", metric: str, level: float) -> "Estimate | None":
        from orchestrator.report.statistics.intervals import difference

        ours, theirs = self._seed_values(metric), other._seed_values(metric)
        return difference(ours, theirs, level) if ours and theirs else None

    def of_seeds(self, seeds: Sequence[int]) -> "RowResult":
        """Return what it is of these seeds alone."""
        return replace(
            self,
            by_seed={seed: self.by_seed[seed] for seed in seeds},
            resampled={seed: self.resampled[seed] for seed in seeds if seed in self.resampled},
        )

    def _values(self, metric: str) -> list[float]:
        return [numbers[metric] for numbers in self.by_seed.values() if metric in numbers]

    def _seed_values(self, metric: str) -> "SeedValues | None":
        if not self.resampled:
            return None
        from orchestrator.report.statistics.intervals import SeedValues
        from orchestrator.report.statistics.resamples import ROWS

        place = ROWS.index(metric) if metric in ROWS else len(ROWS)
        return SeedValues(
            measured={seed: numbers[metric] for seed, numbers in self.by_seed.items() if metric in numbers},
            resampled={seed: numbers[place] for seed, numbers in self.resampled.items() if place < len(numbers)},
            num_images=self.num_images,
            num_with_objects=self.num_with_objects,
        )

    def _counted(self, name: str) -> int:
        from orchestrator.report.statistics.resamples import ROWS

        place = ROWS.index(name)
        nums = {int(numbers[place, 0]) for numbers in self.resampled.values() if len(numbers) > place}
        return nums.pop() if len(nums) == 1 else 0


def measure(
    experiment: Experiment, ledger: Ledger, resampled: "Mapping[str, Resamples] | None" = None
) -> tuple[RowResult, ...]:
    """Gather the rows of a table; `resampled` by evaluation key.

    Raises:
        UserError: rows, or seeds of a row, rest on two versions of the same data.
    """
    require_one_version(experiment, ledger)
    rows = (measure_row(row, ledger, resampled or {}) for row in experiment.rows)
    is_resampled = resampled is not None
    return tuple(replace(row, seed_rule=experiment.seed_rule, is_resampled=is_resampled) for row in rows)


def measure_row(row: Row, ledger: Ledger, resampled: "Mapping[str, Resamples]") -> RowResult:
    """Gather one row; `resampled` by evaluation key."""
    reasons: dict[int, str] = {}
    found: dict[int, Mapping[str, float]] = {}
    known: dict[int, Resamples] = {}
    fingerprints = set()
    for seed, trained, scored in row_keys(row):
        reason = why_evaluation_is_missing(ledger, trained, scored)
        if reason is None:
            record = ledger.evaluations[scored]
            measured = {**record.metrics, **record.misalignment, **record.calibration}
            found[seed] = measured | _losses(ledger, trained)
            known |= {seed: resampled[scored]} if scored in resampled else {}
            fingerprints |= {record.data_fingerprint} - {""}  # older runs did not note it
        elif reason.startswith("waits"):
            # Why the training is missing says more than that it is.
            reasons[seed] = why_training_is_missing(ledger, trained) or reason
        else:
            reasons[seed] = reason
    state = _state(row, reasons)
    return RowResult(row=row, by_seed=found, resampled=known, state=state, fingerprints=frozenset(fingerprints))


def differences_to_reference(experiment: Experiment, results: Sequence[RowResult]) -> dict[str, "Estimate"]:
    """Return how far each row is above its reference, by label, where seeds are added until that is decided.

    Rows that are not complete, such as one that failed, and those without intervals are left out.
    """
    if experiment.seed_rule is None:
        return {}
    found = {
        result.row.label: result.difference(base, experiment.columns[0])
        for result, base in with_references(experiment, results)
        if base is not None and not result.state and not base.state
    }
    return {label: gain for label, gain in found.items() if gain is not None}


def with_references(experiment: Experiment, results: Sequence[RowResult]) -> list[tuple[RowResult, RowResult | None]]:
    """Return each row with the one that it is compared with; None beside the reference, and where there is none."""
    by_label: dict[str | None, RowResult] = {result.row.label: result for result in results}
    return [(result, by_label.get(experiment.reference_of(result.row))) for result in results]


def data_of(row: Row) -> str:
    """Name what a row is measured on."""
    data = row.train.data
    is_coco = data.dataset == "coco" and row.split in ("train2017", "val2017", "test-dev2017")
    name = f"{'COCO' if is_coco else data.dataset} {row.split}"
    is_cut = row.split == data.val_split and data.num_val_images is not None
    return f"{name}, at most the first {data.num_val_images} images" if is_cut else name


def measured_on(results: Sequence[RowResult]) -> list[str]:
    """Name what rows are measured on; where it is known of one of them, with the number of images there really are."""
    seen: dict[str, int] = {}
    for result in results:
        seen[data_of(result.row)] = max(seen.get(data_of(result.row), 0), result.num_images)
    found = []
    for result in results:
        name, most = data_of(result.row), result.row.train.data.num_val_images
        split, cut, _ = name.partition(", at most ")
        if cut and seen[name] and most is not None:
            name = f"{split}, all {seen[name]} images" if seen[name] < most else f"{split}, first {most} images"
        found.append(name)
    return list(dict.fromkeys(found))


def is_calibrated(numbers: Mapping[str, float]) -> bool:
    """Say whether an evaluation was scored when CALIBRATION was measured; data without an object have nothing else."""
    return any(name in numbers for name in CALIBRATION) or not any(name in numbers for name in METRICS)


def _losses(ledger: Ledger, train_key: str) -> dict[str, float]:
    metrics = ledger.trainings[train_key].metrics if train_key in ledger.trainings else {}
    return {name: metrics[name] for name in (LOSS_CLASS, LOSS_BOX, LOSS_CONFIDENCE) if name in metrics}


def _state(row: Row, reasons: Mapping[int, str]) -> str:
    if not reasons:
        return ""
    why = "; ".join(f"{reason} (seed {seed})" if len(row.seeds) > 1 else reason for seed, reason in reasons.items())
    if len(set(reasons.values())) == 1 and len(reasons) == len(row.seeds):
        why = next(iter(reasons.values()))
    if done := len(row.seeds) - len(reasons):
        return f"{done} of {len(row.seeds)} seeds: {why}"
    if why.startswith((STOPPED_EARLY, RUNNING)):
        return why
    return "not run" if why == "never run" else f"not run: {why}"
