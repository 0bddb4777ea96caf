"""The rows of a search on its trainings, on a real MLflow server; the other pages are in test_views.py."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.config import ScheduleConfig, TrainConfig
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.experiment.search import Asha, Search
from orchestrator.report import pages, views
from orchestrator.site import Site
from orchestrator.tracking import ledger, rest, runs
from orchestrator.tracking.runs import Run, Tracking, open_tracking, read_runs
from orchestrator.tracking.suite import Suite

RATES = (0.1, 0.01, 0.001)
SEARCH = Experiment(
    name="rates",
    suite="any",
    title="Learning rates",
    rows=tuple(
        Row(label=f"learning_rate {rate:g}", train=TrainConfig(schedule=ScheduleConfig(learning_rate=rate)))
        for rate in RATES
    ),
    search=Search(
        labels=tuple(f"learning_rate {rate:g}" for rate in RATES),
        space={"train.schedule.learning_rate": {"choice": RATES}},
        num_samples=3,
        metric="AP50",
        asha=Asha(),
        seed=0,
    ),
    columns=("AP", "AP50"),
    path=Path("rates.yaml"),
)


@pytest.fixture(autouse=True)
def _tested_server(monkeypatch) -> None:
    monkeypatch.setattr(rest, "server_version", lambda _: f"{views.TESTED[-1]}.0")


@pytest.fixture
def suite(mlflow_uri, request, tmp_path) -> Suite:
    """Two finished trainings, and one that its search stopped."""
    experiment = replace(SEARCH, suite=request.node.name)
    tracking = open_tracking(mlflow_uri, experiment.suite)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    journal = tmp_path / "metrics.jsonl"
    trainings = make_plan([experiment], Ledger()).trainings.values()
    for place, train_run in enumerate(trainings):
        run_id = ledger.begin_training(tracking, train_run)
        journal.write_text(f'{{"step": 8, "timestamp": 1, "metrics": {{"val/AP50": {10 * place}.0}}}}\n')
        if place == 1:
            ledger.stop_training(tracking, run_id, "stopped early by ASHA after epoch 1 (AP50 10.0)", journal)
        else:
            ledger.record_checkpoint(tracking, run_id, tmp_path)
            runs.write(tracking.uri, run_id, metrics={"val/AP50": 10.0 * place})
            ledger.end_training(tracking, run_id, "FINISHED")
    return Suite([experiment], Site(home=tmp_path, tracking_uri=mlflow_uri))


def found(tracking: Tracking, view: views.View) -> list[Run]:
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    query = {"experiment_ids": [tracking.experiment_id], "filter": view["searchFilter"], "order_by": [order]}
    return [runs.read_run(run) for run in rest.post(tracking.uri, "runs/search", query)["runs"]]


def saved_view(tracking: Tracking, view_id: str) -> views.View:
    decoded = views.decode(runs.experiment_tags(tracking)[views.view_tag(view_id)])
    assert decoded is not None
    return decoded[1]


def test_a_search_shows_every_trial_best_first_stopped_ones_too(suite):
    links = pages.show_suite(suite)
    tracking = suite.connection
    assert "viewStateShareKey=rates/trials&compareRunsMode=TABLE" in links["rates, all trials"]
    view = saved_view(tracking, "rates/trials")
    trials = found(tracking, view)
    called = ["02 learning_rate 0.001", "01 learning_rate 0.01", "00 learning_rate 0.1"]
    assert [run.rows["rates"] for run in trials] == called
    assert [run.status for run in trials] == ["FINISHED", "KILLED", "FINISHED"]
    # All have the setting, 0.01 too, which is the default.
    assert [run.params["learning_rate"] for run in trials] == ["0.001", "0.01", "0.1"]
    assert "tags.`note`" in view["selectedColumns"] and trials[1].tags["note"].startswith("stopped early by ASHA")
    (parallel,) = (chart for chart in view["compareRunCharts"] if chart["type"] == "PARALLEL")
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (["learning_rate"], ["val/AP50"])
    assert "[all trials](#/experiments/" in runs.experiment_tags(tracking)["table.rates"]


def test_trials_that_stand_are_not_written_again_and_lose_a_row_that_is_gone(suite, monkeypatch):
    pages.show_suite(suite)
    tracking = suite.connection
    post, asked = rest.post, []

    def watched(uri, path, payload):
        asked.append(path)
        return post(uri, path, payload)

    monkeypatch.setattr(rest, "post", watched)
    suite.refresh()
    pages.show_suite(suite)
    assert set(asked) <= {"runs/search"}  # our own server lists runs by GET
    fewer = replace(suite.experiments[0], rows=suite.experiments[0].rows[:1])
    pages.show_suite(Suite([fewer], suite.site))
    assert [run.rows for run in read_runs(tracking)] == [{}, {}, {"rates": "00 learning_rate 0.1"}]


def test_a_table_without_a_search_leaves_its_trainings_alone(suite):
    plain = replace(suite.experiments[0], search=None)
    assert "rates, all trials" not in pages.show_suite(Suite([plain], suite.site))
    assert views.view_tag("rates/trials") not in runs.experiment_tags(suite.connection)
    assert not any(run.rows for run in read_runs(suite.connection))


def test_seeds_on_two_versions_of_the_data_are_never_averaged(mlflow_uri, tmp_path):
    row = Row(label="RetinaNet-Conf", seeds=(0, 7))
    table = replace(SEARCH, name="seeds", suite="two versions", rows=(row,), search=None)
    tracking = open_tracking(mlflow_uri, table.suite)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    plan = make_plan([table], Ledger())
    for place, evaluation in enumerate(plan.evaluations.values()):
        run_id = ledger.begin_training(tracking, plan.trainings[evaluation.train_key])
        ledger.record_checkpoint(tracking, run_id, tmp_path)
        ledger.end_training(tracking, run_id, "FINISHED")
        digest = "old" if place == 0 else "new"
        ledger.record_evaluation(
            tracking, evaluation, {"AP": 30.0}, detections=None, train_run_id=run_id, data_fingerprint=digest
        )
        pages.show_suite(Suite([table], Site(home=tmp_path, tracking_uri=mlflow_uri)))
        for view_id in ("seeds", "seeds/charts"):
            view = saved_view(tracking, view_id)
            assert (view["groupBy"] is None) == (place == 1)
            assert ("tags.`data_fingerprint`" in view["selectedColumns"]) == (place == 1)


def test_a_note_that_is_longer_than_a_tag_ends_after_a_whole_line_and_says_so():
    note = "\n".join(f"- [table {number}](link): a row" for number in range(500))
    short = pages._within(note, 5000)
    assert len(short) <= 5000
    assert short.endswith(": a row\n…")
    assert note.startswith(short.removesuffix("…"))
    assert pages._within(note[:5000], 5000) == note[:5000]
    assert pages._within("x" * 6000, 5000) == "x" * 4999 + "…"
