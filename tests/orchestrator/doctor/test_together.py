"""How `rnc doctor` judges machines against each other; what was seen is made up here."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.doctor import together

VERSIONS = {
    "python": "3.11.7",
    "torch": "2.15.0",
    "torchvision": "0.30",
    "ray": "2.60.0",
    "numpy": "2.3",
    "sources": "a",
}


def levels(found: Any) -> list[str]:
    return [one.level for one in found]


def machines(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Three machines that are alike; `c` has these facts instead."""
    alike = {
        "versions": VERSIONS,
        "data": {"coco val2017": {"sha256": "01", "images": 5000}},
        "weights": {"r50.pth": {"sha256": "23"}},
        "gpus": {"devices": [{"name": "H100"}]},
    }
    return {"a": alike, "b": alike, "c": alike | changes}


def test_machines_that_are_alike_are_green():
    assert levels(together.judge_versions_agree(machines())) == ["ok"]
    assert levels(together.judge_files_agree(machines())) == ["ok", "ok"]
    assert levels(together.judge_gpus_agree(machines(), {"a": 1.0, "b": 1.0, "c": 1.0})) == []


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("python", "3.12.1", "fail"),
        ("torch", "2.14.0", "fail"),
        ("ray", "2.59.0", "fail"),
        ("sources", "b", "fail"),
        ("torchvision", None, "fail"),
        ("numpy", "2.2", "warn"),
    ],
)
def test_another_version_on_one_machine_is_named(name: str, version: str | None, level: str):
    (found,) = together.judge_versions_agree(machines(versions=VERSIONS | {name: version}))
    assert found.level == level
    assert found.seen == f"{name} differs: {VERSIONS[name] if name != 'python' else '3.11'} on 2, but " + (
        f"{'none' if version is None else '3.12' if name == 'python' else version} on c"
    )


def test_a_patch_release_of_python_makes_no_difference():
    assert levels(together.judge_versions_agree(machines(versions=VERSIONS | {"python": "3.11.9"}))) == ["ok"]


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        ("data", {"coco val2017": {"sha256": "99", "images": 5000}}),
        ("data", {"coco val2017": {"sha256": "01", "images": 4999}}),
        ("weights", {"r50.pth": {"sha256": "99"}}),
    ],
)
def test_other_files_on_one_machine_are_red(kind: str, there: dict[str, Any]):
    found = [one for one in together.judge_files_agree(machines(**{kind: there})) if one.level != "ok"]
    assert [(one.check, one.level) for one in found] == [(f"{kind} agree", "fail")]
    assert found[0].seen.endswith("on c")


def test_what_a_machine_lacks_is_no_difference():
    lacking = machines(data={"coco val2017": {"missing": "/x"}}, weights={"error": "OSError"})
    assert levels(together.judge_files_agree(lacking)) == ["ok", "ok"]


def test_ray_must_not_give_away_gpus_that_are_not_there():
    assert levels(together.judge_gpus_agree(machines(), {"a": 2.0})) == ["fail"]
    assert levels(together.judge_gpus_agree(machines(), {"a": 0.0})) == ["warn"]
    halves = machines(gpus={"devices": [{"name": "H100"}], "ray_counts": 2})  # two MIG instances of one board
    assert not levels(together.judge_gpus_agree(halves, {"c": 2.0}))
    assert levels(together.judge_gpus_agree(halves, {"c": 3.0})) == ["fail"]
    other = machines(gpus={"devices": [{"name": "A100"}]})
    assert levels(together.judge_gpus_agree(other, dict.fromkeys("abc", 1.0))) == ["warn"]


def test_a_node_that_does_not_answer_is_red_and_one_that_left_is_yellow():
    assert levels(together.judge_lost({"a": "no answer within 90 s"}, ["b"])) == ["fail", "warn"]
    assert levels(together.judge_clocks({"a": 0.1, "b": 3.0, "c": 100.0})) == ["ok", "warn", "fail"]


def test_nodes_that_do_not_reach_one_another_are_red():
    reduced = together.Reduced(backend="gloo", where=("a", "b"), seconds=0.5)
    problems = [reduced, replace(reduced, skipped="no GPU is free"), replace(reduced, problem="timed out")]
    assert levels(together.judge_reduced(problems)) == ["ok", "warn", "fail"]


def test_a_cluster_without_tokens_is_red():
    url = "http://10.0.0.1:8265"
    assert levels(together.judge_tokens({"a": "token"}, url, False)) == ["ok", "ok"]
    assert levels(together.judge_tokens({"a": "token", "b": "disabled"}, url, True)) == ["fail", "fail"]
    assert levels(together.judge_tokens({"a": "token"}, "", None)) == ["ok"]
