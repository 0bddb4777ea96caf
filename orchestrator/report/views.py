"""Saved views of MLflow's user interface, and links into it.

A view is a tag of the experiment, in a format of the user interface's own, which was read from mlflow 3.17; up to
3.10 at least it was another. Servers of other versions get no views, and the links lead to the same runs.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from model.config import METRICS
from model.names import IMAGES_PER_S, LEARNING_RATE, LOSS, LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE, VAL
from orchestrator import names
from orchestrator.report.results import MISALIGNMENT_COLUMNS
from orchestrator.tracking.records import Setting, beside_paper

View = dict[str, Any]
Mode = Literal["TABLE", "CHART"]

TESTED = ("3.17",)
"""Minor versions of MLflow's server whose user interface shows the views as they are meant."""
TRAINING_CURVES = "curves"
"""The view that is none of a table."""
ML = "workflowType=machine_learning"  # without it the first visit lands on an empty page for language models
RUN_NAME = "attributes.`Run Name`"
CURVES = (
    *(f"{VAL}AP", f"{VAL}AP50", f"{VAL}AP75", LOSS, LOSS_CLASS, LOSS_BOX, LOSS_CONFIDENCE),
    *(LEARNING_RATE, IMAGES_PER_S),
)


def table_view(table: str, columns: Sequence[str], settings: Sequence[Setting], in_paper: Sequence[str] = ()) -> View:
    """Show the evaluations of a table in its order, with its metrics and the settings in which its rows differ.

    Args:
        table: the experiment's name, as in the tag `row.<table>`.
        columns: metric names without their section, as in "AP50".
        settings: the params that differ.
        in_paper: the columns that the paper gives a number for.
    """
    row, first = f"tags.`row.{table}`", columns[0]
    # The rounded metrics, not those under val/: the page rounds nothing, and cuts 29.970123 to 29.9...
    numbers = [name for column in columns for name in (column, *(beside_paper(column) if column in in_paper else ()))]
    metrics = [f"metrics.`{name}`" for name in numbers]
    params = [f"params.`{setting.name}`" for setting in settings]
    cells = [row, *metrics, *params, "tags.`seed`"]
    widths = {row: 260, "tags.`seed`": 60} | dict.fromkeys(metrics, 80) | dict.fromkeys(params, 110)
    charts: list[View] = []
    if settings:
        axes = [setting.name for setting in settings]
        # Parallel coordinates leave out runs that lack one of these params.
        selected = {"selectedParams": axes, "selectedMetrics": [first], "showAllRuns": True}
        charts.append(_chart("PARALLEL", "settings", f"settings and {first}") | selected)
    charts += [_curve(setting.name, first) for setting in settings if setting.is_number]
    charts += [_bar("COCO numbers", name) for name in columns]
    charts += [_bar("beside the paper", name) for column in in_paper for name in beside_paper(column)[::-1]]
    others = [name for name in METRICS if name not in columns]
    charts += [_bar("other COCO numbers", name) for name in others]
    charts += [_bar("misalignment", f"{names.MISALIGNMENT}/{name}") for name in MISALIGNMENT_COLUMNS]
    # A metric without a chart gets one by itself; a deleted one keeps it away.
    charts += [_bar("COCO numbers", name) | {"deleted": True} for name in _not_charted(in_paper)]
    sections = {"settings": 2, "COCO numbers": 2, "beside the paper": 2, "misalignment": 3, "other COCO numbers": 3}
    return _view(charts, sections, ("misalignment", "other COCO numbers")) | {
        "searchFilter": _filter(table),
        "orderByKey": row,
        "orderByAsc": True,
        "selectedColumns": cells,
        "columnOrder": [RUN_NAME, *cells],
        "columnWidths": {RUN_NAME: 150} | widths,
    }


def curves_view() -> View:
    """Show the trainings of a suite: validation first, then example detections, losses, rate and speed."""
    sections = {"val": 2, f"{VAL}detections": 1, "train": 2, "perf": 2}
    charts = [_line(name) for name in CURVES]
    images = {"imageKeys": [f"{VAL}detections"], "step": 0, "showRunParams": False}
    charts.append(_chart("IMAGE", f"{VAL}detections", f"{VAL}detections") | images)
    metrics = ["metrics.`val/AP`", "metrics.`val/AP50`", "metrics.`train/loss`", "metrics.`perf/images_per_s`"]
    cells = [*metrics, "params.`head`", "tags.`seed`", "tags.`note`"]
    return _view(charts, sections) | {
        "searchFilter": _filter(TRAINING_CURVES),
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "selectedColumns": cells,
        "columnOrder": [RUN_NAME, *cells],
        "columnWidths": {RUN_NAME: 260} | dict.fromkeys(metrics, 150) | {"tags.`seed`": 60, "tags.`note`": 260},
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
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
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


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run."""
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}?{ML}"


def _filter(view_id: str) -> str:
    """Find the runs that a view shows."""
    if view_id == TRAINING_CURVES:
        return f"tags.{names.KIND} = 'training'"
    return f"tags.{names.KIND} = 'evaluation' and tags.`{names.ROW}{view_id}` != ''"


def _view(charts: list[View], columns: Mapping[str, int], folded: Sequence[str] = ()) -> View:
    """Lay charts out in sections of so many charts in a line, one alone high; `folded` ones open with a click."""
    return {
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "runsHiddenMode": "SHOWALL",
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


def _not_charted(in_paper: Sequence[str]) -> Iterator[str]:
    """Yield what would be charted unasked: the unrounded numbers, and the paper's for what is no column."""
    yield from (f"{VAL}{name}" for name in METRICS)
    yield from (name for metric in METRICS if metric not in in_paper for name in beside_paper(metric))


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
