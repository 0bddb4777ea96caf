"""Small suites on drawn shapes that go through Ray and MLflow, and what tests ask of them."""

from dataclasses import replace
from pathlib import Path

from model.config import DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from orchestrator.driver import launch
from orchestrator.driver.live import Show
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.experiment.rows import Resources, Row
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking import server
from orchestrator.tracking.runs import open_tracking

TRAIN = TrainConfig(
    model=ModelConfig(
        backbone="resnet18_quarter",
        backbone_norm="group",
        frozen_stages=0,
        channels=16,
        tower_depth=1,
        tower_norm="group",
    ),
    data=DataConfig(dataset="shapes", train_split="train", val_split="val", short_edge=64, long_edge=64),
    schedule=ScheduleConfig(epochs=4, lr_drop_epochs=(), warmup_iterations=2, gradient_clip=10.0),
    global_batch=4,
)


def variant(number: int) -> TrainConfig:
    """Another training that costs the same."""
    return replace(TRAIN, schedule=replace(TRAIN.schedule, warmup_iterations=2 + number))


def experiment_of(
    suite: str, *trains: TrainConfig, name: str = "tiny", resources: Resources | None = None
) -> Experiment:
    """A table of one row for each training: row 0, row 1 ..."""
    rows = tuple(Row(label=f"row {place}", train=train, split="val") for place, train in enumerate(trains))
    return Experiment(
        name=name, suite=suite, title="Tiny", rows=rows, resources=resources or Resources(), path=Path(f"{name}.yaml")
    )


def plan_of(site: Site, suite: str, *trains: TrainConfig, resources: Resources | None = None) -> Plan:
    """The plan of that one table."""
    return make_plan([experiment_of(suite, *trains, resources=resources)], ledger_of(site, suite))


def ledger_of(site: Site, suite: str) -> Ledger:
    """What MLflow holds of a suite."""
    return tracking.read_ledger(open_tracking(server.tracking_server(site), suite))


def launched(plan: Plan, site: Site, show: Show = lambda _: None) -> launch.Outcome:
    """Run what a plan lacks."""
    return launch.launch(plan, site, server.tracking_server(site), show=show)
