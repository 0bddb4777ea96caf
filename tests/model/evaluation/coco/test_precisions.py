"""Precision of each class is that of pycocotools, bit for bit, and AP its mean."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.coco.matches import match, precisions, read_matches, truths_of, write_matches
from model.evaluation.coco.metrics import evaluate
from model.inference.table import DetectionTable
from tests.detections import CATEGORIES, matches_of, pycocotools_evaluation, random_scene, table, write


def assert_same_precision(data: CocoData, file: Path, found: DetectionTable) -> NDArray[np.float64]:
    ours = precisions(match(data, found))
    # [thresholds, recalls, categories, sizes, numbers of detections]; -1 where there is nothing to find
    theirs = pycocotools_evaluation(file, found).eval["precision"][:, :, :, 0, 2]
    assert np.array_equal(np.where(np.isnan(ours), -1.0, ours), theirs)
    present = ~np.isnan(ours)
    assert 100 * ours[present].mean() == pytest.approx(evaluate(data, found)["AP"], rel=1e-13)
    return ours


@pytest.mark.parametrize("seed", range(6))
def test_ties_crowds_and_classes_without_objects_are_counted_as_pycocotools_counts_them(
    tmp_path: Path, seed: int
) -> None:
    annotations, found = random_scene(seed)
    data, file = write(tmp_path, annotations, num_images=8)
    ours = assert_same_precision(data, file, table(found))
    # 11 is in no image, though detected; the others are.
    assert np.isnan(ours).all(axis=(0, 1)).tolist() == [False, False, False, True]


def test_a_real_detectors_precision_is_that_of_pycocotools(coco_root: Path) -> None:
    data = read_coco(coco_root, "val2017", check_images=False)
    rows = json.loads((coco_root / "results" / "yolov5s_val2017_bbox.json").read_text())
    found = table([(row["image_id"], row["category_id"], row["bbox"], row["score"]) for row in rows])
    ours = assert_same_precision(data, coco_root / "annotations" / "instances_val2017.json", found)
    assert ours.shape == (10, 101, 80)


def box(image: int, category: int, **said: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [0.0, 0.0, 50.0, 50.0], "area": 2500.0} | said


def test_a_class_of_crowds_alone_has_no_precision_and_objects_are_counted_without_crowds(tmp_path: Path) -> None:
    annotations = [
        box(1, 2, id=1, iscrowd=0),
        box(1, 2, id=2, iscrowd=1, bbox=[100.0, 0.0, 60.0, 60.0], area=3600.0),
        box(2, 2, id=3, iscrowd=0),
        box(2, 2, id=4, iscrowd=0, bbox=[100.0, 0.0, 60.0, 60.0], area=3600.0),
        box(3, 9, id=5, iscrowd=1),
    ]
    data, file = write(tmp_path, annotations, num_images=4)
    found = table([(1, 2, [0, 0, 50, 50], 0.9), (3, 9, [0, 0, 50, 50], 0.8), (4, 5, [0, 0, 50, 50], 0.7)])
    ours = assert_same_precision(data, file, found)
    assert np.isnan(ours).all(axis=(0, 1)).tolist() == [False, True, True, True]
    objects, images = truths_of(match(data, found))
    assert (objects.tolist(), images.tolist()) == ([3, 0, 0, 0], [2, 0, 0, 0])
    # one of three is found, at precision 1: recalls 0 to 0.33 are 34 of 101
    assert ours[:, :34, 0] == pytest.approx(1.0) and not ours[:, 34:, 0].any()


def test_precision_by_hand() -> None:
    """Image A: two objects, its detection at 0.9 is wrong and at 0.7 true; image B: one object, found at 0.8.

    Wrong, true, true: precisions 0, 1/2, 2/3 at recalls 0, 1/3, 2/3; the envelope is 2/3 up to recall 0.66.
    """
    found = precisions(matches_of([[0.9, 0.7], [0.8]], [[0, 1023], [1023]], [2, 1]))
    assert found[:, :67, 0] == pytest.approx(2 / 3) and not found[:, 67:, 0].any()


def test_the_file_of_matches_names_the_categories_and_one_without_names_is_read(tmp_path: Path) -> None:
    annotations, found = random_scene(0)
    data, _ = write(tmp_path, annotations, num_images=8)
    matches = match(data, table(found))
    write_matches(matches, tmp_path / "new.parquet")
    again = read_matches(tmp_path / "new.parquet")
    assert again.category_ids == CATEGORIES and again.category_names == ("thing 2", "thing 5", "thing 9", "thing 11")
    assert again.by_size["small"].category_ids == CATEGORIES
    write_unnamed(tmp_path / "new.parquet", tmp_path / "old.parquet")
    old = read_matches(tmp_path / "old.parquet")
    assert (old.category_ids, old.category_names) == ((), ())
    assert np.array_equal(precisions(old), precisions(matches), equal_nan=True)


def write_unnamed(file: Path, old: Path) -> None:
    """Write the table as it was written before it named the categories."""
    import pyarrow.parquet as pq

    held = pq.read_table(file)
    known = {name: held.schema.metadata[name] for name in (b"num_images", b"num_categories")}
    pq.write_table(held.replace_schema_metadata(known), old)
