"""experiments/ladder compares ways to know how well a box lies: one change a row, and trainings that tables share."""

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from model.config import AssignmentConfig, BoxConfig, ClassificationConfig, InferenceConfig, ModelConfig
from model.data.cache import file_sha256
from model.settings import flat_differences
from orchestrator import names
from orchestrator.experiment.load import Experiment, load_experiments
from orchestrator.experiment.plan import gather, row_keys, train_key
from orchestrator.tracking.records import inference_params, name_of_training, place_tags, run_name, training_params
from orchestrator.tracking.runs import tagged
from tests.trainings import CONFIG, MODEL, run

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
LADDER = EXPERIMENTS / "ladder"
TABLES = {table.name: table for table in load_experiments([LADDER])}
SMALLER = {"miniature": EXPERIMENTS / "miniature", "aquarium": EXPERIMENTS / "photos" / "aquarium"}
"""The folders of the same tables on other data, and where the paper's tables on these are."""
LOSSES = ["focal", "focal", "ia_bce", "qfl", "vfl", "mal"]


def models(table: str) -> dict[str, ModelConfig]:
    return {row.label: row.train.model for row in TABLES[table].rows}


def same_rows(table: Experiment, other: Experiment) -> bool:
    """Whether two tables have the same rows, but for the recipe that all rows of one share."""

    def change(one: Experiment) -> list[tuple[object, ...]]:
        return [
            (row.label, row.reference, row.inference, m.confidence, m.classification, m.box, m.assignment)
            for row in one.rows
            for m in [row.train.model]
        ]

    return change(table) == change(other) and table.reference == other.reference


@pytest.mark.parametrize("folder", SMALLER)
def test_the_tables_on_other_data_have_the_rows_of_those_on_coco(folder: str) -> None:
    smaller = {table.name: table for table in load_experiments([LADDER / folder])}
    assert list(smaller) == list(TABLES)
    assert all(same_rows(smaller[name], TABLES[name]) for name in TABLES)
    assert {row.seeds for table in smaller.values() for row in table.rows} == {(0, 1, 2)}
    rules = {name for name, table in smaller.items() if table.seed_rule}
    # On one training rows differ by their scoring alone, so that no spread of trainings is between them.
    assert rules == (set(TABLES) - {"e_suppression"} if folder == "miniature" else set())


def test_the_tables_for_a_cpu_have_some_of_these_rows() -> None:
    for table in load_experiments([LADDER / "blood_cpu"]):
        labels = [row.label for row in table.rows]
        rows = [row for row in TABLES[table.name].rows if row.label in labels]
        assert same_rows(table, replace(TABLES[table.name], rows=tuple(rows)))


def test_rows_of_a_table_differ_by_its_own_question_alone() -> None:
    sections = {
        "a_targets": {"confidence", "classification"},
        "b_targets_on_atss": {"confidence", "classification"},
        "c_boxes": {"box", "classification"},  # the qualities of edges learn by QFL
        "d_assigners": {"assignment", "classification"},  # the alignment is a target of the class
        "e_suppression": set(),
        "f_branch": {"confidence", "classification", "box"},  # the branch as released moves boxes
    }
    for name, table in TABLES.items():
        (base,) = [row for row in table.rows if row.label == table.reference]
        for row in table.rows:
            model, usual = row.train.model, base.train.model
            changed = {part for part in sections[name] if getattr(model, part) != getattr(usual, part)}
            rest = {part: getattr(usual, part) for part in changed}
            assert replace(row.train, model=replace(model, **rest)) == base.train, (name, row.label)


def test_the_branch_is_compared_with_its_own_loss_without_it() -> None:
    table = TABLES["f_branch"]
    losses = {row.label: (row.train.model.classification, row.train.model.box) for row in table.rows}
    references = [table.reference_of(row) for row in table.rows if ", branch, " in row.label]
    alone = ("Focal", "Focal on GIoU boxes", "IA-BCE", "QFL", "VFL", "MAL")
    assert references == [loss for loss in alone for _ in range(2)]
    for row in table.rows:
        if reference := row.reference:
            assert losses[reference] == losses[row.label]


def test_every_table_shows_how_far_scores_are_off_beside_ap() -> None:
    for folder in (".", *SMALLER):
        for table in load_experiments([LADDER / folder]):
            assert table.columns[0] == "AP" and table.columns[-2:] == ("LaECE", "oLRP"), table.path


def test_the_same_targets_are_compared_on_both_assignments() -> None:
    on_iou, on_atss = (TABLES[name] for name in ("a_targets", "b_targets_on_atss"))
    assert [row.train.model.classification.loss for row in on_iou.rows] == LOSSES
    assert [row.train.model.assignment.kind for row in on_atss.rows] == ["atss"] * 6
    for one, other in zip(on_iou.rows, on_atss.rows, strict=True):
        assert (one.label, one.inference) == (other.label, other.inference)
        model = one.train.model
        assert (model.classification, model.confidence) == (
            other.train.model.classification,
            other.train.model.confidence,
        )


def test_every_kind_stands_in_a_table() -> None:
    boxes, assigners = models("c_boxes"), models("d_assigners")
    assert {model.box.loss for model in boxes.values()} == {"l1", "iou", "giou", "diou", "ciou"}
    assert {model.box.bins for model in boxes.values()} == {None, 17}
    assert {model.classification.edge_quality for model in boxes.values()} == {None, "gflv2", "dfine"}
    assert {model.box.loss_weight for model in boxes.values() if model.box.loss != "l1"} == {2.0}
    assert {model.assignment.kind for model in assigners.values()} == {
        "max_iou",
        "atss",
        "task_aligned",
        "sim_ota",
        "paa",
    }
    assert {model.classification.loss for model in assigners.values()} == {"qfl"}
    kinds = {row.inference.suppression for row in TABLES["e_suppression"].rows}
    assert len(kinds) == 8 and "nms" in kinds


def test_the_branch_stands_on_every_loss_without_in_and_beside_the_score() -> None:
    rows = {row.label: row for row in TABLES["f_branch"].rows}
    for name, loss in zip(["Focal", "IA-BCE", "QFL", "VFL", "MAL"], LOSSES[1:], strict=True):
        alone, beside, fused = (
            rows[f"{name}{more}"] for more in ("", ", branch, class score alone", ", branch, alpha 0.4")
        )
        assert {row.train.model.classification for row in (alone, beside, fused)} == {
            ClassificationConfig(loss=loss)  # type: ignore[arg-type]  # one of its losses
        }
        assert alone.train.model.confidence is None and beside.train == fused.train
        assert (beside.inference.confidence_exponent, fused.inference.confidence_exponent) == (0.0, 0.4)


def test_the_branch_that_moves_no_box_differs_by_its_target_alone() -> None:
    rows = {row.label: row for row in TABLES["f_branch"].rows}
    for scored in ("class score alone", "alpha 0.4"):
        usual, still = rows[f"Focal, branch, {scored}"], rows[f"Focal, branch that moves no box, {scored}"]
        assert flat_differences(still.train.model) == {
            **flat_differences(usual.train.model),
            "confidence.detach_iou_target": True,
        }
        assert still.inference == usual.inference


def test_the_branch_on_giou_boxes_differs_from_table_cs_by_the_branch_alone() -> None:
    rows = {row.label: row for row in TABLES["f_branch"].rows}
    (alone,) = (row for row in TABLES["c_boxes"].rows if row.label == "GIoU")
    assert rows["Focal on GIoU boxes"].train == alone.train
    for scored in ("class score alone", "alpha 0.4"):
        usual, here = rows[f"Focal, branch, {scored}"], rows[f"Focal on GIoU boxes, branch, {scored}"]
        assert here.train.model == replace(alone.train.model, confidence=usual.train.model.confidence)
        assert (here.inference, here.reference) == (usual.inference, "Focal on GIoU boxes")


def test_trainings_are_shared_between_the_tables_and_with_those_of_the_paper() -> None:
    ladder = gather([*TABLES.values()])
    assert (len(ladder.trainings), len(ladder.evaluations)) == (32, 46)
    paper = gather(load_experiments([EXPERIMENTS / "paper" / "table1_heads.yaml"]))
    assert len(ladder.trainings.keys() & paper.trainings.keys()) == 2
    files = (EXPERIMENTS / "README.md").read_text()
    assert f"| {32 - 2} beside table 1, on COCO |" in files and f"| {96 - 6} beside table 1 of each" in files
    (only,) = gather([TABLES["e_suppression"]]).trainings
    assert only in gather([TABLES["a_targets"]]).trainings
    for folder, home in SMALLER.items():
        small = gather(load_experiments([LADDER / folder]))
        assert len(small.trainings) == 96
        assert (
            len(small.trainings.keys() & gather(load_experiments([home / "table1_heads.yaml"])).trainings.keys()) == 6
        )


@pytest.mark.parametrize("folder", [".", *SMALLER])
def test_no_two_trainings_and_no_two_evaluations_have_one_name_in_mlflow(folder: str) -> None:
    plan = gather(load_experiments([LADDER / folder]))
    trainings = [name_of_training(one) for one in plan.trainings.values()]
    evaluations = []
    for one in plan.evaluations.values():
        config = plan.trainings[one.train_key].config
        settings = training_params(config) | inference_params(one.inference)
        evaluations.append(run_name(tagged(place_tags(one), names.ROW), settings, str(config.seed)))
    for called in (trainings, evaluations):
        assert [name for name, count in Counter(called).items() if count > 1] == []


@pytest.mark.parametrize("folder", [".", *SMALLER, "blood_cpu"])
def test_each_file_opens_with_what_it_costs_and_has_room_for_its_answer(folder: str) -> None:
    for table in load_experiments([LADDER / folder]):
        head = [line for line in table.path.read_text().splitlines() if line.startswith("#")]
        said = re.search(r"# Costs (no|\d+) trainings?", "\n".join(head))
        assert said, table.path
        count = len({key.train_key for row in table.rows for key in row_keys(row)})
        assert said[1] == ("no" if table.name == "e_suppression" else str(count)), table.path
        assert f"rnc submit experiments/ladder/{'' if folder == '.' else f'{folder}/'}" in "\n".join(head)
        assert head[-1].startswith("# Answer: "), table.path


@pytest.mark.slow
def test_every_training_of_the_tables_runs_and_no_setting_of_it_is_without_effect(
    shapes_root: Path, tmp_path: Path
) -> None:
    """An update or two of a narrow network each: all losses are finite, no two trainings end with the same weights."""
    data = replace(CONFIG.data, num_train_images=4, num_val_images=1)
    once = replace(CONFIG.schedule, epochs=1, lr_drop_epochs=(), warmup_iterations=1)
    first: dict[str, str] = {}
    for table in TABLES.values():
        for row in table.rows:
            model = row.train.model
            parts = {part: getattr(model, part) for part in ("confidence", "classification", "box", "assignment")}
            config = replace(CONFIG, model=replace(MODEL, **parts), data=data, schedule=once, global_batch=4)
            folder = tmp_path / train_key(config)
            if folder.exists():
                continue
            reports = run(config, shapes_root, folder)
            losses = [value for one in reports for name, value in one.metrics.items() if "loss" in name]
            assert losses and all(map(math.isfinite, losses)), (row.label, losses)
            (weights,) = folder.glob("epoch-*/*.safetensors")
            other = first.setdefault(file_sha256(weights), row.label)
            assert other == row.label, f"{row.label} trains as {other} does"
    assert len(first) == 32


def test_what_others_published_is_cited_with_its_recipe_and_compared_with_nothing() -> None:
    for table in TABLES.values():
        assert not any(row.paper for row in table.rows)
        for line in table.cited:
            assert "R50, 1x" in line.label and re.search(r"12 epochs at \d+ x \d+", line.source), line
    published = {line.label: line.paper["AP"] for table in TABLES.values() for line in table.cited}
    assert published["ATSS, R50, 1x"] == 39.4 and len(published) == 10


def test_the_paper_of_the_ladder_names_every_kind_and_every_table() -> None:
    text = (EXPERIMENTS / "LADDER.md").read_text()
    choices = {
        ClassificationConfig: ("loss", "edge_quality"),
        BoxConfig: ("loss",),
        AssignmentConfig: ("kind",),
        InferenceConfig: ("suppression",),
    }
    for config, settings in choices.items():
        for setting in settings:
            kinds = re.findall(r"'(\w+)'", str(get_type_hints(config)[setting]))
            assert len(kinds) >= 2
            assert [kind for kind in kinds if f"`{kind}`" not in text] == []
    assert re.findall(r"\(ladder/(\w+)\.yaml\)", text) == list(TABLES)
    number = sum(len(table.rows) for table in TABLES.values())
    assert f"{number} rows are {len(gather([*TABLES.values()]).trainings)} trainings" in text


def test_defaults_are_left_where_the_table_does_not_ask_for_them() -> None:
    found = {path for row in TABLES["c_boxes"].rows for path in flat_differences(row.train.model)}
    assert found == {
        "backbone_weights",
        "confidence",
        "box.loss",
        "box.loss_weight",
        "box.bins",
        "classification.loss",
        "classification.edge_quality",
    }
