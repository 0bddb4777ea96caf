"""Files of detections: numbers from them equal those of the pass, and every other file is refused with a way out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.config import METRICS, DataConfig, InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.misalignment import of_detections
from model.evaluation.scoring import Scores, score
from model.inference.table import DetectionTable, read_detections, write_detections
from model.network.checkpoint import read_card
from model.network.retinanet import load_detector
from orchestrator.cli.main import cli
from orchestrator.experiment.plan import evaluation_key, train_key
from orchestrator.tracking.evaluations.detections import About, describe, read_stored, write_stored
from tests.detectors import MODEL, SIZES, save_opinionated, with_objects_where_it_finds_some, write_inference

INFERENCE = InferenceConfig(confidence_exponent=0.3, nms_iou=0.6)
CONFIG = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5))


@pytest.fixture(scope="module")
def data(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    root = tmp_path_factory.mktemp("data") / "found"
    with_objects_where_it_finds_some(root, read_coco(shapes_root, "val", num_images=8))
    return read_coco(root, "val", num_images=5)


@pytest.fixture(scope="module")
def folder(data: CocoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint") / "pulled"
    folder = save_opinionated(made, (data.category_ids, data.category_names), CONFIG)
    write_inference(folder, INFERENCE)
    return folder


@pytest.fixture(scope="module")
def scores(folder: Path, data: CocoData) -> Scores:
    return score(load_detector(folder), data, [INFERENCE], SIZES)[0]


@pytest.fixture
def file(folder: Path, data: CocoData, scores: Scores, tmp_path: Path) -> Path:
    file = tmp_path / "found.parquet"
    about = describe(read_card(folder), CONFIG.data, data, scores, of_detections(data, scores.detections))
    write_stored(file, scores.detections, about)
    return file


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RNC_COCO_ROOT", raising=False)


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    *notes, error = result.stderr.strip().splitlines()
    assert all("boxes are listed more than once" in note for note in notes)  # the data's, made of what was found there
    for text in said:
        assert text in error


def numbers(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_what_a_pass_stores_is_described_by_its_card_and_read_back_bit_for_bit(
    folder: Path, data: CocoData, scores: Scores, file: Path
) -> None:
    detections, about = read_stored(file)
    for name in ("image_ids", "category_ids", "boxes", "scores", "class_scores", "confidences", "levels", "anchors"):
        one, other = getattr(detections, name), getattr(scores.detections, name)
        assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    key = train_key(CONFIG)
    assert about == About(
        data=CONFIG.data,
        split="val",
        data_fingerprint=data.fingerprint,
        num_images=5,
        inference=INFERENCE,
        train_key=key,
        evaluation_key=evaluation_key(key, INFERENCE, "val"),
        weights_sha256=read_card(folder).weights_sha256,
        metrics=scores.metrics,
        statistics=of_detections(data, scores.detections),
    )


def test_scored_saved_and_computed_again_every_number_is_equal_to_the_last_digit(
    folder: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    made = tmp_path / "made" / "found.parquet"
    done = rnc("evaluate", folder, "--data", data.root, "--save", made, "--format", "json")
    (first,) = numbers(done)["rows"]
    assert all(value for name, value in scores.metrics.items() if name not in ("APl", "ARl"))
    assert f"{len(scores.detections)} detections written to {made}" in done.stderr
    again = numbers(rnc("evaluate", "--detections", made, "--data", data.root, "--format", "json"))
    (row,) = again["rows"]
    assert {name: row[name] for name in first} == first
    statistics = of_detections(data, scores.detections)
    assert {row["rank corr."], row["ECE"], row["oracle AP"]} < set(statistics.values()) and row["oracle AP"] > row["AP"]
    assert {name: first[name] for name in METRICS} == scores.metrics
    assert "Equal to the numbers recorded in found.parquet, to the last digit." in again["notes"]


def test_coco_json_of_a_checkpoint_and_of_its_stored_detections_is_one_and_pycocotools_gives_its_numbers(
    folder: Path, data: CocoData, scores: Scores, file: Path, tmp_path: Path
) -> None:
    direct, stored = tmp_path / "a" / "direct.json", tmp_path / "b" / "stored.json"
    assert rnc("evaluate", folder, "--data", data.root, "--coco-json", direct).exit_code == 0
    assert rnc("evaluate", "--detections", file, "--data", data.root, "--coco-json", stored).exit_code == 0
    assert direct.read_bytes() == stored.read_bytes()
    truth = COCO()
    truth.dataset = data.coco_dict()
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(str(stored)), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    for name, value in zip(METRICS, evaluator.stats.tolist(), strict=True):
        mine = scores.metrics[name]
        assert value == -1 if mine is None else mine == pytest.approx(100 * value, abs=1e-9)


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html", "json"])
def test_every_format_says_whether_the_numbers_are_those_recorded(form: str, file: Path, data: CocoData) -> None:
    command = ("evaluate", "--detections", file, "--data", data.root, "--format", form)
    assert "Equal to the numbers recorded in found.parquet, to the last digit" in rnc(*command).stdout
    detections, about = read_stored(file)
    metrics = dict(about.metrics) | {"AP": (about.metrics["AP"] or 0) + 0.25}
    write_stored(file, detections, replace(about, metrics=metrics))
    said = rnc(*command).stdout
    assert "Not equal to the numbers recorded in found.parquet: they differ by up to 0.25" in said
    assert "recorded" in said.replace("recorded in", "")  # as the name of their row


def test_without_data_the_site_has_them_under_their_name(
    folder: Path, data: CocoData, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG.data, dataset="coco")
    detections, about = read_stored(file)
    write_stored(file, detections, replace(about, data=config))
    refused(rnc("evaluate", "--detections", file), "RNC_COCO_ROOT is not set", "here --data does so, too")
    monkeypatch.setenv("RNC_COCO_ROOT", str(data.root))
    assert "to the last digit" in rnc("evaluate", "--detections", file).stdout


def test_detections_of_all_images_are_computed_again_on_all(folder: Path, data: CocoData, tmp_path: Path) -> None:
    made = tmp_path / "all.parquet"
    assert rnc("evaluate", folder, "--data", data.root, "--all", "--save", made).exit_code == 0
    assert read_stored(made)[1].num_images == 8
    assert "to the last digit" in rnc("evaluate", "--detections", made, "--data", data.root).stdout


def test_the_same_images_under_another_name_are_the_same(file: Path, data: CocoData, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / "annotations").mkdir(parents=True)
    (root / "other").symlink_to(data.root / "val")
    content = json.loads((data.root / "annotations" / "instances_val.json").read_text())
    content["images"] = content["images"][:5]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    (root / "annotations" / "instances_other.json").write_text(json.dumps(content))
    assert "to the last digit" in rnc("evaluate", "--detections", file, "--data", root, "--split", "other").stdout


def test_detections_of_another_data_set_are_refused_and_both_are_named(
    file: Path, data: CocoData, shapes_root: Path
) -> None:
    done = rnc("evaluate", "--detections", file, "--data", shapes_root)
    made_on = f"holds detections on 5 images of shapes val (fingerprint {data.fingerprint[:12]})"
    refused(done, made_on, f"but the data are 5 images of {shapes_root}, split val", "--data", "--split")


def of_an_unknown_image(table: DetectionTable) -> DetectionTable:
    return replace(table, image_ids=np.where(np.arange(len(table)) < 3, 9999, table.image_ids))


def of_an_unknown_category(table: DetectionTable) -> DetectionTable:
    return replace(table, category_ids=np.where(np.arange(len(table)) < 3, 77, table.category_ids))


@pytest.mark.parametrize(
    ("change", "said"), [(of_an_unknown_image, "image id 9999"), (of_an_unknown_category, "category id 77")]
)
def test_ids_that_the_data_set_does_not_have_are_named(
    change: Callable[[DetectionTable], DetectionTable], said: str, file: Path, data: CocoData
) -> None:
    detections, about = read_stored(file)
    write_stored(file, change(detections), about)
    refused(rnc("evaluate", "--detections", file, "--data", data.root), f"3 detections have {said} or", "rnc pull")


def test_a_file_that_is_cut_off_anywhere_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in (len(whole) // 2, len(whole) - 1, 4, 11):
        file.write_bytes(whole[:length])
        refused(
            rnc("evaluate", "--detections", file), f"{file} is cut off", "rnc evaluate CHECKPOINT --save FILE.parquet"
        )
    file.write_bytes(whole[:200] + whole[-200:])
    refused(rnc("evaluate", "--detections", file), f"{file} is damaged")


def test_a_byte_that_flipped_is_found(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 0x10
    file.write_bytes(whole)
    refused(rnc("evaluate", "--detections", file), f"{file} is damaged")


def test_an_older_file_says_how_to_get_a_newer_one(file: Path) -> None:
    old = pq.read_table(file).select(["image_id", "category_id", "x1", "y1", "x2", "y2", "score", "anchor"])
    pq.write_table(old.replace_schema_metadata(None), file)
    refused(rnc("evaluate", "--detections", file), "detections of an earlier form", "rnc evaluate CHECKPOINT --save")


def test_files_of_other_things_are_refused(file: Path, tmp_path: Path) -> None:
    refused(rnc("evaluate", "--detections", tmp_path / "none.parquet"), "none.parquet is not there")
    (tmp_path / "text.parquet").write_text("nothing of the kind")
    refused(rnc("evaluate", "--detections", tmp_path / "text.parquet"), "is no Parquet file")
    (tmp_path / "empty.parquet").write_text("")
    refused(rnc("evaluate", "--detections", tmp_path / "empty.parquet"), "is no Parquet file")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    refused(rnc("evaluate", "--detections", tmp_path / "other.parquet"), "holds no detections, but columns a")
    detections, said = read_detections(file)
    del said["split"]
    write_detections(detections, file, said | {"num_images": "many"})
    refused(
        rnc("evaluate", "--detections", file),
        "does not say what its detections are",
        "split is missing",
        'num_images is "many"',
    )


def test_a_checkpoint_or_a_file_is_evaluated_and_not_both(folder: Path, file: Path) -> None:
    refused(rnc("evaluate"), "either a CHECKPOINT (a folder, `best` or a row) or --detections FILE")
    refused(rnc("evaluate", folder, "--detections", file), "either a CHECKPOINT")
    for words in (["--exponent", 0.2], ["--set", "nms_iou=0.6"], ["--all"], ["--save", "x.parquet"]):
        refused(rnc("evaluate", "--detections", file, *words), "need a CHECKPOINT")


def test_a_place_that_cannot_be_written_to_is_named(folder: Path, data: CocoData, file: Path) -> None:
    inside = file / "below.parquet"
    refused(rnc("evaluate", folder, "--data", data.root, "--save", inside), f"cannot write {inside}")
    refused(rnc("evaluate", "--detections", file, "--data", data.root, "--coco-json", inside), f"cannot write {inside}")


def test_data_without_any_object_have_no_numbers_and_that_is_equal(tmp_path: Path, make_coco: Any) -> None:
    root = make_coco()
    data = read_coco(root, "train")
    empty = TrainConfig(model=MODEL, data=DataConfig(dataset="shapes", train_split="train", val_split="train"))
    checkpoint = save_opinionated(tmp_path / "one", (data.category_ids, data.category_names), empty)
    made = tmp_path / "found.parquet"
    assert rnc("evaluate", checkpoint, "--data", root, "--save", made).exit_code == 0
    again = numbers(rnc("evaluate", "--detections", made, "--data", root, "--format", "json"))
    assert [again["rows"][0][name] for name in METRICS] == [None] * 12
    assert "Equal to the numbers recorded in found.parquet, to the last digit." in again["notes"]


@pytest.mark.parametrize("column", ["boxes", "scores"])
def test_a_number_that_is_none_is_refused_by_its_row(file: Path, data: CocoData, tmp_path: Path, column: str) -> None:
    detections, about = read_stored(file)
    values = getattr(detections, column).copy()
    values[3] = np.nan
    write_stored(tmp_path / "nan.parquet", replace(detections, **{column: values}), about)
    refused(
        rnc("evaluate", "--detections", tmp_path / "nan.parquet", "--data", data.root),
        f"nan.parquet: 1 of {len(detections)} detections have {column} that are NaN or infinite, the first in row 3",
        "make another with `rnc evaluate CHECKPOINT --save",
    )
