"""What one terminal asks of another one's submit: on a real MLflow server, with the lock held as a submit holds it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.config import TrainConfig
from orchestrator import names
from orchestrator.driver.cancel import (
    Prune,
    ask_to_cancel,
    ask_to_prune,
    cancel_row,
    forget_stops,
    prune_asked,
    prune_trainings,
    stopped_since,
    stops_asked,
)
from orchestrator.driver.lock import locked
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import make_plan
from orchestrator.site import Site
from orchestrator.tracking import ledger as tracking
from orchestrator.tracking.runs import (
    Tracking,
    experiment_tags,
    now,
    open_tracking,
    tag_experiment,
    untag_experiment,
)
from orchestrator.tracking.suite import Suite
from tests.suites import TRAIN, experiment_of, variant

OTHER = variant(1)
nobody: Callable[[object], None] = lambda _: pytest.fail("waited")  # noqa: E731


@pytest.fixture
def suite(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracking:
    return open_tracking(mlflow_uri, request.node.name.rstrip("]").replace("[", "."))


@pytest.fixture
def site(tmp_path: Path, mlflow_uri: str) -> Site:
    return Site(home=tmp_path, tracking_uri=mlflow_uri)


def test_a_row_that_runs_is_asked_to_end_and_the_rows_that_share_its_training_are_named(suite: Tracking, site: Site):
    tiny, also = experiment_of(suite.suite, TRAIN, OTHER), experiment_of(suite.suite, TRAIN, name="also")
    run = next(iter(make_plan([tiny], tracking.read_ledger(suite)).trainings.values()))
    tracking.begin_training(suite, run)
    said: list[str] = []
    with locked(Suite([experiment_of(suite.suite, TRAIN)], site), nobody):
        cancel_row(
            Suite([tiny, replace(also, rows=(replace(also.rows[0], label="same"),))], site), "row 0", None, said.append
        )
    assert said[0] == (
        f"row 0: training {run.key} ends within seconds and keeps its checkpoints. Rows on it: tiny, row 0, also, same"
    )
    record = tracking.read_ledger(suite).trainings[run.key]
    assert (record.status, record.stop) == ("RUNNING", "cancelled")  # whoever runs it ends it
    forget_stops(suite)
    assert tracking.read_ledger(suite).trainings[run.key].stop == ""


def test_a_row_that_waits_is_cancelled_on_the_spot_and_counts_as_missing(suite: Tracking, site: Site):
    tiny = experiment_of(suite.suite, TRAIN)
    with locked(Suite([experiment_of(suite.suite, TRAIN)], site), nobody):
        cancel_row(Suite([tiny], site), "row 0", 0, lambda _: None)
    ledger = tracking.read_ledger(suite)
    (record,) = ledger.trainings.values()
    assert (record.status, record.note, record.stop) == ("KILLED", "cancelled", "cancelled")
    assert list(make_plan([tiny], ledger).missing_trainings.values()) == ["cancelled"]


def test_where_nobody_runs_the_suite_there_is_nothing_to_cancel(suite: Tracking, site: Site):
    with pytest.raises(UserError, match=f"nothing to cancel: nobody runs suite {suite.suite} now"):
        cancel_row(Suite([experiment_of(suite.suite, TRAIN)], site), "row 0", None, lambda _: None)


def test_a_seed_that_the_row_has_not_is_refused(suite: Tracking, site: Site):
    with pytest.raises(UserError, match=r"tiny.yaml, row 'row 0': --seed 7 is none of its seeds \[0\]"):
        cancel_row(Suite([experiment_of(suite.suite, TRAIN)], site), "row 0", 7, lambda _: None)


def test_a_prune_takes_what_only_the_given_tables_wanted_and_no_row_asks_for():
    wish = Prune(tables=frozenset({"a", "b"}), keep=frozenset({"kept"}))
    assert wish.takes("gone", {"a"}) and wish.takes("gone", {"a", "b"})
    assert not wish.takes("kept", {"a"})
    assert not wish.takes("gone", {"a", "elsewhere"})
    assert not wish.takes("gone", set())


def connected(experiments: list[Experiment], site: Site) -> Suite:
    suite = Suite(experiments, site)
    suite.connect()
    return suite


def begun(suite: Tracking, name: str, *trains: TrainConfig) -> list[str]:
    """Begin trainings as a table of this name wants them, and give their keys."""
    plan = make_plan([experiment_of(suite.suite, *trains, name=name)], tracking.read_ledger(suite))
    for run in plan.trainings.values():
        tracking.begin_training(suite, run)
    return list(plan.trainings)


def test_a_prune_marks_unfinished_trainings_of_removed_rows_and_nothing_else(
    suite: Tracking, site: Site, tmp_path: Path
):
    kept, gone, finished = begun(suite, "tiny", TRAIN, OTHER, variant(2))
    (shared,) = begun(suite, "tiny", variant(3))
    begun(suite, "elsewhere", variant(3))
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in ("model.safetensors", "config.json"):
        (folder / file).write_text("{}")
    run_id = tracking.read_ledger(suite).trainings[finished].run_id
    tracking.record_checkpoint(suite, run_id, folder)
    tracking.end_training(suite, run_id, "FINISHED")

    said: list[str] = []
    prune_trainings(connected([experiment_of(suite.suite, TRAIN)], site), said.append)
    assert said == [f"pruned: training {gone} (row 1)"]
    held = {key: (record.status, record.note) for key, record in tracking.read_ledger(suite).trainings.items()}
    assert held == {
        kept: ("RUNNING", ""),
        gone: ("KILLED", "pruned"),
        finished: ("FINISHED", ""),
        shared: ("RUNNING", ""),
    }
    prune_trainings(connected([experiment_of(suite.suite, TRAIN)], site), said.append)
    assert len(said) == 1


def test_a_prune_beside_a_running_submit_is_left_to_that_one(suite: Tracking, site: Site):
    kept, gone = begun(suite, "tiny", TRAIN, OTHER)
    with locked(Suite([experiment_of(suite.suite, TRAIN)], site), nobody):
        prune_trainings(connected([experiment_of(suite.suite, TRAIN)], site), lambda _: None)
    assert tracking.read_ledger(suite).trainings[gone].status == "RUNNING"
    assert prune_asked(suite) == Prune(tables=frozenset({"tiny"}), keep=frozenset({kept}))
    forget_stops(suite)
    assert prune_asked(suite) is None


def test_a_cancel_holds_for_who_was_there_already_and_not_for_who_comes_later(suite: Tracking, site: Site):
    tiny = experiment_of(suite.suite, TRAIN, OTHER)
    first, second = make_plan([tiny], tracking.read_ledger(suite)).trainings.values()
    ask_to_cancel(suite, first)
    waiter = stops_asked(suite)
    ask_to_cancel(suite, second)
    assert stopped_since(connected([tiny], site), waiter) == {second.key: "cancelled"}
    assert stopped_since(connected([tiny], site), stops_asked(suite)) == {}
    forget_stops(suite, waiter)  # the waiter takes the first one up; who waits behind it still sees the second
    held = tracking.read_ledger(suite).trainings
    assert (held[first.key].stop, held[second.key].stop) == ("", "cancelled")
    later = stops_asked(suite)
    ask_to_cancel(suite, second)  # once more, now that somebody waits who would bring it back
    assert stopped_since(connected([tiny], site), later) == {second.key: "cancelled"}


def test_a_submit_that_is_started_late_for_who_waited_elsewhere_leaves_out_the_same(suite: Tracking, site: Site):
    tiny = experiment_of(suite.suite, TRAIN, OTHER)
    first, second = make_plan([tiny], tracking.read_ledger(suite)).trainings.values()
    ask_to_cancel(suite, first)
    time.sleep(0.002)
    waits_since = now()
    time.sleep(0.002)
    ask_to_cancel(suite, second)
    assert stopped_since(connected([tiny], site), stops_asked(suite, waits_since)) == {second.key: "cancelled"}
    ask_to_prune(suite, Prune(tables=frozenset({"tiny"}), keep=frozenset()))
    found = stopped_since(connected([tiny], site), stops_asked(suite, waits_since))
    assert found == {first.key: "pruned", second.key: "pruned"}
    assert stopped_since(connected([tiny], site), stops_asked(suite, now())) == {}


def test_a_prune_of_a_large_suite_is_told_whole(suite: Tracking):
    wish = Prune(tables=frozenset({"tiny"}), keep=frozenset(f"{number:012x}" for number in range(2000)))
    ask_to_prune(suite, wish)
    assert prune_asked(suite) == wish
    assert max(map(len, experiment_tags(suite).values())) <= 5000
    untag_experiment(suite, f"{names.PRUNE}.3")
    assert prune_asked(suite) is None


def test_a_prune_that_somebody_edited_ends_nothing(suite: Tracking):
    beside = ("", ', "keep": "a"', ', "parts": -1', ', "keep": null, "asked": "noon"')
    for odd in ("{", "[]", "3", *(f'{{"tables": ["tiny"]{more}}}' for more in beside)):
        tag_experiment(suite, names.PRUNE, odd)
        assert prune_asked(suite) is None
        assert stops_asked(suite, until=0).prune in ("", odd)


def test_a_prune_holds_for_who_waits_as_well(suite: Tracking, site: Site):
    kept, gone = begun(suite, "tiny", TRAIN, OTHER)
    waiter = stops_asked(suite)
    with locked(Suite([experiment_of(suite.suite, TRAIN)], site), nobody):
        prune_trainings(connected([experiment_of(suite.suite, TRAIN)], site), lambda _: None)
    old = connected([experiment_of(suite.suite, TRAIN, OTHER)], site)  # read before the row was removed
    assert stopped_since(old, waiter) == {gone: "pruned"} and kept in old.make_plan().missing_trainings
    assert stopped_since(old, stops_asked(suite)) == {}
    forget_stops(suite, waiter)
    assert prune_asked(suite) is not None
