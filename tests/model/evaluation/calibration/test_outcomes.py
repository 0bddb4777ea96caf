"""What becomes of each detection: as COCO's matching has it, and as TIDE's has it."""

from pathlib import Path

import numpy as np
import pytest

from model.evaluation.calibration.outcomes import outcomes, written_outcomes
from model.evaluation.coco.matches import match
from tests.detections import CATEGORIES, random_scene, table, write


def annotation(
    number: int, box: list[float], *, image: int = 1, category: int = 2, crowd: int = 0
) -> dict[str, object]:
    identity = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
    return identity | {"bbox": box, "area": box[2] * box[3]}


@pytest.mark.parametrize("seed", range(6))
def test_detections_fare_as_at_the_first_threshold_of_cocos_matching(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    data, _ = write(tmp_path, annotations, num_images=8)
    detections = table(found)
    matches, ours = match(data, detections), outcomes(data, detections)
    cells = np.repeat(np.arange(len(matches.images)), np.diff(matches.offsets))
    counted = matches.ignored & 1 == 0
    assert 0 < counted.sum() < len(counted) < len(found)  # some lie on crowds, and one cell has more than 100
    theirs = sorted(
        zip(
            matches.images[cells[counted]].tolist(),
            matches.categories[cells[counted]].tolist(),
            matches.scores[counted].tolist(),
            (matches.true[counted] & 1).tolist(),
            strict=True,
        )
    )
    images = detections.image_ids[ours.rows] - 1
    columns = (images, ours.labels, ours.scores, (ours.ious > 0).astype(int))
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == theirs
    assert ours.num_objects.tolist() == np.bincount(matches.categories, matches.num_truths, len(CATEGORIES)).tolist()
    assert (np.diff(ours.rows) > 0).all()
    assert ((ours.ious == 0) | (ours.ious >= 0.5)).all() and ours.ious.max() <= 1.0


@pytest.mark.parametrize("seed", range(3))
def test_true_and_false_positives_are_those_of_tide(tmp_path: Path, seed: int) -> None:
    tidecv = pytest.importorskip("tidecv")
    generator = np.random.default_rng(seed)
    annotations: list[dict[str, object]] = []
    found: list[tuple[int, int, list[float], float]] = []
    truth, detected = tidecv.Data("truth"), tidecv.Data("detections")
    for category in CATEGORIES:
        truth.add_class(category, str(category))
    for image in range(1, 9):
        for _ in range(6):
            box = [*generator.uniform(0, 200, 2), *generator.uniform(20, 150, 2)]
            category, crowd = int(generator.choice(CATEGORIES)), int(generator.random() < 0.2)
            annotations.append(annotation(len(annotations) + 1, box, image=image, category=category, crowd=crowd))
            add = truth.add_ignore_region if crowd else truth.add_ground_truth
            add(image, category, box=box)
            for _ in range(4):
                moved = (np.array(box) + generator.normal(size=4) * 8).astype(np.float32).tolist()
                found.append((image, category, moved, float(np.float32(generator.random()))))
    for image, category, box, score in found:
        detected.add_detection(image, category, score, box=box)
    run = tidecv.TIDE().evaluate(truth, detected, pos_threshold=0.5, mode=tidecv.TIDE.BOX)
    objects = run.ap_data.objs
    theirs = {
        (category, score, bool(is_true))
        for category, one in objects.items()
        for score, is_true, _ in one.data_points.values()
    }
    data, _ = write(tmp_path, annotations, num_images=8)
    columns = zip(*found, strict=True)
    images, categories, boxes, scores = (np.array(column) for column in columns)
    ours = written_outcomes(data, images, categories, boxes, scores)
    assert len(ours.rows) < len(found)
    assert {
        (data.category_ids[label], score, iou > 0)
        for label, score, iou in zip(ours.labels.tolist(), ours.scores.tolist(), ours.ious.tolist(), strict=True)
    } == theirs
    assert ours.num_objects.tolist() == [objects[category].num_gt_positives for category in CATEGORIES]


def test_the_iou_is_that_of_the_object_that_is_found_and_not_of_the_nearest(tmp_path: Path) -> None:
    # By hand: both overlap the first object most, which the better one takes; 80 of 95 columns are left for the other.
    near = [annotation(1, [0, 0, 100, 10]), annotation(2, [0, 0, 80, 10])]
    data, _ = write(tmp_path, near, num_images=1)
    ours = outcomes(data, table([(1, 2, [0, 0, 95, 10], 0.6), (1, 2, [0, 0, 100, 10], 0.9)]))
    np.testing.assert_allclose(ours.ious, [80 / 95, 1.0])
    assert ours.rows.tolist() == [0, 1]


def test_what_lies_on_a_crowd_is_left_out_and_a_crowd_takes_any_number(tmp_path: Path) -> None:
    scene = [annotation(1, [0, 0, 200, 200], crowd=1), annotation(2, [0, 0, 50, 50])]
    data, _ = write(tmp_path, scene, num_images=1)
    found = [
        (1, 2, [100.0, 100.0, 50.0, 50.0], 0.9),
        (1, 2, [0.0, 0.0, 50.0, 50.0], 0.8),  # an object comes before the crowd that it lies on as well
        (1, 2, [120.0, 100.0, 50.0, 50.0], 0.7),
        (1, 2, [300.0, 300.0, 50.0, 50.0], 0.6),
    ]
    ours = outcomes(data, table(found))
    assert ours.rows.tolist() == [1, 3]
    assert ours.ious.tolist() == [1.0, 0.0]
    assert ours.num_objects.tolist() == [1, 0, 0, 0]


def test_strange_images_and_categories_are_refused(tmp_path: Path) -> None:
    data, _ = write(tmp_path, [annotation(1, [0, 0, 50, 50])], num_images=1)
    with pytest.raises(ValueError, match="image 7 of a detection is not in the data set"):
        outcomes(data, table([(7, 2, [0, 0, 5, 5], 0.5)]))
    with pytest.raises(ValueError, match="category 3 of a detection is not in the data set"):
        outcomes(data, table([(1, 3, [0, 0, 5, 5], 0.5)]))
