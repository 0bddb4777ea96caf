"""One submit of a suite at a time: a lock on this machine, and a claim in MLflow between machines that share a server.

The lock is a file under `home`, held for as long as its process lives. The claim is a tag of the suite's experiment
that its holder renews, and that is void once it has not been renewed for a minute.
"""

import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from model.foreign import parse_json
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.plan import Ledger, Plan
from orchestrator.file_lock import lock
from orchestrator.process import exists_here, this_process
from orchestrator.site import Site
from orchestrator.tracking.records import by_key
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.runs import Run, Tracking, experiment_tags, tag_experiment, untag_experiment
from orchestrator.tracking.suite import Suite

LOOK_SECONDS = 2.0
"""How often somebody who waits looks again."""
SETTLE_SECONDS = 1.0
"""How long a claim has to stand before it counts. MLflow cannot set a tag only if it is free, so that another claim may
have been on its way at the same moment; the last one stands."""
RENEW_SECONDS = 10.0
"""How often a claim is renewed; five in a row may fail."""
SILENT_SECONDS = 60.0
"""A claim from another machine that is not renewed for so long is void."""
CLOCKS_SECONDS = 240.0
"""By how much the clocks of two machines may differ."""
RUN_SILENT_SECONDS = 3600.0
"""A run of another host that has received nothing for so long is taken for dead."""
QUIET_SECONDS = 300.0
"""For so long a training on another host may tell nothing before `rnc status` says so."""
MOST_SECONDS = 1e11
"""Since 1970: the year 5138, which a clock still shows."""

MOST_SHOWN = 6
"""So many tables, and rows of each, are named to those who wait; a tag of MLflow holds 5000 characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a submit does once it is its turn."""

    rows: str = ""
    """Those that it trains or scores, by table; empty where nobody says."""
    until: float | None = None
    """When all of them are trained, about, in seconds since 1970; None where nobody knows."""


Tell = Callable[[Work], None]
Lost = Callable[["Holder"], None]
"""Called from another thread, once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who runs a suite."""

    driver: str
    """Its process, as `this_process` names it."""
    since: float
    """Seconds since 1970."""
    rows: str = ""
    """See `Work.rows`."""
    until: float | None = None
    """See `Work.until`."""
    renewed: float | None = None
    """Seconds since 1970 by its clock; None where it does not say."""

    def __str__(self) -> str:
        since = time.strftime("%d %b %H:%M:%S", time.localtime(self.since))
        return f"{self.process}, since {since}"

    @property
    def process(self) -> str:
        """Its number, and its host."""
        host, _, process = self.driver.partition(" ")
        return f"process {process.partition(' ')[0]} on {host}"

    @property
    def work(self) -> str:
        """What it does and how long that takes, as a sentence; empty where it does not say."""
        if not self.rows:
            return ""
        return f"It trains and scores {self.rows}; {self._how_long()}."

    def _how_long(self) -> str:
        if self.until is None:
            return "how long that takes is not known yet, as nothing like it was measured"
        minutes = (self.until - time.time()) / 60
        if minutes < 0:
            return "by the estimate it would have ended by now"
        left = "less than a minute" if minutes < 1 else f"about {minutes:.0f} min"
        return f"by the estimate that takes {f'about {minutes / 60:.1f} hours' if minutes >= 90 else left} more"


def work_of(plan: Plan, hours: float | None) -> Work:
    """Say what a plan's missing part is: its rows by table, those of many in part."""
    rows: dict[str, list[str]] = defaultdict(list)
    for key in plan.missing_evaluations:
        for place in plan.evaluations[key].places:
            rows[place.table].append(place.label)
    tables = [f"{table} ({_some(list(dict.fromkeys(labels)))})" for table, labels in rows.items()]
    return Work(rows=_some(tables), until=None if hours is None else time.time() + 3600 * hours)


def _some(texts: Sequence[str]) -> str:
    shown = ", ".join(texts[:MOST_SHOWN])
    return shown if len(texts) <= MOST_SHOWN else f"{shown} and {len(texts) - MOST_SHOWN} more"


@contextmanager
def locked(
    suite: Suite, waiting: Callable[[Holder], None], work: Callable[[], Work] = Work, *, lost: Lost | None = None
) -> Iterator[Tell]:
    """Hold the lock of a suite, and its claim; until they are free, tell `waiting` every two seconds who has them.

    `work` says what is done then; it is asked once they are ours. `lost` is told who has taken the claim from us, after
    it had lapsed. Yield what says anew what is done.
    """
    path = lock_file(suite.site, suite.name)
    with _opened(path) as file:
        # Our own server has only clients of this machine, which the file keeps apart.
        claim = _Claim(suite.connection) if suite.site.tracking_uri is not None else None
        seen: Holder | None = None
        other: Holder | None = None
        try:
            while holder := (other := _lock(file)) or (claim and _taken(claim, seen)):
                waiting(holder)
                seen = holder
                time.sleep(LOOK_SECONDS)
        except BaseException:
            if other is None:  # signed by us, who leave while another machine has the suite
                _unsign(file)
            raise
        since = time.time()

        def tell(work: Work) -> None:
            with suppress(OSError):  # a full disk: only those who wait know less
                _sign_anew(path, _written(since, work))
            if claim:
                claim.work = work  # it is told with the next renewal

        try:
            tell(work())  # after the signature: who looks meanwhile would find a lock that nobody signed
            with claim.renewed(lost) if claim else nullcontext():
                yield tell
        finally:
            _unsign(file)


def holder_of(suite: Suite) -> Holder | None:
    """Say who runs a suite now, as far as it can be known at once."""
    site, tracking = suite.site, suite.tracking
    # On this host without trying the lock: at the wrong moment, a submit that just starts would wait for nobody.
    if holder := signed(site, suite.name):
        lives = exists_here(holder.driver)
        if lives is None:  # another host that shares the folder
            with _opened(lock_file(site, suite.name)) as file:
                lives = _lock(file) is not None
                if not lives:
                    _unsign(file)
        if lives:
            return holder
    if site.tracking_uri is None or tracking is None or tracking.experiment_id is None:
        return None
    holder = _Claim(tracking).holder()
    if holder is None or holder.renewed is None or exists_here(holder.driver):
        return holder
    # Who looks once cannot see whether it is renewed, and goes by the clock of that machine.
    return holder if time.time() - holder.renewed < SILENT_SECONDS + CLOCKS_SECONDS else None


def running_here(site: Site) -> dict[str, Holder]:
    """Return who runs suites of a site on this machine, by suite."""
    signatures = {path.parent.name: signed(site, path.parent.name) for path in site.home.glob("submits/*/lock")}
    return {suite: one for suite, one in sorted(signatures.items()) if one is not None and exists_here(one.driver)}


def looks_alive(run: Run, told: float = 0.0) -> bool:
    """Say whether a run's driver still exists: by its process on this host, by signs of life from another host.

    Args:
        run: of any status.
        told: another sign of life of that driver, in seconds since 1970.
    """
    here = exists_here(run.tags.get(names.DRIVER, ""))
    if here is not None:
        return here
    return time.time() - max(told, run.last_sign_of_life / 1000) < RUN_SILENT_SECONDS


def without_the_dead(ledger: Ledger, runs: Iterable[Run], heard: Callable[[], Mapping[str, float]]) -> Ledger:
    """Return the ledger as it is where the drivers of running trainings are gone: these are interrupted.

    A training on another host that tells nothing is named; its driver may be scoring, or its network may be down.

    Args:
        ledger: what MLflow holds of a suite.
        runs: of it, newest first, from which the ledger was read.
        heard: asks for signs of life of drivers beside those of their runs, in seconds since 1970.
    """
    running = {
        key: run
        for key, run in by_key(runs, "training").items()
        if run.status == "RUNNING" and key in ledger.trainings and not exists_here(run.tags.get(names.DRIVER, ""))
    }
    if not running:
        return ledger
    signs, now = heard(), time.time()
    seen = {}
    for key, run in running.items():
        driver = run.tags.get(names.DRIVER, "")
        told = max(signs.get(driver, 0.0), run.last_sign_of_life / 1000)
        if not looks_alive(run, told):
            seen[key] = replace(ledger.trainings[key], status="KILLED", note=_gone(driver, told))
        elif now - told > QUIET_SECONDS:
            quiet = f"no sign of life for {(now - told) / 60:.0f} min from {_process_of(driver)}"
            seen[key] = replace(ledger.trainings[key], note=quiet)
    return replace(ledger, trainings={**ledger.trainings, **seen})


def last_renewal(suite: Suite) -> dict[str, float]:
    """Return when the driver that has the claim in MLflow last renewed it, in seconds since 1970, by its name."""
    if suite.tracking is None or suite.tracking.experiment_id is None:
        return {}
    text = experiment_tags(suite.tracking).get(names.CLAIM, "")
    with suppress(ValueError, KeyError, TypeError):  # a tag that somebody else wrote
        told = parse_json(text)
        return {str(told["driver"]): _moment(told["renewed"])}
    return {}


def signed(site: Site, suite: str) -> Holder | None:
    """Return who signed the lock last, and may still hold it."""
    path = lock_file(site, suite)
    return _read(path.read_text(errors="replace")) if path.exists() else None


def lock_file(site: Site, suite: str) -> Path:
    """Return the file that is locked while this machine runs the suite."""
    return site.home / "submits" / suite / "lock"


def _taken(claim: "_Claim", seen: Holder | None) -> Holder | None:
    """Take a claim, or return who has it: who was seen last, while MLflow is away."""
    try:
        return claim.take()
    except ServerAway:
        if seen is None:
            raise
        return seen


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not "w", which would wipe the holder's signature before the lock is asked for.
        file = path.open("a+", errors="replace")
    except OSError as error:
        raise UserError(f"RNC_HOME: cannot write to {path} ({error.strerror}); free it, or set RNC_HOME") from error
    with file:
        yield file


def _lock(file: IO[str]) -> Holder | None:
    """Lock the file and sign it, or return who has signed it; a holder that died has let go."""
    if not lock(file):
        file.seek(0)
        return _read(file.read()) or Holder(driver="? ?", since=time.time())
    file.truncate(0)
    file.write(_written(time.time(), Work()))
    file.flush()
    return None


def _sign_anew(path: Path, text: str) -> None:
    """Write over a signature that is held; at any time a reader finds the old one or the new one."""
    with path.open("r+b", buffering=0) as file, _unaged(file):
        # In one write, and no shorter than before: emptied first, the lock would look free for a moment.
        file.write(text.encode().ljust(path.stat().st_size))


def _unsign(file: IO[str]) -> None:
    with _unaged(file):
        file.truncate(0)


@contextmanager
def _unaged(file: IO[Any]) -> Iterator[None]:
    """Leave a lock the time of its last change, which says when it was taken; `last_suite` goes by it."""
    status = os.fstat(file.fileno())
    yield
    os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


class _Claim:
    """The tag of a suite's experiment that says who runs it."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking, self._since, self.work = tracking, time.time(), Work()
        self._seen = ("", 0.0)
        self._done = threading.Event()

    def take(self) -> Holder | None:
        """Claim the suite, or return who has it."""
        if holder := self.holder():
            return holder
        self._since = time.time()
        self._renew()
        time.sleep(SETTLE_SECONDS)
        return self.holder()

    def holder(self) -> Holder | None:
        """Return who else has the suite."""
        text = self._text()
        if text != self._seen[0]:
            # By the clock of this machine, since those of two machines may differ.
            self._seen = (text, time.monotonic())
        holder = _read(text)
        if holder is None or holder.driver == this_process():
            return None
        lives = exists_here(holder.driver)
        if lives is None:
            lives = time.monotonic() - self._seen[1] < SILENT_SECONDS
        return holder if lives else None

    @contextmanager
    def renewed(self, lost: Lost | None) -> Iterator[None]:
        """Renew the claim from a thread while the context lasts, then remove it."""
        thread = threading.Thread(target=self._keep, args=[lost], name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            with suppress(UserError):  # the server is away; nobody renews it, so it lapses
                if self.holder() is None:
                    untag_experiment(self._tracking, names.CLAIM)

    def _keep(self, lost: Lost | None) -> None:
        while not self._done.wait(RENEW_SECONDS):
            with suppress(UserError):
                # After an outage, or a machine that slept, somebody else may have it; written over, both would go on.
                if holder := self.holder():
                    if lost:
                        lost(holder)
                    return
                self._renew()

    def _renew(self) -> None:
        tag_experiment(self._tracking, names.CLAIM, _written(self._since, self.work))

    def _text(self) -> str:
        return experiment_tags(self._tracking).get(names.CLAIM, "")


def _written(since: float, work: Work) -> str:
    told = {"driver": this_process(), "since": since, "renewed": time.time(), "rows": work.rows, "until": work.until}
    return json.dumps(told)


def _read(text: str) -> Holder | None:
    try:
        told = parse_json(text)
        until, renewed = told.get("until"), told.get("renewed")
        return Holder(
            driver=str(told["driver"]),
            since=_moment(told["since"]),
            # A submit of an older version does not say what it does.
            rows=str(told.get("rows", "")),
            until=None if until is None else _moment(until),
            renewed=None if renewed is None else _moment(renewed),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _moment(told: Any) -> float:
    """Read seconds since 1970.

    Raises:
        ValueError: they are none, or beyond any calendar.
    """
    if isinstance(told, bool) or not isinstance(told, int | float) or not 0 <= told < MOST_SECONDS:
        raise ValueError("no time since 1970")
    return float(told)


def _gone(driver: str, told: float) -> str:
    # The first 60 characters are what a table has room for.
    since = time.strftime("%d %b %H:%M", time.localtime(told))
    return f"interrupted: driver gone since {since}; submit goes on from its checkpoint (it was {_process_of(driver)})"


def _process_of(driver: str) -> str:
    host, _, process = driver.partition(" ")
    return f"process {process.partition(' ')[0]} on {host}" if process else "a process that is not known"
