"""What is resampled is kept, by the matches it was counted from, and counted again where it is lost."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.data.cache import file_sha256
from model.evaluation.coco.matches import match, read_matches, write_matches
from model.evaluation.coco.metrics import evaluate
from model.evaluation.coco.reweighted import of_classes, precision_and_recall
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.report.statistics.resamples import (
    NUM_RESAMPLES,
    ROWS,
    Fetch,
    class_samples,
    resample,
    resampled,
    resampled_classes,
)
from orchestrator.tracking.rest import Refused, ServerAway
from tests.detections import random_scene, table, write


def test_resamples_draw_as_many_images_as_there_are_and_are_the_same_again() -> None:
    weights = resample(50, 400, seed=3)
    assert weights.shape == (50, 400) and weights.sum(axis=0).tolist() == [50.0] * 400
    assert np.array_equal(weights, resample(50, 400, seed=3)) and not np.array_equal(weights, resample(50, 400, seed=4))
    assert weights.std() == pytest.approx(0.99, abs=0.03)  # binomial of 50 draws at 1/50: root of 0.98
    assert len({column.tobytes() for column in weights.T}) == 400


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
    assert first["scored"].shape == (6, NUM_RESAMPLES)
    with_objects = read_matches(file)
    counted = len(set(with_objects.images[with_objects.num_truths > 0].tolist()))
    assert [set(first["scored"][ROWS.index(name)]) for name in ("num_images", "num_with_objects")] == [{8.0}, {counted}]
    assert abs(np.mean(first["scored"][0]) - ap) < 4 * np.std(first["scored"][0]) > 0
    again = resampled(ledger, ["same", *keys], fetcher(file, asked), tmp_path / "kept")
    assert asked == ["a"] and all(np.array_equal(again[key], first["scored"]) for key in ("same", "scored"))
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_sizes_are_resampled_when_they_are_asked_for_and_beside_what_is_there(
    stored: tuple[Path, str, float], tmp_path: Path
) -> None:
    file, sha256, _ = stored
    ledger = Ledger(evaluations={"scored": Record(status="FINISHED", run_id="a", matches=sha256)})
    asked: list[str] = []
    few = resampled(ledger, ["scored"], fetcher(file, asked), tmp_path / "kept")["scored"]
    written = {one.name: one.stat().st_mtime_ns for one in (tmp_path / "kept").iterdir()}
    many = resampled(ledger, ["scored"], fetcher(file, asked), tmp_path / "kept", by_size=True)["scored"]
    again = resampled(ledger, ["scored"], fetcher(file, asked), tmp_path / "kept", by_size=True)["scored"]
    assert asked == ["a", "a"] and many.shape == (len(ROWS), NUM_RESAMPLES)
    assert np.array_equal(many[:6], few) and np.array_equal(many, again, equal_nan=True)
    assert all((tmp_path / "kept" / name).stat().st_mtime_ns == at for name, at in written.items())
    matches = read_matches(file)
    drawn = resample(8)
    assert np.array_equal(
        many[ROWS.index("ARm")], precision_and_recall(matches.by_size["medium"], drawn)[3], equal_nan=True
    )
    old = tmp_path / "old.parquet"
    write_matches(replace(matches, by_size={}), old)
    ledger = Ledger(evaluations={"old": Record(status="FINISHED", run_id="a", matches=file_sha256(old))})
    without = resampled(ledger, ["old"], fetcher(old, asked), tmp_path / "kept", by_size=True)["old"]
    assert np.array_equal(without, few)


def test_classes_are_counted_in_the_same_pass_or_beside_what_is_there(
    stored: tuple[Path, str, float], tmp_path: Path
) -> None:
    file, sha256, _ = stored
    ledger = Ledger(evaluations={"scored": Record(status="FINISHED", run_id="a", matches=sha256)})
    asked: list[str] = []
    fetch = fetcher(file, asked)
    plain = resampled(ledger, ["scored"], fetch, tmp_path / "later")["scored"]
    later = resampled_classes(ledger, ["scored", "never"], fetch, tmp_path / "later")
    assert asked == ["a", "a"] and list(later) == ["scored"]
    both = resampled(ledger, ["scored"], fetch, tmp_path / "at once", by_class=True)["scored"]
    at_once = resampled_classes(ledger, ["scored"], fetch, tmp_path / "at once")["scored"]
    assert asked == ["a", "a", "a"] and np.array_equal(plain, both)
    expected = class_samples(read_matches(file))
    assert np.array_equal(
        expected.resampled, of_classes(read_matches(file), resample(8))[1].astype(np.float32), equal_nan=True
    )
    for found in (later["scored"], at_once):
        assert (found.ids, found.names) == (expected.ids, expected.names) == ((2, 5, 9, 11), expected.names)
        for name in ("num_objects", "num_images", "precision", "resampled"):
            assert np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=True), name


def test_a_file_that_a_power_cut_left_empty_or_short_is_made_again(
    stored: tuple[Path, str, float], tmp_path: Path
) -> None:
    file, sha256, _ = stored
    ledger = Ledger(evaluations={"scored": Record(status="FINISHED", run_id="a", matches=sha256)})
    kept, asked = tmp_path / "kept", list[str]()
    first = resampled(ledger, ["scored"], fetcher(file, asked), kept, by_class=True)["scored"]
    ap = resampled_classes(ledger, ["scored"], fetcher(file, asked), kept)["scored"].resampled
    for left in (0, 100, -1):
        for one in kept.iterdir():
            one.write_bytes(one.read_bytes()[:left])
        assert np.array_equal(resampled(ledger, ["scored"], fetcher(file, asked), kept)["scored"], first)
        again = resampled_classes(ledger, ["scored"], fetcher(file, asked), kept)["scored"]
        assert np.array_equal(again.resampled, ap, equal_nan=True)
    assert len(asked) == 1 + 2 * 3


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


@pytest.mark.parametrize("error", [ServerAway("it does not answer"), Refused("403")])
def test_matches_that_mlflow_does_not_give_now_or_to_this_user_are_not_lost_ones(
    stored: tuple[Path, str, float], tmp_path: Path, error: UserError
) -> None:
    file, sha256, _ = stored

    def away(run_id: str, into: Path) -> Path:
        raise error

    ledger = Ledger(evaluations={"scored": Record(status="FINISHED", run_id="a", matches=sha256)})
    for read in (resampled, resampled_classes):
        with pytest.raises(type(error), match=str(error)):
            read(ledger, ["scored"], away, tmp_path / "kept")
    first = resampled(ledger, ["scored"], fetcher(file, []), tmp_path / "kept")
    assert np.array_equal(resampled(ledger, ["scored"], away, tmp_path / "kept")["scored"], first["scored"])
