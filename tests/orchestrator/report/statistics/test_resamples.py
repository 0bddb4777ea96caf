"""AP of resampled images is that of pycocotools on the data set so resampled, and kept."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import METRICS
from model.data.cache import file_sha256
from model.data.coco import read_coco
from model.evaluation.coco_eval import MatchTable, evaluate, match, precisions, read_matches, write_matches
from model.inference.table import DetectionTable
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.report.statistics.resamples import (
    NUM_RESAMPLES,
    ROWS,
    Fetch,
    class_samples,
    leave_one_out,
    of_classes,
    precision_and_recall,
    resample,
    resampled,
    resampled_classes,
)
from tests.detections import matches_of, pycocotools_numbers, random_scene, table, write

Row = tuple[int, int, list[float], float]


def untied(rows: list[Row], seed: int) -> list[Row]:
    """The same detections, none of one image and category with the score of another."""
    scores = np.random.default_rng(seed).permutation(len(rows)) / len(rows)
    return [(image, category, box, float(score)) for (image, category, box, _), score in zip(rows, scores, strict=True)]


def drawn(
    annotations: list[dict[str, Any]], found: list[Row], weights: list[int]
) -> tuple[list[dict[str, Any]], list[Row]]:
    """The data set in which image i stands weights[i - 1] times, under new ids, with its detections."""
    images = [image for image, weight in enumerate(weights, start=1) for _ in range(weight)]
    truth = [
        row | {"image_id": new} for new, old in enumerate(images, 1) for row in annotations if row["image_id"] == old
    ]
    boxes = [(new, *row[1:]) for new, old in enumerate(images, 1) for row in found if row[0] == old]
    return [row | {"id": id} for id, row in enumerate(truth, start=1)], boxes


def assert_same_numbers(matches: MatchTable, numbers: Mapping[str, float | None]) -> None:
    """All ten metrics, where every image counts once."""
    once = np.ones((matches.num_images, 1))
    ours = dict(zip(("AP", "AP50", "AP75", "AR100"), precision_and_recall(matches, once)[:, 0], strict=True))
    for size, of_size in matches.by_size.items():
        ours[f"AP{size[0]}"], _, _, ours[f"AR{size[0]}"] = precision_and_recall(of_size, once)[:, 0]
    assert ours == pytest.approx({name: numbers[name] for name in ROWS if name.startswith("A")}, rel=1e-12)


def test_unit_weights_give_the_measured_ap(tmp_path: Path) -> None:
    for seed in range(6):
        annotations, found = random_scene(seed)
        (tmp_path / str(seed)).mkdir()
        data, _ = write(tmp_path / str(seed), annotations, num_images=8)
        numbers = evaluate(data, table(found))
        assert_same_numbers(match(data, table(found)), numbers)


def test_unit_weights_give_the_measured_ap_of_a_real_detector(coco_root: Path) -> None:
    data = read_coco(coco_root, "val2017", check_images=False)
    rows = json.loads((coco_root / "results" / "yolov5s_val2017_bbox.json").read_text())
    found = table([(row["image_id"], row["category_id"], row["bbox"], row["score"]) for row in rows])
    numbers = evaluate(data, found)
    matches = match(data, found)
    assert_same_numbers(matches, numbers)
    weights = resample(len(data), 30)
    assert precision_and_recall(matches, weights) == pytest.approx(
        precision_and_recall(matches, weights.astype(np.float64)), rel=1e-6
    )


@pytest.mark.parametrize("seed", range(4))
def test_ap_of_a_resample_is_that_of_pycocotools_on_the_images_so_drawn(tmp_path: Path, seed: int) -> None:
    annotations, tied = random_scene(seed)
    found = untied(tied, seed)
    (tmp_path / "all").mkdir()
    data, _ = write(tmp_path / "all", annotations, num_images=8)
    weights = (
        np.random.default_rng(seed).multinomial(8, [1 / 8] * 8, size=8).T.astype(np.float64)
    )  # [images, resamples]
    weights[:, 0] = [0, 3, 0, 0, 0, 5, 0, 0]
    weights[:, 1] = [20, 0, 40, 0, 0, 0, 7, 13]  # so many that recall passes hundredths in steps of some
    matches = match(data, table(found))
    ours = [precision_and_recall(one, weights) for one in (matches, *matches.by_size.values())]
    for place, column in enumerate(weights.T.astype(int).tolist()):
        root = tmp_path / str(place)
        root.mkdir()
        truth, boxes = drawn(annotations, found, column)
        _, file = write(root, truth, num_images=sum(column))
        theirs = dict(zip(METRICS, 100 * pycocotools_numbers(file, table(boxes)), strict=True))
        assert ours[0][:, place] == pytest.approx([theirs[n] for n in ("AP", "AP50", "AP75", "AR100")], rel=1e-12)
        for size, numbers in zip("sml", ours[1:], strict=True):
            by_size = [np.nan if theirs[name] < 0 else theirs[name] for name in (f"AP{size}", f"AR{size}")]
            assert numbers[[0, 3], place] == pytest.approx(by_size, rel=1e-12, nan_ok=True), (size, column)


@pytest.mark.parametrize("seed", range(4))
def test_leaving_out_an_image_is_giving_it_no_weight(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    data, _ = write(tmp_path, annotations, num_images=8)
    matches = match(data, table(found))
    weights = np.column_stack([1 - np.eye(8), np.ones(8)])
    np.testing.assert_allclose(leave_one_out(matches), precision_and_recall(matches, weights)[:3], rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_the_mean_of_its_classes_in_every_resample(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    data, _ = write(tmp_path, annotations, num_images=8)
    matches = match(data, table(found))
    drawn = np.column_stack([resample(8, 50).astype(np.float64), np.ones(8), [0, 0, 0, 0, 0, 0, 0, 8]])
    numbers, classes = of_classes(matches, drawn)
    assert classes.shape == (4, 52) and np.isnan(classes[3]).all()
    assert np.isnan(classes[:, -1]).all() and np.isnan(numbers[0, -1])  # image 8 has no object
    assert numbers[0, :-1] == pytest.approx(np.nanmean(classes[:, :-1], axis=0), rel=1e-12)
    once = 100 * precisions(matches).mean(axis=(0, 1))
    assert classes[:, 50] == pytest.approx(once, rel=1e-12, nan_ok=True)
    counted = class_samples(matches)
    assert np.array_equal(counted.resampled, of_classes(matches, resample(8))[1].astype(np.float32), equal_nan=True)


def test_two_images_by_hand() -> None:
    """Image A: two objects, its detection at 0.9 is wrong and at 0.7 true; image B: one object, found at 0.8.

    A and B:   wrong, true, true: precisions 0, 1/2, 2/3 at recalls 0, 1/3, 2/3; envelope 2/3 up to recall 0.66, which
               are 67 of the 101 points.
    A twice:   wrong twice, true twice, of four objects: 2/4 at recall 1/2, 51 points.
    B twice:   two objects, both found: precision 1 everywhere.
    """
    matches = matches_of([[0.9, 0.7], [0.8]], [[0, 1023], [1023]], [2, 1])
    ap = precision_and_recall(matches, np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 2.0]]))[:3]
    by_hand = [100 * 67 * (2 / 3) / 101, 100 * 51 * (2 / 4) / 101, 100.0]
    assert ap.tolist() == [pytest.approx(by_hand)] * 3


def test_a_recall_that_rounding_keeps_from_its_hundredth_counts_as_in_coco() -> None:
    """7 of 20 found at precision 1 is recall 0.35, which is below COCO's 0.35000000000000003: 35 points, not 36."""
    matches = matches_of([[0.9]] * 7 + [[]] * 13, [[1023]] * 7 + [[]] * 13, [1] * 20)
    assert precision_and_recall(matches, np.ones((20, 1)))[0] == pytest.approx(100 * 35 / 101)


def test_a_detection_ignored_at_some_thresholds_counts_at_the_others() -> None:
    """A wrong detection before the true one halves precision; on a crowd up to 0.7 it does so from 0.75 on alone."""
    matches = replace(matches_of([[0.9, 0.8]], [[0, 1023]], [1]), ignored=np.array([0b0000011111, 0], np.uint16))
    ap, ap50, ap75, _ = precision_and_recall(matches, np.ones((1, 1)))[:, 0].tolist()
    assert (ap, ap50, ap75) == pytest.approx((75.0, 100.0, 50.0))


def test_a_resample_without_any_object_has_no_ap() -> None:
    matches = matches_of([[0.9], [0.8]], [[1023], [0]], [1, 0])
    assert np.isnan(precision_and_recall(matches, np.array([[0.0], [2.0]]))).all()


def test_resamples_draw_as_many_images_as_there_are_and_are_the_same_again() -> None:
    weights = resample(50, 400, seed=3)
    assert weights.shape == (50, 400) and weights.sum(axis=0).tolist() == [50.0] * 400
    assert np.array_equal(weights, resample(50, 400, seed=3)) and not np.array_equal(weights, resample(50, 400, seed=4))
    assert weights.std() == pytest.approx(0.99, abs=0.03)  # binomial of 50 draws at 1/50: root of 0.98
    assert len({column.tobytes() for column in weights.T}) == 400


def test_detections_alone_or_objects_alone_are_counted(tmp_path: Path) -> None:
    box = {"bbox": [0.0, 0.0, 50.0, 50.0], "area": 2500.0, "iscrowd": 0, "image_id": 1}
    annotations = [{"id": 1, "category_id": 2, **box}, {"id": 2, "category_id": 5, **box}]
    data, _ = write(tmp_path, annotations, num_images=2)
    found: DetectionTable = table([(1, 2, [0.0, 0.0, 50.0, 50.0], 0.9), (2, 9, [0.0, 0.0, 50.0, 50.0], 0.9)])
    assert precision_and_recall(match(data, found), np.ones((2, 1)))[0, 0] == pytest.approx(
        50.0
    )  # 5 missed, 9 is not there


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
