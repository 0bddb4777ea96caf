"""What is resampled once is kept, and an evaluation whose matches are lost is left out."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.evaluation.coco_eval import evaluate, match, write_matches
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.report.intervals import NUM_RESAMPLES, resampled
from tests.detections import random_scene, table, write

Fetch = Callable[[str, Path], Path]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, str, float]:
    """A file of matches, its sha256, and the AP of its detections."""
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    write_matches(match(data, table(found)), tmp_path / "matches.parquet")
    sha256 = hashlib.sha256((tmp_path / "matches.parquet").read_bytes()).hexdigest()
    return tmp_path / "matches.parquet", sha256, evaluate(data, table(found))["AP"] or 0.0


def fetcher(file: Path, asked: list[str]) -> Fetch:
    def fetch(run_id: str, into: Path) -> Path:
        asked.append(run_id)
        return Path(shutil.copy(file, into))

    return fetch


def test_evaluations_are_fetched_and_resampled_once(stored: tuple[Path, str, float], tmp_path: Path) -> None:
    file, sha256, ap = stored
    ledger = Ledger(
        evaluations={
            "scored": Record(status="FINISHED", run_id="a", matches=sha256),
            "same": Record(status="FINISHED", run_id="b", matches=sha256),
            "old": Record(status="FINISHED", run_id="c"),
            "failed": Record(status="FAILED", run_id="d", matches=sha256),
        }
    )
    asked: list[str] = []
    keys = ["scored", "old", "failed", "never"]
    first = resampled(ledger, keys, fetcher(file, asked), tmp_path / "kept")
    assert list(first) == ["scored"] and asked == ["a"]
    assert first["scored"].shape == (3, NUM_RESAMPLES)
    assert abs(np.mean(first["scored"][0]) - ap) < 4 * np.std(first["scored"][0]) > 0
    again = resampled(ledger, ["same", *keys], fetcher(file, asked), tmp_path / "kept")
    assert asked == ["a"] and all(np.array_equal(again[key], first["scored"]) for key in ("same", "scored"))
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_nothing_recorded_leaves_nothing_behind(tmp_path: Path) -> None:
    assert resampled(Ledger(), ["never"], fetcher(tmp_path, []), tmp_path / "kept") == {}
    assert not (tmp_path / "kept").exists()


def test_matches_that_are_lost_or_not_those_recorded_leave_an_evaluation_out(
    stored: tuple[Path, str, float], tmp_path: Path
) -> None:
    file, sha256, _ = stored
    other = Ledger(evaluations={"scored": Record(status="FINISHED", run_id="a", matches="0" * 64)})
    assert resampled(other, ["scored"], fetcher(file, []), tmp_path / "kept") == {}

    def lost(run_id: str, into: Path) -> Path:
        raise UserError("it was deleted")

    ledger = Ledger(evaluations={"scored": Record(status="FINISHED", run_id="a", matches=sha256)})
    assert resampled(ledger, ["scored"], lost, tmp_path / "kept") == {}
    assert list(resampled(ledger, ["scored"], fetcher(file, []), tmp_path / "kept")) == ["scored"]
