"""How `rnc doctor` judges what was seen of one machine, and how it shows that; what was seen is made up here."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.doctor.machine import Finding, exit_code, findings_table, is_older, judge_machine, judge_skew, merged
from orchestrator.figures.page import render

GB = 10**9
SOUND: dict[str, Any] = {
    "host": "any",
    "versions": {"python": "3.11.7", "torch": "2.15.0+cu132", "ray": "2.60.0", "mlflow": "3.17.2", "sources": "a"},
    "gpus": {
        "devices": [{"name": "H100", "total": 80 * GB, "used": GB, "pids": []}],
        "driver": "580.1",
        "torch_sees": 1,
    },
    "shm": {"total": 8 * GB, "free": 7 * GB},
    "disks": {"RNC_HOME": {"path": "/shared/runs", "free": 500 * GB, "total": 1000 * GB}},
    "storage": {
        "path": "/shared/runs",
        "write_mb_per_s": 300.0,
        "read_mb_per_s": 500.0,
        "same": True,
        "listed": True,
        "deleted": True,
        "shared": True,
    },
    "data": {"/data/coco val2017": {"sha256": "0123", "images": 5000}},
    "weights": {"resnet50.pth": {"sha256": "4567"}},
    "mlflow": {"uri": "http://mlflow:5000", "skew": 0.2, "version": "3.17.2", "open": False},
    "listeners": {
        "0.0.0.0:6379": {"service": "ray", "open": None},
        "0.0.0.0:5000": {"service": "mlflow", "open": False},
    },
}


def broken(change: Callable[[Any], object]) -> dict[str, Any]:
    facts = copy.deepcopy(SOUND)
    change(facts)
    return facts


def test_a_sound_machine_is_green_throughout():
    found = judge_machine("node a", SOUND)
    assert {finding.level for finding in found} == {"ok"}
    assert {finding.where for finding in found} == {"node a"}
    assert exit_code(found) == 0


@pytest.mark.parametrize(
    ("check", "level", "change", "says"),
    [
        ("versions", "fail", lambda f: f["versions"].update(torch="2.9.1+cpu"), "CVE-2026-24747"),
        ("versions", "fail", lambda f: f["versions"].update(ray="2.51.2"), "CVE-2025-62593"),
        ("versions", "fail", lambda f: f["versions"].update(mlflow="3.16.9"), "CVE-2026-116690"),
        ("versions", "fail", lambda f: f["versions"].update(mlflow=None), "mlflow is not installed"),
        ("gpus", "fail", lambda f: f["gpus"].update(torch_sees=0), "torch can use none"),
        ("gpus", "warn", lambda f: f["gpus"]["devices"][0].update(used=9 * GB, pids=[77]), "9.0 GB (process 77)"),
        ("/dev/shm", "fail", lambda f: f["shm"].update(total=64_000_000, free=64_000_000), "0.06 of 0.06 GB"),
        ("/dev/shm", "warn", lambda f: f["shm"].update(total=GB // 2, free=GB // 2), "0.50 of 0.50 GB"),
        ("disk of RNC_HOME", "fail", lambda f: f["disks"]["RNC_HOME"].update(free=GB // 2), "free"),
        ("disk of RNC_HOME", "warn", lambda f: f["disks"]["RNC_HOME"].update(free=49 * GB), "49 of 1000 GB free"),
        ("storage", "fail", lambda f: f["storage"].update(same=False), "read back with other content"),
        ("storage", "fail", lambda f: f["storage"].update(listed=False), "not listed"),
        ("storage", "fail", lambda f: f["storage"].update(deleted=False), "not deleted"),
        ("storage", "warn", lambda f: f["storage"].update(write_mb_per_s=3.0), "write 3 MB/s"),
        ("storage", "fail", lambda f: f.update(storage={"error": "OSError: read-only"}), "read-only"),
        ("storage is shared", "fail", lambda f: f["storage"].update(shared=False), "is not there"),
        ("data", "fail", lambda f: f.update(data={"x": {"missing": "/data/x.json"}}), "/data/x.json is not there"),
        ("weights", "fail", lambda f: f.update(weights={"a": {"missing": "/w/a"}}), "/w/a is not there"),
        ("mlflow", "fail", lambda f: f.update(mlflow={"uri": "u", "away": "gone"}), "gone"),
        ("mlflow", "fail", lambda f: f["mlflow"].update(refused="wants a password"), "wants a password"),
        ("mlflow version", "fail", lambda f: f["mlflow"].update(version="3.5.0"), "CVE-2026-116690"),
        ("clock of MLflow", "warn", lambda f: f["mlflow"].update(skew=5.0), "5.0 s off"),
        ("clock of MLflow", "fail", lambda f: f["mlflow"].update(skew=500.0), "500.0 s off"),
        ("ports", "fail", lambda f: f["listeners"]["0.0.0.0:5000"].update(open=True), "mlflow on 0.0.0.0:5000"),
    ],
)
def test_what_is_not_right_is_told_with_a_way_out(check: str, level: str, change: Callable[[Any], object], says: str):
    found = judge_machine("node a", broken(change))
    wrong = [finding for finding in found if finding.level != "ok"]
    assert [(finding.check, finding.level) for finding in wrong] == [(check, level)]
    assert says in wrong[0].seen
    assert wrong[0].way_out
    assert exit_code(found) == (level == "fail")


def test_a_machine_without_gpu_shared_memory_and_mlflow_is_green():
    def bare(facts: Any) -> None:
        facts.update(gpus={"devices": []}, shm={}, mlflow={}, listeners={})

    assert {finding.level for finding in judge_machine("driver", broken(bare))} == {"ok"}


@pytest.mark.parametrize(
    ("version", "bound", "older"),
    [
        ("2.9.1", "2.10", True),
        ("2.10.0", "2.10", False),
        ("2.10", "2.10", False),
        ("2.15.0+cu132", "2.10", False),
        ("3.17.0rc1", "3.17", False),
        ("3.16.12.dev0", "3.17", True),
        ("10.0", "9.9", False),
    ],
)
def test_versions_are_compared_by_number(version: str, bound: str, older: bool):
    assert is_older(version, bound) is older


def test_a_clock_is_yellow_from_two_seconds_and_red_from_a_minute():
    assert [judge_skew("clock", "a", skew).level for skew in (0.0, 2.0, 2.1, 60.1)] == ["ok", "ok", "warn", "fail"]


def finding(check: str, where: str, level: Any, seen: str = "seen") -> Finding:
    return Finding(check=check, where=where, level=level, seen=seen, way_out="" if level == "ok" else "the way out")


def test_what_is_not_green_needs_a_way_out():
    with pytest.raises(ValueError, match="without a way out"):
        Finding(check="any", where="driver", level="warn", seen="something")


def test_for_people_what_is_alike_stands_once_and_the_worst_of_a_check_first():
    found = [
        finding("one", "a", "ok"),
        finding("two", "a", "ok"),
        finding("one", "b", "ok"),
        finding("one", "c", "fail"),
    ]
    assert [(one.check, one.where, one.level) for one in merged(found)] == [
        ("one", "c", "fail"),
        ("one", "a, b", "ok"),
        ("two", "a", "ok"),
    ]
    text = render(findings_table(found, for_people=True), "text")
    assert text.splitlines()[0] == "rnc doctor: 3 green, 1 red"
    assert "red: one, c: the way out" in text


def test_what_is_long_or_of_many_machines_is_cut_and_told_whole_below():
    found = [finding("one", f"n{place}", "fail", seen="word " * 40) for place in range(9)]
    text = render(findings_table(found, for_people=True), "text")
    (line,) = (line for line in text.splitlines() if line.startswith("one"))
    assert "n0, n1, n2 and 6 others" in line and line.endswith("…") and len(line) < 125
    assert "word " * 39 in text


def test_for_programs_every_finding_is_a_row():
    found = [finding("one", "a", "ok"), finding("one", "b", "warn")]
    rows = json.loads(render(findings_table(found, for_people=False), "json"))["rows"]
    assert [(row["where"], row["state"], row["way out"]) for row in rows] == [
        ("a", "green", None),
        ("b", "yellow", "the way out"),
    ]
