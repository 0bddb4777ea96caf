"""Saved views, descriptions and links of a suite on a real MLflow server; tests/system/test_browse.py looks at them."""

import base64
import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig, TrainConfig
from model.evaluation.misalignment import STATISTICS
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Evaluation, Ledger, Plan, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.report import pages as browse
from orchestrator.report import views
from orchestrator.report.views import TableShown, table_view, trials_view
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking import rest, runs
from orchestrator.tracking.records import Setting, shown_metrics, varied_params, varied_settings
from orchestrator.tracking.runs import Tracking, open_tracking, read_runs
from orchestrator.tracking.suite import Suite

PLAIN = TrainConfig(model=ModelConfig(confidence=None))
BOX = TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box", loss="l1")))
LABELS = {"plain": (PLAIN, 0.0), "λ = 0.2": (BOX, 0.2), "λ = 0.4": (BOX, 0.4)}
ROWS = tuple(
    Row(label=label, train=train, inference=InferenceConfig(confidence_exponent=exponent), paper={"AP": 36.5})
    for label, (train, exponent) in LABELS.items()
)
TABLE = Experiment(
    name="table3",
    suite="any",
    title="Table 3",
    question="Which λ?",
    rows=ROWS,
    columns=("AP", "APs"),
    path=Path("table3.yaml"),
)


@pytest.fixture(autouse=True)
def _tested_server(monkeypatch) -> None:
    """Write views whatever the version of MLflow is that the tests run with."""
    monkeypatch.setattr(rest, "server_version", lambda _: f"{views.TESTED[-1]}.0")


@pytest.fixture
def suite(mlflow_uri, request) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name)


def tags(suite: Tracking) -> dict[str, str]:
    experiment = rest.get(suite.uri, "experiments/get", {"experiment_id": suite.experiment_id})["experiment"]
    return {tag["key"]: tag["value"] for tag in experiment["tags"]}


def saved_view(suite: Tracking, view_id: str) -> tuple[str, dict[str, Any]]:
    saved = json.loads(tags(suite)[f"mlflow.sharedViewState.{view_id}"])
    return saved["name"], json.loads(zlib.decompress(base64.b64decode(saved["state"].removeprefix("deflate;"))))


def recorded(suite: Tracking, plan: Plan, evaluations: list[Evaluation], folder: Path) -> list[str]:
    """Record made-up numbers for evaluations, in this order."""
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    trainings = {}
    for key, train_run in plan.trainings.items():
        trainings[key] = tracking.begin_training(suite, train_run)
        tracking.record_checkpoint(suite, trainings[key], folder)
    return [
        tracking.record_evaluation(
            suite,
            one,
            {"AP": 100 / 3, "APs": 12.0, "APl": None},
            detections=None,
            train_run_id=trainings[one.train_key],
        )
        for one in evaluations
    ]


def test_what_sets_rows_apart_is_told_of_every_row_with_defaults_and_none_where_it_means_nothing():
    product = replace(ROWS[1], inference=InferenceConfig(fusion="product"))
    cross_entropy = replace(ROWS[1], train=TrainConfig())
    assert varied_params([ROWS[0], product, cross_entropy]) == [
        {"head": "none", "confidence_exponent": "0", "loss": "none", "fusion": "power"},
        {"head": "box", "confidence_exponent": "none", "loss": "l1", "fusion": "product"},
        {"head": "classification", "confidence_exponent": "0.2", "loss": "ce", "fusion": "power"},
    ]
    assert varied_params(ROWS[:1]) == [{}]


def test_a_setting_is_the_axis_of_a_curve_where_it_is_a_number_in_every_row():
    assert varied_settings(ROWS) == [
        Setting(name="head", is_number=False),
        Setting(name="confidence_exponent", is_number=True),
        Setting(name="loss", is_number=False),
    ]


def test_the_user_interface_shows_two_digits_and_the_papers_number_with_our_difference():
    shown = shown_metrics({"AP": 36.625, "AP50": 200 / 3, "APl": None}, {"AP": 36.5, "APl": 50.0})
    assert shown == {"AP": 36.62, "AP paper": 36.5, "AP Δ": 0.12, "AP50": 66.67}  # halves to even


def test_a_saved_view_shows_the_tables_rows_in_order_and_what_sets_them_apart(suite):
    found = browse.write_views(suite, [TABLE])
    base = f"{suite.uri}/#/experiments/{suite.experiment_id}/runs?workflowType=machine_learning"
    assert found == {
        "table3": f"{base}&viewStateShareKey=table3&compareRunsMode=TABLE",
        "table3, charts": f"{base}&viewStateShareKey=table3/charts&compareRunsMode=CHART",
        f"{suite.suite}, training curves": f"{base}&viewStateShareKey=curves&compareRunsMode=CHART",
    }
    name, view = saved_view(suite, "table3")
    assert name == "Table 3"
    assert (view["orderByKey"], view["orderByAsc"]) == ("tags.`row.table3`", True)
    assert view["searchFilter"] == "tags.kind = 'evaluation' and tags.`row.table3` != ''"
    metrics = [f"metrics.`{name}`" for name in ("AP", "AP paper", "AP Δ", "APs")]
    settings = [f"params.`{name}`" for name in ("head", "confidence_exponent", "loss")]
    assert view["selectedColumns"] == ["tags.`row.table3`", *metrics, *settings, "tags.`seed`"]
    assert view["columnOrder"] == ["attributes.`Run Name`", "runDateAndNestInfo", *view["selectedColumns"]]
    assert view["groupBy"] is None
    charts = [chart for chart in view["compareRunCharts"] if not chart["deleted"]]
    bars = [chart["metricKey"] for chart in charts if chart["type"] == "BAR"]
    (parallel,) = (chart for chart in charts if chart["type"] == "PARALLEL")
    curve, papers_curve = (chart for chart in charts if chart["type"] == "SCATTER")
    assert bars[:4] == ["AP", "APs", "AP Δ", "AP paper"]
    of_placement = [chart for chart in charts if chart["metricSectionId"] == "misalignment"]
    assert [chart["metricKey"] for chart in of_placement] == [f"misalignment/{name}" for name in STATISTICS]
    of_scores = [chart["metricKey"] for chart in charts if chart["metricSectionId"] == "calibration"]
    assert of_scores == ["LaECE", "LaACE", "D-ECE", "LRP", "oLRP"]
    assert {"misalignment", "calibration"} <= {section["uuid"] for section in view["compareRunSections"]}
    assert "misalignment" in [section["uuid"] for section in view["compareRunSections"]]
    assert parallel["selectedParams"] == ["head", "confidence_exponent", "loss"]
    assert (curve["xaxis"]["key"], curve["yaxis"]["key"]) == ("confidence_exponent", "AP")
    assert (papers_curve["xaxis"]["key"], papers_curve["yaxis"]["key"]) == ("confidence_exponent", "AP paper")


def test_charts_call_rows_by_their_labels_in_the_table_and_average_seeds(suite):
    browse.write_views(suite, [TABLE])
    name, view = saved_view(suite, "table3/charts")
    assert name == "Table 3: charts"
    keys = [{"mode": "tag", "groupByData": "row.table3"}]
    assert view["groupBy"] == {"aggregateFunction": "average", "groupByKeys": keys}
    folded = {f"tag.row.table3.{place:02d} {row.label}": False for place, row in enumerate(ROWS)}
    assert view["groupsExpanded"] == folded
    assert "tags.`row.table3`" not in view["selectedColumns"]  # a group has no tags
    (parallel,) = (chart for chart in view["compareRunCharts"] if chart["type"] == "PARALLEL")
    # No text, of which there is no mean.
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (["confidence_exponent"], ["AP", "APs"])


def test_a_table_of_several_seeds_shows_a_line_for_each_row(suite):
    browse.write_views(suite, [replace(TABLE, rows=(*ROWS[:2], replace(ROWS[2], seeds=(0, 1))))])
    _, table = saved_view(suite, "table3")
    _, charts = saved_view(suite, "table3/charts")
    assert table["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "row.table3"}]
    assert table == charts


def test_no_difference_is_shown_where_ours_was_measured_on_other_data(suite):
    shapes = tuple(replace(row, train=replace(row.train, data=DataConfig(dataset="shapes"))) for row in ROWS)
    browse.write_views(suite, [replace(TABLE, rows=shapes)])
    _, view = saved_view(suite, "table3")
    charts = [chart for chart in view["compareRunCharts"] if not chart["deleted"]]
    bars = {chart["metricKey"]: chart["metricSectionId"] for chart in charts if chart["type"] == "BAR"}
    shown = [*view["selectedColumns"], *bars]
    assert not [name for name in shown if "Δ" in name or "AP paper" in name]
    assert view["selectedColumns"][-1] == "metrics.`paper on COCO 2017: AP`"  # apart from ours
    assert bars["paper on COCO 2017: AP"] == "the paper on COCO 2017"
    (section,) = (one for one in view["compareRunSections"] if one["uuid"] == "the paper on COCO 2017")
    assert section["display"] is False


def test_the_filter_and_order_of_a_saved_view_find_exactly_the_tables_rows(suite, tmp_path):
    other = replace(TABLE, name="table1", rows=(replace(ROWS[0], label="other", split="val"),))
    plan = make_plan([TABLE, other], Ledger())
    recorded(suite, plan, list(plan.evaluations.values())[::-1], tmp_path)
    view = table_view(TableShown(table="table3", columns=("AP",)))
    query = {"experiment_ids": [suite.experiment_id], "filter": view["searchFilter"]}
    found = rest.post(suite.uri, "runs/search", {**query, "order_by": [f"{view['orderByKey']} ASC"]})["runs"]
    assert [runs.read_run(run).rows["table3"] for run in found] == ["00 plain", "01 λ = 0.2", "02 λ = 0.4"]


def test_an_evaluation_has_the_exact_numbers_and_those_that_are_shown(suite, tmp_path):
    plan = make_plan([TABLE], Ledger())
    evaluation = next(iter(plan.evaluations.values()))
    (run_id,) = recorded(suite, plan, [evaluation], tmp_path)
    exact = {"val/AP": 100 / 3, "val/APs": 12.0}
    shown = {"AP": 33.33, "AP paper": 36.5, "AP Δ": -3.17, "APs": 12.0}
    assert runs.get_run(suite.uri, run_id).metrics == exact | shown
    tracking.place_evaluations(suite, read_runs(suite), [replace(evaluation, paper={"AP": 33.3})])
    assert runs.get_run(suite.uri, run_id).metrics == exact | shown | {"AP paper": 33.3, "AP Δ": 0.03}
    assert tracking.read_ledger(suite).evaluations[evaluation.key].metrics == {"AP": 100 / 3, "APs": 12.0}


def test_a_server_of_an_untested_version_gets_no_views_and_its_links_lead_to_the_same_runs(suite, monkeypatch):
    monkeypatch.setattr(rest, "server_version", lambda _: "3.5.0")
    base = f"{suite.uri}/#/experiments/{suite.experiment_id}/runs?workflowType=machine_learning"
    link = browse.write_views(suite, [TABLE])["table3"]
    where = "tags.kind = 'evaluation' and tags.`row.table3` != ''"
    assert unquote(link) == f"{base}&searchFilter={where}&compareRunsMode=TABLE"
    assert not [name for name in tags(suite) if name.startswith("mlflow.sharedViewState.")]
    assert "searchFilter=" in tags(suite)["mlflow.note.content"]
    assert browse.why_no_views(suite.uri).startswith("MLflow 3.5.0 gets no saved views, which were tested with 3.17")


def test_views_that_stand_are_not_written_again(suite, monkeypatch):
    browse.write_views(suite, [TABLE])
    monkeypatch.setattr(rest, "post", lambda *_, **__: pytest.fail("something was written"))
    browse.write_views(suite, [TABLE])


def test_the_suite_is_described_by_every_table_that_was_ever_shown(suite):
    browse.write_views(suite, [TABLE])
    browse.write_views(suite, [replace(TABLE, name="table4", title="Table 4", question="")])
    first, _, *lines = tags(suite)["mlflow.note.content"].splitlines()
    here = f"#/experiments/{suite.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey"
    assert first.startswith(f"[table3]({here}=table3&compareRunsMode=TABLE) · [table4](")
    assert lines == [
        f"- [Table 3]({here}=table3&compareRunsMode=TABLE) ([charts]({here}=table3/charts&compareRunsMode=CHART)): "
        "Which λ?",
        f"- [Table 4]({here}=table4&compareRunsMode=TABLE) ([charts]({here}=table4/charts&compareRunsMode=CHART))",
    ]


def test_links_lead_past_the_page_for_language_models(suite):
    base = f"{suite.uri}/#/experiments/{suite.experiment_id}/runs"
    assert views.experiment_link(suite.uri, suite.experiment_id) == f"{base}?workflowType=machine_learning"
    assert views.run_link(suite.uri, suite.experiment_id, "abc") == f"{base}/abc?workflowType=machine_learning"


def test_a_suite_of_which_nothing_is_recorded_has_no_links_and_stays_absent(mlflow_uri, tmp_path):
    with pytest.raises(UserError, match="holds nothing of suite never made either"):
        browse.show_suite(
            Suite([replace(TABLE, suite="never made either")], Site(home=tmp_path, tracking_uri=mlflow_uri))
        )
    assert open_tracking(mlflow_uri, "never made either", create=False).experiment_id is None


def test_runs_say_which_rows_rest_on_them_and_lead_to_each_other(suite, tmp_path):
    table = replace(TABLE, suite=suite.suite)
    plan = make_plan([table, replace(table, name="table1", rows=ROWS[1:2])], Ledger())
    plain, *_ = found = recorded(suite, plan, list(plan.evaluations.values()), tmp_path)
    browse.show_suite(Suite([table], Site(home=tmp_path, tracking_uri=suite.uri)))
    page = f"#/experiments/{suite.experiment_id}/runs"
    view = "workflowType=machine_learning&viewStateShareKey"
    of_plain, of_box = (tracking.begin_training(suite, training) for training in plan.trainings.values())
    assert note(suite, plain).splitlines() == [
        f"- [table3]({page}?{view}=table3&compareRunsMode=TABLE): 00 plain",
        f"- Scores the checkpoint of [plain]({page}/{of_plain}?workflowType=machine_learning)",
    ]
    assert note(suite, of_box).splitlines()[:2] == [
        f"- [table1]({page}?{view}=table1&compareRunsMode=TABLE): 00 λ = 0.2",
        f"- [table3]({page}?{view}=table3&compareRunsMode=TABLE): 01 λ = 0.2; 02 λ = 0.4",
    ]
    where, _, value = unquote(note(suite, of_box).rpartition("searchFilter=")[2].rstrip(")")).rpartition(" = ")
    assert where == "tags.kind = 'evaluation' and tags.train_key"
    assert value.strip("'") == list(plan.trainings)[1]
    assert len(found) == 3
    settings = runs.get_run(suite.uri, plain).params
    assert settings == {"head": "none", "confidence_exponent": "0", "loss": "none"}


def test_descriptions_that_stand_are_not_written_again(suite, tmp_path, monkeypatch):
    table = replace(TABLE, suite=suite.suite)
    plan = make_plan([table], Ledger())
    recorded(suite, plan, list(plan.evaluations.values()), tmp_path)
    shown = Suite([table], Site(home=tmp_path, tracking_uri=suite.uri))
    browse.show_suite(shown)
    post, asked = rest.post, []

    def watched(uri: str, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        asked.append(path)
        return post(uri, path, payload)

    monkeypatch.setattr(rest, "post", watched)
    shown.refresh()
    browse.show_suite(shown)
    assert set(asked) <= {"runs/search"}  # our own server lists runs by GET


def note(suite: Tracking, run_id: str) -> str:
    return runs.get_run(suite.uri, run_id).tags["mlflow.note.content"]


def test_a_trial_of_several_seeds_is_a_line_that_unfolds_to_its_trainings() -> None:
    shown = TableShown(table="rates", columns=("AP",), rows=["00 slow", "01 fast"])
    row = "tags.`row.rates`"
    single, seeded = (trials_view(replace(shown, is_grouped=one), "AP") for one in (False, True))
    assert single["groupBy"] is None and single["selectedColumns"][0] == row
    assert seeded["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "row.rates"}]
    assert seeded["groupsExpanded"] == {"tag.row.rates.00 slow": False, "tag.row.rates.01 fast": False}
    assert row not in seeded["selectedColumns"]  # a group is called by it
    assert (seeded["orderByKey"], seeded["orderByAsc"]) == ("metrics.`val/AP`", False)
