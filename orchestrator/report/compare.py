"""Two rows of a suite against each other: their difference, its 95 % interval, and the images that decide it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.settings import suggestion
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, row_keys
from orchestrator.experiment.prepare import draw
from orchestrator.experiment.rows import Row
from orchestrator.figures.table import Cell, Column, Table, Value
from orchestrator.report.files import matches_from
from orchestrator.report.results.rows import RowResult, data_of, measure_row
from orchestrator.report.results.table import interval_note, marks_of, notes_on_marks
from orchestrator.report.statistics.resamples import ROWS, Resamples, recorded_matches, resampled
from orchestrator.site import Site
from orchestrator.tracking.suite import Suite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.data.split import CocoData
    from model.evaluation.coco.matches import MatchTable

LEFT_OUT = ROWS[:3]
"""The metrics that are counted again without an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How far one row is above another."""

    labels: tuple[str, str]
    metric: str
    """Of AP, AP50 and AP75."""
    values: tuple[float, float]
    """Of each row, the mean over the seeds that are compared, 0 to 100."""
    difference: float
    """The first minus the second."""
    low: float
    """End of the 95 % interval of the difference."""
    high: float
    note: str
    """What the interval rests on."""
    images: tuple[tuple[int, float], ...]
    """(id, contribution) of each image without which the difference is another, the weightiest first; see
    `contributions`."""
    num_with_objects: int = 0
    """The images with an object; 0 where that is not known."""
    file_names: Mapping[int, str] = field(default_factory=dict, compare=False)
    """Of these images, by id: the ids of formats that have none are made up."""

    def to_table(self, most: int = 10) -> Table:
        """Show both rows, their difference, and so many of the images that decide it."""
        ours, theirs = self.labels
        interval = (self.low, self.high)
        mark = marks_of(interval, self.num_with_objects)
        rows: list[tuple[Cell | Value, ...]] = [
            (ours, self.values[0], Cell(self.difference, interval=interval, mark=mark)),
            (theirs, self.values[1], None),
        ]
        rows += [
            (f"image {image_id}{self._file(image_id)}", Cell(None, absent=""), contribution)
            for image_id, contribution in self.images[:most]
        ]
        notes = [self.note, *notes_on_marks(mark)]
        if self.images:
            shown = min(most, len(self.images))
            notes.append(
                f"image: what the difference loses without it; of {len(self.images)} that change it, "
                f"the {shown} that change it most."
            )
        gain = Column(f"{self.metric} over {theirs}", digits=2, signed=True)
        return Table(
            title=f"{ours} over {theirs}",
            caption=f"By how much do they differ{', and which images decide it' if self.images else ''}?",
            columns=(Column("row", numeric=False), Column(self.metric), gain),
            rows=tuple(rows),
            rules_before=(2,),
            notes=tuple(notes),
        )

    def _file(self, image_id: int) -> str:
        return f", {self.file_names[image_id]}" if image_id in self.file_names else ""

    def __str__(self) -> str:
        return self.to_table().to_text()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_table().to_html()


def compare(suite: Suite, labels: tuple[str, str], metric: str = "AP", *, images: bool = True) -> Comparison:
    """Compare two rows of a suite, of one table or of two.

    Args:
        suite: whose MLflow holds the matches, and whose site the data set.
        labels: of the rows.
        metric: "AP", "AP50" or "AP75".
        images: find those that decide, in about 5 s on two cores for each seed of each row on 2000 drawn images.

    Raises:
        UserError: there is no such row or metric, a row is not measured or its matches are lost, or the rows were
            measured on different data.
    """
    import numpy as np

    from orchestrator.report.statistics.intervals import seed_pairs

    if metric not in LEFT_OUT:
        raise UserError(f"metric is {metric!r}, expected one of: {', '.join(LEFT_OUT)}")
    rows = [_find(suite, label) for label in labels]
    ledger, uri = suite.ledger, suite.uri
    samples: Mapping[str, Resamples] = {}
    if uri is not None:
        keys = [seed.evaluation_key for row in rows for seed in row_keys(row)]
        samples = resampled(ledger, keys, matches_from(uri), suite.site.home / "statistics")
    ours, theirs = results = [measure_row(row, ledger, samples) for row in rows]
    for result in results:
        _require_measured(result, metric)
    fingerprint = _require_same_data(results)
    gain = ours.difference(theirs, metric)
    if ours.num_with_objects == 1:
        raise UserError("only one image has an object, so that nothing says how sure a difference is; score more")
    if gain is None or uri is None:
        lost = [result.row.label for result in results if len(result.resampled) < len(result.by_seed)]
        raise UserError(
            f"MLflow has no matches of {' and '.join(lost) or 'these rows'}, without which nothing says how sure their "
            "difference is; delete its evaluations in MLflow and submit again: nothing is trained for it"
        )
    pairs = seed_pairs(ours.by_seed, theirs.by_seed)
    compared = [result.of_seeds(seeds) for result, seeds in zip(results, zip(*pairs, strict=True), strict=True)]
    values = [_require_measured(result, metric) for result in compared]
    decisive: list[tuple[int, float]] = []
    names: dict[int, str] = {}
    if images:
        data = _images(rows[0], suite.site, fingerprint)
        image_ids = data.image_ids
        names = dict(zip(image_ids.tolist(), data.file_names, strict=True))
        matches = [_matches(result, ledger, uri, len(image_ids)) for result in compared]
        weight = contributions(matches[0], matches[1], metric)
        order = [int(place) for place in np.lexsort((image_ids, -np.abs(weight))) if weight[place]]
        decisive = [(int(image_ids[place]), float(weight[place])) for place in order]
    return Comparison(
        labels=labels,
        metric=metric,
        values=(values[0], values[1]),
        difference=gain.value,
        low=gain.low,
        high=gain.high,
        note=interval_note([gain]) + _note_on_seeds(results, pairs) + _note_on_looks(suite, labels),
        images=tuple(decisive),
        num_with_objects=gain.num_with_objects,
        file_names={image_id: names[image_id] for image_id, _ in decisive},
    )


def contributions(
    ours: "Sequence[MatchTable]", theirs: "Sequence[MatchTable]", metric: str = "AP"
) -> "NDArray[np.float64]":
    """Return what the difference of two detectors loses as each image is left out, [images], in points of the metric.

    Exact leave-one-out, the deletion diagnostic that the jackknife is made of (Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapter 11): the metric of each detector is computed again on the data set without the
    image. An image is positive where it speaks for the first. They do not add up to the difference, since precision is
    one of all images together: detections of one image stand above those of another.

    Args:
        ours: the matches of each seed of one detector; its metric is the mean over them.
        theirs: those of the other, on the same images.
        metric: "AP", "AP50" or "AP75".
    """
    import numpy as np

    from model.evaluation.coco.reweighted import leave_one_out

    place = LEFT_OUT.index(metric)
    means = [np.mean([leave_one_out(one)[place] for one in of_row], axis=0) for of_row in (ours, theirs)]
    # Without the only image that has an object there is no metric at all: the image is the whole difference.
    *without, whole = np.nan_to_num(means[0] - means[1])
    lost: NDArray[np.float64] = whole - np.array(without)
    lost[np.abs(lost) < 1e-9] = 0.0  # sums that were rounded otherwise, and mean nothing
    return lost


def _note_on_seeds(results: Sequence[RowResult], pairs: Sequence[tuple[int, int]]) -> str:
    """Say which seeds are compared where a row has others, or lacks some; empty where both have the same, and all."""
    used = [[seed for seed, _ in pairs], [seed for _, seed in pairs]]
    said = ""
    if used[0] != used[1]:
        first, second = (
            f"{', '.join(map(str, seeds))} of {r.row.label}" for seeds, r in zip(used, results, strict=True)
        )
        said += f" They have no seed in common: compared are seeds {first} and {second}."
    elif any(len(result.by_seed) > len(pairs) for result in results):
        said += f" Compared are the seeds that both have: {', '.join(map(str, used[0]))}."
    for result in results:
        said += f" {result.row.label} is not complete: {result.state}." if result.state else ""
    return said


def _note_on_looks(suite: Suite, labels: tuple[str, str]) -> str:
    """Say that the table of a row, whose seeds were added until decided, has another interval; empty for others."""
    tables = [one.name for one in suite.experiments if one.seed_rule and {row.label for row in one.rows} & set(labels)]
    if not tables:
        return ""
    return (
        f" This interval is a plain one of all seeds. In {', '.join(tables)} seeds are added until decided, and an"
        " interval is what all looks at a row have in common, so that looking often does not cheat."
    )


def _find(suite: Suite, label: str) -> Row:
    """Return the row of a label, which may stand in several tables if it is the same row there."""
    found = {e.name: row for e in suite.experiments for row in e.rows if row.label == label}
    if not found:
        known = dict.fromkeys(row.label for experiment in suite.experiments for row in experiment.rows)
        raise UserError(f"suite {suite.name} has no row {label!r}; {suggestion(label, known)}")
    # Labels may repeat between tables; the same keys say that it is the same row.
    if len({tuple(seed.evaluation_key for seed in row_keys(row)) for row in found.values()}) > 1:
        raise UserError(
            f"{label!r} is another row in each of {', '.join(found)}; name the file of one alone, or in Python table="
        )
    return next(iter(found.values()))


def _require_measured(result: RowResult, metric: str) -> float:
    value = result.mean(metric)
    if value is not None:
        return value
    if result.by_seed:
        raise UserError(f"{result.row.label} has no {metric}: its images have no object to measure it on")
    raise UserError(f"{result.row.label} is not measured yet ({result.state}); submit the suite first")


def _require_same_data(results: Sequence[RowResult]) -> str:
    """Return the fingerprint of the images that both rows were scored on; empty where none was recorded."""
    ours, theirs = results
    if not ours.is_on_images_of(theirs):
        data = {result.row.label: data_of(result.row) for result in results}
        told = ", ".join(f"{label} on {images}" for label, images in data.items())
        differ = " (the files differ)" if len(set(data.values())) == 1 else ""
        raise UserError(f"rows measured on different data do not compare: {told}{differ}")
    return next(iter(ours.fingerprints | theirs.fingerprints), "")


def _matches(result: RowResult, ledger: Ledger, uri: str, num_images: int) -> "list[MatchTable]":
    """Fetch the matches of a row's seeds."""
    found = []
    for seed, _, key in row_keys(result.row):
        if seed in result.resampled:
            matches = recorded_matches(ledger.evaluations[key], matches_from(uri))
            if matches is None or matches.num_images != num_images:
                raise UserError(
                    f"the matches of {result.row.label} in MLflow are gone, or of other images than those here; `rnc "
                    "repair` marks what is lost, and the next submit scores it again; --images 0 asks for no images"
                )
            found.append(matches)
    return found


def _images(row: Row, site: Site, fingerprint: str) -> "CocoData":
    """Return the images that a row was scored on, their ids rising; matches know images by their places alone."""
    from model.data.coco import read_for_scoring
    from model.data.faults import DataError

    config = row.train.data
    draw(config, site)
    root = site.data_root(config.dataset)
    try:
        data = read_for_scoring(root, config, row.split)
    except DataError as error:
        raise UserError(str(error)) from error
    if fingerprint and data.fingerprint != fingerprint:
        raise UserError(
            f"{root}, split {row.split}, is not what {row.label} was measured on (fingerprint {data.fingerprint[:12]}, "
            f"recorded is {fingerprint[:12]}); its images cannot be named: --images 0 compares without them"
        )
    return data
