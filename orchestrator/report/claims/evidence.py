"""The two sides that claims are judged by: the numbers that the paper prints, and those that are measured."""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from model.config import METRICS, ConfidenceConfig
from model.settings import suggestion
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, row_keys
from orchestrator.experiment.rows import Cited, Row
from orchestrator.report.claims.boxes import BOXES, Boxes, read_boxes
from orchestrator.report.claims.file import (
    EVERY_IMAGE,
    GRADIENTS,
    LEVELS,
    MEAN,
    TEN_IMAGES,
    UNSURE,
    ClaimsFile,
    Part,
    means,
    place_of,
)
from orchestrator.report.claims.kinds import Absent, Number, all_needed, shown
from orchestrator.report.results.rows import RowResult, data_of
from orchestrator.tracking.artifacts import download
from orchestrator.tracking.rest import Refused, ServerAway

if TYPE_CHECKING:
    from orchestrator.report.statistics.intervals import Estimate, Needed

SATURATED = 10.0
"""The logit at which slopes are taken, with a target of 0: the sigmoid is 0.99995."""
COUNTED = ("table1_heads", "RetinaNet")
"""The row whose boxes Section 1 counts."""
NO_INTERVAL = "[?]"
"""Stands for an interval that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Counts:
    """What was counted of the boxes of one evaluation."""

    boxes: Boxes
    unsure: float | None
    """UNSURE over all images; None where no box has such an IoU."""


Fetch = Callable[[Row], Counts | None]
"""Gets what was counted of a row; None where that is not there."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PapersNumbers:
    """What the paper prints, to 0.1."""

    lines: Mapping[tuple[str, str], Mapping[str, float]]
    """Of rows and cited lines, by table and label."""
    boxes: Boxes | None
    rounding: float = 0.1

    def numbers(self, part: Part, name: str, metric: str) -> list[Number]:
        """See `kinds.Side`."""
        if part.table == GRADIENTS:
            return [_exact(slope_by_equation(name))]
        if part.table == TEN_IMAGES:
            return [_exact(value) for value in self._of_boxes(name, metric)]
        return [_exact(fmean(self._line(place_of(part, name), one) for one in means(metric)))]

    def difference(self, part: Part, name: str, other: str, metric: str) -> Number:
        """See `kinds.Side`."""
        ours, theirs = (self.numbers(part, one, metric)[0].value for one in (name, other))
        return _exact(ours - theirs)

    def needed(self, number: Number, margin: float) -> "Needed | None":
        """See `kinds.Side`."""
        return None

    def _line(self, place: tuple[str, str], metric: str) -> float:
        numbers = self.lines.get(place, {})
        if metric not in numbers:
            raise Absent("to be measured", "no number of it is printed")
        return numbers[metric]

    def _of_boxes(self, name: str, metric: str) -> list[float]:
        if self.boxes is None:
            raise Absent("to be measured", "no counts of boxes lie beside the claims")
        if metric == UNSURE:
            sure, placed = (sum(self.boxes.before_nms[one]) for one in ("cls>0.5", "iou>0.7"))
            raise Absent(
                "to be measured",
                f"score and IoU are not counted together; of {placed} boxes at IoU > 0.7 at most {sure} score above "
                "0.5",
            )
        return _of_boxes(self.boxes, name, metric)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OurNumbers:
    """What is measured, in tables that may have other names than the paper's and other data."""

    tables: Mapping[str, Sequence[RowResult]]
    file: ClaimsFile
    fetch: Fetch
    rounding: float = 0.0

    def numbers(self, part: Part, name: str, metric: str) -> list[Number]:
        """See `kinds.Side`."""
        if part.table == GRADIENTS:
            if not any(row.by_seed for rows in self.tables.values() for row in rows):
                # Nothing hinders it, but torch takes seconds to load.
                raise Absent("not yet run", "is computed as soon as a row has run")
            return [_exact(slope_by_autograd(name))]
        if part.table == TEN_IMAGES:
            return [_exact(value) for value in self._of_boxes(part, name, metric)]
        row = self.row(part, name)
        if metric in METRICS and part.kind in LEVELS:
            self._require_same_data(part, name, row)
        return [_mean([_number(row, one) for one in means(metric)])]

    def difference(self, part: Part, name: str, other: str, metric: str) -> Number:
        """See `kinds.Side`."""
        found = []
        for one in means(metric):
            cited = self._cited(place_of(part, other))
            row = self.row(part, name)
            if cited is not None:
                self._require_same_data(part, other, row)
                found.append(_shifted(_number(row, one), -cited.paper[one]))
            else:
                found.append(_difference(row, self.row(part, other), one))
        return _mean(found)

    def needed(self, number: Number, margin: float) -> "Needed | None":
        """See `kinds.Side`."""
        from orchestrator.report.statistics.intervals import needed

        return all_needed([needed(estimate, margin) for estimate in number.estimates])

    def is_cited(self, part: Part, name: str) -> bool:
        """Whether the paper has the numbers of this row from elsewhere, so that nobody measures them."""
        return self._cited(place_of(part, name)) is not None

    def row(self, part: Part, name: str) -> RowResult:
        """Find a row by its table and label, or by the paper's numbers that it carries.

        Rows of the paper that are one evaluation have the same numbers, and no others do: what carries them is that
        row, in whichever table and on whichever data.

        Raises:
            Absent: no table that is shown has it.
            UserError: its own table is shown, and lacks it.
        """
        table, label = place_of(part, name)
        shown = self.tables.get(table, ())
        for row in shown:
            if row.row.label == label:
                return row
        line = line_of(self.file.tables.values(), table, label)
        if isinstance(line, Row) and line.paper:
            for row in (row for rows in self.tables.values() for row in rows):
                if _is_printed_alike(row.row, line):
                    return row
        if table in self.tables and line is None:
            labels = [row.row.label for row in shown]
            raise UserError(f"{self.file.path}: {label!r} is no row of {table}; {suggestion(label, labels)}")
        raise Absent("not yet run", f"table {table} is not among those shown" if not shown else f"not shown: {label}")

    def _cited(self, place: tuple[str, str]) -> Cited | None:
        line = line_of(self.file.tables.values(), *place)
        return line if isinstance(line, Cited) else None

    def _require_same_data(self, part: Part, name: str, row: RowResult) -> None:
        """Refuse to compare a number of the paper with one that was measured on something else."""
        line = line_of(self.file.tables.values(), *place_of(part, name))
        tables = self.file.tables.get(place_of(part, name)[0])
        theirs = data_of(line if isinstance(line, Row) else tables.rows[0]) if line and tables else data_of(row.row)
        if theirs != data_of(row.row):
            raise Absent("undecided", f"a number on {theirs}; ours is on {data_of(row.row)}", is_foreign=True)

    def _of_boxes(self, part: Part, name: str, metric: str) -> list[float]:
        if name not in (EVERY_IMAGE, MEAN) or part.kind == "equals":
            raise Absent("undecided", "which ten images these are is not said", is_foreign=True)
        table, label = COUNTED
        row = self.row(Part(kind="at_least", table=table, rows=(label,)), label)
        if not row.by_seed:
            raise Absent("not yet run", "", [row.row.label])
        counts = self.fetch(row.row)
        if counts is None:
            raise Absent("undecided", f"{row.row.label} was scored before boxes were counted, or the counts are lost")
        if metric == UNSURE:
            if counts.unsure is None:
                raise Absent("undecided", "no box has an IoU above 0.7")
            return [counts.unsure]
        return _of_boxes(counts.boxes, name, metric)


def papers_numbers(file: ClaimsFile, shown: Iterable[Experiment] = ()) -> PapersNumbers:
    """Gather what the paper prints from what lies beside a file of claims, and from the tables that are shown.

    Raises:
        UserError: the counts of boxes that lie there are not what they should be.
    """
    counts = file.path.parent / BOXES.name
    lines: dict[tuple[str, str], Mapping[str, float]] = {}
    for table in [*shown, *file.tables.values()]:  # of two of one name, the paper's own counts
        lines |= {(table.name, row.label): row.paper for row in table.rows}
        lines |= {(table.name, line.label): line.paper for line in table.cited}
    return PapersNumbers(lines=lines, boxes=read_boxes(counts) if counts.is_file() else None)


def counts_from(uri: str | None, ledger: Ledger) -> Fetch:
    """Return what fetches the counts of a row's first seed from an MLflow server, each once."""
    kept: dict[str, Counts | None] = {}

    def fetch(row: Row) -> Counts | None:
        keys = [keys.evaluation_key for keys in row_keys(row) if keys.evaluation_key in ledger.evaluations]
        if uri is None or not keys:
            return None
        if keys[0] not in kept:
            kept[keys[0]] = _recorded_counts(uri, ledger.evaluations[keys[0]].run_id)
        return kept[keys[0]]

    return fetch


def line_of(tables: Iterable[Experiment], table: str, label: str) -> Row | Cited | None:
    """Return a row or cited line by its table and label; None where there is none."""
    lines: list[Row | Cited] = []
    for one in tables:
        lines += [*one.rows, *one.cited] if one.name == table else []
    return next((line for line in lines if line.label == label), None)


def slope_by_equation(loss: str) -> float:
    """Return how steep a loss is in its logit, by Eqs. 6 to 8, where the logit is SATURATED and the target 0."""
    predicted = 1 / (1 + math.exp(-SATURATED))
    of_sigmoid = predicted * (1 - predicted)
    return {"l1": of_sigmoid, "l2": predicted * of_sigmoid, "ce": predicted}[loss]


def slope_by_autograd(loss: str) -> float:
    """Return the same of the losses that train here."""
    import torch

    from model.losses.confidence import confidence_loss

    logit = torch.tensor([SATURATED], requires_grad=True)
    config = ConfidenceConfig(loss=loss)  # type: ignore[arg-type]  # one of file.LOSSES
    confidence_loss(logit, torch.zeros(1), config).sum().backward()  # type: ignore[no-untyped-call]
    assert logit.grad is not None
    return float(logit.grad.abs())


def _of_boxes(boxes: Boxes, name: str, metric: str) -> list[float]:
    """Return a metric of one image, of all, or its mean; images without boxes are left out."""
    if metric.endswith(" by NMS"):
        values = [*boxes.changes(metric.removesuffix(" by NMS"))]
    else:
        counts = {**boxes.before_nms, "anchors": boxes.positive_anchors}
        more, less = metric.split(" minus ")
        values = [float(one - other) for one, other in zip(counts[more], counts[less], strict=True)]
    if name not in (EVERY_IMAGE, MEAN):
        return [values[boxes.images.index(name)]]
    known = [value for value in values if not math.isnan(value)]
    if not known:
        raise Absent("undecided", "there is no box")
    return [fmean(known)] if name == MEAN else known


def _recorded_counts(uri: str, run_id: str) -> Counts | None:
    """Fetch the counts of an evaluation; None where they are lost or damaged."""
    from model.evaluation.misalignment import BINS, FILES, read_misalignment
    from orchestrator.report.claims.boxes import counted

    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name in FILES:
                download(uri, run_id, f"{names.MISALIGNMENT}/{name}", Path(scratch))
            counts = read_misalignment(Path(scratch))
        except (ServerAway, Refused):  # which says nothing of the counts
            raise
        except (UserError, ValueError):
            return None
    placed = counts.density_before[:, round(0.7 * BINS) :]  # [score, IoU]
    total = int(placed.sum())
    unsure = 100.0 * int(placed[: round(0.5 * BINS)].sum()) / total if total else None
    return Counts(boxes=counted(counts), unsure=unsure)


def _is_printed_alike(row: Row, line: Row) -> bool:
    """Whether a row carries the paper's numbers of a line; Table 6 prints six of the ten."""
    common = row.paper.keys() & line.paper.keys()
    return len(common) >= len(METRICS) // 2 and all(row.paper[metric] == line.paper[metric] for metric in common)


def _number(row: RowResult, metric: str) -> Number:
    _require_value(row, metric)
    values = [numbers[metric] for numbers in row.by_seed.values() if metric in numbers]
    if metric not in METRICS:
        return Number(value=fmean(values), low=min(values), high=max(values))
    found = row.estimate(metric)
    if found is None:
        raise _without_interval([row], metric, shown(_exact(fmean(values)), metric))
    return _of(found)


def _difference(row: RowResult, other: RowResult, metric: str) -> Number:
    absent = [one.row.label for one in (row, other) if not one.by_seed]
    if absent:
        raise Absent("not yet run", "", absent)
    if metric not in METRICS:
        ours, theirs = (_number(one, metric) for one in (row, other))
        gap = row.gap(other, metric)
        value = ours.value - theirs.value if gap is None else gap
        return Number(value=value, low=ours.low - theirs.high, high=ours.high - theirs.low)
    if not row.is_on_images_of(other):
        told = " and ".join(f"{one.row.label} on {data_of(one.row)}" for one in (row, other))
        raise Absent("undecided", f"scored on other images: {told}")
    has_intervals = row.estimate(metric) is not None and other.estimate(metric) is not None
    gain = row.difference(other, metric) if has_intervals else None
    if gain is not None:
        return _of(gain)
    for one in (row, other):
        _require_value(one, metric)
    raise _without_interval([row, other], metric, shown(_exact(row.gap(other, metric) or 0.0), metric, "+"))


def _require_value(row: RowResult, metric: str) -> None:
    if not row.by_seed:
        raise Absent("not yet run", "", [row.row.label])
    if row.mean(metric) is None:
        why = f"{metric} of {row.row.label} is not measured, or there is nothing to measure it on"
        raise Absent("undecided", why, is_foreign=True)


def _without_interval(rows: Sequence[RowResult], metric: str, value: str) -> Absent:
    if not all(row.is_resampled for row in rows):
        return Absent("undecided", f"{metric} {value}, and intervals were left out")
    old = [row.row.label for row in rows if len(row.resampled) < len(row.by_seed)]
    if old:
        return Absent("undecided", f"for want of matches no interval: {', '.join(old)}")
    return Absent("undecided", f"{metric} {value} {NO_INTERVAL}")


def _of(estimate: "Estimate") -> Number:
    return Number(value=estimate.value, low=estimate.low, high=estimate.high, estimates=(estimate,))


def _exact(value: float) -> Number:
    return Number(value=value, low=value, high=value)


def _shifted(number: Number, by: float) -> Number:
    low, high = number.low + by, number.high + by
    return Number(value=number.value + by, low=low, high=high, estimates=number.estimates)


def _mean(numbers: Sequence[Number]) -> Number:
    """Their mean; its interval is the mean of theirs, which is wide enough however they hang together."""
    value, low, high = (fmean(getattr(one, name) for one in numbers) for name in ("value", "low", "high"))
    return Number(value=value, low=low, high=high, estimates=tuple(e for one in numbers for e in one.estimates))
