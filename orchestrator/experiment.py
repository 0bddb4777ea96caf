"""YAML -> Experiment: one file is one table of the paper, and every mistake in it is named with its path."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any

from model.config import InferenceConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.reading import read_yaml, typed
from orchestrator.settings import Settings, merge, misspelt, suggestion

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of an evaluation, by the names of model.evaluation, which is too heavy to import here."""


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
class Experiment:
    """One YAML file: one table or figure of the paper."""

    name: str
    suite: str
    title: str
    question: str = ""
    rows: tuple[Row, ...]
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
    return _load(Path(path), ())[0]


def load_experiments(paths: Iterable[Path | str]) -> list[Experiment]:
    """Read several experiment files; a folder stands for all of its files."""
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
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
class _Document:
    """The top level of a file, before it inherits, and before its rows and settings are looked into."""

    name: str | None = None
    suite: str | None = None
    title: str | None = None
    question: str = ""
    extends: str | None = None
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    rows: tuple[dict[str, Any], ...] | None = None
    only: tuple[str, ...] | None = None
    reference: str | None = None
    columns: tuple[str, ...] = METRICS[:6]
    resources: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Defaults:
    train: TrainConfig
    inference: InferenceConfig


def _load(path: Path, chain: tuple[Path, ...]) -> tuple[Experiment, Settings]:
    """Return the experiment, and its document merged with what it extends; `chain` are the files that led here."""
    if path.resolve() in [earlier.resolve() for earlier in chain]:
        raise UserError(f"{chain[0]}: extends goes in a circle: {' -> '.join(map(str, (*chain, path)))}")
    own = read_yaml(path, named_by=chain[-1] if chain else None)
    problems = list(_spelling(own))
    checked, structure = typed(_Document, own)
    if checked is None:
        raise _error(path, structure + problems)
    merged = own
    if checked.extends is not None:
        merged = _inherit(_load(Path(normpath(path.parent / checked.extends)), (*chain, path))[1], own)
    problems += _select(merged, own)
    document, _ = typed(_Document, merged)
    assert document is not None, "a document of checked parts is a checked document"
    rows, in_rows = _rows(merged)
    resources, in_resources = typed(Resources, document.resources, "resources.")
    problems += [*in_rows, *in_resources, *_mistakes_of_document(document)]
    if problems or resources is None:
        raise _error(path, problems)
    name = document.name or path.stem
    experiment = Experiment(
        name=name,
        suite=document.suite or path.resolve().parent.name,
        title=document.title or name,
        question=document.question,
        rows=tuple(rows),
        reference=document.reference,
        columns=document.columns,
        resources=resources,
        path=path,
    )
    return experiment, merged


def _error(path: Path, problems: Iterable[str]) -> UserError:
    lines = [f"{path}{', ' if problem.startswith('row ') else ': '}{problem}" for problem in problems]
    return UserError("\n".join(dict.fromkeys(lines)))


def _where(row: Mapping[str, Any], place: int) -> str:
    label = row.get("label")
    return f"row {label!r}" if isinstance(label, str) else f"row {place + 1}"


def _spelling(own: Settings) -> Iterator[str]:
    """Name every key of a file, at any depth, that is no setting."""
    yield from misspelt(_Document, own)
    yield from misspelt(_Defaults, _mapping(own.get("defaults")), "defaults.")
    yield from misspelt(Resources, _mapping(own.get("resources")), "resources.")
    rows = own.get("rows")
    for place, row in enumerate(rows if isinstance(rows, list) else ()):
        for problem in misspelt(Row, _mapping(row)):
            yield f"{_where(row, place)}: {problem}"
        for metric in _mapping(_mapping(row).get("paper")):
            if metric not in METRICS:
                yield f"{_where(row, place)}: paper.{metric} is no metric; {suggestion(metric, METRICS, 'paper.')}"


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _inherit(parent: Settings, own: Settings) -> Settings:
    """Lay a document on the one it extends: defaults and resources merge, name and suite stay behind."""
    deep = {name: merge(parent.get(name, {}), own.get(name, {})) for name in ("defaults", "resources")}
    return {name: value for name, value in parent.items() if name not in ("name", "suite")} | own | deep


def _select(merged: Settings, own: Settings) -> Iterator[str]:
    """Keep the inherited rows that `only` names, in its order."""
    only = own.get("only")
    if only is None:
        return
    if "rows" in own:
        yield "only picks among inherited rows, but this file gives its own; leave one of them out"
        return
    rows = {row["label"]: row for row in merged.get("rows", ())}
    merged["rows"] = [rows[label] for label in only if label in rows]
    for label in only:
        if label not in rows:
            yield f"only names {label!r}, which is no row; {suggestion(label, rows)}"


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
    for metric, value in row.paper.items():
        if metric in METRICS and not 0.0 <= value <= 100.0:
            yield f"paper.{metric} is {value}, expected 0 to 100"
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


def _mistakes_of_document(document: _Document) -> Iterator[str]:
    for setting in ("name", "suite"):
        value = getattr(document, setting)
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
            yield f"{setting} is {value!r}, expected a letter or digit, then also '_', '-', '.'"
    labels = [row["label"] for row in document.rows or () if isinstance(row.get("label"), str)]
    if not document.rows:
        yield "there are no rows; list at least one under rows, or extend a file that has some"
    for label, count in Counter(labels).items():
        if count > 1:
            yield f"row {label!r}: label stands {count} times; give each row its own"
    if document.reference is not None and document.reference not in labels:
        yield f"reference is {document.reference!r}, which is no row; {suggestion(document.reference, labels)}"
    for metric in document.columns:
        if metric not in METRICS:
            yield f"columns: {metric} is no metric; {suggestion(metric, METRICS)}"
    if not document.columns or len(set(document.columns)) < len(document.columns):
        yield f"columns is {list(document.columns)}, expected different metrics: {', '.join(METRICS)}"
