"""YAML -> Experiment: one file is one table of the paper, and every mistake in it is named with its path."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any

from model.settings import Settings, merge, misspelt, suggestion
from orchestrator.errors import UserError
from orchestrator.experiment.document import METRICS, Document, inherit
from orchestrator.experiment.grid import Settable
from orchestrator.experiment.reading import read_yaml, typed
from orchestrator.experiment.resources import Resources, contradictions
from orchestrator.experiment.rows import Cited, Row, read_cited, read_row, spelling
from orchestrator.experiment.search import Search, SearchForm, read_search

__all__ = ["METRICS", "Cited", "Experiment", "Resources", "Row", "Search", "load_experiment", "load_experiments"]

CLAIMS = "claims.yaml"
"""The file of sentences that rest on the tables of its folder; it is no table itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One YAML file: one table or figure of the paper."""

    name: str
    suite: str
    title: str
    question: str = ""
    rows: tuple[Row, ...]
    search: Search | None = None
    """How some of the rows were drawn, if any were."""
    cited: tuple[Cited, ...] = ()
    reference: str | None = None
    """The label of the row that the others are compared with."""
    columns: tuple[str, ...] = METRICS[:6]
    resources: Resources = field(default_factory=Resources)
    path: Path


def load_experiment(path: Path | str) -> Experiment:
    """Read an experiment file, with what it extends, into checked and typed rows.

    Raises:
        UserError: the file has mistakes; all of them, one to a line.
    """
    path = Path(path)
    merged, problems = _read(path, ())
    experiment, mistakes = _experiment(path, merged)
    if experiment is None or problems + mistakes:
        raise _error(path, problems + mistakes)
    return experiment


def load_experiments(paths: Sequence[Path | str]) -> list[Experiment]:
    """Read several experiment files; a folder stands for its files.

    Passed over are, as a shell's *.yaml may name them, parts of experiments (`_*.yaml`) and the claims beside them.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        experiments_inside = [file for file in inside if not _is_passed_over(file)]
        if path.is_dir() and not experiments_inside:
            raise UserError(f"{path}: no experiment in this folder, expected *.yaml")
        files.extend(experiments_inside)
    if not files:
        raise UserError(
            f"{', '.join(map(str, paths))}: no experiment, but a part of others; name a file that extends it"
        )
    experiments = [load_experiment(path) for path in dict.fromkeys(files)]
    first: dict[tuple[str, str], Experiment] = {}
    for experiment in experiments:
        other = first.setdefault((experiment.suite, experiment.name), experiment)
        if other is not experiment:
            raise UserError(f"{experiment.path}: name is {experiment.name!r}, as in {other.path}; rename one of them")
    return experiments


def find_row(experiments: Sequence[Experiment], label: str, seed: int | None = None) -> tuple[Experiment, Row]:
    """Return the one row of this label, with its experiment; the seed, if there is one, has to be one of the row's.

    Raises:
        UserError: there is no such row or seed, or more than one such row.
    """
    found = [(experiment, row) for experiment in experiments for row in experiment.rows if row.label == label]
    if len(found) > 1:
        files = ", ".join(str(experiment.path) for experiment, _ in found)
        raise UserError(f"--row {label!r} stands in {files}; name one of these files alone")
    if not found:
        labels = [row.label for experiment in experiments for row in experiment.rows]
        raise UserError(f"--row {label!r} is no row; {suggestion(label, labels)}")
    experiment, row = found[0]
    if seed is not None and seed not in row.seeds:
        raise UserError(f"{experiment.path}, row {label!r}: --seed {seed} is none of its seeds {list(row.seeds)}")
    return experiment, row


def _is_passed_over(file: Path) -> bool:
    return file.name.startswith("_") or file.name == CLAIMS


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[Settings, list[str]]:
    """Return a file merged with what it extends, and its own mistakes of form; `chain` are the files that led here.

    Raises:
        UserError: the file is no mapping of settings, or one that it extends has mistakes.
    """
    if path.resolve() in [earlier.resolve() for earlier in chain]:
        raise UserError(f"{chain[0]}: extends goes in a circle: {' -> '.join(map(str, (*chain, path)))}")
    own = read_yaml(path, named_by=chain[-1] if chain else None)
    if isinstance(own.get("extends"), str):
        own["extends"] = [own["extends"]]
    problems = list(_spelling(own))
    document, structure = typed(Document, own)
    if document is None:
        raise _error(path, structure + problems)
    parents = [_read_parent(Path(normpath(path.parent / name)), (*chain, path)) for name in document.extends]
    merged, more = inherit(parents, own)
    return merged, problems + more


def _read_parent(path: Path, chain: tuple[Path, ...]) -> Settings:
    """Read a file that another extends; one without rows is a part of experiments, which is checked within them."""
    merged, problems = _read(path, chain)
    if merged.get("rows"):
        problems += _experiment(path, merged)[1]
    if problems:
        raise _error(path, problems)
    return merged


def _experiment(path: Path, merged: Settings) -> tuple[Experiment | None, list[str]]:
    """Type a merged document; return the experiment, or None and its mistakes."""
    document, _ = typed(Document, merged)
    assert document is not None, "a document of checked parts is a checked document"
    rows, problems = _rows(merged)
    resources, in_resources = typed(Resources, document.resources, "resources.")
    cited, in_cited = _cited(document)
    search, in_search = _search(document, rows)
    problems += [*in_resources, *in_cited, *in_search, *_mistakes_of_document(document)]
    if resources is not None and not problems:
        problems += [f"resources.{problem}" for problem in contradictions(resources, [row.train for row in rows])]
        problems += _twice(rows, search)
    if problems or resources is None:
        return None, problems
    name = document.name or path.stem
    experiment = Experiment(
        name=name,
        suite=document.suite or path.resolve().parent.name,
        title=document.title or name,
        question=document.question,
        rows=tuple(rows),
        search=search,
        cited=tuple(cited),
        reference=document.reference,
        columns=document.columns,
        resources=resources,
        path=path,
    )
    return experiment, []


def _error(path: Path, problems: Iterable[str]) -> UserError:
    lines = [f"{path}{', ' if problem.startswith('row ') else ': '}{problem}" for problem in problems]
    return UserError("\n".join(dict.fromkeys(lines)))


def _spelling(own: Settings) -> Iterator[str]:
    """Name every key of a file, at any depth, that is no setting."""
    yield from misspelt(Document, own)
    yield from misspelt(Settable, _mapping(own.get("defaults")), "defaults.")
    yield from misspelt(Resources, _mapping(own.get("resources")), "resources.")
    yield from misspelt(SearchForm, _mapping(own.get("search")), "search.")
    for place, row in enumerate(_list(own.get("rows"))):
        for problem in spelling(Row, row):
            yield f"{_where(row, place)}: {problem}"
    for label, row in _mapping(own.get("changes")).items():
        for problem in spelling(Row, row):
            yield f"row {label!r}: changes: {problem}"
    for place, line in enumerate(_list(own.get("cited"))):
        for problem in spelling(Cited, line):
            yield f"cited.{place}: {problem}"


def _where(row: Any, place: int) -> str:
    label = _mapping(row).get("label")
    return f"row {label!r}" if isinstance(label, str) else f"row {place + 1}"


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _rows(merged: Settings) -> tuple[list[Row], list[str]]:
    """Type each row; a mistake of the defaults that every row inherits is told once."""
    usual = {"seeds": merged.get("seeds", [0])} | merged.get("defaults", {})
    rows, found = [], []
    for raw in merged["rows"]:
        row, problems = read_row(merge(usual, raw))
        rows += [row] if row else []
        found.append(problems)
    shared = set(read_row({"label": "defaults"} | usual)[1]).intersection(*found) if len(found) > 1 else set()
    common = [problem for problem in (found[0] if found else ()) if problem in shared]
    once = [f"defaults.{p}" if p.startswith(("train.", "inference.")) else p for p in common]
    for place, (raw, problems) in enumerate(zip(merged["rows"], found, strict=True)):
        once += [f"{_where(raw, place)}: {problem}" for problem in problems if problem not in shared]
    return rows, once


def _cited(document: Document) -> tuple[list[Cited], list[str]]:
    lines, found = [], []
    for place, raw in enumerate(document.cited):
        line, problems = read_cited(raw)
        lines += [line] if line else []
        found += [f"cited.{place}: {problem}" for problem in problems]
    return lines, found


def _search(document: Document, rows: Sequence[Row]) -> tuple[Search | None, list[str]]:
    """Return the search, if rows that it drew are still there."""
    search = read_search(document.search)[0] if document.search is not None else None
    if search is None:
        return None, []
    problems = []
    if search.metric not in METRICS:
        problems.append(f"search.metric: {search.metric} is no metric; {suggestion(search.metric, METRICS)}")
    drawn = [row for row in rows if row.label in search.labels]
    shortest = min((row.train.schedule.epochs for row in drawn), default=0)
    if drawn and search.asha and search.asha.grace_epochs >= shortest:
        problems.append(
            f"search.scheduler.asha.grace_epochs is {search.asha.grace_epochs}, but a training has only {shortest}"
            " epochs; nothing would stop early"
        )
    return (replace(search, labels=tuple(row.label for row in drawn)) if drawn else None), problems


def _twice(rows: Sequence[Row], search: Search | None) -> Iterator[str]:
    """Name listed rows that are one and the same; draws may meet by chance."""
    first: dict[Any, str] = {}
    for row in rows:
        if search is None or row.label not in search.labels:
            for seed in row.seeds:
                other = first.setdefault((row.train, row.inference, row.split, seed), row.label)
                if other != row.label:
                    yield f"row {row.label!r}: is the same as row {other!r}; leave one out, or change a setting of it"


def _mistakes_of_document(document: Document) -> Iterator[str]:
    for setting in ("name", "suite"):
        value = getattr(document, setting)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
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
        if metric not in METRICS:
            yield f"columns: {metric} is no metric; {suggestion(metric, METRICS)}"
    if not document.columns or len(set(document.columns)) < len(document.columns):
        yield f"columns is {list(document.columns)}, expected different metrics: {', '.join(METRICS)}"
