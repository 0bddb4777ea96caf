"""Which trainings a budget reaches; every number is worked out by hand here."""

import math
from dataclasses import replace

import pytest

from model.config import DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.cost.budget import Part, hours_unit, next_part, require_budget, spent_hours
from orchestrator.experiment.cost.estimate import estimate_time
from orchestrator.experiment.plan import Ledger, Plan, Record, make_plan, row_keys
from orchestrator.experiment.rows import Resources, Row
from tests.orchestrator.ledgers import experiment, finished

GPUS = Resources(num_workers=4, gpus_per_worker=1.0)
SHORT = Row(label="short")
LONG = Row(label="long", train=TrainConfig(schedule=ScheduleConfig(epochs=24, lr_drop_epochs=(17,))))
OTHER = Row(label="other", train=TrainConfig(model=ModelConfig(confidence=None)))
AGAIN = Row(label="again", train=SHORT.train, split="minival")
DEEP = Row(label="deep", train=TrainConfig(model=ModelConfig(backbone="resnet101")))


def plan_of(*rows: Row, held: Ledger | None = None, resources: Resources = GPUS) -> Plan:
    return make_plan([replace(experiment("table", rows), resources=resources)], held or Ledger())


def key(row: Row) -> str:
    return row_keys(row)[0].train_key


def chosen(plan: Plan, hours: float | None, held: Ledger | None = None, speed: float | None = 10.0, **others) -> Part:
    """Of 36,000 images at 10 images/s and GPU, 12 epochs take 12 GPU-hours."""
    return next_part(plan, estimate_time(plan, held or Ledger(), lambda _: 36_000, images_per_s=speed), hours, **others)


def test_trainings_are_taken_in_the_order_of_the_plan_as_far_as_the_budget_reaches() -> None:
    plan = plan_of(SHORT, LONG, OTHER, AGAIN)
    part = chosen(plan, 30.0)
    assert list(part.plan.missing_trainings) == [key(SHORT), key(OTHER)]  # 12 + 12, and LONG's 24 would not fit
    assert part.left_out == {key(LONG): 24.0}
    # both evaluations of SHORT, and that of OTHER: nothing of what is left out is scored
    labels = [plan.evaluations[one].label for one in part.plan.missing_evaluations]
    assert labels == ["short", "other", "again"]
    assert chosen(plan, 11.9).plan.is_complete and len(chosen(plan, 11.9).left_out) == 3
    everything = chosen(plan, None)
    assert everything.plan == plan and not everything.left_out
    assert chosen(plan, 48.0).plan == plan


def test_a_training_of_unknown_cost_runs_alone_before_the_others_and_not_once_all_is_spent() -> None:
    plan = plan_of(SHORT, OTHER)
    part = chosen(plan, 1.0, speed=None)
    assert (list(part.plan.missing_trainings), part.probe) == ([key(SHORT)], key(SHORT))
    held = Ledger(trainings={key(SHORT): finished(**{"perf/images_per_s": 40.0, "train/epoch": 12.0})})
    later = plan_of(SHORT, OTHER, DEEP, LONG, held=held)
    assert chosen(later, 13.0, held, speed=None).probe == key(DEEP)
    part = chosen(later, 13.0, held, speed=None, tried={key(DEEP)})
    assert (list(part.plan.missing_trainings), part.left_out) == ([key(OTHER)], {key(LONG): 24.0})
    part = chosen(later, 0.0, held, speed=None)
    assert part.plan.missing_trainings == {} and math.isnan(part.left_out[key(DEEP)])


def test_what_this_submit_has_tried_is_not_run_again_and_finished_trainings_are_scored_for_free() -> None:
    plan = plan_of(SHORT, OTHER)
    assert list(chosen(plan, None, tried={key(SHORT)}).plan.missing_trainings) == [key(OTHER)]
    assert len(chosen(plan, None, tried={key(SHORT)}).plan.missing_evaluations) == 1
    held = Ledger(trainings={key(SHORT): finished()})
    trained = plan_of(SHORT, OTHER, held=held)
    (scored,) = chosen(trained, 1e-9, held).plan.missing_evaluations
    assert trained.evaluations[scored].label == "short"
    assert chosen(trained, 1e-9, held, tried={scored}).plan.is_complete


def test_what_ran_costs_its_own_images_at_its_own_throughput() -> None:
    plan = plan_of(SHORT, OTHER, LONG)
    part = Part(plan=plan, left_out={})
    before = Ledger(trainings={key(SHORT): Record(status="KILLED", run_id="r", metrics={"train/epoch": 6.7})})
    speed = {"perf/images_per_s": 20.0}
    after = Ledger(
        trainings={
            key(SHORT): finished(**speed, **{"train/epoch": 12.0}),
            key(OTHER): Record(status="FAILED", run_id="r", metrics=speed | {"train/epoch": 1.5}),
        }
    )
    # 6 and 1.5 epochs of 3,600 images at 20 images/s on 4 GPUs
    assert spent_hours(part.plan, before, after, lambda _: 3600) == pytest.approx((6 + 1.5) * 3600 / 20 * 4 / 3600)


def test_a_budget_counts_cpus_only_where_a_training_takes_no_gpu() -> None:
    on_cpus = replace(experiment("cpus", [SHORT]), resources=Resources(cpus_per_worker=2.0))
    assert hours_unit(plan_of(SHORT)) == "GPU-hours"
    assert hours_unit(make_plan([on_cpus], Ledger())) == "CPU-hours"
    both = [on_cpus, replace(experiment("gpus", [OTHER]), resources=GPUS)]
    assert hours_unit(make_plan(both, Ledger())) == "GPU- and CPU-hours"


@pytest.mark.parametrize("hours", [0.0, -1.0, math.nan])
def test_a_budget_of_nothing_is_refused_with_the_way_out(hours: float) -> None:
    with pytest.raises(UserError, match="expected more than 0 hours; leave it out for no bound"):
        require_budget(hours)


def test_a_budget_without_end_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match="budget is inf, expected a finite number of hours; leave it out for no bound"):
        require_budget(math.inf)


def test_data_of_unknown_size_have_no_cost_that_a_budget_could_bound() -> None:
    plan = plan_of(replace(SHORT, train=TrainConfig(data=DataConfig(train_split="mine"))))
    time = estimate_time(plan, Ledger(), lambda _: None, images_per_s=1.0)
    assert not next_part(plan, time, None).plan.is_complete
    with pytest.raises(UserError, match=r"name the data \(data.root or RNC_COCO_ROOT\)"):
        next_part(plan, time, 1.0)
