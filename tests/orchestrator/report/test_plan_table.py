"""What `rnc plan` says; every number in them is worked out by hand here."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.config import ConfidenceConfig, DataConfig, InferenceConfig, ModelConfig, ScheduleConfig, TrainConfig
from orchestrator.experiment.cost.estimate import PlanTime, estimate_time
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, Record, make_plan, row_keys
from orchestrator.experiment.rows import Resources, Row, SeedRule
from orchestrator.experiment.search import Asha, Search
from orchestrator.report.plan_table import costs_table, evaluations_table, plan_json, plan_table, plans_json
from tests.orchestrator.ledgers import finished, ledger_of
from tests.orchestrator.tables import shown

BASE = Row(
    label="RetinaNet",
    train=TrainConfig(model=ModelConfig(confidence=None)),
    inference=InferenceConfig(confidence_exponent=0.0),
)
OURS = Row(label="RetinaNet-Conf")
BOX = Row(label="IoU-aware", train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))))
OTHER = Row(label="exponent 0.7", inference=InferenceConfig(confidence_exponent=0.7))
DEEP = Row(label="R101", train=TrainConfig(model=ModelConfig(backbone="resnet101")))
GPUS = Resources(num_workers=8, gpus_per_worker=1.0)


def experiment(*rows: Row, name: str = "table", resources: Resources = GPUS) -> Experiment:
    return Experiment(name=name, suite="suite", title=name, rows=rows, resources=resources, path=Path("table.yaml"))


def scored(row: Row) -> Ledger:
    """A ledger that holds one row."""
    ((_, trained, evaluated),) = row_keys(row)
    record = Record(status="FINISHED", run_id="r")
    return Ledger(trainings={trained: record}, evaluations={evaluated: record})


def unknown(plan: Plan) -> PlanTime:
    return estimate_time(plan, Ledger(), lambda _: 1000)


def test_the_plan_counts_what_is_missing_and_says_why() -> None:
    plan = make_plan([experiment(BASE, OURS, OTHER)], scored(OURS))
    table = plan_table(plan, unknown(plan))
    assert [(row["training"], row["evaluations"], row["missing"], row["why"]) for row in shown(table)] == [
        ("RetinaNet", "1", "1", "training never run"),
        ("RetinaNet-Conf", "2", "1", "1 evaluation never run"),
    ]
    assert shown(table)[0]["on"] == "8 workers, 1 GPU each"
    assert table.notes[:2] == (
        "3 rows of 1 table: 2 trainings, 3 distinct evaluations.",
        "Missing: 1 training, 2 evaluations.",
    )
    content = plan_json(plan, unknown(plan))
    assert [content[name] for name in ("rows", "trainings", "evaluations")] == [3, 2, 3]
    assert content["missing"] == {"trainings": 1, "evaluations": 2}
    assert [run["missing"] for run in content["training_list"]] == ["never run", None]
    assert content["training_list"][0]["settings"] == {"model.confidence": None}
    assert [e["missing"] for e in content["evaluation_list"]] == ["waits for its training", None, "never run"]


def test_trainings_of_one_label_are_told_apart_by_their_tables() -> None:
    deep = replace(DEEP, label=BASE.label)
    plan = make_plan([experiment(BASE, OURS), experiment(deep, OURS, name="deeper")], Ledger())
    names = ["RetinaNet of table", "RetinaNet-Conf", "RetinaNet of deeper"]
    assert [row["training"] for row in shown(plan_table(plan, unknown(plan)))] == names
    assert {row["of training"] for row in shown(evaluations_table(plan))} == set(names)


def test_the_plan_says_whose_branch_no_score_reads() -> None:
    """The paper's table 1 means it so; elsewhere it is mostly an exponent that was forgotten."""
    unread = replace(OURS, inference=InferenceConfig(confidence_exponent=0.0))
    filtered = replace(BOX, inference=InferenceConfig(confidence_exponent=0.0, min_confidence=0.5))

    def told(*rows: Row) -> list[str]:
        plan = make_plan([experiment(*rows)], Ledger())
        return [note for note in plan_table(plan, unknown(plan)).notes if note.startswith("No score here reads")]

    assert told(BASE, OURS, filtered) == []
    assert told(BASE, unread, filtered) == [
        "No score here reads the confidence of RetinaNet-Conf: the branch only teaches the towers, at exponent 0."
    ]
    assert told(unread, replace(OURS, label="another row of the same training")) == []
    seeds = replace(unread, seeds=(0, 1, 2))
    deeper = [
        replace(unread, label=f"depth {n}", train=TrainConfig(model=ModelConfig(tower_depth=n))) for n in (1, 2, 3)
    ]
    (note,) = told(seeds, *deeper)
    assert note.startswith("No score here reads the confidence of RetinaNet-Conf, depth 1, depth 2 and 1 more: ")


@pytest.mark.parametrize(
    ("asked", "notes"),
    [
        ([GPUS], ["Loader processes of a GPU worker: from the node's cores."]),
        ([replace(GPUS, loader_processes=3)], ["Loader processes of a GPU worker: 3."]),
        ([GPUS, replace(GPUS, loader_processes=3)], ["Loader processes of a GPU worker: 3 or from the node's cores."]),
        ([Resources()], []),  # on the CPU, the worker reads them itself
    ],
)
def test_a_plan_for_gpus_says_how_many_processes_will_read_images(asked: list[Resources], notes: list[str]) -> None:
    rows = [BASE, OURS]
    plan = make_plan(
        [experiment(row, name=row.label, resources=resources) for row, resources in zip(rows, asked, strict=False)],
        Ledger(),
    )
    assert [note for note in plan_table(plan, unknown(plan)).notes if "oader" in note] == notes


def test_a_plan_with_nothing_missing_says_so_and_asks_for_nothing() -> None:
    plan = make_plan([experiment(OURS)], scored(OURS))
    table = plan_table(plan, unknown(plan))
    assert shown(table)[0]["why"] == "complete"
    assert table.notes[1:] == ("Nothing is missing.",)


def test_a_training_that_its_search_stopped_is_told_and_not_counted_as_missing() -> None:
    ((_, trained, _),) = row_keys(OURS)
    note = "stopped early by ASHA after epoch 2 (AP 12.3)"
    held = Ledger(trainings={trained: Record(status="STOPPED", run_id="r", note=note)})
    search = Search(labels=(OURS.label,), space={}, num_samples=1, metric="AP", asha=Asha(), seed=0)
    plan = make_plan([replace(experiment(OURS), search=search)], held)
    table = plan_table(plan, unknown(plan))
    assert [(row["missing"], row["why"]) for row in shown(table)] == [("0", note)]
    assert table.notes[1:] == (
        "Nothing is missing.",
        "Stopped early by their search, and not taken up again: 1 training.",
    )
    assert [row["state"] for row in shown(evaluations_table(plan))] == [note]
    (told,) = plan_json(plan, unknown(plan))["training_list"]
    assert (told["missing"], told["stopped"]) == (None, note)


def test_every_evaluation_is_listed_where_it_is_shown_with_its_state() -> None:
    again = replace(OURS, label="CE")
    plan = make_plan([experiment(OURS, OTHER), experiment(again, BASE, name="losses")], scored(OURS))
    ((_, _, key),) = row_keys(OURS)
    listed = shown(evaluations_table(plan))
    assert [(row["table"], row["row"], row["of training"], row["state"]) for row in listed] == [
        ("table", "RetinaNet-Conf", "RetinaNet-Conf", "stands in MLflow"),
        ("losses", "CE", "RetinaNet-Conf", "stands in MLflow"),
        ("table", "exponent 0.7", "RetinaNet-Conf", "never run"),
        ("losses", "RetinaNet", "RetinaNet", "waits for its training"),
    ]
    assert [row["evaluation"] for row in listed[:2]] == [key, key]


def test_time_is_told_in_gpu_hours_and_hours_with_the_throughput_that_it_rests_on() -> None:
    plan = make_plan([experiment(BASE, DEEP)], Ledger())
    time = estimate_time(plan, Ledger(), lambda _: 36_000, gpus=8, images_per_s=10.0)
    table = plan_table(plan, time)
    # 12 epochs of 36,000 images at 8 x 10 images/s: 5,400 s, 1.5 h, on 8 GPUs 12 GPU-hours; and the same once more
    assert [row["hours"] for row in shown(table)] == ["1.50", "1.50"]
    assert table.notes[2:-2] == (
        "Time: 24.0 GPU-hours of training; validation and scoring come on top.",
        "Largest first on 8 GPUs the training takes 3.0 hours.",
        "Throughput of resnet50 at 600 x 1000 in float32 on a GPU: 10.0 images/s (given, not measured).",
        "Throughput of resnet101 at 600 x 1000 in float32 on a GPU: 10.0 images/s (given, not measured).",
    )
    content = plans_json([(plan, time)])
    (suite,) = content["suites"]
    assert content["missing"] == {"trainings": 2, "evaluations": 2}
    assert (suite["estimate"]["gpu_hours"], suite["estimate"]["hours"], suite["estimate"]["gpus"]) == (24.0, 3.0, 8)
    assert [one["seconds"] for one in suite["estimate"]["trainings"]] == [5400.0, 5400.0]
    assert suite["estimate"]["throughputs"][0] == {
        "backbone": "resnet50",
        "short_edge": 600,
        "long_edge": 1000,
        "precision": "float32",
        "device": "GPU",
        "images_per_s": 10.0,
        "measured": False,
    }


def test_each_row_is_costed_alone_and_names_the_row_that_it_shares_a_training_with() -> None:
    twice = replace(OTHER, label="R101 by two seeds", train=DEEP.train, seeds=(0, 1))
    held = ledger_of((BASE, [finished(AP=30.0)]))
    plan = make_plan([experiment(BASE, OURS, OTHER), experiment(DEEP, twice, BOX, name="more")], held)
    time = estimate_time(plan, held, lambda _: 36_000, gpus=16, images_per_s=10.0)
    table = costs_table(plan, time)
    # a training takes 1.5 h on 8 GPUs, as above; RetinaNet is done, and seed 0 of R101 counts in both of its rows
    assert [tuple(row.values()) for row in shown(table)] == [
        ("table", "RetinaNet", "0", "0", "0.0", ""),
        ("table", "RetinaNet-Conf", "1", "1", "12.0", "1 row below"),
        ("table", "exponent 0.7", "1", "1", "12.0", "RetinaNet-Conf of table"),
        ("more", "R101", "1", "1", "12.0", "1 row below"),
        ("more", "R101 by two seeds", "2", "2", "24.0", "R101 of more"),
        ("more", "IoU-aware", "1", "1", "12.0", ""),
    ]
    assert table.rules_before == (0, 3)
    listed = plan_json(plan, time)["row_list"]
    assert [one["gpu_hours"] for one in listed] == [0.0, 12.0, 12.0, 12.0, 24.0, 12.0]
    assert listed[2]["shared_with"] == [{"table": "table", "row": "RetinaNet-Conf"}]
    assert time.gpu_hours == 48.0  # 4 trainings: less than the rows add up to


def test_rows_whose_throughput_is_unknown_have_no_hours_beside_those_that_have() -> None:
    ran = Record(status="KILLED", run_id="r", metrics={"perf/images_per_s": 80.0, "train/epoch": 6.0}, resources=GPUS)
    held = Ledger(trainings={row_keys(OURS)[0].train_key: ran})
    plan = make_plan([experiment(OURS, DEEP)], held)
    rows = shown(costs_table(plan, estimate_time(plan, held, lambda _: 36_000)))
    assert [row["GPU-hours"] for row in rows] == ["6.0", "—"]  # six of twelve epochs are left
    unmeasured = make_plan([experiment(OURS, DEEP)], Ledger())
    assert "GPU-hours" not in shown(costs_table(unmeasured, unknown(unmeasured)))[0]


def test_where_seeds_are_added_until_decided_the_plan_says_from_what_to_what() -> None:
    rule = SeedRule(until="decided", at_least=2, most=5)
    rows = [replace(row, seeds=(0, 1)) for row in (BASE, OURS, OTHER)]
    plan = make_plan([replace(experiment(*rows), reference="RetinaNet", seed_rule=rule)], Ledger())
    time = estimate_time(plan, Ledger(), lambda _: 36_000, images_per_s=10.0)
    # two trainings for three rows, of 12 GPU-hours, by two to five seeds
    assert (
        "Seeds are added until decided, 2 to 5 in table: 4 to 10 trainings are missing, 48.0 to 120.0 GPU-hours; the"
        " most if no row is decided before."
    ) in plan_table(plan, time).notes
    assert plan_json(plan, time)["estimate"]["all_seeds"] == {
        "trainings": 10,
        "evaluations": 15,
        "missing": {"trainings": 10, "evaluations": 15},
        "gpu_hours": 120.0,
        "cpu_hours": 0.0,
    }
    listed = make_plan([experiment(*rows)], Ledger())
    assert plan_json(listed, unknown(listed))["estimate"]["all_seeds"] is None


def test_less_than_an_hour_is_told_in_minutes() -> None:
    plan = make_plan([experiment(BASE, resources=Resources(cpus_per_worker=1.0))], Ledger())
    for images, shown_as in ((75, "15 min"), (1, "1 min")):  # 12 epochs at one image a second
        time = estimate_time(plan, Ledger(), lambda _, images=images: images, cpus=2.0, images_per_s=1.0)  # type: ignore[misc]
        assert f"Largest first on 2 CPUs the training takes {shown_as}." in plan_table(plan, time).notes


def test_without_any_throughput_the_plan_says_how_to_come_by_one() -> None:
    plan = make_plan([experiment(BASE)], Ledger())
    table = plan_table(plan, unknown(plan))
    assert "hours" not in [column.name for column in table.columns]
    assert table.notes[2] == (
        "No throughput is known yet for resnet50 at 600 x 1000 in float32 on a GPU: a training of it that has begun"
        " will tell; until then, give one GPU's as --images-per-s."
    )
    assert not any(note.startswith("Time") for note in table.notes)
    assert plan_json(plan, unknown(plan))["estimate"]["hours"] is None


def test_data_of_unknown_size_and_too_few_gpus_are_told() -> None:
    mine = replace(BASE, train=replace(BASE.train, data=DataConfig(train_split="mine")))
    plan = make_plan([experiment(mine)], Ledger())
    notes = plan_table(plan, estimate_time(plan, Ledger(), lambda _: None, gpus=4, images_per_s=1.0)).notes
    assert "How many images there are to train on is not known; name the data (data.root or RNC_COCO_ROOT)." in notes
    assert "A training asks for more GPUs than there are; its time is that on fewer workers." in notes


@pytest.mark.parametrize(
    ("epochs", "num_images", "said"),
    [
        (12, 1000, []),  # 756 updates
        (1, 192, ["the warm-up (500 updates) outlasts the whole training (12 updates): its rate ends at 2.3 % of"]),
        (600, 5, ["train.global_batch is 16, of 5 images: an epoch has hardly more than one update; lower it."]),
    ],
)
def test_a_schedule_that_can_hardly_learn_is_told(epochs: int, num_images: int, said: list[str]) -> None:
    schedule = ScheduleConfig(epochs=epochs, lr_drop_epochs=())
    plan = make_plan([experiment(replace(OURS, train=TrainConfig(schedule=schedule)))], Ledger())
    notes = plan_table(plan, estimate_time(plan, Ledger(), lambda _: num_images)).notes
    # (1 - 11 / 500) * 0.999 is missing at the last of 12 updates: 2.3 % are there.
    told = [note for note in notes if note.startswith("RetinaNet-Conf: ")]
    assert len(told) == len(said) and all(text in note for text, note in zip(said, told, strict=True))


def test_disk_is_told_for_what_is_missing_alone() -> None:
    """R50 with 80 classes: 38.0 million weights, 152 MB; with SGD's momentum twice that, and two of these."""
    plan = make_plan([experiment(OURS, DEEP)], scored(DEEP))
    content = plan_json(plan, unknown(plan))["estimate"]["bytes"]
    weights = content["ray"] / 4
    assert round(weights / 1e6) == 152
    assert content["mlflow"] == weights + 5000 * 100 * 70
    assert plan_table(plan, unknown(plan)).notes[-1] == (
        "Disk: up to 608 MB in Ray's storage (two checkpoints of each training)"
        " and 187 MB in MLflow (weights and detections)."
    )
