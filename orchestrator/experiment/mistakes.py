"""What is wrong with an experiment as a whole, though each of its settings is sound: names, references, limits."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.config import CALIBRATION, METRICS
from model.settings import flat_differences, suggestion
from orchestrator import names
from orchestrator.experiment.document import Document
from orchestrator.experiment.rows import Row, SeedRule
from orchestrator.experiment.search import Search

JUDGED = tuple(metric for metric in METRICS if metric not in ("AR1", "AR10"))
"""The metrics that have intervals over images; see report.statistics.resamples.ROWS."""
NAME = r"[^\W_][\w.-]*"
"""What a file may call itself and its suite; letters are those of any script, as in the name of a folder."""


def mistakes_of_whole(document: Document, rows: Sequence[Row], rule: SeedRule | None, path: Path) -> Iterator[str]:
    """Name what does not fit together in a file: its rows with each other, with its top level, and with MLflow."""
    yield from _mistakes_of_document(document)
    yield from _mistakes_of_references(document, rows)
    if rule is not None:
        yield from _mistakes_of_rule(document, rows)
    yield from _mistakes_of_names(document, path)
    yield from _beyond_limits(rows, rule)


def equal_rows(rows: Sequence[Row], search: Search | None) -> Iterator[str]:
    """Name listed rows that are one and the same; rows that a search drew may be equal to others by chance."""
    first: dict[Any, str] = {}
    drawn = frozenset(search.labels if search is not None else ())
    for row in rows:
        if row.label not in drawn:
            for seed in row.seeds:
                other = first.setdefault((row.train, row.inference, row.split, seed), row.label)
                if other != row.label:
                    yield f"row {row.label!r}: is the same as row {other!r}; leave one out, or change a setting of it"


def _mistakes_of_document(document: Document) -> Iterator[str]:
    for setting in ("name", "suite"):
        value = getattr(document, setting)
        if value is not None and not re.fullmatch(NAME, value):
            yield f"{setting} is {value!r}, expected a letter or digit, then also '_', '-', '.'"
    labels = [row["label"] for row in document.rows or () if isinstance(row.get("label"), str)]
    if not document.rows and document.grid is None and document.search is None:
        yield "there are no rows; list at least one under rows, or extend a file that has some"
    quoted = [line["label"] for line in document.cited if isinstance(line.get("label"), str)]
    for label, count in Counter(labels + quoted).items():
        if count > 1:
            yield f"row {label!r}: label stands {count} times; give each row its own"
    if document.reference is not None and document.reference not in labels:
        yield f"reference is {document.reference!r}, which is no row; {suggestion(document.reference, labels)}"
    for metric in document.columns:
        if metric not in METRICS + CALIBRATION:
            yield f"columns: {metric} is no metric; {suggestion(metric, METRICS + CALIBRATION)}"
    if not document.columns or len(set(document.columns)) < len(document.columns):
        known = ", ".join(METRICS + CALIBRATION)
        yield f"columns is {list(document.columns)}, expected different metrics: {known}"


def _mistakes_of_references(document: Document, rows: Sequence[Row]) -> Iterator[str]:
    """Name rows that are compared with one of their own choice, but cannot be."""
    own = {row.label: row.reference for row in rows}
    for row in rows:
        where = f"row {row.label!r}: reference is {row.reference!r}"
        if row.reference is None:
            continue
        if document.reference is None:
            yield f"{where}, but the table has none; name its reference at the top as well"
        elif row.label == document.reference:
            yield f"{where}, but this row is the reference of the table; leave it out"
        elif row.reference == row.label:
            yield f"{where}, the row itself; name another one"
        elif row.reference not in own:
            yield f"{where}, which is no row; {suggestion(row.reference, own)}"
        elif own[row.reference] is not None:
            yield f"{where}, which names one itself; name a row that is compared with {document.reference!r}"


def _mistakes_of_rule(document: Document, rows: Sequence[Row]) -> Iterator[str]:
    """Name what stands against adding seeds until each row is decided against the reference."""
    if document.reference is None:
        yield "seeds are added until decided, but against what? name a row as reference, or list seeds"
    elif len(document.rows or ()) == 1:
        yield f"seeds are added until decided, but {document.reference!r} is the only row; add others, or list seeds"
    if document.columns and document.columns[0] not in JUDGED:
        yield (
            f"seeds are added until decided, but the first of columns is {document.columns[0]}, which has no interval;"
            f" begin with one of: {', '.join(JUDGED)}"
        )
    for row in rows:
        if row.seeds != document.seeds:
            yield f"row {row.label!r}: seeds is {list(row.seeds)}, but the file adds them, from 0 on; leave it out"


def _mistakes_of_names(document: Document, path: Path) -> Iterator[str]:
    """Name what MLflow does not take, all the way to its end: a table, or a suite that may be called after a folder."""
    name, suite = document.name or path.stem, document.suite or path.resolve().parent.name
    by_file = "" if document.name else ", after the file"
    by_folder = "" if document.suite else ", after the folder"
    # Of a name that is given and has other characters than these, that much is said already.
    for mistake in names.mistakes_of_table(name) if re.fullmatch(NAME, document.name or "a") else ():
        yield f"name is {_cut(name)}{by_file}, which {mistake}; {'change' if document.name else 'set'} name: NAME"
    for setting in ("title", "question"):
        if shown := names.unstorable(getattr(document, setting) or ""):
            yield f"{setting} has {shown}, which MLflow's database does not take; leave it out"
    for mistake in names.mistakes_of_suite(suite) if re.fullmatch(NAME, document.suite or "a") else ():
        yield f"suite is {_cut(suite)}{by_folder}, which {mistake}; {'change' if document.suite else 'set'} suite: NAME"


def _beyond_limits(rows: Sequence[Row], rule: SeedRule | None) -> Iterator[str]:
    """Name labels and values of which MLflow would keep a part, or nothing."""
    for row in rows:
        where, last = f"row {_cut(row.label)}", max([*row.seeds, rule.most - 1 if rule else 0])
        run = f"{row.label}, seed {last}"
        if len(run) > names.MOST_RUN_NAME:
            most = names.MOST_RUN_NAME - (len(run) - len(row.label))
            yield f"{where}: label has {len(row.label)} characters, expected {most} at most, as it names runs of MLflow"
        if shown := names.unstorable(row.label):
            yield f"{where}: label has {shown}, which MLflow's database does not take; leave it out"
    # Rows of a grid share most of it.
    for (model, data, split), label in {
        (r.train.model, r.train.data, r.split): r.label for r in reversed(rows)
    }.items():
        where = f"row {_cut(label)}"
        values = {f"train.model.{path}": value for path, value in flat_differences(model).items()}
        values |= {f"train.data.{path}": value for path, value in flat_differences(data).items()}
        for path, value in (values | {"split": split}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            if len(text) > names.MOST_PARAM:
                yield f"{where}: {path} has {len(text)} characters, MLflow keeps {names.MOST_PARAM} of them; shorten it"
            if shown := names.unprintable(text):
                yield f"{where}: {path} is {_cut(text)}, which has {shown}; no file or database takes that in a name"
        for path, called in (("train.data.train_split", data.train_split), ("split", split)):
            if len(f"{data.dataset} {called}") > names.MOST_DATASET_NAME:
                yield (
                    f"{where}: train.data.dataset and {path} have {len(data.dataset) + len(called)} characters, MLflow "
                    f"takes less than {names.MOST_DATASET_NAME} in a name of data; shorten one"
                )


def _cut(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}...")
