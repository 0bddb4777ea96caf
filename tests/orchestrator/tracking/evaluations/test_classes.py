"""Files and metrics of classes: numbers are those of the matches, names what a real server takes."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.coco.matches import match, precisions
from orchestrator import names
from orchestrator.tracking.evaluations.classes import CURVES, FIGURE, MOST_METRICS, TABLE, class_metrics, record_of
from orchestrator.tracking.runs import create_run, experiment_id, get_run, open_tracking, write
from tests.detections import random_scene, table
from tests.detections import write as write_data


def test_files_hold_the_numbers_of_the_matches(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    data, _ = write_data(tmp_path, annotations, num_images=8)
    matches = match(data, table(found))
    record = record_of(matches, tmp_path, "a & b")
    assert [file.name for file in record.files] == [TABLE, CURVES, FIGURE]
    by_class = precisions(matches)
    shown = json.loads((tmp_path / TABLE).read_text())
    assert shown["columns"] == ["class", "AP", "AP50", "AP75", "objects", "images", "id"]
    for place, (name, *numbers, objects, images, id) in enumerate(shown["data"]):
        assert (name, id) == (f"thing {data.category_ids[place]}", data.category_ids[place])
        if place == 3:
            assert (objects, images, numbers) == (0, 0, [None, None, None])
            continue
        held = (~data.annotation_crowds) & (data.annotation_labels == place)
        assert objects == held.sum() and 0 < images <= 6
        own = by_class[:, :, place]
        assert numbers == pytest.approx([100 * one.mean() for one in (own, own[0], own[5])], abs=0.005)
    curves = json.loads((tmp_path / CURVES).read_text())
    assert len(curves["recall"]) == 101 and list(curves["classes"]) == ["thing 2", "thing 5", "thing 9"]
    for place, one in enumerate(curves["classes"].values()):
        assert one["precision at IoU 0.5"] == pytest.approx(by_class[0, :, place], abs=5e-5)
        assert one["precision at IoU 0.75"] == pytest.approx(by_class[5, :, place], abs=5e-5)
    figure = (tmp_path / FIGURE).read_text()
    assert figure.count("<polyline") == 6 and "a &amp; b: precision by recall" in figure
    assert record.metrics == {f"AP_class/{row[0]}": row[1] for row in shown["data"][:3]}


def test_a_class_with_nothing_to_find_anywhere_leaves_no_figure_and_no_metric(tmp_path: Path) -> None:
    data, _ = write_data(tmp_path, [], num_images=2)
    record = record_of(match(data, table([(1, 2, [0, 0, 9, 9], 0.5)])), tmp_path, "any")
    assert [file.name for file in record.files] == [TABLE, CURVES] and record.metrics == {}


ODD = {
    "TV/monitor": "TV_monitor",
    "a:b": "a_b",
    "..": "id 2",
    "naïve café": "naïve café",
    "日本": "日本",
    " lead ": "lead",
    "x" * 300: "x" * 200,
    "twice": "twice id 7",
}


def test_any_name_of_a_class_makes_a_metric_that_mlflow_takes(mlflow_uri: str) -> None:
    labels = [*ODD, "twice"]
    metrics = class_metrics(labels, list(range(len(labels))), np.arange(float(len(labels))) + 0.125)
    assert list(metrics) == [f"AP_class/{name}" for name in (*ODD.values(), "twice id 8")]
    assert list(metrics.values())[:2] == [0.12, 1.12]  # two digits
    tracking = open_tracking(mlflow_uri, "odd names")
    run_id = create_run(mlflow_uri, experiment_id(tracking), "any", {names.KIND: "evaluation"})
    write(mlflow_uri, run_id, metrics=metrics)
    assert get_run(mlflow_uri, run_id).metrics == metrics


def test_so_many_classes_that_pages_would_be_slow_have_no_metrics() -> None:
    labels = [str(n) for n in range(MOST_METRICS + 1)]
    aps = np.ones(len(labels))
    assert class_metrics(labels, list(range(len(labels))), aps) == {}
    assert len(class_metrics(labels[1:], list(range(MOST_METRICS)), aps[1:])) == MOST_METRICS
    assert "AP_class/1" not in class_metrics(["0", "1"], [0, 1], np.array([1.0, np.nan]))
