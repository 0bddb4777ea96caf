"""What `rnc logs` prints of one training: its last metrics, its worker's output, errors, and its log in sentences."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from orchestrator.driver.lock import holder_of
from orchestrator.errors import UserError
from orchestrator.experiment.load import Experiment, find_row
from orchestrator.experiment.plan import train_key
from orchestrator.site import Site
from orchestrator.tracking.recorder import read_journal
from orchestrator.tracking.rest import ServerAway
from orchestrator.tracking.suite import Suite
from orchestrator.worker.task import JOURNAL
from orchestrator.worker.training_log import TRAINING_LOG, ended_early, entries_of, is_open, output_of, sentence

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
NUM_POINTS = 5
"""Lines of the journal of metrics that are printed."""
NUM_OUTPUT_LINES = 20
RAYS_OWN = (
    *(":job_id:", ":actor_name:", ":task_name:"),  # for its own log readers: whose output follows
    # Of each epoch, with all metrics in one line; what they say stands in the journal and the log.
    *("Checkpoint successfully created at: ", "Reporting training result "),
)
"""How the lines begin that Ray itself writes into a worker's output."""
START_SECONDS = 15.0
"""For so long `--follow` waits for a submit that is not there yet."""
LOOK_SECONDS = 1.0
"""How often `--follow` looks for more; storage over a network tells nobody of changes."""


def print_logs(
    experiments: Sequence[Experiment],
    label: str,
    seed: int | None,
    site: Site,
    print_line: Callable[[str], None],
    say: Callable[[str], None],
    *,
    follow: bool = False,
) -> None:
    """Print what the training of a row wrote; its log comes last.

    Args:
        experiments: in which the row is looked up.
        label: of the row.
        seed: one of the row's; None for the first.
        site: where the storage is.
        print_line: prints.
        say: tells what is no part of the log.
        follow: go on with what is added to the log, until the training ends.

    Raises:
        UserError: there is no such row or seed, or nothing of it on the storage.
    """
    experiment, row = find_row(experiments, label, seed)
    key = train_key(replace(row.train, seed=row.seeds[0] if seed is None else seed))
    folder = site.storage / experiment.suite / key
    log = folder / TRAINING_LOG
    suite = Suite([one for one in experiments if one.suite == experiment.suite], site)
    if follow and not log.exists():
        say(f"The training of row {label!r} has not begun; its log is printed as soon as it does.")
        _wait_for(log, suite)
    if not log.exists():
        raise UserError(
            f"row {label!r}: its training has written nothing in {folder} yet; `rnc status` says how far it is, and if "
            "it runs on a cluster, give `rnc logs` its --address, or set RNC_HOME to the storage that the cluster uses"
        )
    for title, lines in _sections(folder):
        print_line(f"== {title}")
        for line in lines:
            print_line(line)
        print_line("")
    print_line(f"== {log}")
    for line in _growing(log, lambda: not follow or _is_over(suite, key, folder)):
        for entry in entries_of([line]):
            print_line(f"{entry.time.astimezone():{TIME_FORMAT}}  {sentence(entry.event)}")


def _sections(folder: Path) -> Iterator[tuple[str, list[str]]]:
    journal = folder / JOURNAL
    if points := read_journal(journal)[0][-NUM_POINTS:]:
        yield (
            f"{journal}, the last {len(points)} lines",
            [
                f"{datetime.fromtimestamp(line[0].timestamp / 1000):{TIME_FORMAT}}  step {line[0].step}: "
                + ", ".join(f"{point.name} {point.value:.4g}" for point in line if not point.name.startswith("system/"))
                for line in points
                if line
            ],
        )
    output = output_of(folder)
    for path in (output, output.with_suffix(".err")) if output is not None else ():
        printed = [line for line in _lines(path) if not line.startswith(RAYS_OWN)][-NUM_OUTPUT_LINES:]
        if printed:
            yield f"{path}, the last {len(printed)} lines", printed
    for path in sorted(folder.glob("error*.log")):
        yield str(path), _lines(path)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _growing(log: Path, is_over: Callable[[], bool]) -> Iterator[str]:
    """Yield the whole lines of a log, and what is added to them, until it is over."""
    place = 0
    while True:
        over = is_over()  # before reading, so that the last lines are read
        if log.exists():
            with log.open("rb") as file:
                file.seek(place)
                text = file.read()
            # The last line may be half written; it is read again when it is whole.
            whole = text[: text.rfind(b"\n") + 1]
            place += len(whole)
            yield from whole.decode(errors="replace").splitlines()
        if over:
            return
        time.sleep(LOOK_SECONDS)


def _wait_for(log: Path, suite: Suite) -> None:
    """Wait until a training's log is there, as long as somebody runs the suite or may be about to."""
    begun = time.monotonic()
    while not log.exists():
        # A submit that starts its MLflow server first has not signed yet.
        if time.monotonic() - begun > START_SECONDS and holder_of(suite) is None:
            return
        time.sleep(LOOK_SECONDS)
        suite.refresh()


def _is_over(suite: Suite, key: str, folder: Path) -> bool:
    """Whether nothing more will be written to a training's folder: it came to its end, or nobody runs the suite."""
    try:
        suite.refresh()
        holder = holder_of(suite)
        if holder is None:
            return True
        ended = ended_early(folder)
        if ended is not None and ended.timestamp() > holder.since:
            return True  # what this submit ended, or saw fail, it does not begin again
        plan = suite.make_plan()
    except ServerAway:
        return False  # the log is a file, and grows meanwhile
    scored = not any(evaluation.key in plan.missing_evaluations for evaluation in plan.evaluations_on(key))
    # MLflow has the numbers before the log says so.
    return key not in plan.missing_trainings and scored and not is_open(folder)
