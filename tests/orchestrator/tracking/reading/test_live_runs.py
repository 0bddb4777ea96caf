"""The runs of a suite as somebody sees them who looks every few seconds; what a server holds is made up."""

import pytest

from orchestrator.errors import UserError
from orchestrator.tracking.reading import live_runs
from orchestrator.tracking.reading.live_runs import MARGIN_MS, LiveRuns
from orchestrator.tracking.runs import Run, Tracking

SUITE = Tracking(uri="http://nowhere", suite="any", experiment_id="1")


class Server:
    """Runs by id with the time at which they ended, and how often they were asked for, whole and in part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, tuple[str, int, int]] = {}  # status, start, end
        self.whole = self.part = 0
        self.away = False
        self.time = 10 * MARGIN_MS
        monkeypatch.setattr(live_runs, "read_runs", self.read)
        monkeypatch.setattr(live_runs, "read_changes", self.changes)
        monkeypatch.setattr(live_runs, "now", lambda: self.time)

    def read(self, tracking: Tracking) -> list[Run]:
        if self.away:
            raise UserError("away")
        self.whole += 1
        return [Run(run_id=name, name="", status=one[0], start_time=one[1]) for name, one in self.runs.items()]

    def changes(self, tracking: Tracking, since: int) -> list[Run]:
        if self.away:
            raise UserError("away")
        self.part += 1
        told = {name: one for name, one in self.runs.items() if one[0] == "RUNNING" or max(one[1:]) >= since}
        return [Run(run_id=name, name="", status=one[0], start_time=one[1]) for name, one in told.items()]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def seen(live: LiveRuns) -> dict[str, str]:
    return {run.run_id: run.status for run in live.look(SUITE)}


@pytest.fixture
def live(server: Server) -> LiveRuns:
    """Somebody who has seen a run that ended long ago, and one that goes on."""
    server.runs = {"old": ("FINISHED", 1, 2), "on": ("RUNNING", 3, 0)}
    live = LiveRuns()
    assert seen(live) == {"on": "RUNNING", "old": "FINISHED"} and list(seen(live)) == ["on", "old"]
    assert server.whole == 1
    live._whole_again = float("inf")
    return live


def test_what_begins_ends_and_goes_on_again_is_seen_without_reading_all(server: Server, live: LiveRuns) -> None:
    server.runs |= {"on": ("FINISHED", 3, server.time), "new": ("RUNNING", server.time, 0)}
    assert seen(live) == {"new": "RUNNING", "on": "FINISHED", "old": "FINISHED"}
    server.runs["old"] = ("RUNNING", 1, 0)
    assert seen(live)["old"] == "RUNNING" and server.whole == 1


def test_what_ended_on_a_machine_whose_clock_is_behind_is_seen(server: Server, live: LiveRuns) -> None:
    server.time += 1000
    server.runs["quick"] = ("FAILED", server.time - MARGIN_MS // 2, server.time - MARGIN_MS // 2)
    assert seen(live)["quick"] == "FAILED" and server.whole == 1


def test_a_running_one_that_is_gone_or_ended_in_the_past_has_all_read_again(server: Server, live: LiveRuns) -> None:
    server.runs["on"] = ("FINISHED", 3, 4)  # by a clock that is hours behind
    assert seen(live)["on"] == "FINISHED" and server.whole == 2
    del server.runs["on"]
    live._runs["on"] = Run(run_id="on", name="", status="RUNNING")
    assert seen(live) == {"old": "FINISHED"} and server.whole == 3


def test_what_was_deleted_or_tagged_by_hand_is_seen_at_the_next_whole_read(server: Server, live: LiveRuns) -> None:
    del server.runs["old"]
    assert "old" in seen(live)
    live._whole_again = 0.0
    assert seen(live) == {"on": "RUNNING"} and server.whole == 2


def test_what_did_not_change_is_read_once(live: LiveRuns) -> None:
    live._runs["old"] = Run(run_id="old", name="", status="FAILED", tags={"kind": "training", "train_key": "k"})
    first, second = (live.ledger_of(live.look(SUITE)).trainings["k"] for _ in range(2))
    assert first is second and first.status == "FAILED"


def test_another_experiment_is_read_as_a_whole(server: Server, live: LiveRuns) -> None:
    live.look(Tracking(uri=SUITE.uri, suite="any", experiment_id="2"))
    assert server.whole == 2


def test_what_ends_while_the_server_is_away_is_seen_afterwards(server: Server, live: LiveRuns) -> None:
    server.time += MARGIN_MS
    server.runs["on"] = ("KILLED", 3, server.time)
    server.away = True
    server.time += 5 * MARGIN_MS
    with pytest.raises(UserError):
        seen(live)
    server.away = False
    assert seen(live)["on"] == "KILLED" and server.whole == 1
