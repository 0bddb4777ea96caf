"""The classes of an evaluation as MLflow holds them: a metric each, a table, and curves of precision by recall."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator import names
from orchestrator.figures.drawing import svg_sheet
from orchestrator.figures.plots import ClassMeasurement, precision_recall

if TYPE_CHECKING:
    from model.evaluation.coco.matches import MatchTable

MOST_METRICS = 100
"""Of more classes none is a metric: each is a chart of MLflow's pages, and a row of its database for each run."""
MOST_CURVES = 100
"""So many classes are drawn, 1 kB each."""
TABLE, CURVES, FIGURE = "classes.json", "precision_recall.json", "precision_recall.svg"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRecord:
    """What is recorded of the classes of an evaluation."""

    metrics: dict[str, float]
    """AP of each class that has an object, 0 to 100, two digits after the point, as the pages show all of it."""
    files: tuple[Path, ...]
    """TABLE, CURVES and FIGURE."""


def record_of(matches: "MatchTable", folder: Path, label: str) -> ClassRecord:
    """Write the files of the classes of an evaluation into a folder, and return them with its metrics.

    Args:
        matches: of the evaluation.
        folder: to write to.
        label: of the row, as the figure names it.
    """
    from model.evaluation.coco.matches import precisions, truths_of

    precision = precisions(matches)
    objects, images = truths_of(matches)
    called, ids = list(matches.category_names), list(matches.category_ids)
    at_all = 100 * precision.mean(axis=(0, 1))
    at_50, at_75 = (100 * precision[threshold].mean(axis=0) for threshold in (0, 5))
    # What mlflow.log_table writes, which MLflow's pages show as a table.
    columns = ["class", "AP", "AP50", "AP75", "objects", "images", "id"]
    numbers = (_rounded(one) for one in (at_all, at_50, at_75))
    rows = [list(row) for row in zip(called, *numbers, objects.tolist(), images.tolist(), ids, strict=True)]
    (folder / TABLE).write_text(json.dumps({"columns": columns, "data": rows}), encoding="utf-8")
    held = [place for place in range(len(called)) if objects[place]]
    shown = told_apart(called, ids)
    curves = {shown[place]: place for place in held}
    content = {
        "recall": [n / 100 for n in range(101)],
        "classes": {
            name: {
                "precision at IoU 0.5": _rounded(precision[0, :, place], 4),
                "precision at IoU 0.75": _rounded(precision[5, :, place], 4),
            }
            for name, place in curves.items()
        },
    }
    (folder / CURVES).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    least = sorted(curves.items(), key=lambda one: at_all[one[1]])[:MOST_CURVES]
    drawings = [
        precision_recall(
            ClassMeasurement(
                name=name,
                said=f"AP {at_all[place]:.1f}, {objects[place]:,} objects",
                values=(),
                curves=(precision[[0, 5], :, place].tolist(),),
            )
        )
        for name, place in least
    ]
    sheet = svg_sheet(drawings, f"{label}: precision by recall of each class, the least AP first")
    (folder / FIGURE).write_text(sheet, encoding="utf-8")
    files = tuple(folder / name for name in (TABLE, CURVES, *([FIGURE] if sheet else [])))
    return ClassRecord(metrics=class_metrics(called, ids, at_all), files=files)


def told_apart(called: Sequence[str], ids: Sequence[int | None]) -> list[str]:
    """Return the names of classes, with its id behind one that several have."""
    times = Counter(called)
    return [name if times[name] == 1 else f"{name} (id {own})" for name, own in zip(called, ids, strict=True)]


def class_metrics(labels: list[str], ids: list[int], aps: NDArray[np.float64]) -> dict[str, float]:
    """Return AP of classes as metrics, by names that MLflow takes; none of more than MOST_METRICS classes.

    Args:
        labels: the names of the classes.
        ids: of the same.
        aps: [K], 0 to 100; NaN of a class without an object, which has no metric.
    """
    if len(labels) > MOST_METRICS:
        return {}
    # MLflow takes letters, digits, _ - . and spaces alike everywhere; a / would be a section, and .. no path.
    called = [re.sub(r"[^\w\- .]", "_", name)[:200].strip(" .") for name in labels]
    found = {}
    for name, own, ap in zip(called, ids, aps.tolist(), strict=True):
        if not np.isnan(ap):
            key = name if name and called.count(name) == 1 else f"{name} id {own}".lstrip()
            found[f"{names.AP_CLASS}/{key}"] = round(ap, 2)
    return found


def _rounded(values: NDArray[np.float64], digits: int = 2) -> list[float | None]:
    """Round, and leave out what is no number, which JSON has none for."""
    return [None if np.isnan(value) else round(value, digits) for value in values.tolist()]
