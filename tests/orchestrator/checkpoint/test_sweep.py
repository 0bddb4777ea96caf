"""`rnc sweep` on a small checkpoint: its lines are single scorings, exponent 0 and 0.5 are known; and its ranges."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from model.config import CALIBRATION, METRICS, DataConfig, InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.scoring import score
from model.inference.table import DetectionTable
from model.network.retinanet import load_detector
from model.settings import differences
from orchestrator.checkpoint.sweep import MOST, combinations, parse_axis
from orchestrator.cli.main import cli
from orchestrator.errors import UserError
from orchestrator.tracking.evaluations.detections import read_stored
from tests.detectors import MODEL, SIZES, save_opinionated, with_objects_where_it_finds_some

CONFIG = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=5))


@pytest.fixture(scope="module")
def data(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    root = tmp_path_factory.mktemp("data") / "found"
    with_objects_where_it_finds_some(root, read_coco(shapes_root, "val", num_images=5))
    return read_coco(root, "val", num_images=5)


@pytest.fixture(scope="module")
def folder(data: CocoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoint") / "pulled"
    return save_opinionated(made, (data.category_ids, data.category_names), CONFIG)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RNC_COCO_ROOT", raising=False)


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    for text in said:
        assert text in result.stderr


def swept(folder: Path, data: CocoData, *words: object) -> dict[str, Any]:
    done = rnc("sweep", folder, "--data", data.root, "--format", "json", *words)
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def found(folder: Path, data: CocoData, *settings: InferenceConfig) -> list[DetectionTable]:
    return [one.detections for one in score(load_detector(folder), data, settings, SIZES)]


def boxes_of(table: DetectionTable, image: int) -> dict[tuple[int, int], float]:
    """The scores of an image's boxes, by anchor and category, in their order."""
    here = table.image_ids == image
    boxes = zip(table.anchors[here].tolist(), table.category_ids[here].tolist(), strict=True)
    return dict(zip(boxes, table.scores[here].tolist(), strict=True))


def rank_alike(one: DetectionTable, other: DetectionTable) -> bool:
    """Whether both keep the same boxes in one order, but for those whose scores are equal to rounding."""
    for image in np.unique(np.concatenate([one.image_ids, other.image_ids])).tolist():
        first, second = boxes_of(one, image), boxes_of(other, image)
        if first.keys() != second.keys():
            return False
        ranked = np.array([first[box] for box in second])
        if (np.diff(ranked) > 1e-6 * ranked[:-1]).any():
            return False
    return True


def test_exponent_0_is_the_class_score_bit_for_bit(folder: Path, data: CocoData) -> None:
    by_class = InferenceConfig(confidence_exponent=0.0)
    (blended,) = found(folder, data, by_class)
    assert len(blended) > 100
    assert np.array_equal(blended.scores, blended.class_scores)
    assert not np.isnan(blended.confidences).any()
    detector = load_detector(folder)
    detector.head.confidence_logits = None
    (alone,) = score(detector, data, [by_class], SIZES)
    for name in ("image_ids", "category_ids", "boxes", "scores", "class_scores", "anchors"):
        assert np.array_equal(getattr(blended, name), getattr(alone.detections, name))
    assert np.isnan(alone.detections.confidences).all()


def test_the_product_and_exponent_one_half_rank_alike(folder: Path, data: CocoData) -> None:
    everything = {"score_threshold": 0.0, "max_detections": 1000}
    product, half = found(
        folder,
        data,
        InferenceConfig(fusion="product", **everything),  # type: ignore[arg-type]
        InferenceConfig(confidence_exponent=0.5, **everything),  # type: ignore[arg-type]
    )
    assert len(product) > 100
    assert rank_alike(product, half)
    (by_class,) = found(folder, data, InferenceConfig(confidence_exponent=0.0, **everything))  # type: ignore[arg-type]
    assert not rank_alike(by_class, half)
    np.testing.assert_allclose(np.sort(np.sqrt(product.scores)), np.sort(half.scores), rtol=1e-5)


def test_the_verb_says_both_as_well(folder: Path, data: CocoData, tmp_path: Path) -> None:
    rows = swept(folder, data, "--exponents", "0,0.5", "--score-threshold", 0)["rows"]
    by_class = swept(folder, data, "--exponents", "0,0.25", "--score-threshold", 0)["rows"][0]
    assert rows[0] == by_class
    file = tmp_path / "product.parquet"
    words = ("--set", "fusion=product", "--set", "score_threshold=0", "--save", file)
    assert rnc("evaluate", folder, "--data", data.root, *words).exit_code == 0
    about = read_stored(file)[1]
    assert rows[1]["AP"] > 0
    for name in METRICS:
        mine, theirs = rows[1][name], about.metrics[name]
        assert mine == theirs or mine == pytest.approx(theirs, abs=1e-6)


def test_every_line_is_what_a_scoring_of_its_own_gives(folder: Path, data: CocoData) -> None:
    content = swept(folder, data, "--exponents", "0:0.6:0.3", "--nms-iou", 0.6, "--set", "nms_pre=50")
    settings = [InferenceConfig(confidence_exponent=e, nms_iou=0.6, nms_pre=50) for e in (0.0, 0.3, 0.6)]
    assert [row["exponent"] for row in content["rows"]] == [0.0, 0.3, 0.6]
    for row, setting in zip(content["rows"], settings, strict=True):
        (alone,) = score(load_detector(folder), data, [setting], SIZES)
        assert {name: row[name] for name in METRICS} == alone.metrics
        assert {name: row[name] for name in CALIBRATION} == alone.calibration
        assert 0.0 < row["LaECE"] < 100.0 and 0.0 < row["LRP"] <= 100.0
        assert row["rank corr."] is not None and row["oracle AP"] > row["AP"]
    assert any("nms_iou 0.6" in note and "nms_pre 50" in note for note in content["notes"])
    best = max(content["rows"], key=lambda row: row["AP"])
    assert any(f"Highest AP, {best['AP']:.1f}: exponent" in note for note in content["notes"])


def test_suppressions_are_swept_in_the_order_they_are_typed_and_each_is_a_scoring_of_its_own(
    folder: Path, data: CocoData
) -> None:
    content = swept(folder, data, "--suppression", "voting,nms,soft_gaussian", "--exponents", "0,0.4")
    kinds = [(row["suppression"], row["exponent"]) for row in content["rows"]]
    assert kinds == [(kind, exponent) for kind in ("voting", "nms", "soft_gaussian") for exponent in (0.0, 0.4)]
    for row in content["rows"]:
        single = InferenceConfig(suppression=row["suppression"], confidence_exponent=row["exponent"])
        assert row["AP"] == pytest.approx(score(load_detector(folder), data, [single], SIZES)[0].metrics["AP"])
    widths = swept(folder, data, "--suppression", "soft_gaussian", "--suppression-sigma", "0.3,0.9")
    assert [row["suppression sigma"] for row in widths["rows"]] == [0.3, 0.9]
    assert any("suppression soft_gaussian" in note for note in widths["notes"])


def test_a_curve_and_a_grid_are_written_in_every_form(folder: Path, data: CocoData, tmp_path: Path) -> None:
    for name, words, mark in (
        ("curve", ["--exponents", "0:0.8:0.2"], "polyline"),
        ("names", ["--suppression", "nms,soft_linear"], "rect"),
        ("grid", ["--exponents", "0,0.4", "--nms-iou", "0.4,0.5,0.6"], "rect"),
    ):
        out = tmp_path / name
        assert rnc("sweep", folder, "--data", data.root, "--output", out, *words).exit_code == 0
        files = {"index.html", "sweep.json", "sweep.md", "sweep.png", "sweep.tex", "sweep.txt"}
        assert {file.name for file in out.iterdir()} == files
        page = (out / "index.html").read_text()
        drawn = page[page.index('<div class="multiples">') : page.index("</figure>")]
        plots = list(ElementTree.fromstring(drawn))
        assert len(plots) == 15  # all but APl and ARl, which the images have no object for
        assert all(list(plot.iter(mark)) for plot in plots)
        assert "http" not in page
        with Image.open(out / "sweep.png") as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100
        assert "**" in (out / "sweep.md").read_text()
    rows = json.loads((tmp_path / "grid" / "sweep.json").read_text())["rows"]
    pairs = [(row["exponent"], row["NMS IoU"]) for row in rows]
    assert pairs == [(0.0, 0.4), (0.0, 0.5), (0.0, 0.6), (0.4, 0.4), (0.4, 0.5), (0.4, 0.6)]


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "html", "json"])
def test_every_format_is_printed_and_the_place_is_told(form: str, folder: Path, data: CocoData, tmp_path: Path) -> None:
    done = rnc("sweep", folder, "--data", data.root, "--min-confidence", "0,0.2", "--exponents", 0, "--format", form)
    assert done.exit_code == 0, done.output
    assert "swept over min confidence" in done.stdout
    (written,) = (tmp_path / "home" / "reports" / "sweep").iterdir()
    assert f"written to {written}" in done.stderr


def made_up(tmp_path: Path, config: TrainConfig, *rows: str) -> Path:
    settings = differences(config)
    file = tmp_path / "made_up.yaml"
    lines = "\n".join(f"  - {row}" for row in rows)
    file.write_text(f"defaults:\n  train: {json.dumps(settings)}\nrows:\n{lines}\n")
    return file


ROWS = (
    "{label: a, split: val, inference: {confidence_exponent: 0.0}, paper: {AP: 11.5}}",
    "{label: b, split: val, inference: {confidence_exponent: 0.2}, paper: {AP: 12.5, AP75: 3.5}}",
    "{label: c, split: val, inference: {confidence_exponent: 0.4, nms_iou: 0.7}, paper: {AP: 99.0}}",
    "{label: d, split: train, inference: {confidence_exponent: 0.4}, paper: {AP: 98.0}}",
)


def test_the_papers_numbers_stand_beside_where_training_setting_and_split_are_the_same(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    words = ("--exponents", "0,0.2,0.4", "--beside")
    content = swept(folder, data, *words, made_up(tmp_path, CONFIG, *ROWS))
    assert [row["AP, paper"] for row in content["rows"]] == [11.5, 12.5, None]
    assert [row["AP75, paper"] for row in content["rows"]] == [None, 3.5, None]
    assert "AP50, paper" not in content["columns"]
    (out,) = (tmp_path / "home" / "reports" / "sweep").iterdir()
    assert (out / "index.html").read_text().count(">paper</text>") == 2


def test_without_a_row_that_fits_there_is_no_such_column_and_a_reason(
    folder: Path, data: CocoData, tmp_path: Path
) -> None:
    words = ("--exponents", "0,0.2", "--beside")
    other = replace(CONFIG, global_batch=CONFIG.global_batch + 1)
    content = swept(folder, data, *words, made_up(tmp_path, other, *ROWS))
    assert not any("paper" in column for column in content["columns"])
    assert any("has the training settings of this checkpoint" in note for note in content["notes"])
    content = swept(folder, data, *words, made_up(tmp_path, CONFIG, *ROWS[2:]))
    assert not any("paper" in column for column in content["columns"])
    assert any("has numbers of the paper for these" in note for note in content["notes"])
    content = swept(folder, data, "--all", *words, made_up(tmp_path, CONFIG, *ROWS))
    assert not any("paper" in column for column in content["columns"])


def test_a_checkpoint_without_a_branch_is_told_from_those_with_one_before_an_image_is_read(
    data: CocoData, tmp_path: Path
) -> None:
    config = TrainConfig(model=replace(MODEL, confidence=None), data=CONFIG.data)
    plain = save_opinionated(tmp_path / "plain", (data.category_ids, data.category_names), config)
    nowhere = ("--data", tmp_path)  # no data set: its error would come first if images were looked for
    done = rnc("sweep", plain, "--exponents", "0:1:0.05", *nowhere)
    refused(done, "--exponents 0.05: inference.confidence_exponent is 0.05, but a RetinaNet has no confidence branch")
    refused(done, "{tower: classification} for RetinaNet-Conf", "{tower: box} for IoU-aware Net")
    refused(rnc("sweep", plain, "--min-confidence", "0,0.5", *nowhere), "has no confidence branch")
    assert len(swept(plain, data, "--nms-iou", "0.4,0.5")["rows"]) == 2


def test_ranges_that_cannot_be_are_refused(folder: Path, data: CocoData, tmp_path: Path) -> None:
    here = ("sweep", folder, "--data", tmp_path)
    refused(rnc(*here), "nothing varies; give one of --exponents, --nms-iou")
    refused(rnc(*here, "--exponents", 0.4), "or score a single setting with `rnc evaluate`")
    refused(rnc(*here, "--exponents", "0:1:0"), "--exponents 0:1:0: the step is 0")
    refused(rnc(*here, "--exponents", "1:0:0.1"), "begins at 1, above its end 0")
    refused(rnc(*here, "--exponents", "0:2:0.1"), "--exponents 1.1: ", "confidence_exponent is 1.1, expected 0 to 1")
    refused(rnc(*here, "--nms-iou", "tight"), "'tight' is no number")
    refused(rnc(*here, "--suppression", "nms,soft"), '--suppression nms,soft: suppression is "soft"')
    refused(rnc(*here, "--suppression", "nms, nms"), "nms stands twice")
    refused(rnc(*here, "--suppression", "nms,voting", "--suppression-sigma", 0.1), "no meaning for suppression 'nms'")
    refused(rnc(*here, "--exponents", "0:1:0.01", "--nms-iou", "0.4,0.5,0.6"), "are 303 settings, at most 256")
    refused(rnc(*here, "--exponents", "0,1", "--set", "nms_ious=0.5"), "did you mean inference.nms_iou")
    refused(rnc(*here, "--exponents", "0,1", "--set", "fusion=product"), "has no effect on fusion 'product'")
    refused(
        rnc("sweep", tmp_path, "--exponents", "0,1"), f"{tmp_path}: no checkpoint, as {tmp_path} holds no config.json"
    )
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "below"
    refused(rnc("sweep", folder, "--data", data.root, "--exponents", "0,1", "--output", out), "cannot write to")


def test_images_without_an_object_give_no_number_and_that_is_said(tmp_path: Path, make_coco: Any) -> None:
    root = make_coco()
    data = read_coco(root, "train")
    config = TrainConfig(model=MODEL, data=DataConfig(dataset="shapes", train_split="train", val_split="train"))
    checkpoint = save_opinionated(tmp_path / "one", (data.category_ids, data.category_names), config)
    out = tmp_path / "out"
    done = rnc("sweep", checkpoint, "--data", root, "--exponents", "0,0.5", "--output", out)
    assert done.exit_code == 0, done.output
    assert "None of them has an object, so there is nothing to measure" in done.stdout
    assert "n/a" in done.stdout and "None " not in done.stdout.replace("None of them", "")
    assert not {"AP"} & {plot.get("aria-label", "").split()[0] for plot in _plots(out)}


def _plots(out: Path) -> list[ElementTree.Element]:
    page = (out / "index.html").read_text()
    if '<div class="multiples">' not in page:
        return []
    return list(ElementTree.fromstring(page[page.index('<div class="multiples">') : page.index("</figure>")]))


def values(text: str) -> tuple[float | str, ...]:
    return parse_axis("confidence_exponent", "--exponents", text).values


def test_a_range_holds_both_ends_and_the_very_numbers_that_a_file_would() -> None:
    assert values("0:1:0.1") == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert values("0:1:0.3") == (0.0, 0.3, 0.6, 0.9)
    assert values("0.4:0.4:0.1") == (0.4,)
    assert len(values("0:1:0.05")) == 21


def test_a_list_is_sorted() -> None:
    assert values("0.5, 0,0.25") == (0.0, 0.25, 0.5)
    assert parse_axis("nms_iou", "--nms-iou", "0.5,0.25").digits == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:1:0", "--exponents 0:1:0: the step is 0, expected more than 0"),
        ("0:1:-0.1", "the step is -0.1"),
        ("1:0:0.1", "begins at 1, above its end 0"),
        ("0:1", "expected START:STOP:STEP or a list"),
        ("0:1:0.1:2", "expected START:STOP:STEP or a list"),
        ("much", "'much' is no number; expected START:STOP:STEP"),
        ("", "'' is no number"),
        ("0,,1", "'' is no number"),
        ("nan", "'nan' is no number"),
        ("0:inf:1", "'inf' is no number"),
        ("0.5,0.50", "stands twice"),
        ("0:1:1e-9", f"more than {MOST} values"),
        ("0:1e999999:1e-999999", f"more than {MOST} values"),
    ],
)
def test_what_is_no_range_is_told_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(UserError, match="--exponents") as told:
        values(text)
    assert said in str(told.value)


@pytest.mark.parametrize("name", ["soft", "", "NMS"])
def test_a_name_that_a_setting_does_not_know_is_told_with_those_that_it_does(name: str) -> None:
    with pytest.raises(UserError) as told:  # before a checkpoint is looked for
        parse_axis("suppression", "--suppression", f"nms,{name}")
    assert str(told.value).startswith(f"--suppression nms,{name}: suppression is \"{name}\", expected 'nms', 'soft_")
    assert str(told.value).endswith("'matrix_gaussian' or 'voting'")


@pytest.mark.parametrize(
    ("setting", "text", "said"),
    [
        ("confidence_exponent", "0:1.2:0.1", "--one 1.1: confidence_exponent is 1.1, expected 0 to 1"),
        ("nms_iou", "0.5,-0.1", "--one -0.1: nms_iou is -0.1"),
        ("suppression_sigma", "0,0.5", "--one 0: suppression_sigma is 0.0, expected more than 0"),
    ],
)
def test_a_number_that_a_setting_does_not_allow_is_told_before_a_checkpoint_is_looked_for(
    setting: str, text: str, said: str
) -> None:
    with pytest.raises(UserError) as told:
        parse_axis(setting, "--one", text)
    assert str(told.value).startswith(said)
    assert parse_axis("suppression_sigma", "--one", "0.3,0.5").values == (0.3, 0.5)


def test_two_settings_are_combined_the_last_changing_first_and_no_more_than_two() -> None:
    one, two = parse_axis("confidence_exponent", "-e", "0,1"), parse_axis("nms_iou", "-n", "0.4,0.5")
    fixed, third = parse_axis("min_confidence", "-m", "0.1"), parse_axis("score_threshold", "-s", "0,0.1")
    assert combinations([one, two, fixed]) == [(0.0, 0.4, 0.1), (0.0, 0.5, 0.1), (1.0, 0.4, 0.1), (1.0, 0.5, 0.1)]
    with pytest.raises(UserError, match="vary one for a curve or two for a grid"):
        combinations([one, two, third])
    with pytest.raises(UserError, match=f"are 441 settings, at most {MOST}"):
        combinations([parse_axis(name, "-a", "0:1:0.05") for name in ("nms_iou", "score_threshold")])
