"""What is written of trainings and evaluations, and read back; no server is needed."""

import pytest

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig, TrainConfig
from orchestrator.experiment.rows import Row
from orchestrator.tracking.records import (
    by_key,
    inference_params,
    measured_where_the_paper_did,
    read_inference,
    run_name,
    training_name,
    training_params,
    varied_params,
)
from orchestrator.tracking.runs import Run

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


def test_a_name_does_not_change_with_the_defaults_that_a_table_enters():
    rows = [Row(label="a", train=PLAIN), Row(label="b", train=DEEPER, inference=InferenceConfig(fusion="product"))]
    for row, entered in zip(rows, varied_params(rows), strict=True):
        own = training_params(row.train) | inference_params(row.inference)
        assert run_name({}, own | entered, "0") == run_name({}, own, "0")
        assert training_name(own | entered, "0") == training_name(own, "0")


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


def test_a_key_that_is_a_path_is_that_of_no_training():
    keys = ("0123456789abcdef", "../../x", "/etc", "..", "a/b")
    runs = [Run(run_id=key, name="x", status="RUNNING", tags={"kind": "training", "train_key": key}) for key in keys]
    assert list(by_key(runs, "training")) == ["0123456789abcdef"]
