"""AP of weighted images is that of pycocotools on the data set in which they stand so often."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import METRICS
from model.data.coco import read_coco
from model.evaluation.coco import reweighted
from model.evaluation.coco.matches import MatchTable, match, precisions
from model.evaluation.coco.metrics import evaluate
from model.evaluation.coco.reweighted import LANES, leave_one_out, of_classes, of_sizes, precision_and_recall
from model.inference.table import DetectionTable
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
    for size, numbers_of_size in of_sizes(matches, once).items():
        ours[f"AP{size[0]}"], _, _, ours[f"AR{size[0]}"] = numbers_of_size[:, 0]
    assert ours == pytest.approx({name: numbers[name] for name in ours}, rel=1e-12)


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
    assert_same_numbers(match(data, found), evaluate(data, found))


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
    ours = [precision_and_recall(matches, weights), *of_sizes(matches, weights).values()]
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
def test_leaving_out_an_image_is_giving_it_no_weight(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reweighted, "AT_ONCE", 3)
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
    drawn = np.random.default_rng(seed).multinomial(8, [1 / 8] * 8, size=50).T
    drawn = np.column_stack([drawn, np.ones(8), [0, 0, 0, 0, 0, 0, 0, 8]])
    numbers, classes = of_classes(matches, drawn)
    assert classes.shape == (4, 52) and np.isnan(classes[3]).all()
    assert np.isnan(classes[:, -1]).all() and np.isnan(numbers[0, -1])  # image 8 has no object
    assert numbers[0, :-1] == pytest.approx(np.nanmean(classes[:, :-1], axis=0), rel=1e-12)
    once = 100 * precisions(matches).mean(axis=(0, 1))
    assert classes[:, 50] == pytest.approx(once, rel=1e-12, nan_ok=True)


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


def test_detections_alone_or_objects_alone_are_counted(tmp_path: Path) -> None:
    box = {"bbox": [0.0, 0.0, 50.0, 50.0], "area": 2500.0, "iscrowd": 0, "image_id": 1}
    annotations = [{"id": 1, "category_id": 2, **box}, {"id": 2, "category_id": 5, **box}]
    data, _ = write(tmp_path, annotations, num_images=2)
    found: DetectionTable = table([(1, 2, [0.0, 0.0, 50.0, 50.0], 0.9), (2, 9, [0.0, 0.0, 50.0, 50.0], 0.9)])
    assert precision_and_recall(match(data, found), np.ones((2, 1)))[0, 0] == pytest.approx(
        50.0
    )  # 5 missed, 9 is not there


@pytest.mark.parametrize("number", [1, LANES - 1, LANES, 2 * LANES + 3])
def test_how_many_weightings_there_are_changes_none_of_them(tmp_path: Path, number: int) -> None:
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    matches = match(data, table(found))
    weights = np.random.default_rng(0).multinomial(8, [1 / 8] * 8, size=number).T
    one_by_one = [of_classes(matches, weights[:, [place]]) for place in range(number)]
    for ours, alone in zip(of_classes(matches, weights), zip(*one_by_one, strict=True), strict=True):
        # numpy adds a single column up in another order.
        assert ours == pytest.approx(np.concatenate(alone, axis=1), rel=1e-12, nan_ok=True)
