"""The programme for a GPU runs on a machine without one, where it is small."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from model.config import AssignmentConfig, BoxConfig, ClassificationConfig, InferenceConfig, ModelConfig

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_part_of_the_programme_runs_and_says_something(tmp_path: Path) -> None:
    output = tmp_path / "lines.jsonl"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    said = [json.loads(line) for line in output.read_text().splitlines()]
    timed = {"step", "methods", "assigning", "losses", "shapes", "profile", "whole", "theirs", "scoring"}
    assert {one["part"] for one in said} == {"environment", "correct", "repeat"} | timed
    assert all("failed" not in one for one in said)
    correct = [one for one in said if one["part"] == "correct"]
    assert all(one["losses"] == one["expected"] for one in correct)
    assert all(one["same_bits"] for one in said if one["part"] == "repeat")
    assert {one["settings"] for one in said if one["part"] == "scoring" and one["kind"] == "pass"} >= {
        "20 exponents", "top k of pairs", "product, filtered", "suppressions",
    }  # fmt: skip


def test_an_unknown_part_is_refused_with_those_that_there_are() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no part is called speed" in done.stderr
    assert "scoring" in done.stderr


def test_each_assignment_loss_and_suppression_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    gpu = import_module("gpu")
    models = [ModelConfig(**settings) for settings in gpu.METHODS.values()] + [ModelConfig()]
    assert {model.assignment.kind for model in models} == _choices(AssignmentConfig, "kind") == set(gpu.ASSIGNERS)
    assert {model.classification.loss for model in models} == _choices(ClassificationConfig, "loss")
    assert {model.classification.quality for model in models} == _choices(ClassificationConfig, "quality")
    assert {model.box.loss for model in models} == _choices(BoxConfig, "loss")
    timed = [ModelConfig(**settings) for settings in gpu.LOSSES.values()]
    assert {model.classification.loss for model in timed} == _choices(ClassificationConfig, "loss")
    assert {model.box.loss for model in timed} == _choices(BoxConfig, "loss")
    assert {"nms", *gpu.SUPPRESSIONS} == _choices(InferenceConfig, "suppression")


def _choices(config: type, setting: str) -> set[str]:
    return set(get_args(get_type_hints(config)[setting]))


def test_what_is_compared_with_the_cpu_runs_by_cudnn_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32
    with import_module("gpu")._without_tf32():
        assert (cudnn.enabled, cudnn.allow_tf32) == (True, False)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32) == before
