"""Identity and what is missing: each training and evaluation once, and only what the ledger lacks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig, ScheduleConfig, TrainConfig
from model.settings import to_dict
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, load_experiments
from orchestrator.experiment.plan import Ledger, Place, Record, evaluation_key, make_plan, row_keys, train_key
from orchestrator.experiment.rows import Resources, Row
from orchestrator.experiment.search import Asha, Search

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
DEFAULTS = Path(__file__).parents[2] / "golden" / "defaults.json"
NO_BRANCH = TrainConfig(model=ModelConfig(confidence=None))
BY_CLASS = InferenceConfig(confidence_exponent=0.0)
FINISHED = Record(status="FINISHED", run_id="r")


def experiment(*rows: Row, name: str = "table", suite: str = "suite", num_workers: int = 1) -> Experiment:
    resources = Resources(num_workers=num_workers)
    return Experiment(name=name, suite=suite, title=name, rows=rows, resources=resources, path=Path(f"{name}.yaml"))


def test_no_default_has_moved() -> None:
    now = {kind.__name__: to_dict(kind()) for kind in (TrainConfig, InferenceConfig)}
    assert now == json.loads(DEFAULTS.read_text()), (
        "a default moved or a setting was renamed: results recorded under the old default would be taken for new ones."
        " A setting that is new belongs into tests/golden/defaults.json with a default that means what the code did"
        " before; a default that has to move needs a new name for its setting"
    )


def test_every_setting_changes_a_key() -> None:
    usual, keys = TrainConfig(), [train_key(TrainConfig())]
    others = [
        replace(usual, seed=1),
        replace(usual, precision="bfloat16"),
        replace(usual, schedule=ScheduleConfig(lr_drop_epochs=(8,))),
        replace(usual, data=DataConfig(num_train_images=10)),
        replace(usual, model=ModelConfig(confidence=None)),
        replace(usual, model=ModelConfig(confidence=ConfidenceConfig(tower="box"))),
    ]
    keys += [train_key(config) for config in others]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 12 and set(key) <= set("0123456789abcdef") for key in keys)


def test_keys_stay_what_they_were() -> None:
    """Written down once; a change here orphans every recorded result."""
    assert train_key(TrainConfig()) == "daa786735ddb"
    assert train_key(NO_BRANCH) == "d42b15a67c36"
    assert evaluation_key("daa786735ddb", InferenceConfig(nms_iou=0.6), "val2017") == "c712d613a84a"


def test_an_integer_and_its_float_are_one_key() -> None:
    assert evaluation_key("t", InferenceConfig(confidence_exponent=0), "val") == evaluation_key("t", BY_CLASS, "val")
    one = TrainConfig(schedule=ScheduleConfig(gradient_clip=35))
    assert train_key(one) == train_key(TrainConfig(schedule=ScheduleConfig(gradient_clip=35.0)))


def test_an_evaluations_key_depends_on_training_scoring_and_split() -> None:
    keys = {
        evaluation_key("t", InferenceConfig(), "val"),
        evaluation_key("u", InferenceConfig(), "val"),
        evaluation_key("t", BY_CLASS, "val"),
        evaluation_key("t", InferenceConfig(), "test"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("suite", ["paper", "miniature"])
def test_the_45_rows_of_the_paper_are_13_trainings_and_36_evaluations(suite: str) -> None:
    """By hand: 3 + 6 + 0 + 0 + 0 + 4 trainings; 3 + 6 + 2 + 4 + 17 + 4 evaluations that no earlier table has."""
    tables = load_experiments([EXPERIMENTS / suite])
    assert [len(table.rows) for table in tables] == [3, 7, 2, 6, 20, 7]
    by_one_seed = [replace(table, rows=tuple(replace(row, seeds=(0,)) for row in table.rows)) for table in tables]
    new = []
    for number in range(1, 7):
        plan = make_plan(by_one_seed[:number], Ledger())
        new.append((len(plan.trainings), len(plan.evaluations)))
    assert new == [(3, 3), (9, 9), (9, 11), (9, 15), (9, 32), (13, 36)]


@pytest.mark.parametrize("suite", ["photos/aquarium", "photos/blood"])
def test_table_1_on_photographs_pays_for_all_trainings_but_those_of_tables_2_and_3(suite: str) -> None:
    """By hand, three seeds each: 3 + 5 + 17 evaluations in tables 1, 4 and 5, and 7 more of 6 trainings in 2 and 3."""
    tables = {table.name[len("table")]: table for table in load_experiments([EXPERIMENTS / suite])}
    needed = []
    for numbers in ("1", "145", "12345"):
        plan = make_plan([tables[number] for number in numbers], Ledger())
        needed.append((len(plan.trainings), len(plan.evaluations)))
    assert needed == [(9, 9), (9, 75), (27, 96)]


def test_a_row_that_stands_in_four_tables_is_one_evaluation_with_four_places() -> None:
    plan = make_plan(load_experiments([EXPERIMENTS / "paper"]), Ledger())
    (shared,) = plan.evaluations_of("table1_heads", "RetinaNet-Conf")
    assert shared.places == (
        Place("table1_heads", 2, "RetinaNet-Conf"),
        Place("table2_losses", 6, "CE loss"),
        Place("table4_fusion", 0, "cls"),
        Place("table5_exponents", 1, "RetinaNet-Conf, alpha 0.0"),
    )
    assert shared in plan.evaluations_on(plan.evaluations[shared.key].train_key)


def test_the_demo_trains_nothing_that_the_miniature_tables_do_not() -> None:
    demo, miniature = (make_plan(load_experiments([EXPERIMENTS / name]), Ledger()) for name in ("demo", "miniature"))
    assert demo.suite == miniature.suite
    assert (len(demo.trainings), len(demo.evaluations)) == (3, 21)
    assert set(demo.trainings) <= set(miniature.trainings)
    assert set(demo.evaluations) <= set(miniature.evaluations)


def test_every_seed_is_a_training_of_its_own() -> None:
    row = Row(label="A", seeds=(0, 7))
    plan = make_plan([experiment(row)], Ledger())
    assert [(run.label, run.config.seed) for run in plan.trainings.values()] == [("A, seed 0", 0), ("A, seed 7", 7)]
    assert [e.key for e in plan.evaluations_of("table", "A")] == [keys.evaluation_key for keys in row_keys(row)]


def test_a_shared_training_gets_the_larger_number_of_workers() -> None:
    small, large = experiment(Row(label="A")), experiment(Row(label="B"), name="other", num_workers=4)
    for order in ([small, large], [large, small]):
        (run,) = make_plan(order, Ledger()).trainings.values()
        assert run.resources.num_workers == 4


def test_of_several_files_the_smallest_number_of_trainings_at_once_counts() -> None:
    def limited(name: str, most: int | None) -> Experiment:
        return replace(experiment(Row(label=name), name=name), resources=Resources(max_concurrent=most))

    assert make_plan([limited("a", None), limited("b", 3), limited("c", 2)], Ledger()).max_concurrent == 2
    assert make_plan([limited("a", None)], Ledger()).max_concurrent is None


def test_the_papers_numbers_reach_the_evaluation_from_whichever_row_has_them() -> None:
    first, second = Row(label="A"), Row(label="B", paper={"AP": 35.6})
    (evaluation,) = make_plan([experiment(first, second)], Ledger()).evaluations.values()
    assert dict(evaluation.paper) == {"AP": 35.6}


def test_two_numbers_of_the_paper_for_one_evaluation_are_refused() -> None:
    tables = [experiment(Row(label="A", paper={"AP": 35.6})), experiment(Row(label="B", paper={"AP": 35.7}), name="b")]
    with pytest.raises(UserError) as caught:
        make_plan(tables, Ledger())
    assert str(caught.value) == (
        "table b, row 'B': paper.AP is 35.7, but the same evaluation has 35.6 in table table, row 'A'; correct one, or"
        " leave it out"
    )


def test_experiments_of_two_suites_are_no_plan() -> None:
    with pytest.raises(UserError, match=r"2 suites \(a, b\); plan one at a time"):
        make_plan([experiment(suite="a"), experiment(suite="b")], Ledger())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "never run"),
        (Record(status="FAILED", run_id="r", note="out of memory"), "failed: out of memory"),
        (Record(status="FAILED", run_id="r"), "failed"),
        (Record(status="KILLED", run_id="r"), "interrupted"),
        (Record(status="KILLED", run_id="r", note="lost its detections"), "lost its detections"),
        (Record(status="RUNNING", run_id="r"), "running"),
        (FINISHED, None),
    ],
)
def test_an_evaluation_is_missing_unless_it_and_its_training_finished(
    record: Record | None, reason: str | None
) -> None:
    row = Row(label="A")
    ((_, trained, scored),) = row_keys(row)
    evaluations = {scored: record} if record else {}
    plan = make_plan([experiment(row)], Ledger(trainings={trained: FINISHED}, evaluations=evaluations))
    assert dict(plan.missing_evaluations) == ({scored: reason} if reason else {})
    assert dict(plan.missing_trainings) == {}
    untrained = make_plan([experiment(row)], Ledger(evaluations=evaluations))
    assert dict(untrained.missing_trainings) == {trained: "never run"}
    assert "waits for its training" in untrained.missing_evaluations[scored]


def test_a_training_that_its_search_stopped_is_missing_only_where_something_else_needs_it() -> None:
    kept, gone = Row(label="kept"), Row(label="gone", seeds=(1,))
    asha = Search(labels=("kept", "gone"), space={}, num_samples=2, metric="AP", asha=Asha(), seed=0)
    searched = replace(experiment(kept, gone, name="searched"), search=asha)
    ((_, trained, scored),) = row_keys(gone)
    note = "stopped early by ASHA after epoch 2 (AP 12.3)"
    held = Ledger(trainings={trained: Record(status="STOPPED", run_id="r", note=note)})
    plan = make_plan([searched], held)
    assert dict(plan.stopped_trainings) == {trained: note}
    assert trained not in plan.missing_trainings and scored not in plan.missing_evaluations
    assert len(plan.missing_trainings) == len(plan.missing_evaluations) == 1
    unscheduled = replace(searched, search=replace(asha, asha=None))
    for others in ([searched, experiment(gone, name="other")], [unscheduled]):
        wanted = make_plan(others, held)
        assert wanted.missing_trainings[trained] == note
        assert wanted.missing_evaluations[scored] == "waits for its training"
        assert not wanted.stopped_trainings


def test_a_new_exponent_costs_an_evaluation_and_no_training() -> None:
    old, new = Row(label="A"), Row(label="B", inference=InferenceConfig(confidence_exponent=0.7))
    ((_, trained, scored),) = row_keys(old)
    plan = make_plan([experiment(old, new)], Ledger(trainings={trained: FINISHED}, evaluations={scored: FINISHED}))
    assert not plan.missing_trainings
    assert list(plan.missing_evaluations) == [row_keys(new)[0].evaluation_key]
