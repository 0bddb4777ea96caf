"""The live view of trainings: a table that redraws itself on a terminal, else a line for each finished epoch."""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TextIO

from model.names import EPOCH, ETA_S, IMAGES_PER_S, LOSS, VAL
from orchestrator.driver.lock import Holder, Lost
from orchestrator.errors import Say, UserError
from orchestrator.experiment.plan import Ledger, Plan, TrainRun
from orchestrator.figures.texts import printable
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import GOES_ON, State, Status

if TYPE_CHECKING:
    from rich.table import Table

Show = Callable[[Sequence[Status]], None]
MOST_LINES = 40
"""Of a table that redraws itself, which cannot be scrolled."""
STATE_STYLES: Mapping[State, str] = {
    "finished": "green",
    "failed": "red",
    "interrupted": "yellow",
    "cancelled": "yellow",
    "waiting": "dim",
}


@contextmanager
def live_view(stream: TextIO = sys.stdout) -> Iterator[Show]:
    """Yield what draws a view of the trainings, again and again."""
    if not stream.isatty():
        yield _lines(stream)
        return
    from rich.console import Console
    from rich.live import Live

    # rich would draw from a thread of its own, too; the states are given to it anew every few seconds.
    with Live(console=Console(file=stream), auto_refresh=False) as live:
        yield lambda statuses: live.update(live_table(statuses), refresh=True)


@contextmanager
def working(text: str, stream: TextIO = sys.stderr) -> Iterator[None]:
    """Show on a terminal what is being waited for, and for how long; nothing elsewhere, and nothing stays of it."""
    if not stream.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} ...", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as shown:
        shown.add_task(text, total=None)
        yield


@contextmanager
def onlooker(suite: Suite, say: Say) -> Iterator[Callable[[Holder], None]]:
    """Yield what tells who runs the suite, once, and draws where its trainings stand, each time it is called."""
    show: Show | None = None
    told: Holder | None = None
    seen = ""
    with ExitStack() as stack:

        def announce(text: str) -> None:
            nonlocal show
            if sys.stderr.isatty():  # a text within a table that is redrawn would tear it
                stack.close()
                show = None
            say(text)

        def look(holder: Holder) -> None:
            nonlocal show, told, seen
            if told is None or told.driver != holder.driver:  # or somebody else who waited was quicker
                announce(whose_turn(suite, holder))
            elif (not told.rows and holder.rows) or (told.until is None and holder.until is not None):
                announce(holder.work)  # it had not said so yet, or had nothing measured
            told = holder
            show = show or stack.enter_context(live_view(sys.stderr))
            with suppress(UserError):  # the server is away; it is asked again
                suite.look_again()
                plan = suite.make_plan()
                # A terminal has it beside the rows that wait; lines tell of trainings that go on alone.
                running = _running(suite.ledger, plan)
                if running != seen and running and not sys.stderr.isatty():
                    say(f"{holder.process} now trains {running}")
                seen = running
                show(statuses(plan, suite.ledger, behind=holder))

        yield look


def giving_way(say: Say) -> Lost:
    """Return what ends this submit, as Ctrl-C does, once another runs its suite."""
    is_main = threading.current_thread() is threading.main_thread()

    def lost(holder: Holder) -> None:
        say(
            f"{holder} has taken this suite, as this submit did not renew its claim in MLflow for a minute, or claimed "
            "it at the same moment. It ends here; submit again to wait for the other, and go on from there."
        )
        if is_main:  # other threads get no Ctrl-C
            os.kill(os.getpid(), signal.SIGINT)

    return lost


def whose_turn(suite: Suite, holder: Holder) -> str:
    """Say who runs a suite, with which rows and for how long, and what a submit that comes second can do."""
    name = suite.name
    return "\n".join(
        line
        for line in (
            f"Suite {name} is being run by {holder}.",
            holder.work,
            "One submit of a suite runs at a time: this one waits, and then goes on with what is still missing. Where "
            "its trainings stand follows; Ctrl-C ends the waiting and leaves the other alone.",
            f"Not to wait, submit with --suite {name}-2, or another name: a suite of its own, which shares no results "
            f"with {name}; on one machine both then train on the same cores and GPUs.",
        )
        if line
    )


def statuses(plan: Plan, ledger: Ledger, behind: Holder | None = None) -> list[Status]:
    """Say where each training stands, as far as MLflow knows; those that wait do so `behind` another submit."""
    found = [_status(plan, run, ledger) for run in plan.trainings.values()]
    if behind is None:
        return found
    running = _running(ledger, plan)
    note = f"for {behind.process}{f', which trains {running}' if running else ''}"
    return [replace(one, note=one.note or note) if one.state == "waiting" else one for one in found]


def _running(ledger: Ledger, plan: Plan) -> str:
    """Name the trainings of other tables that somebody runs."""
    others = [
        one.label for key, one in ledger.trainings.items() if one.status == "RUNNING" and key not in plan.trainings
    ]
    return ", ".join(sorted(others))


def _lines(stream: TextIO) -> Show:
    """Print a line where a training has finished an epoch, started or ended, or has another note."""
    seen: dict[int, tuple[int, State, str]] = {}

    def show(statuses: Sequence[Status]) -> None:
        in_all = cache(lambda: remaining_in_all(statuses))  # of thousands at most once
        for place, status in enumerate(statuses):
            now = (int(status.epoch), status.state, status.note if status.state in GOES_ON else "")
            old = seen.get(place, (0, "waiting", ""))
            changed = now[1] != old[1] and now[1] not in ("waiting", "training", "scoring")
            if now[0] > old[0] or changed or (now[2] and now[2] != old[2]):
                left = in_all() if now[0] > old[0] else None
                rest = f", {_duration(left)} left in all" if left is not None else ""
                print(printable(f"{_line(status)}{rest}"), file=stream, flush=True)
            seen[place] = now

    return show


def _line(status: Status) -> str:
    parts = [f"{status.label}: {status.state}", f"epoch {int(status.epoch)}/{status.num_epochs}"]
    parts += [f"{name} {text}" for name, text in _numbers(status).items() if text]
    return ", ".join([*parts, *([status.note] if status.note else [])])


def live_table(statuses: Sequence[Status]) -> "Table":
    """Lay out a line for each training, and below them how much is left in all; what finds no room is counted."""
    from rich.table import Table
    from rich.text import Text

    left = remaining_in_all(statuses)
    told = [f"about {_duration(left)} of training left in all; scoring comes on top"] if left is not None else []
    lines, others = _weightiest(statuses)
    told = [*([f"and {others}"] if others else []), *told]
    caption = "\n".join(told) or None
    shown = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("training", "state", "epoch", "loss", "val AP", "images/s", "left"):
        is_text = name in ("training", "state")
        # Numbers are never broken; texts are, between words.
        shown.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    for status in lines:
        state = status.note if status.note.startswith(status.state) else _with_reason(status)
        epoch = f"{status.epoch:.1f}/{status.num_epochs}" if status.epoch else f"-/{status.num_epochs}"
        # As Text, or a label such as "x [red]" would be read as markup.
        said = Text(printable(state), STATE_STYLES.get(status.state, ""))
        shown.add_row(Text(printable(status.label)), said, *map(Text, (epoch, *_numbers(status).values())))
    return shown


def _weightiest(statuses: Sequence[Status]) -> tuple[list[Status], str]:
    """Return those that have room on a screen, in their order, and how many others there are by state."""
    order: tuple[State, ...] = (*GOES_ON, "failed", "interrupted", "cancelled", "waiting", "stopped", "finished")
    ranked = sorted(range(len(statuses)), key=lambda place: order.index(statuses[place].state))
    others = Counter(statuses[place].state for place in ranked[MOST_LINES:])
    return [statuses[place] for place in sorted(ranked[:MOST_LINES])], ", ".join(
        f"{number} more {state}" for state, number in others.items()
    )


def remaining_in_all(statuses: Sequence[Status]) -> float | None:
    """Return about how many seconds of training are left, as many at a time as now; None while no pace is known.

    What waits is taken to be as fast, by the epoch, as the mean of what runs.
    """
    known = {n: one.remaining_s for n, one in enumerate(statuses) if one.remaining_s is not None}
    paces = [left / (statuses[n].num_epochs - statuses[n].epoch) for n, left in known.items() if _epochs(statuses[n])]
    if not paces:
        return None
    pace = sum(paces) / len(paces)
    unfinished = (*GOES_ON, "waiting")
    left = [known.get(n, pace * _epochs(one)) for n, one in enumerate(statuses) if one.state in unfinished]
    at_once = max(1, sum(one.state in GOES_ON for one in statuses))
    return max([*left, sum(left) / at_once])


def _epochs(status: Status) -> float:
    """Epochs that are left of a training."""
    return max(0.0, status.num_epochs - status.epoch)


def _with_reason(status: Status) -> str:
    return f"{status.state} ({status.note})" if status.note else status.state


def _numbers(status: Status) -> dict[str, str]:
    return {
        "loss": "" if status.loss is None else f"{status.loss:.3f}",
        "AP": "" if status.ap is None else f"{status.ap:.1f}",
        "images/s": "" if status.images_per_s is None else f"{status.images_per_s:.1f}",
        "left": "" if status.remaining_s is None else _duration(status.remaining_s),
    }


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _status(plan: Plan, run: TrainRun, ledger: Ledger) -> Status:
    record = ledger.trainings.get(run.key)
    metrics = record.metrics if record else {}
    training = record is not None and record.status == "RUNNING"
    return Status(
        label=run.label,
        state=_state(plan, run, ledger),
        note=record.note if record and not training else "",
        epoch=metrics.get(EPOCH, 0.0),
        num_epochs=run.config.schedule.epochs,
        loss=metrics.get(LOSS),
        ap=metrics.get(f"{VAL}AP"),
        images_per_s=metrics.get(IMAGES_PER_S) if training else None,
        remaining_s=metrics.get(ETA_S) if training else None,
    )


def _state(plan: Plan, run: TrainRun, ledger: Ledger) -> State:
    record = ledger.trainings.get(run.key)
    if record is None:
        return "waiting"
    if record.status == "FINISHED":
        unscored = any(evaluation.key in plan.missing_evaluations for evaluation in plan.evaluations_on(run.key))
        return "scoring" if unscored else "finished"
    states: dict[str, State] = {"RUNNING": "training", "FAILED": "failed", "STOPPED": "stopped"}
    return states.get(record.status, "interrupted")
