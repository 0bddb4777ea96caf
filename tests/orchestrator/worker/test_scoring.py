"""In which order a checkpoint is scored and shown; what each of the steps gives, other tests hold."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.evaluation.shards import Team
from orchestrator.tracking import rest
from orchestrator.worker import scoring
from orchestrator.worker.training_log import Note, read_log


def task_in(folder: Path) -> Any:
    config = SimpleNamespace(val_split="val")
    run = SimpleNamespace(config=SimpleNamespace(data=config), label="ours")
    evaluations = tuple(SimpleNamespace(split=split) for split in ("test", "val", "test"))
    return SimpleNamespace(
        evaluations=evaluations,
        train_run=run,
        data_root=folder,
        folder=folder,
        tracking_uri="http://127.0.0.1:9",
        hear_run=lambda: "run",
    )


@pytest.mark.parametrize(("rank", "expected"), [(0, ["lab val", "test", "val"]), (1, ["test", "val"])])
def test_the_lab_stands_before_anything_is_recorded_so_that_a_kill_leaves_work_that_comes_by_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, expected: list[str]
) -> None:
    done: list[str] = []

    def read(_: object, __: object, split: str) -> Any:
        return SimpleNamespace(split=split, category_ids=(1,), category_names=("thing",))

    monkeypatch.setattr("model.data.coco.read_for_scoring", read)
    monkeypatch.setattr("model.network.checkpoint.require_categories", lambda *_: None)
    monkeypatch.setattr("model.network.retinanet.load_detector", lambda _: torch.nn.Identity())
    monkeypatch.setattr(scoring, "record_lab", lambda task, detector, data: done.append(f"lab {data.split}"))
    monkeypatch.setattr(scoring, "_score_split", lambda task, folder, detector, data, team: done.append(data.split))
    scoring.score(task_in(tmp_path), tmp_path, Team(rank=rank, size=2), torch.device("cpu"))
    assert done == expected


def test_the_lab_waits_for_a_server_that_is_away_and_is_left_out_for_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    def store(*_: object) -> bool:
        tries.append("")
        if len(tries) == 1:
            raise rest.ServerAway("it does not answer")
        if len(tries) == 3:
            raise ValueError("no lab of this detector")
        return True

    monkeypatch.setattr(scoring, "store_lab", store)
    monkeypatch.setattr("time.sleep", lambda _: None)
    data: Any = SimpleNamespace()
    detector: Any = torch.nn.Identity()
    scoring.record_lab(task_in(tmp_path), detector, data)
    assert len(tries) == 2 and read_log(tmp_path) == []
    scoring.record_lab(task_in(tmp_path), detector, data)
    (entry,) = read_log(tmp_path)
    assert entry.event == Note(text="nothing for the misalignment lab: no lab of this detector")
