"""Shows trainings while they run: a table that redraws itself on a terminal, else a line for each finished epoch."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.table import Table
from orchestrator.worker.task import GOES_ON, State, Status

Show = Callable[[Sequence[Status]], None]


@contextmanager
def live_view(stream: TextIO = sys.stdout) -> Iterator[Show]:
    """Yield what draws a view of the trainings, again and again."""
    if not stream.isatty():
        yield _lines(stream)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=stream), auto_refresh=False) as live:
        yield lambda statuses: live.update(_table(statuses), refresh=True)


def _lines(stream: TextIO) -> Show:
    """One line where a training has finished an epoch, has to wait, or has ended."""
    seen: dict[int, tuple[int, State, str]] = {}

    def show(statuses: Sequence[Status]) -> None:
        for place, status in enumerate(statuses):
            now = (int(status.epoch), status.state, status.note if status.state in GOES_ON else "")
            old = seen.get(place, (0, "waiting", ""))
            changed = now[1] != old[1] and now[1] not in ("waiting", "training", "scoring")
            if now[0] > old[0] or changed or (now[2] and now[2] != old[2]):
                print(_line(status), file=stream, flush=True)
            seen[place] = now

    return show


def _line(status: Status) -> str:
    parts = [f"{status.label}: {status.state}", f"epoch {int(status.epoch)}/{status.num_epochs}"]
    parts += [f"{name} {text}" for name, text in _numbers(status).items() if text]
    return ", ".join([*parts, *([status.note] if status.note else [])])


def _table(statuses: Sequence[Status]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("training", "state", "epoch", "loss", "AP", "images/s", "left"):
        table.add_column(name, justify="left" if name in ("training", "state") else "right")
    for status in statuses:
        state = status.note if status.note.startswith(status.state) else _with_reason(status)
        epoch = f"{status.epoch:.1f}/{status.num_epochs}" if status.epoch else f"-/{status.num_epochs}"
        table.add_row(status.label, state, epoch, *_numbers(status).values())
    return table


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
