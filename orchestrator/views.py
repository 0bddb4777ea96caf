"""Saved views of MLflow's user interface, and links into it.

A view is a tag of the experiment, in a format of the user interface's own: it was read from mlflow 3.17, which is why
pyproject.toml pins the minor version.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

View = dict[str, Any]
Mode = Literal["TABLE", "CHART"]

ML = "workflowType=machine_learning"  # without it the first visit lands on an empty page for language models


def table_view(table: str, columns: Sequence[str], varied: Mapping[str, bool]) -> View:
    """Show the evaluations of a table in its order, with its metrics and the settings in which its rows differ.

    Args:
        table: the experiment's name, as in the tag `row.<table>`.
        columns: metric names without their section, as in "AP50".
        varied: the params that differ, and whether every row has them, as an axis of a chart needs.
    """
    row = f"tags.`row.{table}`"
    metrics = [f"val/{name}" for name in columns]
    cells = [f"metrics.`{name}`" for name in metrics] + [f"params.`{name}`" for name in varied] + ["tags.`seed`"]
    charts = [_chart("BAR", "val", name) | {"metricKey": name} for name in metrics]
    axes = [name for name, everywhere in varied.items() if everywhere]
    if axes:
        selected = {"selectedParams": axes, "selectedMetrics": metrics[:1], "showAllRuns": True}
        charts.append(_chart("PARALLEL", "settings", f"settings and {metrics[0]}") | selected)
    return _view(charts, ("settings", "val")) | {
        "searchFilter": f"tags.kind = 'evaluation' and {row} != ''",
        "orderByKey": row,
        "orderByAsc": True,
        "selectedColumns": [*cells, row],
        "columnOrder": ["attributes.`Run Name`", *cells],
        "columnWidths": dict.fromkeys(cells, 80),
    }


def curves_view() -> View:
    """Show the trainings of a suite: validation first, then losses, rate and speed."""
    names = ["val/AP", "val/AP50", "val/AP75", "train/loss", "train/loss_class", "train/loss_box"]
    names += ["train/loss_confidence", "train/lr", "perf/images_per_s"]
    view = _view([_line(name) for name in names], ("val", "train", "perf"))
    return view | {
        "searchFilter": "tags.kind = 'training'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": ["metrics.`val/AP`", "metrics.`train/loss`", "params.`head`", "tags.`seed`", "tags.`note`"],
    }


def view_tag(view_id: str) -> str:
    """Return the experiment's tag that holds a view."""
    return f"mlflow.sharedViewState.{view_id}"


def encode(name: str, view: View, milliseconds: int) -> str:
    """Write a view as the user interface stores it."""
    state = "deflate;" + base64.b64encode(zlib.compress(json.dumps(view).encode(), 9)).decode()
    return json.dumps({"name": name, "createdAt": milliseconds, "updatedAt": milliseconds, "state": state})


def experiment_link(uri: str, experiment_id: str) -> str:
    """Return the address of an experiment's runs."""
    return f"{uri}/#/experiments/{experiment_id}/runs?{ML}"


def view_link(uri: str, experiment_id: str, view_id: str, mode: Mode) -> str:
    """Return the address of a saved view, as a table or as charts."""
    return f"{experiment_link(uri, experiment_id)}&viewStateShareKey={quote(view_id)}&compareRunsMode={mode}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run."""
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}?{ML}"


def _view(charts: list[View], sections: Sequence[str]) -> View:
    return {
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for name in sections
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
        "runsCountToCompare": 50,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": title,
    }


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
