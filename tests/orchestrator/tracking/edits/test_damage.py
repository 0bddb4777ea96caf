"""What somebody edits in the runs of a suite, in a real MLflow server: no verb dies, it is named, and mended."""

import json
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from model.names import CARD
from orchestrator import names
from orchestrator.api import OpenSuite
from orchestrator.checkpoint.find import Query, find, finished
from orchestrator.checkpoint.registry import best_of
from orchestrator.driver import submit
from orchestrator.driver.cancel import prune_asked, stops_asked
from orchestrator.driver.repair.defects import find_defects, find_edits
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiment
from orchestrator.site import Site
from orchestrator.tracking import artifacts, ledger, rest, runs
from orchestrator.tracking.edits import damage
from orchestrator.tracking.records import by_key
from orchestrator.tracking.runs import Run, open_tracking, read_runs
from tests.experiment_files import write
from tests.orchestrator.ledgers import record

FILE = """
title: Heads
defaults:
  train: {model: {backbone_norm: group, frozen_stages: 0}, data: {dataset: shapes, train_split: train, val_split: val}}
rows:
  - {label: plain, train: {model: {confidence: null}}, inference: {confidence_exponent: 0}}
  - {label: ours}
"""


class Home:
    """A suite of one table, all of it recorded, and what a person does to its runs."""

    def __init__(self, uri: str, suite: str, folder: Path) -> None:
        self.uri, self.suite = uri, suite
        self.site = Site(home=folder / "home", tracking_uri=uri)
        self.experiment = load_experiment(write(folder / suite, FILE, "table1.yaml"))
        self.tracking = open_tracking(uri, suite)
        self.plan = record(self.tracking, [self.experiment], self.site.storage / suite)
        ledger.log_table(self.tracking, [], "table1", {"table1.txt": "plain 1.0"})

    @property
    def open(self) -> OpenSuite:
        """The suite, as a verb opens it."""
        return OpenSuite([self.experiment], self.site)

    def run(self, kind: names.Kind) -> Run:
        """The training, or the evaluation, of row `ours`."""
        evaluation = self.plan.evaluations_of("table1", "ours")[0]
        key = {"evaluation": evaluation.key, "training": evaluation.train_key, "table": "table1"}[kind]
        return by_key(read_runs(self.tracking), kind)[key]

    def tag(self, kind: names.Kind, name: str, value: str | None) -> str:
        """Edit a tag, or take it away."""
        run_id = self.run(kind).run_id
        if value is None:
            rest.post(self.uri, "runs/delete-tag", {"run_id": run_id, "key": name})
        else:
            rest.post(self.uri, "runs/set-tag", {"run_id": run_id, "key": name, "value": value})
        return run_id

    def missing(self) -> tuple[int, int]:
        """How many trainings and evaluations a submit would make again."""
        plan = self.open.make_plan(verified=True)
        return len(plan.missing_trainings), len(plan.missing_evaluations)


Edit = Callable[[Home], object]


def tag(kind: names.Kind, name: str, value: str | None) -> Edit:
    return lambda home: home.tag(kind, name, value)


def metric(name: str, value: float) -> Edit:
    return lambda home: runs.write(home.uri, home.run("evaluation").run_id, metrics={name: value})


def of_suite(name: str, value: str) -> Edit:
    return lambda home: runs.tag_experiment(home.tracking, name, value)


def doubled(kind: names.Kind) -> Edit:
    def double(home: Home) -> None:
        run = home.run(kind)
        tags = {name: value for name, value in run.tags.items() if not name.startswith("mlflow.")}
        run_id = runs.create_run(home.uri, run.experiment_id, run.name, tags)
        runs.write(home.uri, run_id, metrics=run.metrics, params=run.params)
        runs.set_status(home.uri, run_id, "KILLED")

    return double


def stale(home: Home) -> None:
    home.tag("training", names.BEGUN, "yesterday")
    home.tag("training", names.DRIVER, f"{socket.gethostname()} 999999999 1")
    runs.set_status(home.uri, home.run("training").run_id, "RUNNING")


ALL_STANDS, SCORED_AGAIN, RECORDED_AGAIN = (0, 0), (0, 1), (1, 1)
EDITS: dict[str, tuple[Edit, tuple[int, int], str]] = {
    # What it is called: the edit, what a submit then makes again, and what `rnc repair` says of it.
    "files no JSON": (tag("training", names.FILES, "{no"), ALL_STANDS, "its tag files is damaged ('{no'"),
    "files a list": (tag("evaluation", names.FILES, "[1]"), SCORED_AGAIN, "its tag files is damaged ('[1]'"),
    "files nested": (tag("evaluation", names.FILES, "[" * 4000), SCORED_AGAIN, "its tag files is damaged"),
    "files of a table": (tag("table", names.FILES, "null"), ALL_STANDS, "table table1: its tag files is damaged"),
    "begun no number": (tag("training", names.BEGUN, "9" * 5000), ALL_STANDS, "begun '9999"),
    "seed no number": (tag("evaluation", names.SEED, "first"), ALL_STANDS, "seed 'first': written anew"),
    "seed gone": (tag("training", names.SEED, None), ALL_STANDS, "no seed: written anew"),
    "row without a place": (tag("evaluation", "row.table1", "ours"), ALL_STANDS, "row.table1 'ours': written anew"),
    "row empty": (tag("evaluation", "row.table1", ""), ALL_STANDS, "row.table1 '': written anew"),
    "stop odd": (tag("training", names.STOP, "<b>\x1b[2J"), ALL_STANDS, ""),
    "stop asked at no time": (
        lambda home: [home.tag("training", *one) for one in ((names.STOP, "x"), (names.STOP_ASKED, "noon"))],
        ALL_STANDS,
        "",
    ),
    "stopped early": (tag("training", names.STOPPED_EARLY, "x" * 5000), ALL_STANDS, ""),
    "AP no number": (metric("val/AP", float("nan")), SCORED_AGAIN, "its metrics are damaged (val/AP is nan"),
    "AP infinite": (metric("val/AP50", float("inf")), SCORED_AGAIN, "its metrics are damaged (val/AP50 is"),
    "name empty": (tag("evaluation", names.RUN_NAME, ""), ALL_STANDS, ""),
    "kind gone": (tag("evaluation", names.KIND, None), ALL_STANDS, "no kind: written anew"),
    "kind of a training": (tag("evaluation", names.KIND, "training"), ALL_STANDS, "kind 'training': written anew"),
    "kind of an evaluation": (tag("training", names.KIND, "evaluation"), ALL_STANDS, "kind 'evaluation': written anew"),
    "evaluation key gone": (tag("evaluation", names.EVALUATION_KEY, None), ALL_STANDS, "no evaluation_key"),
    "evaluation key odd": (tag("evaluation", names.EVALUATION_KEY, "it's"), ALL_STANDS, 'evaluation_key "it\'s": '),
    "train key odd": (tag("training", names.TRAIN_KEY, "../../x"), ALL_STANDS, "train_key '../../x': written anew"),
    "evaluation key on a training": (tag("training", names.EVALUATION_KEY, "x"), ALL_STANDS, ""),
    "train key gone": (tag("training", names.TRAIN_KEY, None), ALL_STANDS, "no train_key: written anew"),
    "train key of an evaluation odd": (tag("evaluation", names.TRAIN_KEY, 'it\'s "it"'), ALL_STANDS, "train_key "),
    "suite gone": (tag("evaluation", names.SUITE, None), ALL_STANDS, "no suite: written anew"),
    "digest gone": (tag("training", names.WEIGHTS_SHA256, None), ALL_STANDS, "its checkpoint is missing: its weights"),
    "digest odd": (tag("training", names.WEIGHTS_SHA256, "x"), ALL_STANDS, "its tag checkpoint_sha256 is damaged"),
    "split gone": (tag("evaluation", names.SPLIT, None), ALL_STANDS, "no split: written anew"),
    "versions no JSON": (tag("training", names.VERSIONS, "torch"), ALL_STANDS, ""),
    "workers no number": (tag("training", names.NUM_WORKERS, "many"), ALL_STANDS, ""),
    "a long note": (tag("training", names.NOTE, "x" * 8000), ALL_STANDS, ""),
    "running, begun at no time": (stale, RECORDED_AGAIN, "begun 'yesterday': written anew"),
    "a run in the trash": (
        lambda home: rest.post(home.uri, "runs/delete", {"run_id": home.run("evaluation").run_id}),
        SCORED_AGAIN,
        "",
    ),
    "prune no JSON": (of_suite(names.PRUNE, "{"), ALL_STANDS, ""),
    "prune of numbers": (of_suite(names.PRUNE, '{"asked": "x", "tables": 3}'), ALL_STANDS, ""),
    "claim odd": (of_suite(names.CLAIM, '{"driver": "a b c", "since": 1e300}'), ALL_STANDS, ""),
    "a view odd": (of_suite("mlflow.sharedViewState.table1", '{"state": "deflate;x"}'), ALL_STANDS, ""),
    "a run of others": (
        lambda home: runs.create_run(home.uri, str(home.tracking.experiment_id), "", {"kind": "lab"}),
        ALL_STANDS,
        "",
    ),
    "two of one key": (doubled("evaluation"), ALL_STANDS, "MLflow has two runs of it"),
    "two trainings of one key": (doubled("training"), ALL_STANDS, "MLflow has two runs of it"),
}


def walk(home: Home) -> None:
    """Every verb that reads, in the way that the command line does it; what a user can mend is one line."""
    for verb in (
        lambda: home.open.plan(),
        lambda: home.open.costs(quick=True),
        lambda: home.open.status().to_text(),
        lambda: [one.table.to_text() for one in home.open.reports(bootstrap=False)],
        lambda: home.open.classes(),
        lambda: home.open.runs(),
        lambda: home.open.gc(),
        lambda: home.open.links(),
        lambda: home.open.cancel("ours", say=lambda _: None),
        lambda: home.open.pull("ours", output=home.site.home / "pulled" / "ours", say=lambda _: None),
        lambda: find(home.uri, Query(suite=home.suite)),
        lambda: best_of(list(finished(home.open.mlflow_runs, home.suite))),
        lambda: stops_asked(home.tracking, until=0),
        lambda: prune_asked(home.tracking),
        lambda: home.open.repair(say=lambda _: None, dry_run=True),
    ):
        with suppress(UserError):
            verb()


@pytest.mark.parametrize("called", EDITS)
def test_what_somebody_edited_stops_no_verb_and_is_named_and_mended(
    called: str, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, remains, text = EDITS[called]
    home = Home(mlflow_uri, f"edited {called}", tmp_path)
    edit(home)
    walk(home)
    said: list[str] = []
    number = home.open.repair(say=said.append)
    assert number == len(said)
    assert text in "\n".join(said)
    assert bool(text) <= bool(said)
    assert home.missing() == remains
    # A second look finds nothing, and a submit, here without Ray, goes through.
    assert (find_edits(home.open), find_defects(home.open)) == ([], [])
    monkeypatch.setattr(submit, "_run", lambda *everything: (0, 0.0))
    monkeypatch.setattr(submit, "_compiling", lambda site: nullcontext())
    monkeypatch.setattr(submit, "register_best", lambda suite, say: None)  # it takes a copy of the code along
    assert submit.submit(home.open, said.append).exit_code == 0
    assert home.missing() == remains


def test_a_checkpoint_is_noted_again_only_if_its_weights_are_those_of_its_card(mlflow_uri, tmp_path):
    home = Home(mlflow_uri, "swapped", tmp_path)
    run_id = home.run("training").run_id
    (tmp_path / "model.safetensors").write_text("weights of somebody else")
    artifacts.upload(home.uri, run_id, [tmp_path / "model.safetensors"], names.CHECKPOINT)
    home.tag("training", names.FILES, "{no")
    assert home.open.repair(say=lambda _: None) == 1
    assert names.WEIGHTS_SHA256 not in runs.get_run(home.uri, run_id).tags
    assert home.missing() == RECORDED_AGAIN
    # The next submit has the checkpoint that Ray kept: it is stored again, and nothing is trained.
    (folder,) = (home.site.storage / home.suite / home.run("training").key).glob("epoch-*")
    assert ledger.finish_training(home.tracking, run_id, folder, tmp_path / "journal")
    assert home.missing() == ALL_STANDS
    assert json.loads(runs.get_run(home.uri, run_id).tags[names.FILES]).keys() == {
        f"{names.CHECKPOINT}/{CARD}",
        f"{names.CHECKPOINT}/model.safetensors",
    }


def test_a_checkpoint_that_this_user_may_not_read_is_not_taken_for_a_damaged_one(mlflow_uri, tmp_path, monkeypatch):
    home = Home(mlflow_uri, "unread", tmp_path)
    home.tag("training", names.FILES, "{no")

    def refused(uri: str, run_id: str, path: str, into: Path) -> Path:
        raise rest.Refused("403")

    monkeypatch.setattr(damage, "download", refused)
    said: list[str] = []
    assert home.open.repair(say=said.append) == 0
    assert names.WEIGHTS_SHA256 in home.run("training").tags
    assert said[0].endswith("this did not work: 403")


def test_a_restored_run_is_set_aside_where_another_one_took_its_place(mlflow_uri, tmp_path):
    home = Home(mlflow_uri, "restored", tmp_path)
    old = home.run("evaluation")
    rest.post(home.uri, "runs/delete", {"run_id": old.run_id})
    evaluation = home.plan.evaluations[old.key]
    train_run_id = home.run("training").run_id
    new = ledger.record_evaluation(home.tracking, evaluation, {"AP": 12.0}, detections=None, train_run_id=train_run_id)
    rest.post(home.uri, "runs/restore", {"run_id": old.run_id})
    assert home.open.repair(say=lambda _: None) == 1
    assert (home.run("evaluation").run_id, home.missing()) == (new, ALL_STANDS)
    assert runs.get_run(home.uri, old.run_id).tags[names.KIND] == names.SUPERSEDED
