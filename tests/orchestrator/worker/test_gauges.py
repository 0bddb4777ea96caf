"""What a suite tells Prometheus: how far it is, and what it lost."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, make_plan
from orchestrator.experiment.rows import Row
from orchestrator.worker import gauges
from orchestrator.worker.gauges import GAUGES, SuiteGauges, Updates
from orchestrator.worker.task import State, Status
from orchestrator.worker.training_log import Again, log_start, write_event
from tests.suites import TRAIN, experiment_of, variant


def status(state: State, images_per_s: float | None = None) -> Status:
    return Status(label="row", state=state, num_epochs=4, images_per_s=images_per_s)


def told(experiment: Experiment, ledger: Ledger, statuses: Mapping[str, Status], storage: Path) -> dict[str, float]:
    """Values by name, and by train key where they have one."""
    samples = SuiteGauges(make_plan([experiment], Ledger()), storage).values(ledger, statuses)
    return {".".join([s.name, *([s.tags["train_key"]] if "train_key" in s.tags else [])]): s.value for s in samples}


def test_a_row_is_done_when_all_its_seeds_are_measured_or_stopped_by_its_search(tmp_path: Path):
    rows = tuple(Row(label=f"row {n}", train=variant(n), split="val", seeds=(0, 1)) for n in range(3))
    experiment = replace(experiment_of("tiny"), rows=rows)
    plan = make_plan([experiment], Ledger())
    finished, stopped = Record(status="FINISHED", run_id="a"), Record(status="STOPPED", run_id="b")
    first, second, third = ([e for e in plan.evaluations_of("tiny", f"row {n}")] for n in range(3))
    ledger = Ledger(
        trainings={e.train_key: finished for e in (*first, second[0])} | {e.train_key: stopped for e in third},
        evaluations={e.key: finished for e in (*first, second[0])},
    )
    values = told(experiment, ledger, {}, tmp_path)
    assert (values["rnc_rows"], values["rnc_rows_done"]) == (3, 2)
    assert told(experiment, Ledger(), {}, tmp_path)["rnc_rows_done"] == 0


@pytest.mark.parametrize(
    ("state", "is_active"),
    [("waiting", 0), ("starting", 1), ("training", 1), ("scoring", 0), ("finished", 0), ("failed", 0)],
)
def test_a_training_should_make_updates_from_its_start_to_its_last_epoch(state: State, is_active: int, tmp_path: Path):
    values = told(experiment_of("tiny", TRAIN), Ledger(), {"k": status(state)}, tmp_path)
    assert values["rnc_training_active.k"] == is_active
    assert values["rnc_images_per_second.k"] == 0.0


def test_what_mlflow_last_held_stands_while_it_is_away(tmp_path: Path):
    plan = make_plan([experiment_of("tiny", TRAIN)], Ledger())
    ((key, evaluation),) = plan.evaluations.items()
    finished = Record(status="FINISHED", run_id="a")
    suite = SuiteGauges(plan, tmp_path)
    held = Ledger(trainings={evaluation.train_key: finished}, evaluations={key: finished})
    for ledger, is_up in ((held, 1), (None, 0)):
        values = {sample.name: sample.value for sample in suite.values(ledger, {})}
        assert (values["rnc_mlflow_up"], values["rnc_rows_done"]) == (is_up, 1)


def test_every_value_told_has_a_description_and_every_description_a_value(tmp_path: Path):
    values = told(experiment_of("tiny", TRAIN), Ledger(), {"k": status("training", 12.5)}, tmp_path)
    assert values["rnc_images_per_second.k"] == 12.5
    assert 0 < values["rnc_storage_free_bytes"] <= values["rnc_storage_bytes"]
    assert {name.split(".")[0] for name in values} == set(GAUGES)


def test_what_was_lost_is_told_of_each_training_as_its_log_has_it(tmp_path: Path):
    for _ in range(3):
        log_start(tmp_path / "k", 1, 0, 4)
    write_event(tmp_path / "k", Again(num_images=1200))
    values = told(experiment_of("tiny", TRAIN), Ledger(), {"k": status("training"), "l": status("waiting")}, tmp_path)
    assert (values["rnc_restarts_total.k"], values["rnc_lost_images_total.k"]) == (2, 1200)
    assert (values["rnc_restarts_total.l"], values["rnc_lost_images_total.l"]) == (0, 0)


def test_what_cannot_be_told_disturbs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise RuntimeError("no Ray")

    monkeypatch.setattr(gauges, "_gauge", fails)
    monkeypatch.setattr(gauges, "_counter", fails)
    suite = SuiteGauges(make_plan([experiment_of("tiny", TRAIN)], Ledger()), tmp_path / "nowhere")
    suite.tell(None, {"k": status("training")})
    Updates("tiny", "k", 0).reach(10)


def test_updates_are_counted_from_the_checkpoint_and_each_once(monkeypatch: pytest.MonkeyPatch):
    counted: list[float] = []

    class Counter:
        def inc(self, value: float, tags: Mapping[str, str]) -> None:
            assert tags == {"suite": "tiny", "train_key": "k"}
            counted.append(value)

    monkeypatch.setattr(gauges, "_counter", Counter)
    updates = Updates("tiny", "k", 100)
    for step in (110, 120, 120, 125):
        updates.reach(step)
    assert counted == [10, 10, 5]


def test_telling_is_silent_where_ray_does_not_run(tmp_path: Path):
    code = "from orchestrator.worker.gauges import Updates; updates = Updates('tiny', 'k', 0); updates.reach(10)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
