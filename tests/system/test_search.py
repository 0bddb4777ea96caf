"""A search with ASHA: trainings that are stopped early, for good, while the others go on."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from orchestrator.driver.follow import Follower
from orchestrator.driver.submit import submit
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Plan, make_plan
from orchestrator.experiment.search import Asha, Search
from orchestrator.site import Site
from orchestrator.tracking.recorder import Recorder, Target
from orchestrator.tracking.suite import Suite
from orchestrator.worker.asha import AshaPerSearch
from orchestrator.worker.task import JOURNAL, epochs_done
from tests.suites import experiment_of, launched, ledger_of, variant

pytestmark = pytest.mark.slow


def search_of(suite: str, count: int, metric: str = "AP", grace_epochs: int = 1) -> Experiment:
    """A search that drew rows 0, 1 ... of 4 epochs; the better half goes on after the grace, and after twice that."""
    experiment = experiment_of(suite, *map(variant, range(count)), name="search")
    search = Search(
        labels=tuple(row.label for row in experiment.rows),
        space={"train.schedule.warmup_iterations": {"randint": [2, 6]}},
        num_samples=count,
        metric=metric,
        asha=Asha(grace_epochs=grace_epochs, reduction_factor=2.0),
        seed=0,
    )
    return replace(experiment, search=search)


def reported_earlier(journal: Path, epoch: int, ap: float) -> None:
    """Leave the journal of a submit that was interrupted after an epoch."""
    nowhere = Target(run_id="gone", send=lambda _: None, known=set)
    recorder = Recorder(lambda: nowhere, journal)
    recorder.log({"train/epoch": float(epoch), "val/AP": ap}, step=0)
    recorder.close(10.0)


def test_worse_samples_are_stopped_for_good_and_what_others_need_is_left_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    at_once = Follower.stop_early

    def late(follower: Follower, key: str, reason: str) -> None:
        time.sleep(5.0)  # in which the workers train the last epoch
        at_once(follower, key, reason)

    monkeypatch.setattr(Follower, "stop_early", late)
    searched = search_of("searched", 4, grace_epochs=3)
    also = experiment_of("searched", variant(3), name="also")  # needs the last sample's training

    def plan() -> Plan:
        return make_plan([searched, also], ledger_of(site, "searched"))

    storage = site.storage / "searched"
    first, second, third, last = plan().trainings
    reported_earlier(storage / first / JOURNAL, epoch=3, ap=99.0)

    outcome = launched(plan(), site)
    assert [(ending.key, ending.state) for ending in outcome.endings] == [
        (first, "finished"),
        (second, "stopped"),  # of these two one is below 99, and one below the middle of both
        (third, "stopped"),
        (last, "finished"),
    ]
    assert outcome.exit_code == 0
    assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}

    ledger = ledger_of(site, "searched")
    for ending in outcome.endings[1:3]:
        record = ledger.trainings[ending.key]
        assert record.status == "STOPPED"
        assert record.note == ending.error
        assert record.note.startswith("stopped early by ASHA after epoch 3 (AP ")
        assert epochs_done(storage / ending.key) == 3
    assert not (plan().missing_trainings or plan().missing_evaluations)
    assert list(plan().stopped_trainings) == [second, third]

    said: list[str] = []
    assert submit(Suite([searched, also], site), said.append).exit_code == 0
    assert said[0] == "Nothing is missing: 2 trainings and 2 evaluations stand, 2 were stopped early."
    after = ledger_of(site, "searched")
    # Two tables call the last one by two labels, so that its name says what it is.
    renamed = {last: replace(ledger.trainings[last], label="RetinaNet-Conf, resnet18_quarter, seed 0")}
    assert after == replace(ledger, trainings={**ledger.trainings, **renamed})


def decisions(searched: Experiment, storage: Path, *told: tuple[int, dict[str, float]]) -> list[tuple[int, str]]:
    """Tell of rows what they reported, and give which were stopped, and why."""
    plan = make_plan([searched], Ledger())
    keys = list(plan.trainings)
    stopped: list[tuple[int, str]] = []
    scheduler = AshaPerSearch(plan, storage, lambda key, reason: stopped.append((keys.index(key), reason)))
    for row, result in told:
        trial = SimpleNamespace(config={"key": keys[row]})
        assert scheduler.on_trial_result(None, trial, dict(result)) == scheduler.CONTINUE
    return stopped


def test_a_search_compares_its_trainings_by_its_metric_at_the_same_epoch(tmp_path: Path):
    searched = search_of("any", 3, metric="AP50")
    told = [(0, {"epoch": 1, "AP50": 5.0}), (0, {"epoch": 2, "AP50": 9.0}), (1, {"epoch": 1, "AP50": 5.0})]
    told += [(2, {"epoch": 1, "AP50": 4.9}), (1, {"epoch": 2, "AP50": 8.0}), (2, {"error": 0.0, "log": 0.0})]
    assert decisions(searched, tmp_path, *told) == [
        (2, "stopped early by ASHA after epoch 1 (AP50 4.9)"),
        (1, "stopped early by ASHA after epoch 2 (AP50 8.0)"),
    ]


def test_what_trainings_reported_to_an_earlier_submit_counts(tmp_path: Path):
    searched = search_of("any", 2)
    first, second = make_plan([searched], Ledger()).trainings
    reported_earlier(tmp_path / first / JOURNAL, epoch=1, ap=7.0)
    assert decisions(searched, tmp_path, (1, {"epoch": 1, "AP": 6.0})) == [
        (1, "stopped early by ASHA after epoch 1 (AP 6.0)")
    ]
    reported_earlier(tmp_path / second / JOURNAL, epoch=1, ap=6.0)
    assert decisions(searched, tmp_path, (1, {"epoch": 1, "AP": 6.0})) == []  # it goes on, to the next comparison
