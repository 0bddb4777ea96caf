"""`rnc sweep --fit` on a small checkpoint: what is chosen, of which images, what is refused, and what is written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from model.config import InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.shapes import draw_shapes
from model.evaluation.calibration.errors import calibration
from model.evaluation.calibration.outcomes import outcomes
from model.evaluation.calibration.recalibration import (
    fit_isotonic,
    fit_temperature,
    read_recalibration,
    recalibrate,
)
from model.evaluation.scoring import score
from model.network.retinanet import load_detector
from orchestrator.checkpoint.fit.run import choose
from orchestrator.cli.main import cli
from tests.detectors import MODEL, SIZES, save_opinionated, with_objects_where_it_finds_some, write_inference

CONFIG = TrainConfig(model=MODEL, data=SIZES)
EXPONENTS = ("--exponents", "0,0.3,0.6")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits `val` and `test`, 5 images each, in which an opinionated detector finds something."""
    drawn = tmp_path_factory.mktemp("drawn")
    draw_shapes(drawn, num_train=1, num_val=5, num_test=5, image_size=128, seed=0)
    made = tmp_path_factory.mktemp("data") / "found"
    for split in ("val", "test"):
        with_objects_where_it_finds_some(made / split, read_coco(drawn, split))
        (made / "annotations").mkdir(exist_ok=True)
        shutil.copy(made / split / "annotations" / f"instances_{split}.json", made / "annotations")
        shutil.rmtree(made / split)
        (made / split).symlink_to(drawn / split)
    return made


@pytest.fixture(scope="module")
def folder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "pulled", root, CONFIG)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RNC_COCO_ROOT", raising=False)


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """The same data, whose annotations a test may change."""
    made = tmp_path / "own"
    (made / "annotations").mkdir(parents=True)
    for split in ("val", "test"):
        (made / split).symlink_to((root / split).resolve())
        shutil.copy(annotations(root, split), annotations(made, split))
    return made


def annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def checkpoint(made: Path, root: Path, config: TrainConfig) -> Path:
    data = read_coco(root, "val")
    return save_opinionated(made, (data.category_ids, data.category_names), config)


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def fitted(folder: Path, root: Path, *words: object) -> dict[str, Any]:
    done = rnc("sweep", folder, "--data", root, "--fit", "val", "--split", "test", "--format", "json", *words)
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    for text in said:
        assert text in result.stderr


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a detector is loaded: what is refused is refused before any forward pass."""

    def loaded(*_: object) -> None:
        raise AssertionError("the detector was loaded")

    monkeypatch.setattr("model.network.retinanet.load_detector", loaded)


def curve(**aps: float) -> dict[float, dict[str, float | None]]:
    return {float(name[1:]) / 100: {"AP": ap} for name, ap in aps.items()}


def test_the_highest_ap_wins_and_of_those_shown_alike_the_nearest_to_the_usual_exponent() -> None:
    assert choose(curve(e0=30.0, e20=31.0, e40=30.9), usual=0.4) == 0.2
    assert choose(curve(e0=31.04, e20=31.01, e40=30.9), usual=0.4) == 0.2  # both are 31.0
    assert choose(curve(e20=31.0, e40=30.96, e60=31.0), usual=0.4) == 0.4
    assert choose(curve(e30=31.0, e40=30.0, e50=31.0), usual=0.4) == 0.3  # as near as each other: the lower
    assert choose({0.1: {"AP": None}, 0.2: {"AP": None}}, usual=0.2) == 0.2


def test_the_numbers_are_those_of_single_scorings_and_of_fits_on_the_other_split(folder: Path, root: Path) -> None:
    content = fitted(folder, root, *EXPONENTS)
    tried = [0.0, 0.3, 0.4, 0.6]  # with the paper's among them
    assert [one["exponent"] for one in content["curve"]] == tried
    settings = [InferenceConfig(confidence_exponent=one) for one in tried]
    splits = {name: read_coco(root, split) for name, split in (("fitted_on", "val"), ("scored", "test"))}
    own = {name: score(load_detector(folder), data, settings, SIZES) for name, data in splits.items()}
    for name, scores in own.items():
        assert [one[name]["AP"] for one in content["curve"]] == pytest.approx([one.metrics["AP"] for one in scores])
    exponents = content["exponent"]
    assert exponents["usual"] == 0.4
    for name, key in (("fitted", "fitted_on"), ("best_on_scored", "scored")):
        aps = [one.metrics["AP"] or 0.0 for one in own[key]]
        assert round(aps[tried.index(exponents[name])], 1) == round(max(aps), 1)

    place = tried.index(exponents["fitted"])
    learnt = outcomes(splits["fitted_on"], own["fitted_on"][place].detections)
    *before, temperature, isotonic = content["recalibration"]
    assert temperature["fitted"]["temperature"] == fit_temperature(learnt.scores, learnt.ious).temperature
    assert isotonic["fitted"]["values"] == list(fit_isotonic(learnt.scores, learnt.ious).values)
    detections = own["scored"][place].detections
    assert before[-1]["errors"]["LaACE"] == pytest.approx(calibration(splits["scored"], detections)["LaACE"])
    for one, by in ((temperature, fit_temperature), (isotonic, fit_isotonic)):
        new = recalibrate(detections.scores, by(learnt.scores, learnt.ious)).astype(np.float32)
        errors = calibration(splits["scored"], replace(detections, scores=new))
        assert one["errors"]["LaACE"] == pytest.approx(errors["LaACE"], abs=1e-4)
    assert isotonic["errors"]["LaECE"] < before[-1]["errors"]["LaECE"]


def test_no_exponent_is_calibrated_whose_calibration_is_not_shown(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = fitted(folder, root, *EXPONENTS)

    def calibrated(*_: object) -> None:
        raise AssertionError("a setting was calibrated by its scoring")

    monkeypatch.setattr("model.evaluation.calibration.errors.calibration", calibrated)
    assert fitted(folder, root, *EXPONENTS)["recalibration"] == shown["recalibration"]


def test_what_is_chosen_never_hangs_on_the_scored_split(folder: Path, own_root: Path) -> None:
    first = fitted(folder, own_root, *EXPONENTS)
    # Objects where the detector ranks first by class alone, so that the optimum there moves to exponent 0.
    by_class = InferenceConfig(confidence_exponent=0.0)
    (found,) = score(load_detector(folder), read_coco(own_root, "test"), [by_class], SIZES)
    file = annotations(own_root, "test")
    content = json.loads(file.read_text())
    content["annotations"] = []
    wide = (found.detections.boxes[:, 2:] - found.detections.boxes[:, :2] >= 8).all(axis=1)
    for image_id in np.unique(found.detections.image_ids).tolist():
        place = np.flatnonzero((found.detections.image_ids == image_id) & wide)[0]
        low, high = found.detections.boxes[place].reshape(2, 2).astype(float).tolist()
        side = [high[0] - low[0], high[1] - low[1]]
        what = {"image_id": image_id, "category_id": int(found.detections.category_ids[place]), "iscrowd": 0}
        content["annotations"].append({"id": image_id + 1, "bbox": [*low, *side], "area": side[0] * side[1], **what})
    file.write_text(json.dumps(content))
    other = fitted(folder, own_root, *EXPONENTS)
    assert other["exponent"]["best_on_scored"] != first["exponent"]["best_on_scored"]
    assert [one["fitted_on"] for one in other["curve"]] == [one["fitted_on"] for one in first["curve"]]
    assert other["exponent"]["fitted"] == first["exponent"]["fitted"]
    for one, same in zip(other["recalibration"], first["recalibration"], strict=True):
        assert one["fitted"] == same["fitted"]


def test_a_choice_that_changes_the_exponent_has_an_interval(folder: Path, root: Path, tmp_path: Path) -> None:
    # Whatever is best among these, it is far from 1.
    own = tmp_path / "own_settings"
    shutil.copytree(folder, own)
    write_inference(own, InferenceConfig(confidence_exponent=1.0))
    content = fitted(own, root, *EXPONENTS)
    assert content["exponent"]["usual"] == 1.0 and content["exponent"]["fitted"] < 1.0
    aps = {one["exponent"]: one["scored"]["AP"] for one in content["curve"]}
    gain = content["gain"]
    assert gain["value"] == pytest.approx(aps[content["exponent"]["fitted"]] - aps[1.0])
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert any(note.startswith("‡ On fewer than 10 images") for note in content["tables"]["exponent"]["notes"])
    assert [one["exponent"] for one in content["recalibration"]][:2] == [1.0, content["exponent"]["fitted"]]
    rows = content["tables"]["exponent"]["rows"]
    assert [row["exponent is"] for row in rows] == ["the checkpoint's", "fitted on val", "best on test itself"]


def test_without_exponents_all_from_0_to_1_are_tried(folder: Path, root: Path) -> None:
    content = fitted(folder, root, "--score-threshold", "0.1")
    assert any("score_threshold 0.1," in note for note in content["notes"])
    assert [one["exponent"] for one in content["curve"]] == [round(0.05 * place, 2) for place in range(21)]
    assert any("The best on test itself is an optimum" in note for note in content["tables"]["exponent"]["notes"])


def test_a_detector_without_a_branch_is_recalibrated_alone(root: Path, tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain", root, TrainConfig(model=replace(MODEL, confidence=None), data=SIZES))
    content = fitted(plain, root)
    assert [one["exponent"] for one in content["curve"]] == [0.0] and "curve" not in content["tables"]
    assert [one["name"] for one in content["recalibration"]] == ["as it is", "temperature", "isotonic"]
    assert any("has no confidence branch, and so no exponent" in note for note in content["notes"])
    done = rnc("sweep", plain, "--data", root, "--fit", "val", "--split", "test", *EXPONENTS)
    refused(done, "--exponents 0.3: inference.confidence_exponent is 0.3, but a RetinaNet has no confidence branch")
    product = fitted(checkpoint(tmp_path / "product", root, CONFIG), root, "--set", "fusion=product")
    assert any("Fusion 'product' has no exponent" in note for note in product["notes"])
    assert [row["exponent is"] for row in product["tables"]["exponent"]["rows"]] == ["none to choose"]


@pytest.mark.usefixtures("no_pass")
def test_the_split_that_is_scored_is_refused_under_any_name(folder: Path, own_root: Path) -> None:
    here = ("sweep", folder, "--data", own_root)
    why = "what is chosen on the images that are scored is an optimum over them"
    refused(rnc(*here, "--fit", "val"), "--fit val: val is the split that is scored", why, "--split")
    refused(rnc(*here, "--fit", "test", "--split", "test"), "--fit test: test is the split that is scored")
    # The same files under another name, with more beside them.
    (own_root / "more").symlink_to((own_root / "test").resolve())
    shutil.copy(annotations(own_root, "test"), annotations(own_root, "more"))
    refused(rnc(*here, "--fit", "more", "--split", "test"), "it has every image of test, which is scored", why)


@pytest.mark.usefixtures("no_pass")
def test_a_split_without_objects_or_with_other_categories_is_refused_before_a_pass(
    folder: Path, own_root: Path
) -> None:
    file = annotations(own_root, "val")
    whole = json.loads(file.read_text())
    here = ("sweep", folder, "--data", own_root, "--fit", "val", "--split", "test")
    file.write_text(json.dumps(whole | {"annotations": []}))
    refused(rnc(*here), "split val: none of its 5 images has an object")
    others = [category | {"name": f"other {category['name']}"} for category in whole["categories"]]
    file.write_text(json.dumps(whole | {"categories": others}))
    refused(rnc(*here), "was trained on other classes than split val has")


@pytest.mark.usefixtures("no_pass")
def test_what_is_no_choice_of_an_exponent_is_refused(folder: Path, root: Path) -> None:
    here = ("sweep", folder, "--data", root, "--split", "test", "--fit")
    refused(rnc(*here, "val", "--nms-iou", "0.4,0.5"), "--nms-iou has several values, but --fit chooses the exponent")
    refused(rnc(*here, "val", "--beside", "experiments/demo"), "leave it out with --fit")
    refused(rnc(*here, "nowhere"), f"--fit nowhere: {root} has no such split; it has ")


def test_images_that_are_in_both_splits_are_told(folder: Path, own_root: Path, tmp_path: Path) -> None:
    images = tmp_path / "mixed"
    shutil.copytree((own_root / "val").resolve(), images)
    (own_root / "val").unlink()
    (own_root / "val").symlink_to(images)
    name = json.loads(annotations(own_root, "test").read_text())["images"][0]
    for one in json.loads(annotations(own_root, "val").read_text())["images"]:
        if (one["width"], one["height"]) == (name["width"], name["height"]):
            shutil.copy(own_root / "test" / name["file_name"], images / one["file_name"])
            break
    content = fitted(folder, own_root, *EXPONENTS)
    assert any("1 of the 5 images that are scored are also in val, byte by byte" in note for note in content["notes"])


def test_the_split_that_was_trained_on_is_named_as_such(folder: Path, root: Path, tmp_path: Path) -> None:
    seen = TrainConfig(model=MODEL, data=replace(SIZES, train_split="val", val_split="test"))
    content = fitted(checkpoint(tmp_path / "seen", root, seen), root, *EXPONENTS)
    assert any("was trained on val" in note for note in content["notes"])
    assert not any("was trained on" in note for note in fitted(folder, root, *EXPONENTS)["notes"])


def test_all_of_it_is_written(folder: Path, root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = rnc("sweep", folder, "--data", root, "--fit", "val", "--split", "test", *EXPONENTS, "--output", out)
    assert done.exit_code == 0, done.output
    assert f"written to {out}" in done.stderr and "optimum over the images that are scored" in done.stdout
    content = json.loads((out / "fit.json").read_text())
    for name in ("temperature", "isotonic"):
        by = read_recalibration(out / f"{name}.json")
        (there,) = [one["fitted"] for one in content["recalibration"] if one["name"] == name]
        assert {key: getattr(by, key) for key in there} == {
            key: tuple(value) if isinstance(value, list) else value for key, value in there.items()
        }
    for name in ("exponent", "recalibration", "curve"):
        assert {(out / f"{name}.{suffix}").is_file() for suffix in ("txt", "md", "tex", "json")} == {True}
    page = (out / "index.html").read_text()
    plots = list(ElementTree.fromstring(page[page.index('<div class="multiples">') : page.index("</figure>")]))
    (said,) = [[text.text for text in plot.iter() if text.tag.endswith("text")] for plot in plots]
    assert {"val: fitted on", "test: scored", f"fitted, {content['exponent']['fitted']:.2f}"} <= set(said)
    assert 'alt="How well scores say the IoU on test, before and after"' in page and 'src="http' not in page
    for name in ("curve.png", "reliability.png"):
        with Image.open(out / name) as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100
    counts = [sum(row["counts"] for row in one["reliability"]) for one in content["recalibration"]]
    assert counts[0] > 100 and len(set(counts[-3:])) == 1  # the same detections, in other bins


def test_a_second_look_scores_nothing_again(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(folder, root, *EXPONENTS)

    def passed(*_: object, **__: object) -> None:
        raise AssertionError("images were scored again")

    monkeypatch.setattr("model.evaluation.scoring.score_batch", passed)
    assert fitted(folder, root, *EXPONENTS) == first
