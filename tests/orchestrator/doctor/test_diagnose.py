"""What experiments need, whether it finds room, and `rnc doctor` from the call to the exit code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model.config import TrainConfig
from orchestrator.cli.main import cli
from orchestrator.cluster.capacity import Cluster
from orchestrator.doctor.diagnose import diagnose, judge_fit, judge_space, needs_of
from orchestrator.doctor.finding import Finding
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.rows import Resources, Row
from orchestrator.site import Site
from tests.data_folders import coco_json, picture
from tests.suites import TRAIN, experiment_of


def levels(found: Any) -> list[str]:
    return [one.level for one in found]


def coco_experiment(weights: str | None = None) -> Experiment:
    config = TrainConfig()
    row = Row(label="row", train=replace(config, model=replace(config.model, backbone_weights=weights)), split="mine")
    return Experiment(name="any", suite="any", title="Any", rows=(row,), path=Path("any.yaml"))


def test_experiments_need_the_splits_and_files_that_they_name(tmp_path: Path):
    site = Site(home=tmp_path / "runs", coco_root=tmp_path, weights_root=tmp_path)
    needs = needs_of([coco_experiment("r50.pth")], site)
    assert needs.splits == ((tmp_path, "train2017"), (tmp_path, "val2017"), (tmp_path, "mine"))
    assert needs.weights == (tmp_path / "r50.pth",)
    assert needs.findings == ()


def test_without_experiments_the_splits_that_are_there_are_looked_at_and_of_coco_the_papers(tmp_path: Path):
    def splits(root: Path) -> list[str]:
        return [split for _, split in needs_of([], Site(home=tmp_path / "runs", coco_root=root)).splits]

    mine, coco = tmp_path / "mine", tmp_path / "coco"
    for root, names in ((mine, ("train", "val")), (coco, ("train2017", "minival"))):
        for name in names:
            coco_json(root / "annotations" / f"instances_{name}.json", ["1.jpg"])
            picture(root / name / "1.jpg")
    assert splits(mine) == ["train", "val"]
    assert splits(coco) == ["train2017", "val2017"]
    (tmp_path / "empty").mkdir()
    assert splits(tmp_path / "empty") == ["train2017", "val2017"]


def test_a_site_that_does_not_name_what_experiments_need_is_red(tmp_path: Path):
    needs = needs_of([coco_experiment("r50.pth")], Site(home=tmp_path))
    assert [(one.check, one.level) for one in needs.findings] == [("data", "fail"), ("weights", "fail")]


def test_experiments_that_find_no_room_are_red(tmp_path: Path):
    tiny = experiment_of("tiny", TRAIN, resources=Resources(num_workers=4))
    assert levels(judge_fit([tiny], Cluster(nodes=({"CPU": 4.0},)))) == ["ok"]
    assert levels(judge_fit([tiny], Cluster(nodes=({"CPU": 2.0},)))) == ["fail"]
    assert levels(judge_space([tiny], tmp_path, free=10**12)) == ["ok"]
    assert levels(judge_space([tiny], tmp_path, free=1000)) == ["fail"]


def test_a_laptop_with_nothing_set_is_green_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("orchestrator.doctor.machine.listeners", dict)  # those of whoever runs the tests
    said: list[str] = []
    found = diagnose([experiment_of("tiny", TRAIN)], Site(home=tmp_path / "runs"), said.append)
    red: list[Finding] = [one for one in found if one.level == "fail"]
    assert red == []
    assert list(tmp_path.iterdir()) == []
    told = " ".join(one.seen for one in found)
    assert "is started by the first submit" in told and "are drawn to" in told
    assert said == ["Looking at this machine ..."]


def test_a_cluster_that_does_not_answer_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.doctor.machine.listeners", dict)
    found = diagnose([], Site(home=tmp_path, ray_address="127.0.0.1:1"), lambda _: None)
    assert [(one.check, "does not answer" in one.seen) for one in found if one.level == "fail"] == [("ray", True)]


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_verb_prints_json_and_exits_by_the_worst(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str, code: int
):
    found = Finding(check="any", where="driver", level=level, seen="seen", way_out="out")  # type: ignore[arg-type]
    monkeypatch.setattr("orchestrator.doctor.diagnose.diagnose", lambda *_: [found])
    done = CliRunner().invoke(cli, ["doctor", "--format", "json"], env={"RNC_HOME": str(tmp_path), "RAY_ADDRESS": ""})
    assert done.exit_code == code
    assert json.loads(done.stdout)[0]["rows"][0]["seen"] == "seen"


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["no-such.yaml"], ["--env", "A=B"]])
def test_a_mistake_in_the_call_exits_with_two(tmp_path: Path, arguments: list[str]):
    done = CliRunner().invoke(cli, ["doctor", *arguments], env={"RNC_HOME": str(tmp_path), "RAY_ADDRESS": ""})
    assert done.exit_code == 2
