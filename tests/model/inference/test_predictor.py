"""A loaded checkpoint: the detections of `score`, bit for bit, from images of every kind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import model
from model.config import InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.images import load_image
from model.data.split import CocoData
from model.evaluation.scoring import score
from model.inference.predictor import Found
from model.network.retinanet import load_detector
from tests.detectors import MODEL, SIZES, save_opinionated, write_inference

SETTINGS = InferenceConfig(confidence_exponent=0.3, nms_iou=0.6, max_detections=40)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=4)


@pytest.fixture(scope="module")
def folder(data: CocoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pulled") / "checkpoint"
    save_opinionated(folder, (data.category_ids, data.category_names))
    write_inference(folder, SETTINGS)
    return folder


def same_bits(one: Found, other: Found) -> bool:
    same = np.array_equal(one.boxes, other.boxes) and np.array_equal(one.scores, other.scores)
    return same and (one.labels, one.category_ids, one.size) == (other.labels, other.category_ids, other.size)


def test_detections_are_those_of_score_bit_for_bit_under_the_checkpoints_own_settings(
    folder: Path, data: CocoData
) -> None:
    (scores,) = score(load_detector(folder), data, [SETTINGS], SIZES)
    table = scores.detections
    found = model.load(folder, device="cpu")([data.path(index) for index in range(len(data))])
    for index, one in enumerate(found):
        rows = table.image_ids == data.image_ids[index]
        assert np.array_equal(one.boxes, table.boxes[rows]) and one.boxes.dtype == np.float32
        assert np.array_equal(one.scores, table.scores[rows]) and one.scores.dtype == np.float32
        assert one.category_ids == tuple(table.category_ids[rows].tolist())
        names = dict(zip(data.category_ids, data.category_names, strict=True))
        assert one.labels == tuple(names[id] for id in one.category_ids)
        assert one.size == tuple(data.sizes[index].tolist())
    assert sum(len(one.scores) for one in found) == len(table.scores) > 20


def test_an_image_of_any_form_gives_the_same_bits(folder: Path, data: CocoData) -> None:
    predictor = model.load(folder, device="cpu")
    path = data.path(0)
    pixels = load_image(path)
    rgb = np.asarray(Image.open(path))
    forms: list[Any] = [
        path,
        str(path),
        Image.open(path),
        rgb,
        np.array(rgb[..., ::-1])[..., ::-1],
        pixels,
        pixels.contiguous(),
    ]
    forms += [pixels.permute(1, 2, 0), [path], (path,), rgb[None]]
    found = [predictor(form) for form in forms]
    assert all(len(one) == 1 and same_bits(one[0], found[0][0]) for one in found)
    assert len(predictor([])) == 0
    assert [one.size for one in predictor([path, data.path(1)])] == [tuple(row) for row in data.sizes[:2].tolist()]


def test_settings_are_changed_for_all_calls_or_for_one(folder: Path, data: CocoData) -> None:
    path = data.path(0)
    (by_load,) = model.load(folder, device="cpu", max_detections=3)(path)
    predictor = model.load(folder, device="cpu")
    (by_call,) = predictor(path, max_detections=3)
    assert len(by_load.scores) == 3 and same_bits(by_load, by_call)
    assert predictor.inference == SETTINGS
    product = model.load(folder, device="cpu", fusion="product").inference
    assert product == InferenceConfig(fusion="product", nms_iou=0.6, max_detections=40)


@pytest.mark.parametrize("suppression", ["nms", "soft_linear", "iou_guided", "diou", "voting"])
def test_more_detections_may_be_asked_for_than_there_is_memory_for(
    folder: Path, data: CocoData, suppression: str
) -> None:
    detector = model.load(folder, device="cpu", suppression=suppression, score_threshold=0.3)
    (all_of_them,) = detector(data.path(0), max_detections=100_000)
    (found,) = detector(data.path(0), max_detections=10**12)
    assert found.scores.tolist() == all_of_them.scores.tolist() != []


def test_a_setting_without_meaning_is_refused_by_name(folder: Path, data: CocoData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"inference\.nms_ious is not a setting; did you mean inference\.nms_iou\?"):
        model.load(folder, nms_ious=0.5)
    with pytest.raises(ValueError, match=r"nms_iou is 1\.5, expected 0 to 1"):
        model.load(folder, device="cpu")(data.path(0), nms_iou=1.5)
    plain = TrainConfig(model=replace(MODEL, confidence=None), data=SIZES)
    save_opinionated(tmp_path / "plain", (data.category_ids, data.category_names), plain)
    with pytest.raises(
        ValueError, match=r"confidence_exponent is 0\.4, but a RetinaNet has no conf.* branch"
    ) as refused:
        model.load(tmp_path / "plain", confidence_exponent=0.4)
    assert "{tower: box} for IoU-aware Net or {tower: classification} for RetinaNet-Conf" in str(refused.value)
    assert model.load(tmp_path / "plain").inference == InferenceConfig(confidence_exponent=0.0)


def test_inference_settings_that_cannot_be_read_are_an_error_of_their_file(data: CocoData, tmp_path: Path) -> None:
    folder = save_opinionated(tmp_path / "checkpoint", (data.category_ids, data.category_names))
    assert model.load(folder).inference == InferenceConfig()
    for text in ("{", "[1]", '{"nms_ious": 1}', '{"nms_iou": 7}'):
        (folder / "inference.json").write_text(text)
        with pytest.raises(ValueError, match=r"inference\.json holds no inference settings"):
            model.load(folder)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 \[4, 5, 3\]; expected uint8 RGB pixels"),
        (np.zeros((4, 5), np.uint8), r"uint8 \[4, 5\]; expected uint8 RGB"),
        (np.zeros((3, 4, 5), np.uint8), r"uint8 \[3, 4, 5\]; expected uint8 RGB"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \[0, 5, 3\]; expected uint8 RGB"),
        (7, "an image is a int; expected a path"),
        (Image.new("RGB", (0, 10)), "an image is 0 x 10; expected pixels"),
        (Image.new("RGB", (10, 0)), "an image is 10 x 0; expected pixels"),
        ("nowhere.jpg", r"nowhere\.jpg: the image does not decode"),
    ],
)
def test_what_is_no_image_is_refused_in_words(folder: Path, image: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        model.load(folder)([image])  # type: ignore[list-item]


def test_records_are_json_and_a_threshold_keeps_the_best(folder: Path, data: CocoData) -> None:
    (found,) = model.load(folder, device="cpu")(data.path(0))
    limit = float(found.scores[5])
    kept = found.above(limit)
    assert kept.scores.tolist() == found.scores[found.scores >= limit].tolist()
    records = json.loads(json.dumps(kept.records()))
    assert len(records) == len(kept.scores) >= 6
    assert records[0] == {
        "box": found.boxes[0].tolist(),
        "label": found.labels[0],
        "category_id": found.category_ids[0],
        "score": float(found.scores[0]),
    }


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, model; model.load; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["False"] * 2


def test_images_in_parallel_give_the_bits_of_one_thread_and_torch_gets_its_threads_back(
    folder: Path, data: CocoData
) -> None:
    paths = [data.path(index) for index in range(len(data))] * 2
    predictor = model.load(folder, device="cpu")
    one_by_one = [predictor(path)[0] for path in paths]
    torch.set_num_threads(3)
    together = predictor(paths)
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="does not decode"):
        predictor([*paths, "nowhere.jpg"])
    assert torch.get_num_threads() == 3
    assert all(same_bits(one, other) for one, other in zip(together, one_by_one, strict=True))


def test_a_stream_of_images_is_read_as_it_is_taken(folder: Path, data: CocoData) -> None:
    torch.set_num_threads(2)
    read: list[int] = []

    def camera() -> Iterator[Path]:
        for index in range(100):
            read.append(index)
            yield data.path(index % len(data))

    stream = model.load(folder, device="cpu").stream(camera(), max_detections=2)
    assert [len(next(stream).scores) for _ in range(3)] == [2, 2, 2]
    assert len(read) == 3 + 2  # two are worked on
    stream.close()
    assert torch.get_num_threads() == 2
