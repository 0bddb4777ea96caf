"""`rnc predict` on a small checkpoint and drawn scenes; expected values come from `model.load`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import model
from model.config import InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from orchestrator.cli.main import cli
from tests.detectors import MODEL, SIZES, save_opinionated, write_inference


@pytest.fixture
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=5)


@pytest.fixture
def folder(data: CocoData, tmp_path: Path) -> Path:
    config = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5))
    folder = save_opinionated(tmp_path / "pulled", (data.category_ids, data.category_names), config)
    write_inference(folder, InferenceConfig(confidence_exponent=0.3, nms_iou=0.6))
    return folder


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    for text in said:
        assert text in result.stderr


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_python_and_the_command_see_the_same_picture(
    folder: Path, data: CocoData, tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(data.path(0)) as image:
        image.save(tmp_path / "photo.png", exif=exif)
    rnc("predict", folder, tmp_path / "photo.png", "--out", tmp_path / "out", "--score", 0)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    (found,) = model.load(folder, device="cpu")(tmp_path / "photo.png")
    assert (written["images"][0]["height"], written["images"][0]["width"]) == found.size
    assert [row["score"] for row in written["annotations"]] == found.scores.tolist()
    boxes = found.boxes.astype(float)
    assert [row["bbox"] for row in written["annotations"]] == np.column_stack(
        [boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]
    ).tolist()
    assert len(boxes) > 3


def test_there_has_to_be_something_to_predict_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    refused(rnc("predict", folder, tmp_path / "empty", *out), "no image in this folder, expected .jpg")
    refused(rnc("predict", folder, tmp_path / "x*.jpg", *out), "no such image, folder or pattern")
    assert not (tmp_path / "out").exists()
