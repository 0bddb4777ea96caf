"""Runs a tiny suite with `rnc submit` in a home of its own, strikes it, and starts it again until it is complete."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import psutil

from orchestrator.site import Site
from orchestrator.tracking.server import stop_server
from tests.faults import processes
from tests.faults.cells import ENDS_SUBMIT, MOMENTS, Cell, Fault, Moment
from tests.faults.processes import Processes
from tests.faults.records import Record, differences, read_record
from tests.faults.traces import Traces

RNC = Path(sys.executable).parent / "rnc"
STRUCK = """
suite: faults
title: The training that is struck, on two workers
reference: null
rows:
  - {label: struck}
defaults:
  split: val
  train:
    model:
      {backbone: resnet18_quarter, backbone_norm: group, frozen_stages: 0, channels: 16, tower_depth: 1,
       tower_norm: group}
    data:
      {dataset: shapes, train_split: train, val_split: val, num_train_images: 40, num_val_images: 8, short_edge: 64,
       long_edge: 64}
    schedule: {epochs: 3, lr_drop_epochs: [], warmup_iterations: 2, gradient_clip: 10, validate_every: 1}
    global_batch: 2
resources: {num_workers: 2, cpus_per_worker: 0.5, gpus_per_worker: 0}
"""
NEIGHBOUR = """
suite: faults
extends: struck.yaml
title: The training beside it, on one worker
rows:
  - {label: neighbour, train: {schedule: {epochs: 1}}}
resources: {num_workers: 1, cpus_per_worker: 0.5, gpus_per_worker: 0}
"""
FILES = {"struck.yaml": STRUCK, "neighbour.yaml": NEIGHBOUR}
BATCH, STEPS_PER_EPOCH = 2, 21  # 40 images: one batch less than full for each of the two shapes of images
LOOK_SECONDS = 0.003
AWAY_SECONDS = 1.0
"""How long MLflow is away before `rnc status` starts it again."""
NOTICE_SECONDS = 120.0
"""How long a submit may take to end after it lost what it needs; then it hangs."""
SUBMIT_SECONDS = 600.0
MOST_SUBMITS = 4
"""Of those that nothing disturbs any more, until the suite is complete."""
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Of a raylet that was killed or whose driver was; the next Ray ends them, and without one they end after a minute."""
TITLES: dict[str, tuple[str, ...]] = {
    "trial": ("ray::ImplicitFunc",),
    "second worker": ("ray::RayTrainWorker",),
    "raylet": ("raylet",),
    "GCS": ("gcs_server",),
    "MLflow": ("MLflow",),
}


class Missed(Exception):
    """The suite ended before the moment of a cell was met."""


class Broken(Exception):
    """A suite does not come to its end."""


@dataclass(kw_only=True)
class Blow:
    """One fault that was delivered, and what came of it."""

    fault: Fault
    moment: Moment | Literal["random"]
    time: float
    """Seconds since 1970."""
    struck: Traces | None = None
    """The training that was struck; None where it was any of them, or all."""
    ended_s: float | None = None
    """After so many seconds the submit ended; None where it went on."""
    restarted: float | None = None
    """When it, or MLflow, was started again."""
    recovered_s: float | None = None
    """From the blow, or from the new start where there had to be one, until the training came further."""
    images_again: int = 0
    """Images on which the training was trained again."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        recovered = "" if self.recovered_s is None else f", goes on after {self.recovered_s:.1f} s"
        return f"{self.fault}, {self.moment}: {self.epochs_lost:.1f} epochs lost{recovered}"

    @property
    def epochs_lost(self) -> float:
        """In epochs of the training."""
        return self.images_again / (BATCH * STEPS_PER_EPOCH)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a suite ended."""

    blows: tuple[Blow, ...]
    submits: int
    wrong: tuple[str, ...]
    """What is not as in the reference, or as it should be; empty where all is well."""
    seconds: float
    misses: int = 0
    """How often the moment was over before the process could be held."""


@dataclass(frozen=True)
class Bench:
    """What all ordeals share: one draw of the data, one cache of compiled code, and an undisturbed run."""

    root: Path
    """Short, as Ray's sockets lie under it and allow no long path."""
    reference: Record
    table: Any
    """What the undisturbed submit printed."""
    seconds: float
    """How long that took."""

    @classmethod
    def open(cls, root: Path, rounds: int = 2) -> "Bench":
        """Draw the data, and run the suite undisturbed; of two rounds, the second tells the time."""
        bench = cls(root, {}, None, 0.0)
        for name, text in FILES.items():
            (root / name).write_text(text)
        (root / "data").mkdir(exist_ok=True)
        for _ in range(rounds):  # the first draws data and compiles
            ordeal = Ordeal(bench, "reference")
            result = ordeal.run(())
            table = ordeal.table
            if result.wrong:
                raise Broken("; ".join(result.wrong))
            record = read_record(ordeal.home)
            if bench.table is not None and (wrong := list(differences(bench.reference, record))):
                raise Broken(f"two undisturbed runs differ: {'; '.join(wrong)}")
            ordeal.remove()
            bench = cls(root, record, table, result.seconds)
        return bench


class Ordeal:
    """One suite in a home of its own."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.folder = bench, bench.root / name
        self.home, self.scratch = self.folder / "home", self.folder / "t"
        self.home.mkdir(parents=True)
        self.scratch.mkdir()
        (self.home / "data").symlink_to(bench.root / "data")
        self.processes = Processes(self.home)
        self.blows: list[Blow] = []
        self.submits = self.misses = 0
        self.table: Any = None
        self._driver: subprocess.Popen[bytes] | None = None
        self._lookers: list[subprocess.Popen[bytes]] = []
        self._traces: dict[Path, Traces] = {}

    def run(self, cells: Sequence[Cell]) -> Result:
        """Strike the cells one after the other, each in its moment, and see the suite to its end.

        Raises:
            Missed: the suite was complete before a moment was met.
            Broken: it does not come to an end.
        """
        left = deque(cells)

        def strike() -> None:
            is_over = not self.blows or self.blows[-1].recovered_s is not None
            if left and is_over and self._strike_in_moment(left[0]):
                left.popleft()

        return self._to_the_end(strike, lambda: [f"missed: {cell}" for cell in left])

    def run_random(self, rng: random.Random, faults: Sequence[Fault], kills: int) -> Result:
        """Strike any process of a kind at any time, so many times, and see the suite to its end."""
        left, due = kills, time.time() + rng.uniform(0.0, self.bench.seconds)

        def strike() -> None:
            nonlocal left, due
            if left and time.time() > due:
                # A kind of which no process lives now is no kill; another is drawn.
                struck = self._strike(rng.choice(faults), "random", rng)
                left -= struck
                due = time.time() + (rng.uniform(0.0, self.bench.seconds) if struck else 0.2)

        def rest() -> list[str]:
            nonlocal left
            left = 0  # the suite was quicker
            return []

        return self._to_the_end(strike, rest)

    def remove(self) -> None:
        """Delete all that it wrote."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _to_the_end(self, strike: Callable[[], None], left: Callable[[], list[str]]) -> Result:
        began = time.monotonic()
        undisturbed = 0
        wrong: list[str] = []
        try:
            while True:
                before = len(self.blows)
                code = self._submit(strike)
                if code == 0:
                    break
                undisturbed = undisturbed + 1 if len(self.blows) == before else 0
                last = self.blows[-1] if self.blows else None
                if last is not None and last.fault not in ENDS_SUBMIT and last.moment != "random":
                    wrong.append(
                        f"the submit ended with code {code} after a blow that it gets over: {self._last_words()}"
                    )
                if undisturbed >= MOST_SUBMITS:
                    raise Broken(
                        f"{undisturbed} submits that nothing disturbed end with code {code}: {self._last_words()}"
                    )
            seconds = time.monotonic() - began
            if missed := left():
                raise Missed("; ".join(missed))
            wrong += self._check()
        finally:
            self._stop_all(wrong)
        return Result(
            blows=tuple(self.blows),
            submits=self.submits,
            wrong=tuple(wrong),
            seconds=seconds,
            misses=self.misses,
        )

    def _submit(self, strike: Callable[[], None]) -> int:
        """Run `rnc submit` to its end, by itself or by a blow, and return its code."""
        self.submits += 1
        command = ["submit", *FILES, "--format", "json"]
        with self._log("out").open("wb") as out, self._log("err").open("wb") as err:
            self._driver = self._start(command, out, err)
        for blow in self.blows:
            if blow.restarted is None and blow.fault in (*ENDS_SUBMIT, "MLflow"):
                blow.restarted = time.time()
        deadline = time.monotonic() + SUBMIT_SECONDS
        while (code := self._driver.poll()) is None:
            self._look_after()
            strike()
            if time.monotonic() > deadline:
                raise Broken(f"a submit did not end within {SUBMIT_SECONDS:.0f} s: {self._last_words()}")
            if (last := self._lethal()) is not None and time.time() - last.time > NOTICE_SECONDS:
                last.notes.append(f"the submit hung for {NOTICE_SECONDS:.0f} s")
                self._driver.kill()
            time.sleep(LOOK_SECONDS)
        if (last := self._lethal()) is not None:
            last.ended_s = time.time() - last.time
        if code == 0 and self.blows and self.blows[-1].recovered_s is None:  # what was struck had nothing left to do
            self.blows[-1].recovered_s = time.time() - (self.blows[-1].restarted or self.blows[-1].time)
            self.blows[-1].notes.append("to the end of the submit")
        for looker in self._lookers:
            looker.wait()
        self._lookers.clear()
        self._count_again()
        return code

    def _look_after(self) -> None:
        """Bring MLflow back, and note when the last blow is got over."""
        now = time.time()
        for away in (blow for blow in self.blows if blow.fault == "MLflow" and blow.restarted is None):
            if not self._lookers and now - away.time > AWAY_SECONDS:
                self._lookers.append(self._start(["status", *FILES], subprocess.DEVNULL, subprocess.DEVNULL))
            elif self._lookers and self._lookers[-1].poll() is not None:
                self._lookers.clear()
                away.restarted = now
        if not self.blows or self.blows[-1].recovered_s is not None:
            return
        blow = self.blows[-1]
        since = blow.time if blow.fault in ("worker", "second worker", "trial") else blow.restarted
        if since is not None and any(
            one.goes_on_since(since, anew=blow.fault != "MLflow") for one in self._trainings()
        ):
            blow.recovered_s = now - since

    def _lethal(self) -> Blow | None:
        """The last blow, if the submit has to end of it and was not yet started again."""
        last = self.blows[-1] if self.blows else None
        return last if last is not None and last.fault in ENDS_SUBMIT and last.restarted is None else None

    def _strike_in_moment(self, cell: Cell) -> bool:
        """Hold the first worker still if the moment has come, and strike if it is there still."""
        traces = next((one for one in self._trainings() if one.num_workers == 2), None)
        if traces is None or not traces.holds(cell.moment):
            return False
        with suppress(psutil.Error):
            first = psutil.Process(traces.first_worker)
            with processes.paused(first) as is_paused:
                if is_paused and traces.holds(cell.moment) and self._strike(cell.fault, cell.moment, None, first):
                    self.blows[-1].struck = traces
                    return True
        self.misses += 1
        return False

    def _strike(
        self,
        fault: Fault,
        moment: Moment | Literal["random"],
        rng: random.Random | None,
        first: psutil.Process | None = None,
    ) -> bool:
        """Kill one process of a kind, and say whether there was one."""
        assert self._driver is not None
        driver = psutil.Process(self._driver.pid)
        number = signal.SIGKILL
        if fault == "interruption":
            number = (signal.SIGINT, signal.SIGTERM)[
                rng.randrange(2) if rng else [*MOMENTS, "random"].index(moment) % 2
            ]
        if fault in ("driver", "interruption"):
            victims = [driver]
        elif fault == "worker":
            victims = [first] if first is not None else self._first_workers()
        else:
            victims = self.processes.named(*TITLES[fault])
            if fault == "second worker":
                writers = {one.pid for one in self._first_workers()}
                victims = [one for one in victims if one.pid not in writers]
            if fault == "trial" and first is not None:
                victims = [one for one in victims if processes.talks_to(one, first)]
            if fault == "MLflow":
                victims = [one for one in victims if one.pid == self._server_pid()]
        if not victims or (rng is None and len(victims) != 1):
            return False
        self.processes.alive()  # seen before they lose their parents
        victim = victims[0] if rng is None else rng.choice(victims)
        now = time.time()
        if self._driver.poll() is not None or not processes.kill(victim, number):
            return False
        if self.blows and self.blows[-1].restarted is None and self._lethal() is not None:
            self.blows[-1].restarted = now  # struck again while it was ending
        blow = Blow(fault=fault, moment=moment, time=now)
        if fault == "interruption":
            blow.notes.append(signal.Signals(number).name)
        self.blows.append(blow)
        return True

    def _first_workers(self) -> list[psutil.Process]:
        found = []
        ours = {process.pid: process for process in self.processes.named("ray::RayTrainWorker")}
        for traces in self._trainings():
            if traces.num_workers and traces.first_worker in ours:
                found.append(ours[traces.first_worker])
        return found

    def _trainings(self) -> list[Traces]:
        """The one of two workers first, once it has begun."""
        for log in self.home.glob("ray/faults/*/training.jsonl"):
            if log.parent not in self._traces:
                self._traces[log.parent] = Traces(
                    folder=log.parent,
                    scratch=self.scratch,
                    artifacts=self.home / "mlflow" / "artifacts",
                    steps_per_epoch=STEPS_PER_EPOCH,
                )
        return sorted(self._traces.values(), key=lambda one: -one.num_workers)

    def _count_again(self) -> None:
        for place, blow in enumerate(self.blows):
            until = self.blows[place + 1].time if place + 1 < len(self.blows) else float("inf")
            again = [count for one in self._trainings() for at, count in one.images_again if blow.time < at < until]
            blow.images_again = sum(again)

    def _start(self, words: Sequence[str], out: IO[bytes] | int, err: IO[bytes] | int) -> "subprocess.Popen[bytes]":
        foreign = ("RNC_", "MLFLOW_", "RAY_", "XDG_STATE")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environ |= {"RNC_HOME": str(self.home), "RNC_CACHE": str(self.bench.root / "cache")}
        environ |= {"TMPDIR": str(self.scratch), "XDG_STATE_HOME": str(self.folder / "state")}
        return subprocess.Popen(
            [RNC, *words],
            cwd=self.bench.root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=_hear_ctrl_c,
        )

    def _check(self) -> Iterator[str]:
        printed = self._log("out").read_text(errors="replace")
        try:
            self.table = json.loads(printed)
        except ValueError:
            yield f"the submit prints other things than its tables: {printed[:200]}"
        if self.bench.table is None:
            return
        stop_server(Site(home=self.home))  # so that the database is whole
        yield from differences(self.bench.reference, read_record(self.home))
        if self.table != self.bench.table:
            yield "the tables that the submit printed differ"

    def _stop_all(self, wrong: list[str]) -> None:
        """End what is left; nothing but MLflow's server may outlive a submit that ended by itself."""
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
        for one in [*self._lookers, *([self._driver] if self._driver else [])]:
            one.wait()
        with suppress(Exception):
            stop_server(Site(home=self.home))
        deadline = time.monotonic() + 10.0
        while (left := self.processes.alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        titles = sorted({processes.title(process) for process in left})
        if set(titles) - AGENTS:
            wrong.append(f"left behind: {', '.join(titles)}")
        elif titles and self.blows:
            self.blows[-1].notes.append("agents of Ray left behind")
        for process in left:
            processes.kill(process)

    def _server_pid(self) -> int | None:
        try:
            pid: int = json.loads((self.home / "mlflow" / "server.json").read_text())["pid"]
        except (OSError, ValueError, KeyError):
            return None
        return pid

    def _log(self, kind: str) -> Path:
        return self.folder / f"submit-{self.submits}.{kind}"

    def _last_words(self) -> str:
        lines = self._log("err").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])


def _hear_ctrl_c() -> None:
    """A process that a shell began in the background ignores Ctrl-C, and so would all that it begins."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
