"""`rnc misalignment` on small checkpoints and drawn scenes; expected values come from score()."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from model.config import ConfidenceConfig, InferenceConfig, TrainConfig
from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.coco.matches import read_matches
from model.evaluation.examples.pictures import WIDTH, draw_boxes
from model.evaluation.misalignment import read_misalignment, statistics
from model.evaluation.scoring import Scores, score
from model.inference.table import read_detections
from model.network.checkpoint import read_card
from model.network.retinanet import load_detector
from orchestrator.checkpoint import misalignment
from orchestrator.checkpoint.misalignment import SUPPRESSIONS
from orchestrator.cli.main import cli
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS
from orchestrator.worker.scoring import write_evaluation_files
from tests.conftest import MakeCoco
from tests.detectors import MODEL, SIZES, save_opinionated, write_inference

INFERENCE = InferenceConfig(confidence_exponent=0.3)
ABOVE = ("p>.05", "p>.5", "p>.6", "p>.7", "p>.8", "p>.9", "IoU>.5", "IoU>.6", "IoU>.7", "IoU>.8", "IoU>.9")


@pytest.fixture(scope="module")
def data(shapes_root: Path) -> CocoData:
    return read_coco(shapes_root, "val", num_images=4)


def checkpoint(folder: Path, data: CocoData, confidence: ConfidenceConfig | None) -> Path:
    config = TrainConfig(model=replace(MODEL, confidence=confidence), data=replace(SIZES, num_val_images=4))
    return save_opinionated(folder, (data.category_ids, data.category_names), config)


@pytest.fixture(scope="module")
def conf(data: CocoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint(tmp_path_factory.mktemp("heads") / "conf", data, ConfidenceConfig())
    write_inference(folder, INFERENCE)
    return folder


@pytest.fixture(scope="module")
def plain(data: CocoData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("heads") / "plain", data, None)


@pytest.fixture(scope="module")
def scores(conf: Path, data: CocoData) -> Scores:
    return score(load_detector(conf), data, [INFERENCE], SIZES)[0]


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing of figures, most of the verb's time, to the tests that look at them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **how: Path(file).write_bytes(b""))


def rnc(*words: object) -> Result:
    return CliRunner().invoke(cli, ["misalignment", *(str(word) for word in words)])


def refused(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    for text in said:
        assert text in result.stderr


@pytest.mark.usefixtures("no_figures")
def test_boxes_of_each_image_are_counted_before_and_after_nms(
    conf: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    done = rnc(conf, "--images", 2, "--data", data.root, "--output", tmp_path, "--format", "json")
    assert done.exit_code == 0, done.output
    by_image, *_ = json.loads(done.stdout)
    names = [(row["image"], row["NMS"]) for row in by_image["rows"]]
    first, second = (str(image) for image in data.image_ids[:2])
    ends = [(first, "before"), ("", "after"), (second, "before"), ("", "after")]
    assert names == [*ends, ("these 2", "before"), ("", "after"), ("all 4", "before"), ("", "after")]
    found, counted = scores.detections, scores.misalignment
    assert counted is not None
    for place, image in enumerate((*data.image_ids[:2].tolist(), None)):
        of_image = found.take(found.image_ids == image if image else np.isin(found.image_ids, data.image_ids[:2]))
        limits = [float(name.split(">")[1]) for name in ABOVE]
        values = [of_image.class_scores if name.startswith("p") else of_image.ious for name in ABOVE]
        expected = [int((one > np.float32(limit)).sum()) for one, limit in zip(values, limits, strict=True)]
        assert [by_image["rows"][2 * place + 1][name] for name in ABOVE] == expected
        assert all(by_image["rows"][2 * place][name] >= number for name, number in zip(ABOVE, expected, strict=True))
    assert by_image["rows"][4]["anchors"] == counted.num_positive_anchors[:2].sum() > 0
    assert by_image["rows"][6]["p>.05"] == counted.scores_before[:, 0].sum()
    assert "Ranked with exponent 0.3." in by_image["notes"][1]
    assert by_image["notes"][2].startswith("The first 2 of 4 images of")


@pytest.mark.usefixtures("no_figures")
def test_what_stands_for_nms_and_by_what_it_ranks_is_said(conf: Path, data: CocoData, tmp_path: Path) -> None:
    """IoU-guided NMS reads the confidence, but at exponent 0 no box enters or ranks by it."""
    kinds = get_args(get_type_hints(InferenceConfig)["suppression"])
    assert {"nms", *SUPPRESSIONS} == set(kinds)
    chosen = ["--set", "inference.suppression=iou_guided", "--exponent", 0]
    done = rnc(conf, *chosen, "--images", 1, "--only", "--data", data.root, "--output", tmp_path, "--format", "json")
    assert done.exit_code == 0, done.output
    by_image, *_ = json.loads(done.stdout)
    assert by_image["notes"][1].endswith("Ranked by the class score. Suppressed by IoU-guided NMS.")
    assert "Other boxes enter by a fused score" not in done.stdout


@pytest.mark.usefixtures("no_figures")
def test_the_papers_counts_stand_beside_ours_line_by_line_and_image_by_image(
    conf: Path, plain: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    chosen = ["--images", 2, "--set", "inference.max_detections=5"]
    done = rnc(plain, conf, *chosen, "--data", data.root, "--output", tmp_path, "--format", "json")
    assert done.exit_code == 0, done.output
    _, ours, papers, lines, shares, _ = json.loads(done.stdout)
    assert papers["columns"] == ours["columns"]
    assert papers["rows"][-2] == {"image": "these 10", "NMS": "before", "anchors": 1941} | dict(
        zip(ABOVE, (39067, 1027, 708, 446, 202, 68, 7378, 5964, 4297, 2622, 841), strict=True)
    )
    assert len(lines["rows"]) == 23 and lines["columns"][2:] == ["RetinaNet", "RetinaNet-Conf", "the paper"]
    anchors, before = lines["rows"][:2]
    assert scores.misalignment is not None
    first, second = scores.misalignment.num_positive_anchors[:2].tolist()
    assert anchors["RetinaNet-Conf"] == (first + second) / 2 and anchors["RetinaNet-Conf high"] == max(first, second)
    assert (before["boxes"], before["the paper"], before["the paper low"]) == ("p>.05", 3906.7, 364)
    assert [row["image"] for row in shares["rows"][:4]] == [
        *map(str, data.image_ids[:2].tolist()),
        "mean",
        str(data.image_ids[0]),
    ]
    assert [row["boxes of"] for row in shares["rows"] if row["boxes of"]] == [
        "RetinaNet",
        "RetinaNet-Conf",
        "the paper",
    ]
    assert any("The paper's ten images of COCO" in note for note in shares["notes"])
    assert shares["rows"][-1]["Δ IoU>.5"] == pytest.approx(-19.52, abs=0.005)
    assert "RetinaNet keeps the best 5 in 2 of 2 images; the paper keeps all." in shares["notes"]
    assert any("fused score (RetinaNet-Conf): --exponent 0" in note for note in shares["notes"])
    by_class = rnc(plain, "--images", 2, "--data", data.root, "--output", tmp_path, "--format", "text")
    assert "--exponent 0" not in by_class.stdout and "Image10" in by_class.stdout


@pytest.mark.usefixtures("no_figures")
def test_without_the_papers_file_as_in_an_installed_package_ours_stand_alone(
    plain: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.checkpoint.misalignment.BOXES", tmp_path / "absent.csv")
    done = rnc(plain, "--images", 2, "--data", data.root, "--output", tmp_path, "--format", "json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 2 and not list(tmp_path.glob("*paper*"))


def test_heads_stand_side_by_side_each_with_its_own_settings(
    conf: Path, plain: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    done = rnc(plain, conf, "--data", data.root, "--output", tmp_path, "--format", "json")
    assert done.exit_code == 0, done.output
    *by_image, heads = json.loads(done.stdout)
    assert [table["title"] for table in by_image] == [
        "Boxes before and after NMS: RetinaNet",
        "Boxes before and after NMS: RetinaNet-Conf",
        "Boxes before and after NMS: the paper, its ten images of COCO",
        "Boxes of an image, line by line",
        "Shares before and after NMS",
    ]
    assert [row["head"] for row in heads["rows"]] == ["RetinaNet", "RetinaNet-Conf"]
    assert scores.misalignment is not None
    numbers = statistics(data, scores.detections, scores.misalignment)
    assert {name: heads["rows"][1][column.name] for name, column in MISALIGNMENT_COLUMNS.items()} == numbers
    assert heads["rows"][1]["AP"] == scores.metrics["AP"]
    assert "RetinaNet: Ranked by the class score." in heads["notes"]
    assert "RetinaNet-Conf: Ranked with exponent 0.3." in heads["notes"]
    pictures = list((tmp_path / "boxes").iterdir())
    assert {file.name for file in pictures} == {f"{image}.png" for image in data.image_ids}
    assert (tmp_path / "index.html").read_text().count('<img alt="Boxes kept and dropped on image') == 4
    with Image.open(pictures[0]) as picture:
        assert picture.width >= 2 * WIDTH


def test_tables_and_figures_are_written_in_every_form(conf: Path, data: CocoData, tmp_path: Path) -> None:
    again = rnc(conf, conf.parent / "." / "conf", "--images", 1, "--only", "--data", data.root, "--output", tmp_path)
    assert again.exit_code == 0, again.output
    assert "The first 1 of 1 images" in again.stdout and "all 4" not in again.stdout
    figures = {f"figure{number}.{suffix}" for number in (1, 2, "2-by-image", 4, 5) for suffix in ("png", "svg")}
    figures |= {"reliability.png", "reliability.svg"}
    names = ("boxes-retinanet-conf", "paper-boxes", "paper-lines", "paper-shares", "statistics")
    tables = {f"{n}.{s}" for n in names for s in ("txt", "md", "tex", "json")}
    assert {file.name for file in tmp_path.iterdir()} == figures | tables | {"boxes", "index.html"}
    page = (tmp_path / "index.html").read_text()
    assert page.count('<section id="lab"') == 1 and page.count('"has_confidence":true') == 1
    assert page.index("What a score is worth") < page.index("Score against IoU")
    assert page.count("data:image/png;base64,") == 6 and "http" not in page.split("</style>")[1]


@pytest.mark.usefixtures("no_figures")
def test_reports_of_other_settings_or_images_lie_beside_each_other(
    conf: Path, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNC_HOME", str(tmp_path))
    for exponent, images in ((0.1, 1), (0.2, 1), (0.2, 2), (0.1, 1)):
        done = rnc(conf, "--exponent", exponent, "--images", images, "--only", "--data", data.root)
        assert done.exit_code == 0, done.output
    made = sorted(path.name for path in (tmp_path / "reports" / "misalignment").iterdir())
    assert len(made) == 3 and all(name.startswith("retinanet-conf-") for name in made)
    assert len(misalignment._slug(["ä" * 200]).encode()) == 100


@pytest.mark.usefixtures("no_figures")
def test_images_are_chosen_by_their_ids_for_the_table_and_the_pictures(
    conf: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    first, _, third, _ = data.image_ids.tolist()
    words = ["--image-ids", f"{third},{first}", "--data", data.root, "--output", tmp_path, "--format", "json"]
    one = rnc(conf, *words)
    assert one.exit_code == 0, one.output
    assert {file.name for file in (tmp_path / "boxes").iterdir()} == {f"{first}.png", f"{third}.png"}
    table = json.loads(one.stdout)[0]
    assert [row["image"] for row in table["rows"][::2]] == [str(third), str(first), "these 2", "all 4"]
    assert "2 of 4 images" in table["notes"][2] and "The first" not in table["notes"][2]
    assert scores.misalignment is not None
    with Image.open(tmp_path / "boxes" / f"{third}.png") as picture:
        expected = draw_boxes(data, 2, {"RetinaNet-Conf": (scores.detections, scores.misalignment.dropped)})
        assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.usefixtures("no_figures")
def test_image_ids_that_are_unknown_or_none_are_refused(conf: Path, data: CocoData) -> None:
    first, last = data.image_ids[[0, -1]].tolist()
    refused(
        rnc(conf, "--image-ids", f"{first},999", "--data", data.root),
        f"--image-ids: 999 not among the 4 images of {data.root}, split val",
        f"from {first} to {last}",
    )
    refused(rnc(conf, "--image-ids", "4,a.jpg", "--data", data.root), "'a.jpg' is no image id", "such as 42,57")
    refused(rnc(conf, "--image-ids", "", "--data", data.root), "'' is no image id")


@pytest.mark.usefixtures("no_figures")
def test_checkpoints_of_one_head_are_told_apart_by_their_folders(conf: Path, data: CocoData, tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other", data, ConfidenceConfig())
    done = rnc(conf, other, "--only", "--images", 1, "--data", data.root, "--output", tmp_path / "out")
    assert f"RetinaNet-Conf ({conf.parent.name}/conf)" in done.stdout
    assert f"RetinaNet-Conf ({tmp_path.name}/other)" in done.stdout


@pytest.mark.usefixtures("no_figures")
def test_an_exponent_without_a_branch_is_refused_with_the_heads_that_have_one(
    conf: Path, plain: Path, data: CocoData
) -> None:
    refused(
        rnc(conf, plain, "--exponent", 0.4, "--data", data.root),
        f"{plain}: inference.confidence_exponent is 0.4, but a RetinaNet has no confidence branch",
        "{tower: box} for IoU-aware Net or {tower: classification} for RetinaNet-Conf",
    )


@pytest.mark.usefixtures("no_figures")
def test_an_empty_selection_is_refused(conf: Path, data: CocoData, make_coco: MakeCoco, tmp_path: Path) -> None:
    refused(rnc(conf, "--images", 0, "--data", data.root), "0 is not in the range")
    refused(rnc(conf, "--split", "nothing", "--data", data.root), f"--split nothing: {data.root} has no such split")
    root = make_coco(sizes=())
    other = save_opinionated(tmp_path / "other", ((3, 8), ("dog", "cat")))
    refused(rnc(other, "--split", "train", "--data", root), f"{root}", "images")


@pytest.mark.usefixtures("no_figures")
def test_images_without_objects_are_counted_and_named(make_coco: MakeCoco, tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box], sizes=((60, 80), (60, 80)))
    folder = save_opinionated(tmp_path / "other", ((3, 8), ("dog", "cat")))
    done = rnc(folder, "--split", "train", "--data", root, "--output", tmp_path / "some", "--format", "json")
    by_image, *_ = json.loads(done.stdout)
    assert by_image["notes"][-1] == "Without objects: image 2."
    assert by_image["rows"][2]["IoU>.5"] == 0 and by_image["rows"][2]["anchors"] == 0 < by_image["rows"][2]["p>.05"]
    root = make_coco(sizes=((60, 80),))
    done = rnc(folder, "--split", "train", "--data", root, "--output", tmp_path / "none")
    assert done.exit_code == 0 and "n/a" in done.stdout
    assert [file.name for file in (tmp_path / "none" / "boxes").iterdir()] == ["1.png"]


@pytest.mark.usefixtures("no_figures")
def test_heads_that_would_be_scored_on_other_images_are_not_compared(
    conf: Path, data: CocoData, tmp_path: Path
) -> None:
    config = TrainConfig(model=MODEL, data=replace(SIZES, num_val_images=3))
    other = save_opinionated(tmp_path / "other", (data.category_ids, data.category_names), config)
    refused(rnc(conf, other, "--data", data.root), "on 4 images", "on 3 images", "--all where one takes the first")


def test_every_number_follows_from_the_files_that_are_recorded(
    conf: Path, data: CocoData, scores: Scores, tmp_path: Path
) -> None:
    found = write_evaluation_files(tmp_path, read_card(conf), data, scores, "RetinaNet-Conf")
    detections, about = read_detections(found.detections)
    assert statistics(data, detections, read_misalignment(tmp_path)) == found.statistics
    assert about["metrics"] == scores.metrics and read_matches(found.matches).num_images == 4
    assert [file.name for file in found.classes.files] == [
        "classes.json",
        "precision_recall.json",
        "precision_recall.svg",
    ]
    by_class = [ap for _, ap, *_ in json.loads(found.classes.files[0].read_text())["data"] if ap is not None]
    assert list(found.classes.metrics.values()) == by_class
    assert sum(by_class) / len(by_class) == pytest.approx(scores.metrics["AP"], abs=0.005)
    names = [file.name for file in found.misalignment]
    assert names == [
        "counts.parquet",
        "density.parquet",
        "dropped.parquet",
        "oracle.parquet",
        "reliability.png",
        "figure1.png",
        "figure2.png",
        *(f"boxes-{data.image_ids[place]}.png" for place in (0, 2, 3)),  # spread over the four
    ]


def test_a_picture_that_cannot_be_drawn_is_left_out_of_what_is_recorded(
    conf: Path, data: CocoData, scores: Scores, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = replace(data, folder=tmp_path)
    found = write_evaluation_files(tmp_path, read_card(conf), gone, scores, "any")
    assert found.misalignment[-1].name == "figure2.png"
    assert f"boxes-{data.image_ids[0]}.png is left out: " in caplog.text


def test_recording_again_gives_the_same_files(conf: Path, data: CocoData, scores: Scores, tmp_path: Path) -> None:
    contents = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        found = write_evaluation_files(tmp_path / name, read_card(conf), data, scores, "any")
        contents.append(
            [file.read_bytes() for file in (found.detections, found.matches, *found.misalignment, *found.classes.files)]
        )
    assert contents[0] == contents[1]
