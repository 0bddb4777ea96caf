"""Results of any detector, as COCO's tools exchange them: pycocotools gives the numbers."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.config import METRICS
from model.data.coco import read_coco
from orchestrator.cli.main import cli
from orchestrator.tracking.evaluations.detections import read_results
from tests.detections import random_scene, write

BOX = [20.0, 10.0, 40.0, 30.0]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RNC_COCO_ROOT", raising=False)


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def numbers(file: Path, *words: object) -> dict[str, float | None]:
    done = rnc("evaluate", "--detections", file, *words, "--format", "json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    return {name: row[name] for name in METRICS}


def by_pycocotools(truth_file: Path, file: Path) -> dict[str, float | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_file))
        evaluator = COCOeval(truth, truth.loadRes(str(file)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    stats = zip(METRICS, evaluator.stats.tolist(), strict=True)
    return {name: None if value == -1 else 100.0 * value for name, value in stats}


def result(**changes: Any) -> dict[str, Any]:
    return {"image_id": 1, "category_id": 3, "bbox": BOX, "score": 0.5} | changes


def save(folder: Path, rows: object) -> Path:
    (folder / "results.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return folder / "results.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images 1 to 3 of 96 x 64 pixels, of which none is there, with an object each, of categories 3 and 8."""
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    content = {
        "images": [{"id": id, "file_name": f"{id}.jpg", "height": 64, "width": 96} for id in (1, 2, 3)],
        "annotations": [{"id": id, "image_id": id, "category_id": 3, "bbox": BOX, "area": 1200} for id in (1, 2, 3)],
        "categories": [{"id": 3, "name": "dog"}, {"id": 8, "name": "cat"}],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path


def test_a_real_detectors_results_have_pycocotools_numbers_to_the_last_digit(coco_root: Path) -> None:
    file = coco_root / "results" / "yolov5s_val2017_bbox.json"
    found = numbers(file, "--data", coco_root, "--split", "val2017")
    assert found == by_pycocotools(coco_root / "annotations" / "instances_val2017.json", file)
    stored = json.loads(file.with_suffix(".stats.json").read_text())
    assert {name: found[name] for name in METRICS} == {name: 100.0 * stored[name] for name in METRICS}


def test_boxes_on_an_iou_threshold_stay_there(coco_root: Path, tmp_path: Path) -> None:
    # The COCO API's own example, some of whose boxes a detector's float32 would move over a threshold.
    truth = coco_root / "eval2014" / "instances_val2014_100.json"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").symlink_to(truth)
    file = coco_root / "eval2014" / "instances_val2014_fakebbox100_results.json"
    assert numbers(file, "--data", tmp_path, "--split", "val2014") == by_pycocotools(truth, file)


@pytest.mark.parametrize("seed", [0, 1])
def test_ties_crowds_and_borders_count_as_pycocotools_counts_them(tmp_path: Path, seed: int) -> None:
    annotations, found = random_scene(seed)
    _, truth = write(tmp_path, annotations, 8)
    keys = ("image_id", "category_id", "bbox", "score")
    # Thirds have no last digit, in float32 even less.
    rows = [dict(zip(keys, (*row[:2], [side + 1 / 3 for side in row[2]], row[3] / 3), strict=True)) for row in found]
    file = save(tmp_path, rows)
    assert numbers(file, "--data", tmp_path, "--split", "val") == by_pycocotools(truth, file)


def test_the_split_to_validate_on_is_found_and_what_is_worth_to_know_is_told(root: Path) -> None:
    rows = [result(score=place / 1000) for place in range(101)] + [result(image_id="2"), result(image_id=2.0)]
    done = rnc("evaluate", "--detections", save(root, rows), "--data", root)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert f"103 detections on 3 images of {root}, split val." in said
    assert "1 image_id are numbers written as text." in said
    assert "1 of 3 images have no detection." in said
    assert "1 pairs of image and category have more than 100 detections, of which COCO counts the best 100." in said


def test_no_detection_at_all_is_an_ap_of_0(root: Path) -> None:
    found = numbers(save(root, []), "--data", root)
    assert (found["AP"], found["APm"], found["APs"]) == (0.0, 0.0, None)


def test_everything_that_is_wrong_is_told_at_once_with_the_files_own_values(root: Path) -> None:
    rows = [
        result(score=float("nan")),
        result(score="0.5"),
        result(bbox=[1, 2, 3]),
        result(bbox={"x": 1}),
        result(image_id="one", score=float("inf")),
        result(category_id=None),
        result(bbox=[1, 2, -3, 4]),
        result(image_id=True, category_id=2**63),
    ]
    done = rnc("evaluate", "--detections", save(root, rows), "--data", root)
    assert done.exit_code == 2
    lines = [line.strip() for line in done.stderr.strip().splitlines()]
    assert lines[0].endswith(f"results.json: not the results of a detector on {root}, split val")
    assert lines[1:] == [
        'image_id of 2 of 8 entries is no whole number: entry 4 has "one"',
        "category_id of 2 of 8 entries is no whole number: entry 5 has null",
        "bbox of 2 of 8 entries is not four finite numbers: entry 2 has [1, 2, 3]",
        "bbox of 1 of 8 entries has a negative width or height (x, y, width, height): entry 6 has [1, 2, -3, 4]",
        "score of 3 of 8 entries is no finite number: entry 0 has NaN",
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([result(image_id=9)], "1 of 1 detections have image_id 9, which are none of the 3 images (ids 1 to 3); name"),
        (
            [result(image_id=id) for id in (0, 1, 2)],
            "1 of 3 detections have image_id 0, which are none of the 3 images (ids 1 to 3); they look like places in "
            "the list of images, counted from 0: write the ids instead",
        ),
        (
            [result(category_id=0), result(category_id=1)],
            "2 of 2 detections have category_id 0, 1, which are none of the 2 categories (ids 3 to 8); they look like "
            "places in the list of categories, counted from 0",
        ),
        (
            [result(bbox=[60, 30, 90, 60]), result(bbox=[20, 10, 90, 60])],
            "boxes look like corners (x1, y1, x2, y2; the first is [60.0, 30.0, 90.0, 60.0], in an image of 96 x 64)",
        ),
        ([result(bbox=[0.2, 0.1, 0.4, 0.5])], "boxes look like fractions of the image (the first is [0.2, 0.1, 0.4"),
        ({"images": [], "annotations": []}, "is an object ('images', 'annotations'), expected a list of {image_id"),
        ([result(), 7], "entry 1 is 7, expected {image_id, category_id, bbox, score}"),
        ([{"image_id": 1, "segmentation": {}}], "entry 0 has a segmentation and no bbox"),
        ('[{"image_id": 1,', "does not read as JSON"),
    ],
)
def test_results_of_something_else_are_refused_with_the_likely_cause(root: Path, rows: object, says: str) -> None:
    done = rnc("evaluate", "--detections", save(root, rows), "--data", root)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.stderr.split())


def test_corners_that_leave_no_image_are_left_alone(root: Path) -> None:
    # As x, y, width and height all of them fit, so that nothing speaks against it.
    results = read_results(save(root, [result(bbox=[10, 10, 30, 30])]), read_coco(root, "val", check_images=False))
    assert results.boxes.tolist() == [[10, 10, 30, 30]]


def test_a_results_file_is_what_it_is(root: Path) -> None:
    file = save(root, [result()])
    done = rnc("evaluate", "--detections", file, "--data", root, "--exponent", 0.5)
    assert done.exit_code == 2 and "need a CHECKPOINT" in done.stderr
    done = rnc("evaluate", "--detections", file, "--data", root, "--split", "test")
    assert done.exit_code == 2 and "test" in done.stderr
