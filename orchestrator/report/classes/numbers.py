"""What the rows of an experiment reach on each class: AP with its interval, and precision by recall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import row_keys
from orchestrator.experiment.rows import Row
from orchestrator.report.results.rows import RowResult
from orchestrator.report.statistics.resamples import ClassSamples
from orchestrator.site import Site
from orchestrator.tracking.evaluations.classes import told_apart

if TYPE_CHECKING:
    from orchestrator.report.statistics.intervals import Estimate

METRICS = ("AP", "AP50", "AP75")
"""What is known of a class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassOf:
    """A class of a data set."""

    place: int
    """Among the rising ids."""
    id: int | None
    """As the annotations have it; None of an evaluation that did not record it, and whose data are not here."""
    name: str
    """Different from those of all other classes."""
    num_objects: int
    """Objects to find in the images that were scored, crowds left out."""
    num_images: int
    """Images with one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowOfClasses:
    """One row of an experiment, class by class."""

    label: str
    is_reference: bool
    reference: str | None
    """The label of the row that it is compared with, if any."""
    by_class: tuple[RowResult, ...]
    """Of each class the row as measured on it alone: METRICS."""
    precision: NDArray[np.float64]
    """[3, 101, K] at IoU 0.5, at 0.75 and the mean over ten thresholds, 0 to 1, of the mean over seeds."""
    ap: float
    """The mean over the classes that have an object, and over seeds, 0 to 100; NaN where none has."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Classes:
    """The classes of an experiment's images, and what each row that is measured on them reaches."""

    title: str
    """Of the experiment, or of whatever was scored."""
    classes: tuple[ClassOf, ...]
    """By rising id."""
    rows: tuple[RowOfClasses, ...]
    left_out: tuple[str, ...] = ()
    """The labels of rows whose matches are lost, or that were measured on other images or classes."""
    _known: dict[tuple[str, Literal["alone", "over"], int], "Estimate | None"] = field(default_factory=dict, repr=False)
    """What was estimated, as tables, pages and drawings all ask for it: 0.3 ms each."""

    def reference_of(self, row: RowOfClasses) -> RowOfClasses | None:
        """Return the row that a row is compared with; None where there is none, or it is not measured."""
        return next((one for one in self.rows if one.label == row.reference), None)

    def estimate(self, row: RowOfClasses, place: int) -> "Estimate | None":
        """Return AP of a class with its 95 % interval within 0 to 100; None where that is not known."""
        if (row.label, "alone", place) not in self._known:
            found = row.by_class[place].estimate("AP") if self._has_interval(place) else None
            self._known[row.label, "alone", place] = found
        return self._known[row.label, "alone", place]

    def difference(self, row: RowOfClasses, place: int) -> "Estimate | None":
        """Return how far a row is above its reference on a class, with its interval; None where that is not known."""
        base = self.reference_of(row)
        if base is None or not self._has_interval(place):
            return None
        if (row.label, "over", place) not in self._known:
            self._known[row.label, "over", place] = row.by_class[place].difference(base.by_class[place], "AP")
        return self._known[row.label, "over", place]

    def _has_interval(self, place: int) -> bool:
        # Of one image each resample is that image again, so that AP would seem to be known without any doubt.
        return self.classes[place].num_images > 1


def measure_classes(
    experiment: Experiment, rows: Sequence[RowResult], found: Mapping[str, ClassSamples], site: Site | None = None
) -> Classes | None:
    """Gather the rows of an experiment class by class; None where nothing is known of any.

    Args:
        experiment: one table.
        rows: its rows, measured.
        found: what is known of each class, by evaluation key.
        site: where the data are, to name classes of evaluations that were recorded without their names; None looks
            nowhere.
    """
    first: tuple[RowResult, ClassSamples] | None = None
    names: Mapping[int, str] = {}
    measured, left_out = [], []
    for row in rows:
        samples = {seed: found[key] for seed, _, key in row_keys(row.row) if seed in row.by_seed and key in found}
        own = next(iter(samples.values()), None)
        pattern = own if first is None else first[1]
        if own is None or pattern is None or len(samples) < len(row.by_seed):
            left_out += [row.row.label] if row.by_seed else []
            continue
        if not all(_are_alike(pattern, one) for one in samples.values()):
            left_out.append(row.row.label)
            continue
        first = first or (row, own)
        names = names or dict(zip(own.ids, own.names, strict=True))
        is_reference, reference = row.row.label == experiment.reference, experiment.reference_of(row.row)
        measured.append(_of_row(row, samples, is_reference=is_reference, reference=reference))
    if first is None:
        return None
    classes = _classes(first[1], names or _names_in_data(*first, site))
    return Classes(title=experiment.title, classes=classes, rows=tuple(measured), left_out=tuple(left_out))


def of_scoring(title: str, samples: ClassSamples) -> Classes:
    """Return the classes of one scoring that stands in no table."""
    row = RowResult(row=Row(label=title), by_seed={0: {}}, resampled={}, state="")
    classes = _classes(samples, dict(zip(samples.ids, samples.names, strict=True)))
    return Classes(title=title, classes=classes, rows=(_of_row(row, {0: samples}),))


def _of_row(
    row: RowResult, samples: Mapping[int, ClassSamples], *, is_reference: bool = False, reference: str | None = None
) -> RowOfClasses:
    """Take a row apart into one for each class, so that its intervals are made as those of the table are."""
    by_seed = {seed: _numbers(one) for seed, one in samples.items()}
    by_class = []
    for place in range(len(next(iter(by_seed.values())))):
        own = {seed: numbers[place] for seed, numbers in by_seed.items() if numbers[place]}
        known = samples if own else {}
        resampled = {seed: one.resampled[place][None].astype(np.float64) for seed, one in known.items()}
        by_class.append(replace(row, by_seed=own, resampled=resampled))
    precision = np.mean([one.precision for one in samples.values()], axis=0)
    held = precision[2][:, ~np.isnan(precision[2]).any(axis=0)]
    return RowOfClasses(
        label=row.row.label,
        is_reference=is_reference,
        reference=reference,
        by_class=tuple(by_class),
        precision=precision,
        ap=100 * float(held.mean()) if held.size else float("nan"),
    )


def _numbers(samples: ClassSamples) -> list[dict[str, float]]:
    """Return METRICS of each class, 0 to 100; nothing of a class without an object."""
    at_50, at_75, of_all = 100 * samples.precision.mean(axis=1)
    return [
        dict(zip(METRICS, (float(ap), float(ap50), float(ap75)), strict=True)) if count else {}
        for ap, ap50, ap75, count in zip(of_all, at_50, at_75, samples.num_objects.tolist(), strict=True)
    ]


def _are_alike(one: ClassSamples, other: ClassSamples) -> bool:
    """Whether two evaluations are of the same classes on what seem to be the same images."""
    have_ids = bool(one.ids) and bool(other.ids)
    return (
        np.array_equal(one.num_objects, other.num_objects)
        and np.array_equal(one.num_images, other.num_images)
        and (not have_ids or (one.ids, one.names) == (other.ids, other.names))
    )


def _classes(samples: ClassSamples, names: Mapping[int, str]) -> tuple[ClassOf, ...]:
    ids: list[int | None] = [*names] if names else [None] * len(samples.num_objects)
    shown = [*names.values()] if names else [f"class {place}" for place in range(1, len(ids) + 1)]
    counts = zip(samples.num_objects.tolist(), samples.num_images.tolist(), strict=True)
    return tuple(
        ClassOf(
            place=place,
            id=ids[place],
            name=name,
            num_objects=objects,
            num_images=images,
        )
        for place, (name, (objects, images)) in enumerate(zip(told_apart(shown, ids), counts, strict=True))
    )


def _names_in_data(row: RowResult, samples: ClassSamples, site: Site | None) -> Mapping[int, str]:
    """Return the names of classes by id, of evaluations that lack them; empty where the data lack, too."""
    if site is None:
        return {}
    from model.data.coco import read_for_scoring
    from model.data.faults import DataError

    config = row.row.train.data
    try:
        data = read_for_scoring(site.data_root(config.dataset), config, row.row.split)
    except (DataError, UserError, OSError):
        return {}
    if len(data.category_ids) != len(samples.num_objects):
        return {}
    return dict(zip(data.category_ids, data.category_names, strict=True))
