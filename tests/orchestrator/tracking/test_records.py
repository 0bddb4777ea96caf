"""What is written of trainings and evaluations, and read back; no server is needed."""

import math
from dataclasses import replace

import pytest

from model.config import (
    METRICS,
    AssignmentConfig,
    BoxConfig,
    ClassificationConfig,
    ConfidenceConfig,
    DataConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
)
from orchestrator import names
from orchestrator.experiment.plan import Evaluation, Place
from orchestrator.experiment.rows import Row
from orchestrator.tracking.records import (
    by_key,
    damage_of,
    inference_params,
    measured_where_the_paper_did,
    place_and_label,
    place_tags,
    read_inference,
    read_record,
    row_name,
    run_name,
    training_name,
    training_params,
    varied_params,
)
from orchestrator.tracking.runs import Run, read_place, read_run, read_sizes, whole_number

PLAIN = TrainConfig(model=ModelConfig(confidence=None))
DEEPER = TrainConfig(model=ModelConfig(backbone="resnet101", confidence=ConfidenceConfig(negative_weight=0.001)))


def params(train: TrainConfig, **inference: object) -> dict[str, str]:
    return training_params(train) | inference_params(InferenceConfig(**inference))  # type: ignore[arg-type]


def test_a_run_is_called_by_its_label_where_all_tables_agree():
    rows = {"table1": "00 RetinaNet", "table6": "03 RetinaNet"}
    assert run_name(rows, params(TrainConfig()), "0") == "RetinaNet, seed 0"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (params(PLAIN, confidence_exponent=0.0), "RetinaNet, resnet50, seed 2"),
        (params(TrainConfig(), confidence_exponent=0.0), "RetinaNet-Conf, resnet50, alpha 0, seed 2"),
        (
            params(DEEPER, fusion="product", min_confidence=0.5),
            "RetinaNet-Conf, negative_weight 0.001, resnet101, product, min_confidence 0.5, seed 2",
        ),
    ],
)
def test_a_run_is_called_by_what_it_is_where_tables_differ(settings, name):
    assert run_name({"table1": "00 a", "table4": "00 cls"}, settings, "2") == name
    assert run_name({}, settings, "2") == name


@pytest.mark.parametrize("tower", [None, "classification", "box"])
def test_a_run_is_called_by_the_name_that_messages_and_tables_have_for_its_head(tower):
    model = ModelConfig(confidence=ConfidenceConfig(tower=tower) if tower else None)
    assert training_name(training_params(TrainConfig(model=model)), "2") == f"{model.head}, resnet50, seed 2"


def test_a_branch_that_learns_centerness_is_called_neither_iou_aware_nor_retinanet_conf():
    for tower in ("classification", "box"):
        model = ModelConfig(confidence=ConfidenceConfig(tower=tower, target="centerness"))
        called = training_name(training_params(TrainConfig(model=model)), "2")
        assert called == f"{model.head}, resnet50, seed 2" == "RetinaNet with centerness, resnet50, seed 2"


def test_a_name_does_not_change_with_the_defaults_that_a_table_enters():
    rows = [Row(label="a", train=PLAIN), Row(label="b", train=DEEPER, inference=InferenceConfig(fusion="product"))]
    for row, entered in zip(rows, varied_params(rows), strict=True):
        own = training_params(row.train) | inference_params(row.inference)
        assert run_name({}, own | entered, "0") == run_name({}, own, "0")
        assert training_name(own | entered, "0") == training_name(own, "0")


def test_a_training_is_called_by_its_losses_and_its_assignment_where_they_are_not_the_papers():
    model = ModelConfig(
        confidence=ConfidenceConfig(loss="l2"),
        classification=ClassificationConfig(loss="qfl", edge_quality="gflv2"),
        box=BoxConfig(loss="giou", bins=17),
        assignment=AssignmentConfig(kind="atss"),
    )
    settings = training_params(TrainConfig(model=model))
    told = "qfl, classification.edge_quality gflv2, giou, box.bins 17, atss"
    assert training_name(settings, "0") == f"RetinaNet-Conf, l2, {told}, resnet50, seed 0"
    assert (settings["loss"], settings["classification.loss"], settings["box.loss"]) == ("l2", "qfl", "giou")


def model_of(**parts: object) -> ModelConfig:
    return ModelConfig(confidence=None, **parts)  # type: ignore[arg-type]


QFL, GIOU = ClassificationConfig(loss="qfl"), BoxConfig(loss="giou", loss_weight=2.0, bins=17)


@pytest.mark.parametrize(
    ("label", "model", "name"),
    [
        ("QFL", model_of(classification=QFL), "QFL, seed 1"),
        ("QFL", model_of(classification=QFL, assignment=AssignmentConfig(kind="atss")), "QFL, atss, seed 1"),
        ("Focal", model_of(box=GIOU, assignment=AssignmentConfig(kind="atss")), "Focal, giou, atss, seed 1"),
        # What the label says, however it writes it, is not said twice.
        ("GIoU and DFL, QFL, GFLv2's quality", model_of(classification=QFL, box=GIOU), None),
        ("IA-BCE", model_of(classification=ClassificationConfig(loss="ia_bce")), None),
        ("Task-aligned, target IoU", model_of(assignment=AssignmentConfig(kind="task_aligned")), None),
        ("SimOTA", model_of(assignment=AssignmentConfig(kind="sim_ota")), None),
        # A part of a word says nothing.
        ("GIoU", model_of(box=BoxConfig(loss="iou")), "GIoU, iou, seed 1"),
        # Whatever else is not the paper's, rows of its tables are called by their labels.
        ("RetinaNet-Conf, alpha 0.4", DEEPER.model, None),
    ],
)
def test_rows_of_one_label_are_told_apart_by_losses_and_assignment(label, model, name):
    settings = params(TrainConfig(model=model))
    expected = name or f"{label}, seed 1"
    assert row_name(label, settings, "1") == run_name({"table": f"03 {label}"}, settings, "1") == expected
    assert row_name(label, settings) == expected.removesuffix(", seed 1")


def test_no_name_is_longer_for_its_losses_than_mlflow_takes():
    settings = params(TrainConfig(model=model_of(assignment=AssignmentConfig(kind="atss"))))
    for length in range(names.MOST_RUN_NAME - 20, names.MOST_RUN_NAME - len(", seed 1") + 1):
        label = "A" * length
        told = row_name(label, settings, "1")
        assert len(told) <= names.MOST_RUN_NAME
        assert told == (f"{label}, atss, seed 1" if length <= names.MOST_RUN_NAME - 14 else f"{label}, seed 1")


def test_settings_of_other_losses_are_params_of_their_own_beside_those_of_the_confidence():
    """A bare `loss` is the confidence's, whether a table varies others or not, as in what was recorded before."""
    quality = ModelConfig(confidence=None, classification=ClassificationConfig(loss="qfl"))
    other = ModelConfig(confidence=ConfidenceConfig(loss="l1"))
    rows = [Row(label="ce"), Row(label="l1", train=TrainConfig(model=other))]
    assert varied_params(rows) == [{"loss": "ce"}, {"loss": "l1"}]
    entered = varied_params([*rows, Row(label="qfl", train=TrainConfig(model=quality))])
    assert [one["loss"] for one in entered] == ["ce", "l1", "none"]
    assert [one["classification.loss"] for one in entered] == ["focal", "focal", "qfl"]
    assert training_name(training_params(TrainConfig()) | entered[0], "0") == "RetinaNet-Conf, resnet50, seed 0"


def test_inference_is_read_back_from_among_the_settings_that_a_table_entered():
    rows = [
        Row(label="cls", inference=InferenceConfig(confidence_exponent=0.0)),
        Row(label="cls*obj", inference=InferenceConfig(fusion="product", min_confidence=0.5)),
    ]
    for row, entered in zip(rows, varied_params(rows), strict=True):
        assert read_inference(inference_params(row.inference) | entered) == row.inference


def test_the_papers_data_are_the_whole_of_coco_val2017():
    def on(split: str = "val2017", **data: object) -> bool:
        settings = training_params(TrainConfig(data=DataConfig(**data)))  # type: ignore[arg-type]
        return measured_where_the_paper_did(settings, split)

    assert on() and on(num_train_images=100)
    assert not on(dataset="shapes")
    assert not on(num_val_images=100)
    assert not on("test")


def test_places_sort_as_texts_in_a_table_of_any_length_and_short_tables_keep_two_digits():
    assert [place_and_label(place, "a", 100) for place in (0, 7, 99)] == ["00 a", "07 a", "99 a"]
    assert place_and_label(3, "a", 4) == place_and_label(3, "a", 0) == "03 a"
    for rows in (101, 1000, 1001, 12_345):
        called = [place_and_label(place, "a label", rows) for place in range(rows)]
        assert called == sorted(called)
        assert [read_place(text) for text in called] == [(place, "a label") for place in range(rows)]
    places = (Place("long", 7, "a"), Place("short", 7, "b"))
    evaluation = Evaluation(key="k", train_key="t", inference=InferenceConfig(), split="val", suite="s", places=places)
    assert place_tags(evaluation) == {"row.short": "07 b", "row.long": "07 a"}
    sized = replace(evaluation, table_sizes={"long": 101, "short": 99})
    assert place_tags(sized) == {"row.short": "07 b", "row.long": "007 a"}


@pytest.mark.parametrize("text", ["", "ours", "12", "12 ", "-1 ours", "²3 ours", " ours", "9" * 400 + " ours"])
def test_what_is_no_place_is_the_label_as_a_whole(text):
    assert read_place(text) == (None, text)
    assert run_name({"table1": text}, {}, "0") == f"{text}, seed 0"


def test_tags_that_somebody_edited_are_read_as_nothing():
    assert [whole_number(text) for text in ("0", "1764000000000")] == [0, 1764000000000]
    assert {whole_number(text) for text in ("", "x", "-1", "1.5", "1e3", "²", "٣", "9" * 5000, " 1")} == {None}
    assert read_sizes('{"a/b": 0}') == {"a/b": 0}
    odd = ("", "{", "null", "[1]", '"a"', "3", '{"a": "1"}', '{"a": -1}', '{"a": true}', '{"a": 1.5}', "[" * 9000)
    assert [read_sizes(text) for text in odd] == [None] * len(odd)


def run(kind: str, /, **tags: str | None) -> Run:
    """A finished run with all that belongs to it, but for these tags, or without those that are None."""
    sha = "0" * 64
    held = {names.KIND: kind, names.TRAIN_KEY: "t", names.SEED: "0"}
    held |= {"evaluation_key": "e", names.SPLIT: "val"} if kind == "evaluation" else {names.WEIGHTS_SHA256: sha}
    kept = {name: value for name, value in (held | tags).items() if value is not None}
    metrics = {f"val/{name}": 30.0 for name in METRICS}
    return Run(run_id="r", name="n", status="FINISHED", tags=kept, metrics=metrics, start_time=5)


@pytest.mark.parametrize(
    ("edited", "note"),
    [
        (run("training", files="{no"), "its tag files is damaged ('{no', expected bytes by path as JSON)"),
        (run("training", seed="x"), "its tag seed is 'x'"),
        (run("training", checkpoint_sha256="x"), "its tag checkpoint_sha256 is damaged ('x', expected a SHA-256)"),
        (run("evaluation", files='{"detections/matches.parquet": 1}'), "the digest of its matches is missing"),
        (replace(run("evaluation"), metrics={"val/AP": math.nan}), "its metrics are damaged (val/AP is nan, expected"),
        (replace(run("evaluation"), metrics={"val/AR1": 1.7e308}), "its metrics are damaged (val/AR1 is 1.7e+308"),
    ],
)
def test_a_run_that_somebody_edited_is_not_finished_and_says_why(edited, note):
    record = read_record(edited)
    assert record.status == "KILLED"
    assert record.note.startswith(note)
    assert record.files == {} or "matches" in note


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_run_that_nobody_edited_is_finished_with_or_without_what_later_versions_note(kind):
    assert damage_of(run(kind)) == ""
    assert read_record(run(kind)).status == "FINISHED"
    assert read_record(run(kind, files='{"checkpoint/model.safetensors": 3}', begun="x")).status == "FINISHED"
    # What is no time, or a time to come, says nothing of when it began.
    assert {run(kind, begun=text).last_sign_of_life for text in ("x", "", "9" * 18)} == {5}
    assert run(kind, begun="1764000000000").last_sign_of_life == 1764000000000


def test_a_run_of_the_kind_of_one_and_the_keys_of_another_counts_as_neither():
    odd = [run("evaluation", kind="training"), run("training", kind="evaluation"), run("training", kind="table")]
    odd += [run("training", train_key=""), run("evaluation", kind=names.SUPERSEDED), run("evaluation", kind=None)]
    assert {one.key for one in odd} == {""}
    kinds: tuple[names.Kind, ...] = ("training", "evaluation", "table")
    assert [by_key(odd, kind) for kind in kinds] == [{}, {}, {}]


def test_a_run_with_empty_fields_in_the_database_is_read():
    data = {"tags": [{"key": "kind"}], "params": [{"key": "head"}], "metrics": [{"key": "val/AP"}]}
    told = read_run({"info": {"run_id": "r", "status": "FINISHED"}, "data": data})
    assert (told.tags, told.params, told.last_metric_time) == ({"kind": ""}, {"head": ""}, 0)
    assert math.isnan(told.metrics["val/AP"])


@pytest.mark.parametrize("value", ["odd", "NaN", "[1]", "{}", "[" * 5000, "9" * 5000])
@pytest.mark.parametrize("name", ["fusion", "nms_iou", "confidence_exponent"])
def test_params_that_were_edited_in_the_database_stop_no_name(name, value):
    assert run_name({}, {name: value}, "0") == "RetinaNet, resnet50, unknown score, seed 0"


def test_a_key_that_is_a_path_is_that_of_no_training():
    keys = ("0123456789abcdef", "../../x", "/etc", "..", "a/b")
    runs = [Run(run_id=key, name="x", status="RUNNING", tags={"kind": "training", "train_key": key}) for key in keys]
    assert list(by_key(runs, "training")) == ["0123456789abcdef"]
