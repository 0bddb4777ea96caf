"""Figures of a results table: a dot for each row, and curves against the setting of the scoring that varies."""

from collections.abc import Sequence
from numbers import Real

from model.settings import to_dict
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import train_key
from orchestrator.figures.drawing import Drawing, to_svg
from orchestrator.figures.plots import Measurement, curve_plot, dot_plot
from orchestrator.report.results import RowResult

CURVES = ("AP", "AP50", "AP75")


def figures(experiment: Experiment, rows: Sequence[RowResult]) -> str:
    """Draw what a table shows, as SVG; empty where nothing is measured."""
    return "".join(to_svg(drawing) for drawing in (*row_dots(experiment, rows), *setting_curves(experiment, rows)))


def row_dots(experiment: Experiment, rows: Sequence[RowResult]) -> list[Drawing]:
    """Draw the first column's metric of each row, its 95 % interval, and a line through the reference row."""
    metric = experiment.columns[0]
    measurements = []
    for row in rows:
        known = row.estimate(metric)
        interval = (known.low, known.high) if known else None
        measurements.append(Measurement(label=row.row.label, value=row.mean(metric), interval=interval))
    if all(one.value is None for one in measurements):
        return []
    return [dot_plot(metric, measurements, experiment.reference, experiment.title)]


def setting_curves(experiment: Experiment, rows: Sequence[RowResult]) -> list[Drawing]:
    """Draw AP, AP50 and AP75 against the one numeric setting of the scoring that varies, a line for each training."""
    setting = _varied_number(rows)
    if setting is None:
        return []
    trainings: dict[str, list[RowResult]] = {}
    for row in rows:
        trainings.setdefault(train_key(row.row.train), []).append(row)
    drawn = []
    for metric in CURVES:
        curves = {}
        for of_one in trainings.values():
            means = [(_number(row, setting), row.mean(metric)) for row in of_one]
            curves[_common_label(of_one)] = [(x, mean) for x, mean in means if mean is not None]
        if any(curves.values()):
            drawn.append(curve_plot(metric, setting.replace("_", " "), curves, experiment.title))
    return drawn


def _varied_number(rows: Sequence[RowResult]) -> str | None:
    """Return the one setting of the scoring that varies, if it is a number and some training has three values of it."""
    settings = [to_dict(row.row.inference) for row in rows]
    varied = [name for name in (settings[0] if settings else ()) if len({one[name] for one in settings}) > 1]
    trainings = [train_key(row.row.train) for row in rows]
    if len(varied) != 1 or max(map(trainings.count, trainings)) < 3:
        return None
    values = [one[varied[0]] for one in settings]
    return varied[0] if all(isinstance(value, Real) and not isinstance(value, bool) for value in values) else None


def _number(row: RowResult, setting: str) -> float:
    return float(to_dict(row.row.inference)[setting])


def _common_label(rows: Sequence[RowResult]) -> str:
    """The words with which the labels of all rows begin."""
    words = [row.row.label.split() for row in rows]
    common = [first for first, *others in zip(*words, strict=False) if all(other == first for other in others)]
    return " ".join(common).rstrip(",;:") or rows[0].row.label
