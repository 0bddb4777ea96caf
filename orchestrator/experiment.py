"""YAML -> Experiment: one file is one table of the paper, and every mistake in it is named with its path."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any

from model.config import InferenceConfig, TrainConfig
from orchestrator.document import METRICS, Document, inherit
from orchestrator.errors import UserError
from orchestrator.reading import read_yaml, typed
from orchestrator.settings import Settings, merge, misspelt, suggestion

__all__ = ["METRICS", "Cited", "Experiment", "Resources", "Row", "load_experiment", "load_experiments"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What a training runs on; free to change, no part of any identity."""

    num_workers: int = 1
    """Processes that train one model together."""
    gpus_per_worker: float = 0.0
    """0 trains on the CPU; a part of 1 shares a GPU."""
    cpus_per_worker: float = 1.0
    """CPUs that each worker reserves, its loader processes included."""
    local_batch: int | None = None
    """Images of one forward pass of a worker; gradients add up to the global batch. None takes the whole share."""
    loader_processes: int = 0
    """Processes of each worker that read images; 0 reads in the worker itself."""

    def __post_init__(self) -> None:
        gpus = self.gpus_per_worker
        _require(self.num_workers >= 1, f"num_workers is {self.num_workers}, expected at least 1")
        _require(
            gpus >= 0.0 and (gpus <= 1.0 or gpus == int(gpus)),
            f"gpus_per_worker is {gpus}, expected 0 to 1, or a whole number",
        )
        _require(self.cpus_per_worker > 0.0, f"cpus_per_worker is {self.cpus_per_worker}, expected more than 0")
        _require(
            self.local_batch is None or self.local_batch >= 1,
            f"local_batch is {self.local_batch}, expected at least 1, or null for a worker's whole share",
        )
        _require(self.loader_processes >= 0, f"loader_processes is {self.loader_processes}, expected at least 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a table: a training for each seed, and how its checkpoints are scored."""

    label: str
    train: TrainConfig = field(default_factory=TrainConfig)
    """Its seed is replaced by each of `seeds`."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    split: str = "val2017"
    """The split that is scored; a file that is silent means the row's own train.data.val_split."""
    seeds: tuple[int, ...] = (0,)
    paper: Mapping[str, float] = field(default_factory=dict)
    """The paper's own numbers, by metric, on the 0-100 scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cited:
    """A line that a table only quotes: nothing is trained or scored for it."""

    label: str
    paper: Mapping[str, float]
    """The numbers that are quoted, by metric, on the 0-100 scale."""
    source: str
    """Where they stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One YAML file: one table or figure of the paper."""

    name: str
    suite: str
    title: str
    question: str = ""
    rows: tuple[Row, ...]
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


def load_experiments(paths: Iterable[Path | str]) -> list[Experiment]:
    """Read several experiment files; a folder stands for its files, but those that begin with `_`."""
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("[!_]*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no experiment in this folder, expected *.yaml")
        files.extend(inside)
    experiments = [load_experiment(path) for path in dict.fromkeys(files)]
    first: dict[tuple[str, str], Experiment] = {}
    for experiment in experiments:
        other = first.setdefault((experiment.suite, experiment.name), experiment)
        if other is not experiment:
            raise UserError(f"{experiment.path}: name is {experiment.name!r}, as in {other.path}; rename one of them")
    return experiments


@dataclass(frozen=True, kw_only=True, slots=True)
class _Defaults:
    train: TrainConfig
    inference: InferenceConfig


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
    problems += [*in_resources, *in_cited, *_mistakes_of_document(document)]
    if problems or resources is None:
        return None, problems
    name = document.name or path.stem
    experiment = Experiment(
        name=name,
        suite=document.suite or path.resolve().parent.name,
        title=document.title or name,
        question=document.question,
        rows=tuple(rows),
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


def _where(row: Mapping[str, Any], place: int) -> str:
    label = row.get("label")
    return f"row {label!r}" if isinstance(label, str) else f"row {place + 1}"


def _spelling(own: Settings) -> Iterator[str]:
    """Name every key of a file, at any depth, that is no setting."""
    yield from misspelt(Document, own)
    yield from misspelt(_Defaults, _mapping(own.get("defaults")), "defaults.")
    yield from misspelt(Resources, _mapping(own.get("resources")), "resources.")
    for place, row in enumerate(_list(own.get("rows"))):
        for problem in _spelling_of_row(Row, row):
            yield f"{_where(row, place)}: {problem}"
    for label, row in _mapping(own.get("changes")).items():
        for problem in _spelling_of_row(Row, row):
            yield f"row {label!r}: changes: {problem}"
    for place, row in enumerate(_list(own.get("cited"))):
        for problem in _spelling_of_row(Cited, row):
            yield f"cited.{place}: {problem}"


def _spelling_of_row(kind: type[Row] | type[Cited], row: Any) -> Iterator[str]:
    yield from misspelt(kind, _mapping(row))
    for metric in _mapping(_mapping(row).get("paper")):
        if metric not in METRICS:
            yield f"paper.{metric} is no metric; {suggestion(metric, METRICS, 'paper.')}"


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _cited(document: Document) -> tuple[list[Cited], list[str]]:
    """Type the lines that are only quoted."""
    lines, problems = [], []
    for place, raw in enumerate(document.cited):
        line, mistakes = typed(Cited, raw)
        lines += [line] if line else []
        problems += [
            f"cited.{place}: {mistake}" for mistake in [*mistakes, *(_mistakes_of_cited(line) if line else ())]
        ]
    return lines, problems


def _mistakes_of_cited(line: Cited) -> Iterator[str]:
    if not line.label.strip() or not line.source.strip():
        yield "label and source must say something"
    yield from _mistakes_of_paper(line.paper)


def _mistakes_of_paper(numbers: Mapping[str, float]) -> Iterator[str]:
    for metric, value in numbers.items():
        if metric in METRICS and not 0.0 <= value <= 100.0:
            yield f"paper.{metric} is {value}, expected 0 to 100"


def _rows(merged: Settings) -> tuple[list[Row], list[str]]:
    """Type each row; a mistake of the defaults that every row inherits is told once."""
    usual = {"seeds": merged.get("seeds", [0])} | merged.get("defaults", {})
    rows, found = [], []
    for raw in merged.get("rows") or ():
        row, problems = _row(merge(usual, raw))
        rows += [row] if row else []
        found.append(problems)
    shared = set(_row({"label": "defaults"} | usual)[1]).intersection(*found) if len(found) > 1 else set()
    common = [problem for problem in (found[0] if found else ()) if problem in shared]
    once = [f"defaults.{p}" if p.startswith(("train.", "inference.")) else p for p in common]
    for place, (raw, problems) in enumerate(zip(merged.get("rows") or (), found, strict=True)):
        once += [f"{_where(raw, place)}: {problem}" for problem in problems if problem not in shared]
    return rows, once


def _row(raw: Settings) -> tuple[Row | None, list[str]]:
    row, problems = typed(Row, raw)
    if row is None:
        return None, problems
    if "split" not in raw:
        row = replace(row, split=row.train.data.val_split)
    return row, list(_mistakes_of_row(row))


def _mistakes_of_row(row: Row) -> Iterator[str]:
    if not row.label.strip():
        yield "label is empty; it names the row in tables"
    if not row.split.strip():
        yield "split is empty; leave it out to score train.data.val_split"
    if not row.seeds or len(set(row.seeds)) < len(row.seeds) or min(row.seeds) < 0 or max(row.seeds) >= 2**31:
        yield f"seeds is {list(row.seeds)}, expected different numbers, 0 to 2147483647"
    if row.train.seed != 0:
        yield f"train.seed is {row.train.seed}, but seeds decides it; set seeds: [{row.train.seed}]"
    yield from _mistakes_of_paper(row.paper)
    if row.inference.needs_confidence and row.train.model.confidence is None:
        reads = [f"inference.{name} is {value}" for name, value in _that_read_confidence(row.inference)]
        yield (
            f"{', '.join(reads)}, but the model has no confidence branch (train.model.confidence is null);"
            " set inference.confidence_exponent: 0 and leave the rest out, or give the row a branch:"
            " train.model.confidence: {tower: classification} or {tower: box}"
        )


def _that_read_confidence(inference: InferenceConfig) -> Iterator[tuple[str, object]]:
    if inference.fusion == "product":
        yield "fusion", "product"
    elif inference.confidence_exponent > 0.0:
        yield "confidence_exponent", inference.confidence_exponent
    if inference.min_confidence > 0.0:
        yield "min_confidence", inference.min_confidence


def _mistakes_of_document(document: Document) -> Iterator[str]:
    for setting in ("name", "suite"):
        value = getattr(document, setting)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            yield f"{setting} is {value!r}, expected a letter or digit, then also '_', '-', '.'"
    labels = [row["label"] for row in document.rows or () if isinstance(row.get("label"), str)]
    if not document.rows:
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
