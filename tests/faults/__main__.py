"""Runs the whole matrix, and then kills at random, for as long as asked: what `make soak` calls."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.faults.cells import FAULTS, MATRIX, Cell, Fault
from tests.faults.ordeal import Bench, Blow, Missed, Ordeal, Result

ATTEMPTS = 3
"""How often a cell whose moment was missed is tried."""
HEADER = "| fault | moment | ends as undisturbed | submits | epochs lost | seconds to recover | remarks |"


def main() -> int:
    """Parse, run, print; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="random kills after the matrix")
    parser.add_argument("--minutes", type=float, default=1000.0, help="at most so long for the random kills")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills; 0 draws one, and it is printed")
    parser.add_argument("--no-matrix", action="store_true", help="random kills alone")
    parser.add_argument("--only", default="", help="cells whose name holds this")
    parser.add_argument("--table", default="", help="a file for the table, as Markdown")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background of a shell, where Ctrl-C is ignored
        signal.signal(number, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="rnc", dir="/tmp"))
    seed = arguments.seed or random.SystemRandom().randrange(1, 10**6)
    bench = Bench.open(root)
    print(f"undisturbed: {bench.seconds:.0f} s", flush=True)
    failed, stopped = 0, False
    if not arguments.no_matrix:
        table = Path(arguments.table) if arguments.table else None
        failed, stopped = run_matrix(bench, [cell for cell in MATRIX if arguments.only in str(cell)], table)
    if arguments.kills and not stopped:
        failed += soak(bench, seed, arguments.kills, 60 * arguments.minutes)
    if failed:
        print(f"kept: {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    return 130 if stopped else int(bool(failed))


def run_matrix(bench: Bench, cells: Sequence[Cell], table: Path | None) -> tuple[int, bool]:
    """Run cell after cell, print a line for each, and return how many failed, and whether Ctrl-C left some out."""
    began, lines, failed, stopped = time.monotonic(), [HEADER, "|---|---|---|---|---|---|---|"], 0, True
    print("\n".join(lines), flush=True)
    with suppress(KeyboardInterrupt):
        for cell in cells:
            line, is_well = run_cell(bench, cell)
            lines.append(line)
            failed += not is_well
            print(line, flush=True)
            if table is not None:
                table.write_text("\n".join([*lines, ""]))  # after each, as a run takes half an hour
        stopped = False
    minutes, done = (time.monotonic() - began) / 60, len(lines) - 2
    summary = f"{done - failed} of {done} cells end with the weights and metrics of an undisturbed run."
    summary += f" {len(cells) - done} were left out." if stopped else ""
    print(f"\n{summary} {minutes:.0f} min.", flush=True)
    if table is not None:
        table.write_text("\n".join([*lines, "", summary, ""]))
    return failed, stopped


def run_cell(bench: Bench, cell: Cell) -> tuple[str, bool]:
    """Try a cell until its moment is met; return its line of the table, and whether all is well."""
    remarks: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        ordeal = Ordeal(bench, f"{cell.fault}-{cell.moment}-{attempt}".replace(" ", "-"))
        try:
            result = ordeal.run([cell])
        except Missed:
            remarks.append("moment missed, tried again")
            ordeal.remove()
            continue
        except Exception as error:  # the other cells are still run
            return row(cell, None, [*remarks, f"{type(error).__name__}: {error}", str(ordeal.folder)]), False
        if result.wrong:
            return row(cell, result, [*remarks, *result.wrong, str(ordeal.folder)]), False
        ordeal.remove()
        return row(cell, result, remarks), True
    return row(cell, None, [f"moment missed {ATTEMPTS} times"]), False


def row(cell: Cell, result: Result | None, remarks: Sequence[str]) -> str:
    """Return a cell's line of the table."""
    said = [" ".join(remark.split()).replace("|", "/") for remark in remarks]
    if result is None:
        return f"| {cell.fault} | {cell.moment} | no | | | | {'; '.join(said)} |"
    blow = result.blows[0]
    said = [*blow.notes, *([f"submit ended after {blow.ended_s:.1f} s"] if blow.ended_s is not None else []), *said]
    is_well = "no" if result.wrong else "yes"
    recovered = "" if blow.recovered_s is None else f"{blow.recovered_s:.1f}"
    return (
        f"| {cell.fault} | {cell.moment} | {is_well} | {result.submits} | {blow.epochs_lost:.1f} | {recovered} | "
        f"{'; '.join(said)} |"
    )


def soak(bench: Bench, seed: int, kills: int, seconds: float) -> int:
    """Kill at random until there were so many kills or seconds, print what came of it, and return how many failed.

    Ctrl-C leaves out the suite that is under way, and prints what came of the others.
    """
    print(f"random kills, seed {seed}", flush=True)
    blows: list[Blow] = []
    failed, suites, submits, began = 0, 0, 0, time.monotonic()
    with suppress(KeyboardInterrupt):
        while len(blows) < kills and time.monotonic() - began < seconds:
            rng = random.Random(f"{seed} {suites}")
            ordeal = Ordeal(bench, f"soak-{suites}")
            try:
                wrong = ordeal.run_random(rng, FAULTS, min(rng.randint(2, 8), kills - len(blows))).wrong
            except Exception as error:  # the others are still run
                wrong = (f"{type(error).__name__}: {error}",)
            suites, submits = suites + 1, submits + ordeal.submits
            blows += ordeal.blows
            struck = ", ".join(blow.fault for blow in ordeal.blows)
            ending = f"NOT WELL: {'; '.join(wrong)}; kept: {ordeal.folder}" if wrong else "well"
            print(f"suite {suites - 1}: {struck or 'no kill'}; {ordeal.submits} submits; {ending}", flush=True)
            failed += bool(wrong)
            if not wrong:
                ordeal.remove()
    print(summary(seed, blows, suites, submits, failed, time.monotonic() - began), flush=True)
    return failed


def summary(seed: int, blows: Sequence[Blow], suites: int, submits: int, failed: int, seconds: float) -> str:
    """Say what random kills came to."""
    kinds: Counter[Fault] = Counter(blow.fault for blow in blows)
    recovered = [blow.recovered_s for blow in blows if blow.recovered_s is not None]
    struck = ", ".join(f"{kinds[fault]} {fault}" for fault in FAULTS)
    return (
        f"seed {seed}: {len(blows)} kills ({struck}) in {suites} suites and {submits} submits, "
        f"{seconds / 60:.0f} min; {suites - failed} suites ended as undisturbed, {failed} did not; "
        f"{sum(blow.epochs_lost for blow in blows):.1f} epochs were trained again; "
        f"recovery {f'{max(recovered):.1f} s at most' if recovered else 'not measured'}"
    )


if __name__ == "__main__":
    sys.exit(main())
