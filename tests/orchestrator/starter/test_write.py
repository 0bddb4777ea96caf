"""The experiment file of a first training: it reads back as what was chosen, and says why."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.errors import UserError
from orchestrator.experiment.layers import parse_overrides
from orchestrator.experiment.load import Experiment, load_experiment
from orchestrator.site import Site
from orchestrator.starter.facts import data_facts
from orchestrator.starter.write import Start, is_for, start, suite_name
from orchestrator.tracking.suite import site_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return folder


def begin(root: Path, here: Path, said: list[str] | None = None, **asked: Any) -> Experiment:
    heard: list[str] = [] if said is None else said
    site = Site(home=here / "runs", weights_root=asked.pop("weights", here))
    return start(Start(root=root, **asked), site, {}, heard.append)


def test_the_file_reads_back_and_names_data_and_suite(shapes_root: Path, here: Path) -> None:
    experiment = begin(shapes_root, here, output=here / "deep" / "mine.yaml")
    assert (experiment.name, experiment.suite) == ("mine", "shapes")
    (row,) = experiment.rows
    assert (row.label, row.train.model.head, row.split) == ("RetinaNet-Conf", "RetinaNet-Conf", "val")
    assert row.train.data.dataset == "my-shapes"  # not the embedded one, which would be drawn
    assert site_of([experiment], Site(home=here)).data_root(row.train.data.dataset) == shapes_root
    text = experiment.path.read_text()
    assert "# 48 images to train on" in text and "6 classes: disc, square" in text.replace("\n# ", " ")
    assert max(len(line) for line in text.splitlines() if str(here.parent) not in line and "root: " not in line) <= 80
    assert "short_edge: 128  # small, for a CPU" in text


@pytest.mark.parametrize("name", ["cat\u2028rows: 3", "do\x85g: 3", "bell\x07", "a\nb: 3"])
def test_a_class_is_no_setting_whatever_it_is_called(name: str, shapes_root: Path, here: Path, tmp_path: Path) -> None:
    (tmp_path / "named" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "named" / split).symlink_to(shapes_root / split)
        file = shapes_root / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = name
        (tmp_path / "named" / "annotations" / file.name).write_text(json.dumps(content))
    (row,) = begin(tmp_path / "named", here).rows
    assert row.label == "RetinaNet-Conf"


def test_three_heads_are_compared_with_the_first(shapes_root: Path, here: Path) -> None:
    experiment = begin(shapes_root, here, compare="heads")
    assert [row.train.model.head for row in experiment.rows] == ["RetinaNet", "IoU-aware Net", "RetinaNet-Conf"]
    assert experiment.reference == "RetinaNet"
    assert len({json.dumps(str(row.train.data)) + str(row.train.schedule) for row in experiment.rows}) == 1


def test_what_is_set_stands_in_the_file_without_a_reason_that_is_no_longer_true(shapes_root: Path, here: Path) -> None:
    pairs = ["train.data.short_edge=96", "train.schedule.epochs=3", "seeds=[1, 2]", "resources.cpus_per_worker=1"]
    experiment = begin(shapes_root, here, overrides=parse_overrides(pairs))
    (row,) = experiment.rows
    assert (row.train.data.short_edge, row.train.schedule.lr_drop_epochs, row.seeds) == (96, (2,), (1, 2))
    assert experiment.resources.cpus_per_worker == 1
    assert "\n      short_edge: 96\n" in experiment.path.read_text()


def test_weights_that_are_there_are_used_from_their_folder(shapes_root: Path, here: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "resnet50_imagenet_msra_fp16.pth").touch()
    experiment = begin(shapes_root, here, weights=weights)
    model = experiment.rows[0].train.model
    assert (model.backbone, model.backbone_weights, model.backbone_stride) == (
        "resnet50", "resnet50_imagenet_msra_fp16.pth", "1x1",
    )  # fmt: skip
    assert experiment.data.weights == str(weights)


def test_data_below_the_files_folder_may_move_with_it(shapes_root: Path, here: Path) -> None:
    (here / "photos").symlink_to(shapes_root)
    experiment = begin(Path("photos"), here)
    assert "\n  root: photos\n" in experiment.path.read_text()
    here.rename(here.with_name("moved"))
    moved = load_experiment(here.with_name("moved") / experiment.path.name)
    assert moved.data.root == str(here.with_name("moved") / "photos")


def test_a_few_faults_are_left_out_and_many_are_refused(shapes_root: Path, here: Path, tmp_path: Path) -> None:
    def damaged(count: int) -> Path:
        root = tmp_path / f"damaged{count}"
        (root / "annotations").mkdir(parents=True)
        for split in ("train", "val"):
            (root / split).symlink_to(shapes_root / split)
            file = shapes_root / "annotations" / f"instances_{split}.json"
            content = json.loads(file.read_text())
            for row in content["annotations"][: count if split == "train" else 0]:
                row["bbox"][0] = 1000
            (root / "annotations" / file.name).write_text(json.dumps(content))
        return root

    said: list[str] = []
    experiment = begin(damaged(1), here, said)
    assert experiment.rows[0].train.data.faults == "quarantine"
    assert any("split train: left out are boxes that leave their image" in text for text in said)
    with pytest.raises(UserError, match=r"boxes that leave their image by more than a pixel \(60\)"):
        begin(damaged(60), here)


def test_what_stands_in_the_way_is_told_and_nothing_is_left_behind(shapes_root: Path, here: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: is not there; name the folder or the file of a data set"):
        begin(here / "nowhere", here)
    with pytest.raises(UserError, match=r'learning_rate is "fast", expected a number'):
        begin(shapes_root, here, overrides=parse_overrides(["train.schedule.learning_rate=fast"]))
    assert [path.name for path in here.iterdir()] == []
    experiment = begin(shapes_root, here)
    with pytest.raises(
        UserError, match=r"is there already; submit it \(rnc submit shapes\.yaml\), remove it to make it anew"
    ):
        begin(shapes_root, here)
    assert is_for(experiment.path, shapes_root) and not is_for(experiment.path, here)


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        ("my photos (2)", "my-photos-2"),
        ("Übung", "Übung"),
        ("U\u0308bung", "Übung"),
        ("...", "detector"),
        ("a.b_c-d", "a.b_c-d"),
        ("鱼", "鱼"),
    ],
)
def test_a_suite_is_named_after_the_folder_in_letters_that_mlflow_takes(name: str, suite: str, tmp_path: Path) -> None:
    assert suite_name(tmp_path / name) == suite


def test_the_smallest_tenth_of_the_boxes_is_measured_by_the_short_side(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (200, 100)).save(tmp_path / split / "1.png")
        boxes = [[10, 10, 10, 10]] * 5 + [[10, 10, 40, 40]] * 20
        annotations = [
            {"id": place, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for place, box in enumerate(boxes, 1)
        ]
        images = [{"id": 1, "file_name": "1.png", "width": 200, "height": 100}]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    facts = data_facts(tmp_path)
    assert (facts.short_side, facts.long_side, facts.classes) == (100, 200, ("thing",))
    assert facts.small_box == pytest.approx(0.1)
