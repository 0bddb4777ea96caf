"""A suite's experiment in a real MLflow server, which somebody renames, deletes, restores and doubles."""

import pytest

from model.config import TrainConfig
from orchestrator import names
from orchestrator.checkpoint.find import Query, find
from orchestrator.errors import UserError
from orchestrator.experiment.rows import Row
from orchestrator.tracking import rest
from orchestrator.tracking.edits.damage import doubts
from orchestrator.tracking.edits.experiments import all_suites, find_experiment
from orchestrator.tracking.runs import create_run, open_tracking, pairs, read_runs
from tests.orchestrator.ledgers import experiment, record, suite_of

TABLE = experiment("table1", [Row(label="ours", train=TrainConfig())])


def make(uri: str, name: str, suite: str) -> str:
    made = rest.post(uri, "experiments/create", {"name": name, "tags": pairs({names.SUITE: suite})})
    return str(made["experiment_id"])


def change(uri: str, what: str, experiment_id: str | None, **values: str) -> None:
    rest.post(uri, f"experiments/{what}", {"experiment_id": experiment_id, **values})


def test_a_suite_whose_experiment_was_renamed_is_found_by_its_tag_and_so_are_its_checkpoints(mlflow_uri, tmp_path):
    tracking = open_tracking(mlflow_uri, "renamed, it's")
    record(tracking, [TABLE], tmp_path)
    change(mlflow_uri, "update", tracking.experiment_id, new_name="My best tables")
    again = open_tracking(mlflow_uri, "renamed, it's")
    assert again == tracking
    assert all_suites(mlflow_uri)["renamed, it's"] == tracking.experiment_id
    assert find(mlflow_uri, Query(suite="renamed, it's")).label("table1") == "ours"
    assert suite_of(again, [TABLE], tmp_path).make_plan(verified=True).is_complete


def test_a_deleted_experiment_is_one_line_with_the_ways_out_and_a_restored_one_goes_on(mlflow_uri, tmp_path):
    tracking = open_tracking(mlflow_uri, "deleted")
    record(tracking, [TABLE], tmp_path)
    for new_name in (names.experiment_name("deleted"), "renamed before"):
        change(mlflow_uri, "update", tracking.experiment_id, new_name=new_name)
        change(mlflow_uri, "delete", tracking.experiment_id)
        for create in (True, False):
            with pytest.raises(UserError) as told:
                open_tracking(mlflow_uri, "deleted", create=create)
            assert f"{new_name}, id {tracking.experiment_id}, of suite deleted is deleted; restore it (" in str(
                told.value
            )
            assert "mlflow gc" in str(told.value)
            assert "\n" not in str(told.value)
        with pytest.raises(UserError, match="is deleted; restore it"):
            suite_of(tracking, [TABLE], tmp_path).make_plan()
        with pytest.raises(UserError, match="has no such suite"):
            find(mlflow_uri, Query(suite="deleted"))
        change(mlflow_uri, "restore", tracking.experiment_id)
        assert open_tracking(mlflow_uri, "deleted") == tracking
    assert suite_of(tracking, [TABLE], tmp_path).make_plan().is_complete


def test_of_two_experiments_of_a_suite_the_one_of_its_name_counts_and_the_other_is_told(mlflow_uri, tmp_path):
    tracking = open_tracking(mlflow_uri, "twice")
    create_run(mlflow_uri, str(tracking.experiment_id), "a run", {names.KIND: "training", names.SUITE: "twice"})
    change(mlflow_uri, "update", tracking.experiment_id, new_name="an old one")
    second = make(mlflow_uri, names.experiment_name("twice"), "twice")
    named = open_tracking(mlflow_uri, "twice")
    assert named.experiment_id == second
    assert len(read_runs(named)) == 0
    assert all_suites(mlflow_uri)["twice"] == second
    (doubt,) = doubts(named)
    assert f"experiment an old one (id {tracking.experiment_id}) has the tag suite = twice, too" in doubt
    create_run(mlflow_uri, second, "a run", {names.KIND: "training", names.SUITE: "twice"})
    change(mlflow_uri, "update", second, new_name="a new one")
    with pytest.raises(UserError, match=r"both have the tag suite = twice, and neither is called retinanet-conf/twice"):
        open_tracking(mlflow_uri, "twice")


def test_an_experiment_of_others_that_has_such_a_tag_or_such_a_name_is_left_alone(mlflow_uri):
    make(mlflow_uri, "of another project", "shared word")
    assert find_experiment(mlflow_uri, "shared word") is None
    assert "shared word" not in all_suites(mlflow_uri)
    ours = open_tracking(mlflow_uri, "shared word")
    assert ours.experiment_id is not None
    make(mlflow_uri, names.experiment_name("../../outside"), "../../outside")
    make(mlflow_uri, "of somebody", 'it\'s "theirs"')  # no filter of MLflow can ask for it
    assert {"../../outside", 'it\'s "theirs"'}.isdisjoint(all_suites(mlflow_uri))
    make(mlflow_uri, names.experiment_name("taken"), "another suite")
    with pytest.raises(UserError, match="experiment retinanet-conf/taken is in the way of suite taken"):
        open_tracking(mlflow_uri, "taken")


def test_an_experiment_without_the_tag_is_known_by_its_name(mlflow_uri):
    made = rest.post(mlflow_uri, "experiments/create", {"name": names.experiment_name("of old")})
    assert open_tracking(mlflow_uri, "of old").experiment_id == made["experiment_id"]
    assert all_suites(mlflow_uri)["of old"] == made["experiment_id"]
