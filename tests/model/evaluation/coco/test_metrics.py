"""The twelve COCO numbers, bit for bit those of pycocotools."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.config import METRICS
from model.data.coco import read_coco
from model.evaluation.coco.matches import match
from model.evaluation.coco.metrics import evaluate
from model.inference.table import DetectionTable
from tests.detections import around, border_scene, pycocotools_numbers, random_scene, table, write


def assert_same_bits(ours: dict[str, float | None], theirs: NDArray[np.float64]) -> None:
    assert tuple(ours) == METRICS
    assert list(ours.values()) == [None if value == -1 else 100.0 * value for value in theirs.tolist()]


def test_a_real_detectors_numbers_are_those_of_pycocotools(coco_root: Path) -> None:
    data = read_coco(coco_root, "val2017", check_images=False)
    results = coco_root / "results" / "yolov5s_val2017_bbox"
    found = [
        (row["image_id"], row["category_id"], row["bbox"], row["score"])
        for row in json.loads(results.with_suffix(".json").read_text())
    ]
    ours = evaluate(data, table(found))
    assert_same_bits(ours, pycocotools_numbers(coco_root / "annotations" / "instances_val2017.json", table(found)))
    stored = json.loads(results.with_suffix(".stats.json").read_text())
    # The stored numbers are of float64 boxes and scores.
    assert ours == pytest.approx({name: 100 * stored[name] for name in METRICS}, abs=2e-3)


def test_the_coco_apis_own_example_gives_its_published_numbers(coco_root: Path, tmp_path: Path) -> None:
    truth_file = coco_root / "eval2014" / "instances_val2014_100.json"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").symlink_to(truth_file)
    data = read_coco(tmp_path, "val2014", check_images=False)
    results = json.loads((coco_root / "eval2014" / "instances_val2014_fakebbox100_results.json").read_text())
    found = table([(row["image_id"], row["category_id"], row["bbox"], row["score"]) for row in results])
    assert_same_bits(evaluate(data, found), pycocotools_numbers(truth_file, found))
    # Some of these boxes lie exactly on an IoU threshold, from which a detector's float32 would move them.
    corners = np.array([row["bbox"] for row in results])
    corners[:, 2:] += corners[:, :2]
    exact = replace(found, boxes=corners)
    ours = evaluate(data, exact)
    assert_same_bits(ours, pycocotools_numbers(truth_file, exact))
    # PythonAPI/pycocoEvalDemo.ipynb of the COCO API
    published = [50.5, 69.7, 57.3, 58.6, 51.9, 50.1, 38.7, 59.4, 59.5, 64.0, 56.6, 56.4]
    assert [round(value or 0, 1) for value in ours.values()] == published


@pytest.mark.slow
@pytest.mark.parametrize("images", [4910, 500])
def test_thousands_of_images_give_the_numbers_of_pycocotools(images: int) -> None:
    """By the benchmark, which makes the detections, runs both sides and fails where a bit differs."""
    if images > 500 and "RNC_COCO_ROOT" not in os.environ:
        pytest.skip("RNC_COCO_ROOT is not set")
    environment = {name: value for name, value in os.environ.items() if images > 500 or name != "RNC_COCO_ROOT"}
    root = Path(__file__).parents[4]
    command = [
        sys.executable,
        "experiments/benchmarks/evaluation/coco_metrics.py",
        "--pairs",
        "1",
        "--images",
        str(images),
    ]
    environment |= {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "numbers: identical to the last bit" in done.stdout
    assert f"{images} images" in done.stdout
    if images > 500:
        assert "35897 boxes, 64651 detections" in done.stdout


@pytest.mark.parametrize("seed", range(6))
def test_ties_crowds_and_border_areas_are_counted_as_pycocotools_counts_them(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    assert sum(image == 1 and category == 2 for image, category, *_ in found) > 100
    data, file = write(tmp_path, annotations, num_images=8)
    ours = evaluate(data, table(found))
    assert_same_bits(ours, pycocotools_numbers(file, table(found)))
    assert 1 < (ours["AP"] or 0) < 99


@pytest.mark.parametrize("seed", range(8))
def test_areas_one_ulp_from_a_border_are_classed_as_pycocotools_classes_them(tmp_path: Path, seed: int) -> None:
    annotations, found = border_scene(seed)
    detected = table(found)
    areas = {w * h for _, _, (_, _, w, h), _ in found}
    for border in (32.0, 96.0):
        assert {row["area"] for row in annotations} >= set(around(border**2))
        assert min(areas, key=lambda area: abs(area - border**2)) == border**2 and len(areas) > 10
    data, file = write(tmp_path, annotations, num_images=7)  # the last two are empty
    assert_same_bits(evaluate(data, detected), pycocotools_numbers(file, detected))


def test_the_size_class_of_an_area_one_ulp_from_a_border(tmp_path: Path) -> None:
    classes = {}
    for border in (32.0, 96.0):
        for place, area in enumerate(around(border**2)):
            root = tmp_path / f"{border}-{place}"
            root.mkdir()
            data, _ = write(root, [large(1, border) | {"area": area}], num_images=1)
            numbers = evaluate(data, table([(1, 2, [0, 0, border, border], 0.9)]))
            classes[border, place] = {name for name in ("APs", "APm", "APl") if numbers[name] is not None}
    assert classes == {
        (32.0, 0): {"APs"},
        (32.0, 1): {"APs", "APm"},
        (32.0, 2): {"APm"},
        (96.0, 0): {"APm"},
        (96.0, 1): {"APm", "APl"},
        (96.0, 2): {"APl"},
    }


def test_the_order_of_equal_scores_is_the_order_of_the_table(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    data, file = write(tmp_path, annotations, num_images=8)
    backwards = table(found[::-1])
    assert_same_bits(evaluate(data, backwards), pycocotools_numbers(file, backwards))
    assert evaluate(data, backwards) != evaluate(data, table(found))


@pytest.mark.parametrize("first", [2**53 + 1, 20230101123045671, -3, -(2**63) + 1, 2**63 - 9])
def test_numbers_do_not_depend_on_how_large_ids_are(tmp_path: Path, first: int) -> None:
    """As floats, neighbours of 2^53 + 1 would be one; pycocotools counts the same scene under small numbers."""
    annotations, found = random_scene(0)
    _, file = write(tmp_path, annotations, num_images=8)
    theirs = pycocotools_numbers(file, table(found))
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["id"] += first - 1
    for row in content["annotations"]:
        row |= {"id": row["id"] - 40, "image_id": row["image_id"] + first - 1, "category_id": row["category_id"] - 5}
    for category in content["categories"]:
        category["id"] -= 5
    file.write_text(json.dumps(content))
    data = read_coco(tmp_path, "val", check_images=False)
    assert data.image_ids.tolist() == list(range(first, first + 8))
    moved = table([(image + first - 1, category - 5, box, score) for image, category, box, score in found])
    assert_same_bits(evaluate(data, moved), theirs)
    matches = match(data, moved)
    assert matches.num_truths.sum() == (~data.annotation_crowds).sum()


def test_classes_without_an_object_cost_nothing_and_change_nothing(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    _, file = write(tmp_path, annotations, num_images=8)
    theirs = pycocotools_numbers(file, table(found))
    content = json.loads(file.read_text())
    content["categories"] += [{"id": id, "name": str(id)} for id in range(100, 40000)]
    file.write_text(json.dumps(content))
    more = read_coco(tmp_path, "val", check_images=False)
    detected = table([*found, (1, 39999, [0, 0, 30, 30], 0.99)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_same_bits(evaluate(more, detected), theirs)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500e3  # kB; all of them would take 8 GB


@pytest.mark.parametrize(("image", "category", "what"), [(9, 2, "image 9"), (1, 3, "category 3")])
def test_a_detection_of_no_image_or_category_is_refused(tmp_path: Path, image: int, category: int, what: str) -> None:
    data, _ = write(tmp_path, [large(1)], num_images=2)
    with pytest.raises(ValueError, match=f"{what} of a detection is not in the data set"):
        evaluate(data, table([(image, category, [0, 0, 20, 20], 0.9)]))


def large(id: int, side: float = 200.0) -> dict[str, Any]:
    return {"id": id, "image_id": 1, "category_id": 2, "bbox": [0, 0, side, side], "area": side**2, "iscrowd": 0}


def test_a_perfect_detection_scores_100_and_absent_sizes_score_none(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [large(1)], num_images=2)
    numbers = evaluate(data, table([(1, 2, [0, 0, 200, 200], 0.9)]))
    absent = {"APs", "APm", "ARs", "ARm"}
    assert {name for name, value in numbers.items() if value is None} == absent
    assert all(value == pytest.approx(100.0) for name, value in numbers.items() if name not in absent)


@pytest.mark.parametrize("side", [32.0, 96.0])
def test_a_border_area_belongs_to_both_size_classes(tmp_path: Path, side: float) -> None:
    data, _ = write(tmp_path, [large(1, side)], num_images=1)
    numbers = evaluate(data, table([(1, 2, [0, 0, side, side], 0.9)]))
    classes = ("APs", "APm") if side == 32 else ("APm", "APl")
    assert {name for name in ("APs", "APm", "APl") if numbers[name] is not None} == set(classes)


def test_no_detections_score_zero(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [large(1)], num_images=2)
    numbers = evaluate(data, table([]))
    assert numbers["AP"] == numbers["APl"] == numbers["AR100"] == 0.0
    assert numbers["APs"] is None


def test_images_without_any_annotation_score_none(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [], num_images=2)
    assert set(evaluate(data, table([(1, 2, [0, 0, 20, 20], 0.9)])).values()) == {None}


def test_tables_are_joined_by_image_whatever_their_order() -> None:
    first = table([(3, 2, [0, 0, 1, 1], 0.9), (3, 2, [0, 0, 2, 2], 0.5)])
    second = table([(1, 5, [0, 0, 3, 3], 0.1), (7, 5, [0, 0, 4, 4], 0.2)])
    joined = DetectionTable.concatenate([first, second])
    assert joined.image_ids.tolist() == [1, 3, 3, 7]
    assert joined.boxes[:, 2].tolist() == [3, 1, 2, 4]
    assert joined.scores.tolist() == np.array([0.1, 0.9, 0.5, 0.2], np.float32).tolist()
    swapped = DetectionTable.concatenate([second, first])
    assert all(
        np.array_equal(getattr(joined, name), getattr(swapped, name)) for name in ("image_ids", "boxes", "category_ids")
    )
    nothing = DetectionTable.concatenate([])
    assert nothing.boxes.shape == (0, 4) and nothing.scores.dtype == np.float32


def test_nothing_is_printed_even_where_print_is_another_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray Train has a print of its own in its workers, which does not write to sys.stdout."""
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    printed: list[tuple[Any, ...]] = []
    monkeypatch.setattr("builtins.print", lambda *texts, **_: printed.append(texts))
    assert evaluate(data, table(found))["AP"] is not None
    assert printed == [] and "".join(capfd.readouterr()) == ""
