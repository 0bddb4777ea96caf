"""What is found out before anything starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from model.config import DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from model.data.coco import read_for_training
from model.network.retinanet import build_detector
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, load_experiment
from orchestrator.experiment.plan import Ledger, Plan, Record, make_plan, row_keys
from orchestrator.experiment.prepare import (
    UsedData,
    look_ahead,
    prepare,
    require_one_version,
    require_same_data,
    scoring_data,
    training_data,
)
from orchestrator.experiment.rows import Places, Row
from orchestrator.site import Site
from tests.conftest import MakeCoco

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
MODEL = ModelConfig(
    backbone="resnet18_quarter", channels=16, tower_depth=1, confidence=None, detector_weights="retinanet.pth"
)


def check(model: ModelConfig, root: Path) -> list[str]:
    """Prepare a training on the two categories of `make_coco`, and return what was said."""
    data = DataConfig(train_split="train", val_split="train", short_edge=64, long_edge=64, train_on_empty_images=True)
    config = TrainConfig(model=model, data=data, schedule=ScheduleConfig(epochs=1, lr_drop_epochs=()))
    row = Row(label="one", train=config, split="train")
    experiment = Experiment(name="t", suite="s", title="T", rows=(row,), path=root / "t.yaml")
    site = Site(home=root / "home", coco_root=root, weights_root=root)
    said: list[str] = []
    prepare(make_plan([experiment], Ledger()), Ledger(), site, said.append)
    return said


@pytest.mark.parametrize(("name", "num_images"), [("aquarium", 448), ("blood", 1008)])
def test_the_photographs_and_the_weights_of_their_tables_are_let_through(
    name: str, num_images: int, photos_root: Path, weights_root: Path, tmp_path: Path
) -> None:
    table = load_experiment(EXPERIMENTS / "photos" / name / "table1_heads.yaml")
    site = Site(home=tmp_path / "home", coco_root=photos_root / name, weights_root=weights_root)
    assert {site.num_images(row.train.data) for row in table.rows} == {num_images}
    by_one_seed = replace(table, rows=tuple(replace(row, seeds=(0,)) for row in table.rows))
    said: list[str] = []
    prepare(make_plan([by_one_seed], Ledger()), Ledger(), site, said.append)
    assert [text.startswith(f"data {photos_root / name}, split ") for text in said] == [True, True]
    assert not any("left out" in text for text in said)


@pytest.fixture
def root(make_coco: MakeCoco) -> Path:
    return make_coco([{"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}])


def test_a_detector_that_fits_the_data_sets_classes_is_let_through(root: Path) -> None:
    torch.save(build_detector(MODEL, 2, seed=0).state_dict(), root / "retinanet.pth")
    check(MODEL, root)
    check(replace(MODEL, confidence=ModelConfig().confidence), root)


def test_a_detector_of_other_classes_or_another_network_is_refused_before_anything_starts(root: Path) -> None:
    torch.save(build_detector(MODEL, 5, seed=0).state_dict(), root / "retinanet.pth")
    with pytest.raises(UserError, match=r"train\.model\.detector_weights: .*detects 5 classes, this data set has 2"):
        check(MODEL, root)
    torch.save(build_detector(MODEL, 2, seed=0).state_dict(), root / "retinanet.pth")
    with pytest.raises(UserError, match=r"train\.model\.detector_weights: .*does not fit this detector"):
        check(replace(MODEL, tower_depth=2), root)


def test_weights_of_caffes_input_and_broken_ones_are_refused_before_anything_starts(root: Path) -> None:
    named = replace(MODEL, detector_weights=None, backbone_weights="caffe.pth")
    body = build_detector(named, 2, seed=0).backbone.body.state_dict()
    torch.save(body | {"conv1.weight": body["conv1.weight"] / 58}, root / "caffe.pth")
    says = r"train\.model\.backbone_weights: .*caffe\.pth: by the size of its first convolution .* set it to caffe"
    with pytest.raises(UserError, match=says):
        check(named, root)
    check(replace(named, weights_input="caffe"), root)
    torch.save(body | {"bn1.bias": body["bn1.bias"] / 0}, root / "caffe.pth")
    with pytest.raises(UserError, match=r"caffe\.pth: bn1\.bias holds NaN or infinity, 16 of its 16 numbers"):
        check(named, root)


def test_what_was_chosen_of_a_file_and_how_images_are_read_is_told(root: Path) -> None:
    named = replace(MODEL, detector_weights=None, backbone_weights="all.pth")
    detector = build_detector(named, 2, seed=0).state_dict()
    torch.save(detector, root / "all.pth")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (80, 60)).save(root / "train" / "1.jpg", exif=exif)
    told = "\n".join(check(named, root))
    assert f"of {root / 'all.pth'}, the backbone alone was taken" in told
    assert "1 of 1 images carry an EXIF orientation: 1 are read as stored" in told


def test_a_file_that_is_not_there_is_named_before_the_data_are_read(root: Path) -> None:
    (root / "annotations" / "instances_train.json").unlink()
    with pytest.raises(UserError, match=r"holds no file retinanet\.pth"):
        check(MODEL, root)


def plan_of(root: Path, model: ModelConfig, **data: Any) -> Plan:
    config = DataConfig(train_split="train", val_split="train", short_edge=64, long_edge=64, **data)
    row = Row(label="one", train=TrainConfig(model=model, data=config), split="train")
    return make_plan([Experiment(name="t", suite="s", title="T", rows=(row,), path=root / "t.yaml")], Ledger())


LEARNS = replace(MODEL, detector_weights=None, backbone_norm="group", frozen_stages=0)


def ahead(
    plan: Plan, site: Site, most_images: int = 10, *, ledger: Ledger | None = None, is_here: bool = True
) -> tuple[list[str], list[str]]:
    said: list[str] = []
    stops = look_ahead(plan, ledger or Ledger(), site, said.append, is_here=is_here, most_images=most_images)
    return stops, said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone_norm": "frozen_batch"}, "backbone_norm is frozen_batch"),
        ({"frozen_stages": 1}, "frozen_stages is 1"),
        ({"backbone_norm": "frozen_batch", "frozen_stages": 2}, "frozen_stages is 2"),
    ],
)
def test_random_numbers_that_never_learn_are_refused_with_both_ways_out(
    change: dict[str, Any], said: str, root: Path
) -> None:
    plan, site = plan_of(root, replace(LEARNS, **change)), Site(home=root / "home", coco_root=root)
    with pytest.raises(UserError, match=r"one: train\.model") as told:
        prepare(plan, Ledger(), site, lambda _: None)
    (stop,), _ = ahead(plan, site)
    assert stop == str(told.value) and said in stop
    assert "train.model.backbone_weights: a file of RNC_WEIGHTS" in stop
    assert "{backbone_norm: group, frozen_stages: 0}" in stop
    assert not (root / "home").exists()
    prepare(plan_of(root, LEARNS), Ledger(), site, lambda _: None)


def test_what_was_trained_already_may_be_scored_and_reported_whatever_it_is(root: Path) -> None:
    plan = plan_of(root, replace(LEARNS, frozen_stages=1))
    record = Record(status="FINISHED", run_id="r")
    scored = make_plan(plan.experiments, Ledger(trainings=dict.fromkeys(plan.trainings, record)))
    assert scored.missing_evaluations
    prepare(scored, Ledger(), Site(home=root / "home", coco_root=root), lambda _: None)


def test_a_look_ahead_names_data_weights_and_faults_and_writes_nothing(make_coco: MakeCoco) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box], sizes=((60, 80), (60, 80)))
    before = sorted(root.rglob("*"))
    bare, site = Site(home=root / "home"), Site(home=root / "home", coco_root=root, weights_root=root)
    plan = plan_of(root, LEARNS)
    stops, (said,) = ahead(plan, site)
    assert stops == [] and said.startswith(f"data {root}, split train: ")
    weighted = plan_of(root, replace(LEARNS, backbone_weights="r.pth"))
    for one, where, lacks, not_here in (
        (plan, bare, "RNC_COCO_ROOT is not set, and", "RNC_COCO_ROOT is not set here"),
        (plan, replace(bare, coco_root=root / "no"), "RNC_COCO_ROOT is ", "no: not here"),
        (weighted, replace(bare, coco_root=root), "RNC_WEIGHTS is not set, and", "not looked for"),
        (weighted, site, "holds no file r.pth", "holds no file r.pth"),
    ):
        # A submit from here stops; one on another machine may find there what this one lacks.
        assert lacks in ahead(one, where)[0][0]
        stops, told = ahead(one, where, is_here=False)
        assert stops == [] and not_here in told[0]
    (root / "r.pth").write_bytes(b"no weights")
    assert "train.model.backbone_weights: " in ahead(weighted, site)[0][0]
    (root / "r.pth").unlink()
    (root / "train" / "2.jpg").write_bytes(b"")
    assert "images that do not decode (1)" in ahead(plan, site)[0][0]
    assert ahead(plan, site, most_images=1)[0] == []  # only the annotations of a large split are read
    assert sorted(root.rglob("*")) == before


def test_data_that_are_named_and_not_there_are_told_by_file_and_setting(tmp_path: Path) -> None:
    root = tmp_path / "cels"
    (table,) = plan_of(tmp_path, LEARNS).experiments
    plan = make_plan([replace(table, data=Places(root=str(root)))], Ledger())
    with pytest.raises(UserError) as told:
        prepare(plan, Ledger(), Site(home=tmp_path / "home", coco_root=root), lambda _: None)
    says = f"{tmp_path / 't.yaml'}: data.root is {root}: there is no such folder or file"
    assert str(told.value).startswith(says)
    assert ahead(plan, Site(home=tmp_path / "home", coco_root=root))[0] == [str(told.value)]


@pytest.mark.parametrize("most_images", [0, 10])
def test_a_training_that_has_no_box_to_learn_is_refused_however_large_its_split(
    make_coco: MakeCoco, most_images: int
) -> None:
    crowd = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 1}
    root = make_coco([crowd])
    plan, site = plan_of(root, LEARNS), Site(home=root / "home", coco_root=root)
    with pytest.raises(UserError, match="no box to learn: 0 of 1 boxes are learnt: 1 crowds"):
        prepare(plan, Ledger(), site, lambda _: None)
    assert "has no box to learn" in ahead(plan, site, most_images)[0][0]


def test_splits_of_other_categories_are_told_by_what_differs(make_coco: MakeCoco) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    categories = [{"id": id, "name": f"n{id}"} for id in range(80)]
    root = make_coco([box], categories=categories)
    (root / "val").symlink_to("train")
    other = [*categories[:7], {"id": 7, "name": "other"}, *categories[8:79], {"id": -1, "name": "new"}]
    content = json.loads((root / "annotations" / "instances_train.json").read_text()) | {"categories": other}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    data = DataConfig(train_split="train", val_split="val", short_edge=64, long_edge=64)
    row = Row(label="one", train=TrainConfig(model=LEARNS, data=data), split="val")
    plan = make_plan([Experiment(name="t", suite="s", title="T", rows=(row,), path=root / "t.yaml")], Ledger())
    with pytest.raises(UserError) as told:
        prepare(plan, Ledger(), Site(home=root / "home", coco_root=root), lambda _: None)
    assert str(told.value) == (
        f"{root}: split val has other categories than split train: -1 is missing in train and 'new' in val, 7 is 'n7' "
        "in train and 'other' in val, 79 is 'n79' in train and missing in val; a detector is scored on the categories "
        "that it was trained on: give both splits the same list"
    )


def test_data_that_changed_under_a_recorded_result_are_refused_and_nothing_is_lost(make_coco: MakeCoco) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box])
    data = DataConfig(train_split="train", val_split="train", short_edge=64, long_edge=64)
    model = replace(MODEL, detector_weights=None, backbone_norm="group", frozen_stages=0)
    train = TrainConfig(model=model, data=data)
    rows = [Row(label=f"seed {seed}", train=train, split="train", seeds=(seed,)) for seed in (0, 1)]
    experiment = Experiment(name="t", suite="s", title="T", rows=tuple(rows), path=root / "t.yaml")
    fingerprint = read_for_training(root, data).fingerprint
    record = Record(status="FINISHED", run_id="r", data_fingerprint=fingerprint)
    ledger = Ledger(trainings={row_keys(rows[0])[0].train_key: record})
    site = Site(home=root / "home", coco_root=root)
    prepare(make_plan([experiment], ledger), ledger, site, lambda _: None)
    make_coco([box, {**box, "id": 2, "bbox": [50, 20, 20, 20], "area": 400}])
    changed = read_for_training(root, data).fingerprint
    words = rf"split train of coco has changed: training 'seed 0' .* {fingerprint[:12]}, now it has {changed[:12]}"
    with pytest.raises(UserError, match=words):
        prepare(make_plan([experiment], ledger), ledger, site, lambda _: None)
    moved = Experiment(name="t", suite="another", title="T", rows=tuple(rows), path=root / "t.yaml")
    prepare(make_plan([moved], Ledger()), Ledger(), site, lambda _: None)


@pytest.mark.parametrize("faults", ["refuse", "quarantine"])
@pytest.mark.parametrize("is_complete", [True, False])
def test_labels_that_changed_under_a_table_are_refused_also_where_nothing_is_missing(
    make_coco: MakeCoco, faults: Literal["refuse", "quarantine"], is_complete: bool
) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box])
    data = DataConfig(train_split="train", val_split="train", short_edge=64, long_edge=64, faults=faults)
    row = Row(label="one", train=TrainConfig(model=LEARNS, data=data), split="train")
    table = Experiment(name="t", suite="s", title="T", rows=(row,), path=root / "t.yaml")
    done = Record(status="FINISHED", run_id="r", data_fingerprint=read_for_training(root, data).fingerprint)
    ((_, trained, scored),) = row_keys(row)
    ledger = Ledger(trainings={trained: done}, evaluations={scored: done} if is_complete else {})
    plan, site = make_plan([table], ledger), Site(home=root / "home", coco_root=root)
    assert plan.is_complete == is_complete
    assert ahead(plan, site, ledger=ledger)[0] == []
    make_coco([{**box, "bbox": [5, 5, 40, 40], "area": 1600}])
    (stop,), _ = ahead(plan, site, ledger=ledger)
    assert stop.startswith("split train of coco has changed: training 'one' rests on data of fingerprint")
    with pytest.raises(UserError, match="split train of coco has changed"):
        prepare(plan, ledger, site, lambda _: None)
    if is_complete:  # a table stands without its data
        shutil.rmtree(root / "annotations")
        stops, (said,) = ahead(plan, site, ledger=ledger)
        assert stops == [] and said.startswith("not compared with the data of finished results: ")
        assert ahead(plan, Site(home=root / "home"), ledger=ledger) == ([], [])


def test_other_splits_and_other_parts_of_a_split_are_other_data() -> None:
    data = DataConfig(train_split="train", val_split="val", num_train_images=10, num_val_images=5)
    results = [UsedData("training 'one'", training_data(data), "old")]
    require_same_data(scoring_data(data, "val"), "new", results)
    require_same_data(training_data(replace(data, num_train_images=20)), "new", results)
    with pytest.raises(UserError, match="split train of coco has changed"):
        require_same_data(scoring_data(data, "train"), "new", results)


ROW = Row(label="a row", seeds=(0, 7))
SPLIT = replace(ROW, label="another split", split="test2017")


def versions(row: Row, *, trained: tuple[str, str], scored: tuple[str, str], status: str = "FINISHED") -> Ledger:
    """A ledger of both seeds of a row, made on these versions of the data."""

    def record(fingerprint: str, status: str = "FINISHED") -> Record:
        return Record(status=status, run_id="r", data_fingerprint=fingerprint)  # type: ignore[arg-type]

    keys = row_keys(row)
    return Ledger(
        trainings={key.train_key: record(one) for key, one in zip(keys, trained, strict=True)},
        evaluations={
            key.evaluation_key: record(one, status if key.seed else "FINISHED")
            for key, one in zip(keys, scored, strict=True)
        },
    )


def table_of(*rows: Row) -> Experiment:
    return Experiment(name="table9", suite="s", title="T", rows=rows, path=Path("table9.yaml"))


def test_seeds_that_were_scored_or_trained_on_two_versions_of_the_data_are_refused() -> None:
    new, old = "a" * 64, "b" * 64
    with pytest.raises(UserError) as caught:
        require_one_version(table_of(ROW), versions(ROW, trained=(new, new), scored=(old, new)))
    said = str(caught.value)
    assert said.startswith("table table9: row 'a row', seed 0, was scored on another version of split val2017 of coco ")
    assert f"than row 'a row', seed 7 (fingerprints {old[:12]} and {new[:12]})" in said
    assert "Delete the evaluations of the older version in MLflow and submit again" in said
    with pytest.raises(UserError, match=r"was trained on another version of split train2017 .* Delete the trainings"):
        require_one_version(table_of(ROW), versions(ROW, trained=(old, new), scored=(new, new)))


def test_rows_of_one_table_that_were_scored_on_two_versions_are_refused_and_other_splits_are_not() -> None:
    first, second = replace(ROW, label="first", seeds=(0,)), replace(ROW, label="second", seeds=(7,))
    mixed = versions(ROW, trained=("one", "one"), scored=("old", "new"))
    with pytest.raises(
        UserError, match=r"row 'first', seed 0, .* than row 'second', seed 7 \(fingerprints old and new"
    ):
        require_one_version(table_of(first, second), mixed)
    require_one_version(table_of(first), mixed)
    require_one_version(table_of(second), mixed)
    elsewhere = versions(SPLIT, trained=("one", "one"), scored=("test", "test"))
    here = versions(ROW, trained=("one", "one"), scored=("val", "val"))
    both = Ledger(trainings=here.trainings, evaluations={**here.evaluations, **elsewhere.evaluations})
    require_one_version(table_of(ROW, SPLIT), both)


def test_what_is_not_measured_or_did_not_note_its_data_counts_for_no_version() -> None:
    require_one_version(table_of(ROW), versions(ROW, trained=("", "new"), scored=("", "new")))
    require_one_version(table_of(ROW), versions(ROW, trained=("one", "one"), scored=("old", "new"), status="RUNNING"))
    require_one_version(table_of(ROW), Ledger())


def test_an_image_that_is_trained_and_scored_on_is_told(make_coco: MakeCoco) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    root = make_coco([box, {**box, "id": 2}])
    (root / "val").mkdir()
    shutil.copy(root / "train" / "1.jpg", root / "val" / "1.jpg")
    shutil.copy(root / "annotations" / "instances_train.json", root / "annotations" / "instances_val.json")
    config = DataConfig(train_split="train", val_split="val", short_edge=64, long_edge=64)
    row = Row(label="one", train=TrainConfig(model=LEARNS, data=config), split="val")
    plan = make_plan([Experiment(name="t", suite="s", title="T", rows=(row,), path=root / "t.yaml")], Ledger())
    _, said = ahead(plan, Site(home=root / "home", coco_root=root))
    warnings = [text for text in said if text.startswith("warning: ")]
    assert any("val" in text and "train" in text and "flatter" in text for text in warnings), said
    assert len(warnings) == len(set(warnings)) >= 2  # the box that stands twice in each split as well
