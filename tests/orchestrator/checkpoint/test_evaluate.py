"""`rnc evaluate` on a small checkpoint and drawn scenes; expected values come from score()."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from model.config import CALIBRATION, METRICS, InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.scoring import Scores, score
from model.network.checkpoint import seal
from model.network.retinanet import load_detector
from model.settings import to_dict
from orchestrator.checkpoint.pull import Provenance, write_provenance
from orchestrator.cli.main import cli
from tests.detectors import MODEL, SIZES, save_opinionated, with_objects_where_it_finds_some, write_inference

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
def scores(folder: Path, data: CocoData) -> Scores:
    return score(load_detector(folder), data, [INFERENCE], SIZES)[0]


@pytest.fixture
def metrics(scores: Scores) -> dict[str, float | None]:
    return scores.metrics


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


def test_calibration_stands_behind_the_twelve_of_a_checkpoint_of_its_detections_and_of_a_results_file(
    folder: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    kept, exchanged = tmp_path / "kept.parquet", tmp_path / "exchanged.json"
    said = []
    for words in (
        (folder, "--save", kept, "--coco-json", exchanged),
        ("--detections", kept),
        ("--detections", exchanged, "--split", "val"),
    ):
        done = rnc("evaluate", *words, "--data", data.root, "--format", "json")
        assert done.exit_code == 0, done.output
        said.append(json.loads(done.stdout)["rows"][0])
    names = tuple(said[0])
    assert names[1 : 1 + len(METRICS) + len(CALIBRATION)] == METRICS + CALIBRATION
    of_checkpoint, of_file, of_results = ({name: one[name] for name in CALIBRATION} for one in said)
    assert of_checkpoint == of_file == scores.calibration
    assert 0.0 < (of_checkpoint["LaECE"] or 0.0) < 100.0
    # All 16 images of the split count there, and five have detections: their other objects are missed.
    assert of_results["LRP"] >= of_checkpoint["LRP"] and of_results["LaECE"] is not None


def test_classes_that_another_format_numbers_otherwise_go_by_their_names(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    placed = with_objects_where_it_finds_some(tmp_path / "coco", data)
    for name in ("train", "annotations/instances_train.json"):  # else val would be shared out
        (placed.root / name).symlink_to(data.root / name)

    def evaluate(root: Path) -> tuple[str, dict[str, float]]:
        done = rnc("evaluate", folder, "--data", root, "--format", "json")
        assert done.exit_code == 0, done.output
        return done.stderr, json.loads(done.stdout)["rows"][0]

    _, numbers = evaluate(placed.root)
    assert numbers["AP"] > 1
    for form in ("yolo", "voc"):
        assert rnc("data", "convert", placed.root, tmp_path / form, "--format", form).exit_code == 0
        if form == "voc":
            (tmp_path / "voc" / "labelmap.txt").unlink()  # classes then follow the alphabet, as the shapes' do not
        told, same = evaluate(tmp_path / form)
        assert "classes have other numbers than in the checkpoint; they go by their names" in told
        assert same["AP"] == pytest.approx(numbers["AP"], abs=1e-6)


def test_own_data_are_found_where_they_lay_when_the_row_was_scored(
    data: CocoData, metrics: dict[str, float | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RNC_COCO_ROOT", raising=False)
    mine = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5, dataset="mine"))
    folder = save_opinionated(tmp_path / "mine", (data.category_ids, data.category_names), mine)
    write_inference(folder, INFERENCE)
    certify(folder, metrics, dataset="mine", split_fingerprint=data.fingerprint, data_root=str(data.root))
    detections = folder / "detections.parquet"
    assert "Equal to MLflow's numbers" in rnc("evaluate", folder, "--save", detections).stdout
    assert "Equal to the numbers recorded" in rnc("evaluate", "--detections", detections).stdout
    certify(folder, metrics, dataset="mine", data_root=str(tmp_path / "gone"))
    for words in ((folder,), ("--detections", detections)):
        gone = f"data mine: {tmp_path / 'gone'}, where they lay when the row was scored, is not there"
        refused(rnc("evaluate", *words), gone, "name the folder or file that has them now with --data")
    monkeypatch.setenv("RNC_COCO_ROOT", str(data.root))
    found = rnc("evaluate", folder)
    assert found.exit_code == 0 and f"{gone}; those at RNC_COCO_ROOT are taken, {data.root}; --data" in found.stderr
    (folder / "provenance.json").unlink()
    monkeypatch.delenv("RNC_COCO_ROOT")
    refused(rnc("evaluate", folder), "data mine: where they lie is not recorded; name the folder")


def test_ap_of_each_class_is_in_json_and_below_the_numbers_where_it_is_asked_for(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    data = with_objects_where_it_finds_some(tmp_path / "found", data)  # whose classes have other APs than 0
    words = ("evaluate", folder, "--data", data.root)
    numbers = json.loads(rnc(*words, "--format", "json").stdout)
    (metrics,), classes = numbers["rows"], numbers["classes"]["rows"]
    assert [row["class"] for row in classes] == list(data.category_names)
    held = [row["AP"] for row in classes if row["objects"]]
    assert sum(held) / len(held) == pytest.approx(metrics["AP"], rel=1e-12)
    labels = data.annotation_labels[~data.annotation_crowds].tolist()
    assert [row["objects"] for row in classes] == [labels.count(place) for place in range(len(classes))]
    plain, asked = (rnc(*words, *more).stdout for more in ((), ("--classes", "--by-ap")))
    assert asked.startswith(plain.rstrip("\n")) and "AP of each class" not in plain
    ranked = [
        line.split()[0] for line in asked.splitlines() if line.split()[:1] and line.split()[0] in data.category_names
    ]
    by_ap = sorted(classes, key=lambda row: (row["AP"] is None, row["AP"] or 0.0))
    assert ranked == [row["class"] for row in by_ap]
    assert by_ap != classes
    assert json.loads(rnc(*words, "--format", "json", "--classes", "--by-ap").stdout)["classes"]["rows"] == by_ap
    refused(rnc(*words, "--by-ap"), "--by-ap is for --classes")


def test_a_checkpoint_of_a_gpu_is_scored_on_the_cpu_and_what_may_differ_is_said(
    folder: Path, data: CocoData, metrics: dict[str, float | None]
) -> None:
    def notes() -> str:
        done = rnc("evaluate", folder, "--data", data.root, "--format", "json")
        assert done.exit_code == 0, done.output
        (said,) = json.loads(done.stdout)["rows"]
        assert {name: said[name] for name in METRICS} == metrics
        return " ".join(json.loads(done.stdout)["notes"])

    card = json.loads((folder / "config.json").read_text())
    assert card["device"] == "cpu"
    assert "Trained on" not in notes()
    card |= {"device": "NVIDIA H100 80GB HBM3"}
    (folder / "config.json").write_text(json.dumps(card | {"card_sha256": seal(card)}))
    assert "Trained on NVIDIA H100 80GB HBM3, scored on cpu, which adds up in another order: scores may" in notes()
    del card["device"], card["card_sha256"]  # as checkpoints were before
    (folder / "config.json").write_text(json.dumps(card))
    assert "Trained on" not in notes()


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
    assert f"16 images of {data.root}, split val." in done.stdout


def test_what_is_wrong_is_told_in_one_line(folder: Path, data: CocoData, tmp_path: Path, make_coco) -> None:
    here = ("evaluate", folder, "--data", data.root)
    refused(rnc(*here, "--set", "inference.nms_ious=0.5"), "inference.nms_ious is not a setting; did you mean infer")
    refused(rnc(*here, "--set", "nms_iou=high"), '--set inference.nms_iou is "high", expected a number')
    refused(rnc(*here, "--set", "nms_iou"), "expected a setting and its value")
    refused(rnc(*here, "--exponent", "1.5"), "inference.confidence_exponent is 1.5, expected 0 to 1")
    refused(rnc(*here, "--split", "vla"), f"error: --split vla: {data.root} has no such split; it has train, val\n")
    (tmp_path / "results.json").write_text("[]")
    results = ("evaluate", "--detections", tmp_path / "results.json", "--data", data.root)
    refused(rnc(*results, "--split", "vla"), f"error: --split vla: {data.root} has no such split; it has train, val\n")
    refused(
        rnc("evaluate", tmp_path, "--data", data.root), f"{tmp_path}: no checkpoint, as {tmp_path} holds no config.json"
    )
    others = make_coco([{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 40]}])
    refused(rnc("evaluate", folder, "--data", others, "--split", "train"), "was trained on other classes")
    (folder / "model.safetensors").write_bytes(b"damaged")
    refused(rnc(*here), "the file is damaged or was swapped")


def test_a_file_of_two_options_is_refused_before_anything_is_scored_or_overwritten(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    kept, link = tmp_path / "kept.parquet", tmp_path / "link"
    link.symlink_to(kept)
    both = ("--save", kept, "--coco-json", link)
    refused(rnc("evaluate", folder, "--data", data.root, *both), f"--coco-json {link}: that is the file of --save")
    assert not kept.exists()
    kept.write_text("detections")
    refused(rnc("evaluate", "--detections", kept, "--coco-json", kept), "that is the file of --detections")
    assert kept.read_text() == "detections"


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
