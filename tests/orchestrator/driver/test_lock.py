"""Who runs a suite: real processes that hold its lock or its claim, and die with it or give it up."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator import names
from orchestrator.checkpoint.pull import last_suite
from orchestrator.driver import lock
from orchestrator.driver.live import giving_way, statuses, whose_turn
from orchestrator.driver.lock import Holder, Work, holder_of, locked, without_the_dead, work_of
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiment
from orchestrator.experiment.plan import Ledger, Record, make_plan
from orchestrator.process import this_process
from orchestrator.site import Site
from orchestrator.tracking import rest
from orchestrator.tracking.records import ledger_of
from orchestrator.tracking.runs import Run, Tracking, experiment_tags, open_tracking
from orchestrator.tracking.server import using_server
from orchestrator.tracking.suite import Suite

ROOT = Path(__file__).parents[3]
HOLDS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from orchestrator.driver.lock import locked
from orchestrator.site import Site
from orchestrator.tracking.runs import Tracking
home, uri, suite, experiment_id = sys.argv[1:]
site = Site(home=Path(home), tracking_uri=uri or None)
tracking = Tracking(uri=uri, suite=suite, experiment_id=experiment_id)
with locked(SimpleNamespace(name=suite, site=site, connection=tracking), print):
    print("mine", flush=True)
    sys.stdin.read()
"""
KEY = "k"
DEAD = f"{socket.gethostname()} 123 1"
"""No process of this host began in the first tick after its start."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.02)


@contextmanager
def holding(site: Site, suite: Tracking) -> Iterator[subprocess.Popen[str]]:
    """Another process, whose turn it is until its stdin ends."""
    arguments = [str(site.home), suite.uri, suite.suite, suite.experiment_id or ""]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.wait()


def seen_until(site: Site, suite: Tracking, end: Callable[[], object]) -> list[Holder]:
    """Who has the turn until this process gets it, which `end` brings about."""
    seen: list[Holder] = []

    def waiting(holder: Holder) -> None:
        seen.append(holder)
        if len(seen) == 2:
            end()

    with locked(at(site, suite), waiting):
        return seen


def at(site: Site, tracking: Tracking) -> Suite:
    """What the lock asks of a suite."""
    return cast(Suite, SimpleNamespace(name=tracking.suite, site=site, tracking=tracking, connection=tracking))


def local(home: Path) -> tuple[Site, Tracking]:
    return Site(home=home), Tracking(uri="", suite="mine", experiment_id=None)


def test_a_second_process_waits_until_the_first_gives_its_turn_up(tmp_path: Path):
    site, suite = local(tmp_path)
    with holding(site, suite) as first:
        assert first.stdin is not None
        seen = seen_until(site, suite, first.stdin.close)
        assert first.wait() == 0
        assert str(seen[0]).startswith(f"process {first.pid} on ")
    assert len(seen) >= 2


def test_a_holder_that_was_killed_is_no_obstacle(tmp_path: Path):
    site, suite = local(tmp_path)
    with holding(site, suite) as first:
        seen = seen_until(site, suite, first.kill)
    assert len(seen) >= 2
    assert holder_of(at(site, suite)) is None


def test_two_suites_have_a_turn_each(tmp_path: Path):
    site, suite = local(tmp_path)
    other = Tracking(uri="", suite="other", experiment_id=None)
    with holding(site, suite) as first, locked(at(site, other), lambda _: pytest.fail("waited")):
        held = holder_of(at(site, suite))
        assert held is not None and f" {first.pid} " in held.driver


def test_the_last_suite_is_the_one_that_was_submitted_last_not_the_one_that_ended_last(tmp_path: Path):
    site, first = local(tmp_path)
    second = Tracking(uri="", suite="second", experiment_id=None)
    assert last_suite(site) is None
    with locked(at(site, first), lambda _: None) as tell:
        assert last_suite(site) == "mine"
        time.sleep(0.02)  # of which the clock of a file system may take 0.01 for one moment
        with locked(at(site, second), lambda _: None):
            pass
        time.sleep(0.02)
        tell(Work(rows="all"))
        assert last_suite(site) == "second"
    assert last_suite(site) == "second"


def test_processes_with_homes_of_their_own_take_turns_through_the_server_they_share(tmp_path: Path, mlflow_uri: str):
    suite = open_tracking(mlflow_uri, "turns")
    here = Site(home=tmp_path / "here", tracking_uri=mlflow_uri)
    with holding(Site(home=tmp_path / "there", tracking_uri=mlflow_uri), suite) as first:
        assert first.stdin is not None
        seen = seen_until(here, suite, first.stdin.close)
        assert f" {first.pid} " in seen[0].driver
    assert holder_of(at(here, suite)) is None
    assert claim_in(suite) == ""


def test_a_claim_from_another_machine_is_void_once_it_is_not_renewed(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    suite = open_tracking(mlflow_uri, "elsewhere")
    site = Site(home=tmp_path, tracking_uri=mlflow_uri)
    write_claim(suite, renewed=1)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1e9)
    seen = seen_until(site, suite, lambda: monkeypatch.setattr(lock, "SILENT_SECONDS", 0.0))
    assert [holder.driver for holder in seen] == ["elsewhere 7 1"] * 2


def test_who_looks_once_takes_a_claim_that_was_not_renewed_for_minutes_for_nobodys(tmp_path: Path, mlflow_uri: str):
    suite = open_tracking(mlflow_uri, "lapsed")
    site = Site(home=tmp_path, tracking_uri=mlflow_uri)
    for ago, holds in ((0, True), (-200, True), (200, True), (400, False)):  # a clock may be 200 s ahead, or behind
        write_claim(suite, renewed=time.time() - ago)
        assert (holder_of(at(site, suite)) is not None) == holds, ago


def test_who_leaves_while_another_machine_has_the_suite_leaves_no_signature(tmp_path: Path, mlflow_uri: str):
    suite = open_tracking(mlflow_uri, "left")
    site = Site(home=tmp_path, tracking_uri=mlflow_uri)
    write_claim(suite, renewed=time.time())

    def leave(_: Holder) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), locked(at(site, suite), leave):
        pass
    assert lock.running_here(site) == {}
    held = holder_of(at(site, suite))
    assert held is not None and held.driver == "elsewhere 7 1"


def test_of_two_claims_on_their_way_at_once_the_last_one_counts(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    suite = open_tracking(mlflow_uri, "at once")
    site = Site(home=tmp_path, tracking_uri=mlflow_uri)
    threading.Timer(0.3, write_claim, [suite]).start()  # while ours settles
    seen: list[Holder] = []

    def waiting(holder: Holder) -> None:
        seen.append(holder)
        monkeypatch.setattr(lock, "SILENT_SECONDS", 0.0)

    with locked(at(site, suite), waiting):
        assert [holder.driver for holder in seen] == ["elsewhere 7 1"]


def test_who_finds_the_suite_taken_after_an_outage_gives_way_and_leaves_the_claim_alone(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    suite = open_tracking(mlflow_uri, "taken after an outage")
    site = Site(home=tmp_path, tracking_uri=mlflow_uri)
    said: list[str] = []
    with (
        suppress(KeyboardInterrupt),
        locked(at(site, suite), lambda _: pytest.fail("waited"), lost=giving_way(said.append)),
    ):
        write_claim(suite, renewed=1)
        time.sleep(30)
        pytest.fail("went on")
    assert len(said) == 1 and said[0].startswith("process 7 on elsewhere, since ")
    assert json.loads(claim_in(suite))["driver"] == "elsewhere 7 1"


def test_who_waits_goes_on_waiting_while_mlflow_is_away(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
):
    suite = open_tracking(mlflow_uri, "away")
    site = Site(home=tmp_path, tracking_uri=mlflow_uri)
    write_claim(suite, renewed=1)
    answer, seen = experiment_tags, list[Holder]()

    def away(_: Tracking) -> dict[str, str]:
        raise rest.ServerAway("does not answer")

    def waiting(holder: Holder) -> None:
        seen.append(holder)
        monkeypatch.setattr(lock, "experiment_tags", away if len(seen) < 3 else answer)
        monkeypatch.setattr(lock, "SILENT_SECONDS", 0.0)

    with locked(at(site, suite), waiting):
        assert [holder.driver for holder in seen] == ["elsewhere 7 1"] * 3
    monkeypatch.setattr(lock, "experiment_tags", away)
    with pytest.raises(rest.ServerAway), locked(at(site, suite), waiting):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_storage_that_keeps_no_locks_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    site, suite = local(tmp_path)
    for begun in (locked(at(site, suite), lambda _: pytest.fail("waited")), using_server(site)):
        with pytest.raises(UserError, match=rf"RNC_HOME: {tmp_path}/.*lock cannot be locked .*set RNC_HOME"), begun:
            pass


def test_who_waits_may_leave(tmp_path: Path):
    site, suite = local(tmp_path)

    def leave(_: Holder) -> None:
        raise KeyboardInterrupt

    with holding(site, suite) as first, ExitStack() as stack:
        with pytest.raises(KeyboardInterrupt):
            stack.enter_context(locked(at(site, suite), leave))
        held = holder_of(at(site, suite))
        assert held is not None and f" {first.pid} " in held.driver


def test_an_onlooker_sees_what_the_ledger_says_of_each_training():
    experiment = load_experiment(ROOT / "experiments" / "miniature" / "table1_heads.yaml")
    plan = make_plan([experiment], Ledger())
    first, second, third, *others = plan.trainings
    epochs = plan.trainings[first].config.schedule.epochs
    trainings = {
        first: Record(status="FINISHED", run_id="1", metrics={"train/epoch": float(epochs), "val/AP": 23.5}),
        second: Record(status="RUNNING", run_id="2", metrics={"train/epoch": 2.5, "perf/eta_s": 60.0}),
        third: Record(status="FAILED", run_id="3", note="out of memory"),
    }
    trainings |= {key: Record(status="STOPPED", run_id="4", note="stopped early") for key in others}
    ledger = Ledger(trainings=trainings)
    seen = statuses(make_plan([experiment], ledger), ledger)
    assert [(status.state, status.epoch, status.note) for status in seen[:3]] == [
        ("scoring", epochs, ""),
        ("training", 2.5, ""),
        ("failed", 0.0, "out of memory"),
    ]
    assert {(status.state, status.note) for status in seen[3:]} == {("stopped", "stopped early")}


def test_who_waits_is_told_whose_turn_it_is_which_rows_run_for_how_long_and_what_to_do(tmp_path: Path):
    site, suite = local(tmp_path)
    experiment = load_experiment(ROOT / "experiments" / "miniature" / "table2_losses.yaml")
    plan = make_plan([experiment], Ledger())
    with locked(at(site, suite), lambda _: pytest.fail("waited"), lambda: work_of(plan, 0.2)):
        holder = holder_of(at(site, suite))
        assert holder is not None
        told = whose_turn(at(site, suite), holder).splitlines()
    assert told[0] == f"Suite mine is being run by {holder}."
    labels = [row.label for row in experiment.rows]
    listed = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
    assert (
        told[1] == f"It trains and scores {experiment.name} ({listed}); by the estimate that takes about 12 min more."
    )
    assert "waits, and then goes on" in told[2] and "Ctrl-C" in told[2]
    assert "submit with --suite mine-2" in told[3]


@pytest.mark.parametrize(
    ("hours", "said"),
    [(None, "not known"), (0.001, "takes less than a minute more"), (2.51, "takes about 2.5 hours more")],
)
def test_how_long_the_turn_of_another_takes_is_its_estimate(tmp_path: Path, hours: float | None, said: str):
    site, suite = local(tmp_path)
    with locked(
        at(site, suite),
        lambda _: pytest.fail("waited"),
        lambda: Work(rows="t (A)", until=hours and time.time() + 3600 * hours),
    ):
        holder = holder_of(at(site, suite))
    assert holder is not None and said in holder.work
    late = Holder(driver=holder.driver, since=0.0, rows="t (A)", until=1.0)
    assert "would have ended by now" in late.work


def test_whoever_runs_a_suite_says_anew_what_it_does_and_never_looks_gone(tmp_path: Path):
    site, suite = local(tmp_path)
    with locked(at(site, suite), lambda _: pytest.fail("waited"), lambda: Work(rows=f"t ({'A' * 60})")) as tell:
        first = holder_of(at(site, suite))
        tell(Work(rows="t (C)", until=time.time() + 600))  # shorter than what stood there
        second = holder_of(at(site, suite))
        assert first is not None and second is not None and second.driver == first.driver
        assert f"t ({'A' * 60}); how long that takes is not known yet" in first.work
        assert "t (C); by the estimate that takes about 10 min more" in second.work
        tell(Work(rows=f"t ({'B' * 90})"))
        third = holder_of(at(site, suite))
        assert third is not None and f"t ({'B' * 90})" in third.work and third.since == second.since
    assert holder_of(at(site, suite)) is None


def test_a_lock_that_an_older_version_signed_names_its_holder_alone(tmp_path: Path):
    site, suite = local(tmp_path)
    with locked(at(site, suite), lambda _: pytest.fail("waited")):
        file = lock.lock_file(site, suite.suite)
        held = json.loads(file.read_text())
        file.write_text(json.dumps({name: held[name] for name in ("driver", "since", "renewed")}))
        holder = holder_of(at(site, suite))
        assert holder is not None and holder.driver == held["driver"] and holder.work == ""
        assert len(whose_turn(at(site, suite), holder).splitlines()) == 3


def test_trainings_that_wait_say_behind_whom():
    experiment = load_experiment(ROOT / "experiments" / "miniature" / "table1_heads.yaml")
    plan = make_plan([experiment], Ledger())
    behind = Holder(driver="elsewhere 7 1", since=0.0)
    assert {one.note for one in statuses(plan, Ledger(), behind)} == {"for process 7 on elsewhere"}
    other = Ledger(trainings={"of another table": Record(status="RUNNING", run_id="1", label="Focal loss")})
    assert {one.note for one in statuses(plan, other, behind)} == {
        "for process 7 on elsewhere, which trains Focal loss"
    }
    assert {one.note for one in statuses(plan, other)} == {""}


def claim_in(suite: Tracking) -> str:
    experiment = rest.get(suite.uri, "experiments/get", {"experiment_id": suite.experiment_id})["experiment"]
    return {tag["key"]: tag["value"] for tag in experiment["tags"]}.get(names.CLAIM, "")


def write_claim(suite: Tracking, **more: float) -> None:
    value = json.dumps({"driver": "elsewhere 7 1", "since": 0.0, **more})
    tag = {"experiment_id": suite.experiment_id, "key": names.CLAIM, "value": value}
    rest.post(suite.uri, "experiments/set-experiment-tag", tag)


def running(driver: str, silent: float = 0.0) -> Run:
    began = str(round(1000 * (time.time() - silent)))
    tags = {"kind": "training", "train_key": KEY, "driver": driver, "begun": began}
    return Run(run_id="r", name="ours", status="RUNNING", tags=tags)


def seen(run: Run, heard: Mapping[str, float] | None = None) -> tuple[str, str]:
    record = without_the_dead(ledger_of([run]), [run], lambda: heard or {}).trainings[KEY]
    return record.status, record.note


def test_a_training_whose_driver_is_gone_is_interrupted_and_says_since_when_and_how_it_goes_on() -> None:
    status, note = seen(running(DEAD, silent=60.0))
    since = time.strftime("%d %b %H:%M", time.localtime(time.time() - 60.0))
    assert status == "KILLED"
    assert note[:59] == f"interrupted: driver gone since {since}; submit goes on"  # what a table has room for
    assert note.endswith(f" from its checkpoint (it was process 123 on {socket.gethostname()})")


TIMES = ("1e400", "NaN", "-1", "1" + "0" * 400, "true", '"noon"', "[" * 4000, "99999999999999")


@pytest.mark.parametrize("told", TIMES)
def test_a_claim_or_a_signature_with_a_time_of_no_calendar_is_nobodys(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'{{"driver": "elsewhere 7 1", "since": {told}, "renewed": {told}}}'
    monkeypatch.setattr(lock, "experiment_tags", lambda _: {names.CLAIM: text})
    tracking = Tracking(uri="http://127.0.0.1:1", suite="suite", experiment_id="1")
    site = Site(home=tmp_path, tracking_uri=tracking.uri)
    assert lock.last_renewal(at(site, tracking)) == {}
    assert holder_of(at(site, tracking)) is None
    file = lock.lock_file(site, "suite")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    assert lock.signed(site, "suite") is None


def test_a_training_whose_driver_lives_stands_as_it_is_and_costs_no_question() -> None:
    run = running(this_process(), silent=9999.0)
    ledger = ledger_of([run])
    assert without_the_dead(ledger, [run], lambda: pytest.fail("asked")) is ledger
    assert without_the_dead(Ledger(), [], lambda: pytest.fail("asked")) == Ledger()


def test_of_another_host_signs_of_life_tell() -> None:
    other = "elsewhere 7 1"
    assert seen(running(other, silent=60.0)) == ("RUNNING", "")
    assert seen(running(other, silent=900.0)) == ("RUNNING", "no sign of life for 15 min from process 7 on elsewhere")
    # It scores, which its run does not tell, and renews its claim.
    assert seen(running(other, silent=900.0), {other: time.time() - 5}) == ("RUNNING", "")
    status, note = seen(running(other, silent=7200.0))
    assert (status, note[:24]) == ("KILLED", "interrupted: driver gone")
    assert seen(running(other, silent=7200.0), {other: time.time() - 5}) == ("RUNNING", "")
