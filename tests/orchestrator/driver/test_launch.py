"""The order of what is launched, and the one in which it is shown; all else needs a Ray, see tests/system."""

from dataclasses import replace
from pathlib import Path

from model.config import DataConfig, ModelConfig, ScheduleConfig, TrainConfig
from orchestrator.experiment.plan import Ledger, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.site import Site
from tests.orchestrator.ledgers import experiment

SHORT = TrainConfig(data=DataConfig(dataset="shapes"), schedule=ScheduleConfig(epochs=2, lr_drop_epochs=(1,)))
LONG = replace(SHORT, schedule=ScheduleConfig(epochs=9, lr_drop_epochs=(8,)))
WIDE = replace(SHORT, model=ModelConfig(backbone="resnet101"))


def test_trainings_are_shown_in_the_order_of_the_files_and_start_with_the_largest(tmp_path: Path) -> None:
    from orchestrator.driver.launch import largest_first, tasks_of

    rows = [Row(label="short", train=SHORT), Row(label="long", train=LONG), Row(label="wide", train=WIDE)]
    tasks = tasks_of(make_plan([experiment("table", rows)], Ledger()), Site(home=tmp_path), "http://localhost")
    assert [task.train_run.label for task in tasks] == ["short", "long", "wide"]
    assert [task.train_run.label for task in largest_first(tasks)] == ["long", "wide", "short"]
