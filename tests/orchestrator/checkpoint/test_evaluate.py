"""`rnc evaluate` and `rnc predict` on a small checkpoint and drawn scenes; expected values come from score()."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import model
from model.config import METRICS, InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.scoring import score
from model.network.retinanet import load_detector
from model.settings import to_dict
from orchestrator.checkpoint.pull import Provenance, write_provenance
from orchestrator.cli.main import cli
from tests.detectors import MODEL, SIZES, save_opinionated, write_inference

INFERENCE = InferenceConfig(confidence_exponent=0.3, nms_iou=0.6)


@pytest.fixture
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=5)


@pytest.fixture
def folder(data: CocoData, tmp_path: Path) -> Path:
    config = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5))
    folder = save_opinionated(tmp_path / "pulled", (data.category_ids, data.category_names), config)
    write_inference(folder, INFERENCE)
    return folder


@pytest.fixture
def metrics(folder: Path, data: CocoData) -> dict[str, float | None]:
    return score(load_detector(folder), data, [INFERENCE], SIZES)[0].metrics


def certify(folder: Path, metrics: dict[str, float | None], **said: str) -> None:
    card = Provenance(
        row="RetinaNet-Conf",
        tables={},
        suite="s",
        seed=0,
        split="val",
        metrics={name: value for name, value in metrics.items() if value is not None},
        inference=to_dict(INFERENCE),
        dataset="shapes",
        train_fingerprint="",
        split_fingerprint="",
        train_key="",
        evaluation_key="",
        git_commit="",
        link="",
        training_link="",
        weights_sha256="",
        weights_bytes=0,
        versions={},
    )
    write_provenance(folder, replace(card, **said))  # type: ignore[arg-type]


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    for text in said:
        assert text in result.stderr


def test_the_numbers_are_those_of_score_and_equal_to_mlflows_to_the_last_digit(
    folder: Path, data: CocoData, metrics: dict[str, float | None], tmp_path: Path
) -> None:
    certify(folder, metrics, split_fingerprint=data.fingerprint)
    detections = tmp_path / "made" / "detections.json"
    done = rnc("evaluate", folder, "--data", data.root, "--format", "json", "--coco-json", detections)
    assert done.exit_code == 0, done.output
    (said,) = json.loads(done.stdout)["rows"]
    assert {name: said[name] for name in METRICS} == metrics
    notes = " ".join(json.loads(done.stdout)["notes"])
    assert "The first 5 images by id" in notes and "Equal to MLflow's numbers, to the last digit." in notes

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = data.coco_dict()
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    for name, value in zip(METRICS, evaluator.stats.tolist(), strict=True):
        assert value == -1 if metrics[name] is None else metrics[name] == pytest.approx(100 * value, abs=1e-9)


def test_numbers_that_are_not_mlflows_stand_beside_them(
    folder: Path, data: CocoData, metrics: dict[str, float | None]
) -> None:
    assert metrics["AP"] is not None
    certify(folder, metrics | {"AP": metrics["AP"] + 0.25}, split_fingerprint=data.fingerprint)
    done = rnc("evaluate", folder, "--data", data.root, "--format", "json")
    content = json.loads(done.stdout)
    assert [row[""] for row in content["rows"]] == ["here", "MLflow"]
    assert "Not equal to MLflow's numbers: they differ by up to 0.25." in content["notes"]


@pytest.mark.parametrize(
    ("words", "said", "why"),
    [
        (["--split", "train"], {}, "they are of split val"),
        ([], {"split_fingerprint": "f" * 64}, "they are of other data (fingerprint ffffffffffff, here "),
        ([], {"split_fingerprint": ""}, "which data they were measured on was not recorded"),
        (["--exponent", "0.5"], {}, "they are of other settings (confidence_exponent 0.3)"),
    ],
)
def test_what_cannot_be_compared_is_not_and_the_reason_is_told(
    folder: Path, data: CocoData, metrics: dict[str, float | None], words: list[str], said: dict[str, str], why: str
) -> None:
    certify(folder, metrics, **({"split_fingerprint": data.fingerprint} | said))
    done = rnc("evaluate", folder, "--data", data.root, *words)
    assert f"Not compared with MLflow's numbers: {why}" in done.stdout


def test_settings_are_changed_by_options(folder: Path, data: CocoData) -> None:
    done = rnc("evaluate", folder, "--data", data.root, "--exponent", 0.1, "--set", "nms_pre=50", "--format", "json")
    wanted = replace(INFERENCE, confidence_exponent=0.1, nms_pre=50)
    (by_score,) = score(load_detector(folder), data, [wanted], SIZES)
    assert {name: json.loads(done.stdout)["rows"][0][name] for name in METRICS} == by_score.metrics


def test_all_images_are_scored_when_asked_for(folder: Path, data: CocoData) -> None:
    done = rnc("evaluate", folder, "--data", data.root, "--all")
    assert f"16 images of {data.root / 'val'}." in done.stdout


def test_what_is_wrong_is_told_in_one_line(folder: Path, data: CocoData, tmp_path: Path, make_coco) -> None:
    here = ("evaluate", folder, "--data", data.root)
    refused(rnc(*here, "--set", "inference.nms_ious=0.5"), "inference.nms_ious is not a setting; did you mean infer")
    refused(rnc(*here, "--set", "nms_iou=high"), '--set inference.nms_iou is "high", expected a number')
    refused(rnc(*here, "--set", "nms_iou"), "expected a setting and its value")
    refused(rnc(*here, "--exponent", "1.5"), "inference.confidence_exponent is 1.5, expected 0 to 1")
    refused(rnc(*here, "--split", "nowhere"), "lacks file", "instances_nowhere.json")
    refused(rnc("evaluate", tmp_path, "--data", data.root), "is not the card of a checkpoint")
    others = make_coco([{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40]}])
    refused(rnc("evaluate", folder, "--data", others, "--split", "train"), "was trained on other classes")
    (folder / "model.safetensors").write_bytes(b"damaged")
    refused(rnc(*here), "the file is damaged or was swapped")


def test_faults_of_the_data_are_handled_as_the_training_did(folder: Path, data: CocoData, tmp_path: Path) -> None:
    root = tmp_path / "faulty"
    (root / "annotations").mkdir(parents=True)
    (root / "val").symlink_to(data.root / "val")
    content = json.loads((data.root / "annotations" / "instances_val.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, 0, 5]
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    refused(rnc("evaluate", folder, "--data", root), "boxes of zero or negative size (1)")
    lenient = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5, faults="quarantine"))
    other = save_opinionated(tmp_path / "lenient", (data.category_ids, data.category_names), lenient)
    done = rnc("evaluate", other, "--data", root)
    assert done.exit_code == 0 and "left out are" in done.stderr


def test_pictures_come_out_with_boxes_and_their_detections_as_coco(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        (photos / f"{index}.jpg").write_bytes(data.path(index).read_bytes())
    done = rnc("predict", folder, photos / "2.jpg", photos, photos / "*.jpg", "--out", out, "--score", 0.4)
    assert done.exit_code == 0, done.output
    assert {file.name for file in out.iterdir()} == {"0.jpg", "1.jpg", "2.jpg", "detections.json"}
    content = json.loads((out / "detections.json").read_text())
    order = [photos / "2.jpg", photos / "0.jpg", photos / "1.jpg"]
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [
        (place, str(file)) for place, file in enumerate(order, start=1)
    ]
    for place, found in enumerate(model.load(folder)(order), start=1):
        kept = found.above(0.4)
        rows = [row for row in content["annotations"] if row["image_id"] == place]
        assert [row["score"] for row in rows] == kept.scores.tolist()
        corners = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, kept.boxes, rtol=0, atol=1e-4)
        assert [row["category_id"] for row in rows] == list(kept.category_ids)
        image = content["images"][place - 1]
        assert (image["height"], image["width"]) == found.size
    assert len(content["annotations"]) == len({row["id"] for row in content["annotations"]}) > 3
    assert [one["name"] for one in content["categories"]] == list(data.category_names)


def test_a_broken_image_is_named_and_the_others_are_done(folder: Path, data: CocoData, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(data.path(0).read_bytes()[:300])
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "out"
    done = rnc("predict", folder, tmp_path / "broken.jpg", data.path(1), tmp_path / "text.png", "--out", out)
    assert done.exit_code == 1
    assert f"skipped {tmp_path / 'broken.jpg'}: the image does not decode" in done.stderr
    assert f"skipped {tmp_path / 'text.png'}: the image does not decode" in done.stderr
    assert [image["id"] for image in json.loads((out / "detections.json").read_text())["images"]] == [2]


def test_two_images_of_one_name_do_not_overwrite_each_other_nor_a_source(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(data.path(0).read_bytes())
    done = rnc("predict", folder, tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert {"1.jpg", "1-2.jpg"} < {file.name for file in (tmp_path / "out").iterdir()}
    before = (tmp_path / "a" / "1.jpg").read_bytes()
    refused(
        rnc("predict", folder, tmp_path / "a", "--out", tmp_path / "a"), "would be overwritten; name another folder"
    )
    assert (tmp_path / "a" / "1.jpg").read_bytes() == before


def test_a_photograph_is_seen_upright(folder: Path, data: CocoData, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    with Image.open(data.path(0)) as image:
        size = image.size
        image.save(tmp_path / "turned.png", exif=exif)
    rnc("predict", folder, tmp_path / "turned.png", "--out", tmp_path / "out")
    (image,) = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert (image["height"], image["width"]) == size


def test_there_has_to_be_something_to_predict_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    refused(rnc("predict", folder, tmp_path / "empty", *out), "no image in this folder, expected .jpg")
    refused(rnc("predict", folder, tmp_path / "x*.jpg", *out), "no such image, folder or pattern")
    assert not (tmp_path / "out").exists()
