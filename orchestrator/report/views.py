"""Saved views of MLflow's user interface, and links into it.

A view is a tag of the experiment, in a format of the user interface's own, which was read from mlflow 3.17; up to
3.10 at least it was another. Servers of other versions get no views, and the links lead to the same runs.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from model.config import CALIBRATION, METRICS
from model.names import EPOCH, IMAGES_PER_S, LEARNING_RATE, LOSS, LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE, VAL
from orchestrator import names
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS
from orchestrator.tracking.records import Setting, beside_paper, papers_own

View = dict[str, Any]
Mode = Literal["TABLE", "CHART"]

TESTED = ("3.17",)
"""Minor versions of MLflow's server whose user interface shows the views as they are meant."""
TRAINING_CURVES = "curves"
"""The view that is none of a table."""
ML = "workflowType=machine_learning"  # without it the first visit lands on an empty page for language models
CHARTS, TRIALS = "/charts", "/trials"
"""End the ids of the views that a table has beside its own; no name of a file ends so."""
RUN_NAME = "attributes.`Run Name`"
CREATED = "runDateAndNestInfo"  # the column says whether a run finished; its time is cut
SEED, EXPONENT = f"tags.`{names.SEED}`", "confidence_exponent"
PAPERS_OWN = "the paper on COCO 2017"
MOST_FOLDED = 100  # a tag of an experiment holds 5000 characters on some databases
CURVES = (
    *(f"{VAL}AP", f"{VAL}AP50", f"{VAL}AP75", LOSS, LOSS_CLASS, LOSS_BOX, LOSS_CONFIDENCE),
    *(LEARNING_RATE, IMAGES_PER_S),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableShown:
    """What the views of a table need to know of it."""

    table: str
    """The experiment's name, as in the tag `row.<table>`."""
    columns: Sequence[str]
    """Metric names without their section, as in "AP50"."""
    settings: Sequence[Setting] = ()
    """The params in which the rows differ."""
    rows: Sequence[str] = ()
    """Place and label of each, as in the tag."""
    is_grouped: bool = False
    """Whether a line is a row with the mean of its seeds, called by its label, and not one evaluation."""
    is_mixed: bool = False
    """Whether its results rest on several versions of the data; then each is told, and nothing is grouped."""
    beside_paper: Sequence[str] = ()
    """The columns that the paper gives a number for, measured on its data."""
    apart_from_paper: Sequence[str] = ()
    """Those that it gives a number for, measured on other data."""

    @property
    def row(self) -> str:
        """The tag that holds place and label."""
        return f"{names.ROW}{self.table}"


def table_view(shown: TableShown) -> View:
    """Show the evaluations of a table in its order, or its rows, with their metrics and settings, and as charts."""
    row = f"tags.`{shown.row}`"
    # The rounded metrics, not those under val/: the page rounds nothing, and cuts 29.970123 to 29.9...
    ours = [
        name
        for column in shown.columns
        for name in (column, *(beside_paper(column) if column in shown.beside_paper else ()))
    ]
    metrics = [f"metrics.`{name}`" for name in ours]
    params = [f"params.`{name}`" for name in dict.fromkeys((*(s.name for s in shown.settings), EXPONENT))]
    # Behind all of ours, as no difference is formed.
    apart = [f"metrics.`{papers_own(column)}`" for column in shown.apart_from_paper]
    # A group has no tags, and its name is the row; of a run the name says less than the row does.
    version = [f"tags.`{names.FINGERPRINT}`"] if shown.is_mixed else []
    cells = [*([] if shown.is_grouped else [row]), *metrics, *params, SEED, *version, *apart]
    widths = {RUN_NAME: 330} if shown.is_grouped else {RUN_NAME: 100, row: 260}
    # The page shows a group's mean with three decimals, and its deviation behind it.
    widths |= (
        dict.fromkeys(metrics, 130 if shown.is_grouped else 80) | dict.fromkeys(params, 150) | dict.fromkeys(apart, 190)
    )
    sections = {"settings": 2, "COCO numbers": 2, "beside the paper": 2, PAPERS_OWN: 3}
    sections |= {"calibration": 3, "misalignment": 3, "other COCO numbers": 3, names.AP_CLASS: 3}
    return _view(
        _table_charts(shown),
        sections,
        (PAPERS_OWN, "calibration", "misalignment", "other COCO numbers", names.AP_CLASS),
    ) | {
        "searchFilter": _filter(shown.table),
        "orderByKey": row,
        "orderByAsc": True,
        "selectedColumns": cells,
        "columnOrder": [RUN_NAME, CREATED, *cells],
        "columnWidths": {CREATED: 50, SEED: 60} | widths,
        **_grouping(shown),
    }


def trials_view(shown: TableShown, metric: str) -> View:
    """Show the trials of a search, best first, those that were stopped early and never scored included.

    A trial of several seeds is one line with their mean, which unfolds to its trainings.

    Args:
        shown: the table of the search, with the settings of trainings that were drawn.
        metric: what the search makes large, as in "AP".
    """
    measured = f"{VAL}{metric}"
    charts: list[View] = []
    if shown.settings:
        charts.append(_parallel([setting.name for setting in shown.settings], [measured]))
    charts += [_curve(setting.name, measured) for setting in shown.settings if setting.is_number]
    charts += [_line(name) | {"metricSectionId": "training"} for name in (measured, LOSS)]
    charts += _without_charts((*CURVES, EPOCH, *(f"{VAL}{name}" for name in METRICS)), charts)
    metrics = [f"metrics.`{name}`" for name in (measured, EPOCH)]
    params = [f"params.`{setting.name}`" for setting in shown.settings]
    row, note = f"tags.`{shown.row}`", f"tags.`{names.NOTE}`"
    cells = [*([] if shown.is_grouped else [row]), *metrics, *params, note, SEED]
    widths = {RUN_NAME: 330} if shown.is_grouped else {RUN_NAME: 100, row: 260}
    widths |= {SEED: 60, note: 320} | dict.fromkeys((*metrics, *params), 150)
    return _view(charts, {"settings": 2, "training": 2}) | {
        "searchFilter": _filter(f"{shown.table}{TRIALS}"),
        "orderByKey": metrics[0],
        "orderByAsc": False,
        "selectedColumns": cells,
        "columnOrder": [RUN_NAME, CREATED, *cells],
        "columnWidths": {CREATED: 50} | widths,
        **_grouping(shown),
    }


def curves_view() -> View:
    """Show the trainings of a suite: validation first, then example detections, losses, rate and speed."""
    sections = {"val": 2, f"{VAL}detections": 1, "train": 2, "perf": 2}
    charts = [_line(name) for name in CURVES]
    images = {"imageKeys": [f"{VAL}detections"], "step": 0, "showRunParams": False}
    charts.append(_chart("IMAGE", f"{VAL}detections", f"{VAL}detections") | images)
    metrics = ["metrics.`val/AP`", "metrics.`val/AP50`", "metrics.`train/loss`", "metrics.`perf/images_per_s`"]
    cells = [*metrics, "params.`head`", SEED, "tags.`note`"]
    return _view(charts, sections) | {
        "searchFilter": _filter(TRAINING_CURVES),
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": cells,
        "columnOrder": [RUN_NAME, CREATED, *cells],
        "columnWidths": {RUN_NAME: 260, CREATED: 50, SEED: 60, "tags.`note`": 260} | dict.fromkeys(metrics, 150),
    }


def view_tag(view_id: str) -> str:
    """Return the experiment's tag that holds a view."""
    return f"mlflow.sharedViewState.{view_id}"


def encode(name: str, view: View, milliseconds: int) -> str:
    """Write a view as the user interface stores it."""
    state = "deflate;" + base64.b64encode(zlib.compress(json.dumps(view).encode(), 9)).decode()
    return json.dumps({"name": name, "createdAt": milliseconds, "updatedAt": milliseconds, "state": state})


def decode(tag: str) -> tuple[str, View] | None:
    """Read the name and the view that `encode` wrote, without its times; None where the text is something else."""
    try:
        saved = json.loads(tag)
        state = json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))
        return saved["name"], state
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error):
        return None


def front_page(uri: str) -> str:
    """Return the address of the list of experiments."""
    return f"{uri}/#/experiments?{ML}"


def experiment_link(uri: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs."""
    return f"{uri}/#/experiments/{experiment_id}/runs?{ML}"


def are_shown(version: str) -> bool:
    """Whether a server of this version shows saved views."""
    return version.rpartition(".")[0] in TESTED


def view_link(uri: str, experiment_id: str, view_id: str, mode: Mode, *, is_saved: bool = True) -> str:
    """Return the address of a saved view, as a table or as charts; of the same runs where it is not saved."""
    shown = f"viewStateShareKey={quote(view_id)}" if is_saved else f"searchFilter={quote(_filter(view_id))}"
    return f"{experiment_link(uri, experiment_id)}&{shown}&compareRunsMode={mode}"


def run_link(uri: str, experiment_id: str, run_id: str, tab: str = "") -> str:
    """Return the address of a run, or of a tab of its page, such as "artifacts"."""
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}{tab and f'/{tab}'}?{ML}"


def _filter(view_id: str) -> str:
    """Find the runs that a view shows."""
    if view_id == TRAINING_CURVES:
        return f"tags.{names.KIND} = 'training'"
    table, kind = view_id.removesuffix(CHARTS), "evaluation"
    if view_id.endswith(TRIALS):
        table, kind = view_id.removesuffix(TRIALS), "training"
    return f"tags.{names.KIND} = '{kind}' and tags.`{names.ROW}{table}` != ''"


def _grouping(shown: TableShown) -> View:
    """Make a line of each row, folded, where a table is shown by its rows."""
    if not shown.is_grouped:
        return {"groupBy": None, "groupsExpanded": {}}
    is_folded = len(shown.rows) <= MOST_FOLDED
    return {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": shown.row}]},
        "groupsExpanded": {f"tag.{shown.row}.{name}": False for name in shown.rows} if is_folded else {},
    }


def _table_charts(shown: TableShown) -> list[View]:
    columns, first = shown.columns, shown.columns[0]
    curves = [first]
    curves += [beside_paper(first)[0]] if first in shown.beside_paper else []
    curves += [papers_own(first)] if first in shown.apart_from_paper else []
    charts = [_curve(setting.name, name) for setting in shown.settings if setting.is_number for name in curves]
    # A group has no mean of texts, which parallel coordinates do not take; its metrics make up for them.
    axes = [setting.name for setting in shown.settings if setting.is_number or not shown.is_grouped]
    if axes or (shown.is_grouped and len(columns) > 1):
        charts.append(_parallel(axes, columns if shown.is_grouped else [first]))
    charts += [_bar("COCO numbers", name) for name in columns]
    charts += [_bar("beside the paper", name) for column in shown.beside_paper for name in beside_paper(column)[::-1]]
    charts += [_bar(PAPERS_OWN, papers_own(column)) for column in shown.apart_from_paper]
    charts += [_bar("other COCO numbers", name) for name in METRICS if name not in columns]
    charts += [_bar("calibration", name) for name in CALIBRATION if name not in columns]
    charts += [_bar("misalignment", f"{names.MISALIGNMENT}/{name}") for name in MISALIGNMENT_COLUMNS]
    unasked = [name for metric in METRICS for name in (f"{VAL}{metric}", *beside_paper(metric), papers_own(metric))]
    return charts + _without_charts(unasked, charts)


def _view(charts: list[View], columns: Mapping[str, int], folded: Sequence[str] = ()) -> View:
    """Lay charts out in sections of so many charts in a line, one alone high; `folded` ones open with a click."""
    return {
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": name,
                "name": name,
                "display": name not in folded,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
                "columns": number,
                "cardHeight": 360 if number > 1 else 680,
            }
            for name, number in columns.items()
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _chart(kind: str, section: str, title: str) -> View:
    return {
        "uuid": f"{kind}-{title}".lower().replace(" ", "-"),
        "type": kind,
        "runsCountToCompare": 100,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": title,
    }


def _bar(section: str, metric: str) -> View:
    return _chart("BAR", section, metric) | {"metricKey": metric}


def _curve(param: str, metric: str) -> View:
    axes = {"xaxis": {"key": param, "type": "PARAM"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return _chart("SCATTER", "settings", f"{metric} by {param}") | axes


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> View:
    # Parallel coordinates leave out runs that lack one of these.
    axes = {"selectedParams": list(params), "selectedMetrics": list(metrics), "showAllRuns": True}
    return _chart("PARALLEL", "settings", f"settings and {metrics[0]}") | axes


def _without_charts(metrics: Sequence[str], charts: Sequence[View]) -> list[View]:
    """Keep charts of metrics away that the others do not show: one without any gets one by itself."""
    charted = {chart.get("metricKey") for chart in charts}
    section = charts[-1]["metricSectionId"] if charts else ""
    return [_bar(section, name) | {"deleted": True} for name in dict.fromkeys(metrics) if name not in charted]


def _line(metric: str) -> View:
    return _chart("LINE", metric.partition("/")[0], metric) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "scaleType": "linear",
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "useGlobalLineSmoothing": True,
        "useGlobalXaxisKey": True,
        "range": {"xMin": None, "xMax": None, "yMin": None, "yMax": None},
    }
