"""Loads experiment files: YAML, with what it extends, becomes checked and typed rows; mistakes are named by path."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.config import CALIBRATION, METRICS
from model.settings import Settings, read_settings, suggestion
from orchestrator.errors import UserError
from orchestrator.experiment.document import Document, error_of, placed, read_document, typed, where
from orchestrator.experiment.layers import lay, override, with_drops
from orchestrator.experiment.mistakes import equal_rows, mistakes_of_whole
from orchestrator.experiment.rows import (
    Cited,
    Places,
    Resources,
    Row,
    SeedRule,
    contradictions,
    mixed_scales,
    read_cited,
    read_row,
)
from orchestrator.experiment.search import MOST_ROWS, MOST_ROWS_EVER, Search, read_search
from orchestrator.site import ROOT

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
    """The label of the row that the others are compared with, but those that name another one themselves."""
    seed_rule: SeedRule | None = None
    """How seeds are added to the rows; None where they are listed."""
    columns: tuple[str, ...] = METRICS[:6]
    resources: Resources = field(default_factory=Resources)
    data: Places = field(default_factory=Places)
    """Where its data and first weights lie, as absolute paths; what is None, the environment says."""
    path: Path

    def reference_of(self, row: Row) -> str | None:
        """Return the label of the row that a row is compared with; None for the reference, and where there is none."""
        return row.reference or (None if row.label == self.reference else self.reference)


def load_experiment(path: Path | str, overrides: Settings | None = None, most_rows: int = MOST_ROWS) -> Experiment:
    """Read an experiment file, with what it extends, into checked and typed rows.

    Args:
        path: of the file.
        overrides: settings that rule over those of the file and of each row; see layers.parse_overrides.
        most_rows: more are taken for a slip.

    Raises:
        UserError: the file has mistakes, or they come of the overrides; all of them, one to a line.
    """
    path = Path(path)
    merged, problems = read_document(path, _mistakes, most_rows)
    experiment, mistakes = _experiment(path, override(merged, _from_here(overrides or {})))
    if experiment is None or problems + mistakes:
        if overrides and not problems and not _mistakes(path, merged):
            mistakes = [f"{mistake} (by --set)" for mistake in mistakes]
        raise error_of(path, problems + mistakes)
    return experiment


def load_experiments(
    paths: Sequence[Path | str], overrides: Settings | None = None, most_rows: int = MOST_ROWS
) -> list[Experiment]:
    """Read several experiment files; a folder stands for its files.

    Passed over are, as a shell's *.yaml may name them, parts of experiments (`_*.yaml`) and the claims beside them.

    Args:
        paths: of files and folders.
        overrides: see `load_experiment`.
        most_rows: of each file; see `load_experiment`.

    Raises:
        UserError: there is no file, or some have mistakes; all of these are named, and how to go on without them.
    """
    experiments, mistakes = load_sound(paths, overrides, most_rows)
    if mistakes:
        sound = " ".join(str(experiment.path) for experiment in experiments)
        raise UserError("\n".join([*mistakes, f"To go on without them, name the sound files alone: {sound}"]))
    return experiments


def load_sound(
    paths: Sequence[Path | str], overrides: Settings | None = None, most_rows: int = MOST_ROWS
) -> tuple[list[Experiment], list[str]]:
    """Like `load_experiments`, but return the files without mistakes, and what is wrong with the others.

    Raises:
        UserError: no file is sound.
    """
    experiments: list[Experiment] = []
    mistakes: list[str] = []
    first: dict[tuple[str, str], Experiment] = {}
    # A file may be named by itself and by its folder.
    for path in dict.fromkeys(_files(paths)):
        try:
            experiment = load_experiment(path, overrides, most_rows)
        except UserError as error:
            mistakes += str(error).splitlines()
            continue
        other = first.setdefault((experiment.suite, experiment.name), experiment)
        if other is experiment:
            experiments.append(experiment)
        else:
            mistakes.append(f"{experiment.path}: name is {experiment.name!r}, as in {other.path}; rename one of them")
    mistakes = list(dict.fromkeys(mistakes))  # several may extend the broken one
    if not experiments:
        raise UserError("\n".join(mistakes))
    return experiments, mistakes


def find_row(experiments: Sequence[Experiment], label: str, seed: int | None = None) -> tuple[Experiment, Row]:
    """Return the one row of this label, with its experiment; the seed, if there is one, has to be one of the row's.

    Seeds that are added until decided are the row's as well, whether they have been added yet or not.

    Raises:
        UserError: there is no such row or seed, or more than one such row.
    """
    found = [(experiment, row) for experiment in experiments for row in experiment.rows if row.label == label]
    if len(found) > 1:
        files = ", ".join(str(experiment.path) for experiment, _ in found)
        raise UserError(f"--row {label!r} stands in {files}; name one of these files alone")
    if not found:
        labels = [row.label for experiment in experiments for row in experiment.rows]
        row_of, _, number = label.rpartition(", seed ")  # as `rnc status` shows each seed of a row
        if row_of in labels and number.isdecimal():
            raise UserError(
                f"--row {label!r} is a seed of a row; name it by --row {shlex.quote(row_of)} --seed {number}"
            )
        raise UserError(f"--row {label!r} is no row; {suggestion(label, labels)}")
    experiment, row = found[0]
    rule = experiment.seed_rule
    if seed is not None and seed not in (range(rule.most) if rule else row.seeds):
        known = f"0 to {rule.most - 1}" if rule else f"{list(row.seeds)}"
        raise UserError(f"{experiment.path}, row {label!r}: --seed {seed} is none of its seeds {known}")
    return experiment, row


def _files(paths: Sequence[Path | str]) -> list[Path]:
    files: list[Path] = []
    for path in map(_ours_if_not_here, map(Path, paths)):
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        experiments_inside = [file for file in inside if not _is_no_experiment(file)]
        if path.is_dir() and not experiments_inside:
            raise UserError(f"{path}: no experiment in this folder, expected *.yaml")
        files.extend(experiments_inside)
    if not files and {path.name for path in map(Path, paths)} == {CLAIMS}:
        folder = Path(next(iter(paths))).parent
        raise UserError(f"{folder / CLAIMS}: claims, no experiment; they are judged by rnc report {folder} --claims")
    if not files:
        raise UserError(
            f"{', '.join(map(str, paths))}: no experiment, but a part of others; name a file that extends it"
        )
    return files


def _is_no_experiment(file: Path) -> bool:
    return file.name.startswith("_") or file.name == CLAIMS


def _ours_if_not_here(path: Path) -> Path:
    """Return the project's own file or folder of this name, such as experiments/paper, where there is none here."""
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def _from_here(overrides: Settings) -> Settings:
    """Paths that a command line sets count from the current folder."""
    return placed(overrides, Path.cwd())


def _mistakes(path: Path, merged: Settings) -> list[str]:
    return _experiment(path, merged)[1]


def _experiment(path: Path, merged: Settings) -> tuple[Experiment | None, list[str]]:
    """Type a merged document; return the experiment, or None and its mistakes."""
    document, rule, _ = typed(merged)
    assert document is not None, "a document of checked parts is a checked document"
    rows, problems = _rows(merged | {"seeds": list(document.seeds)})
    resources, mistakes = read_settings(Resources, document.resources, "resources.")
    problems += mistakes
    data, mistakes = read_settings(Places, document.data, "data.")
    problems += mistakes
    cited, mistakes = _cited(document)
    problems += mistakes
    search, mistakes = _search(document, rows)
    problems += mistakes
    problems += mistakes_of_whole(document, rows, rule, path)
    problems += mixed_scales([*rows, *cited])
    # What needs several settings to be sound is compared only where each of them is.
    if resources is not None and not problems:
        problems += [f"resources.{problem}" for problem in contradictions(resources, [row.train for row in rows])]
        problems += equal_rows(rows, search)
    if problems or resources is None or data is None:
        return None, problems
    name, suite = document.name or path.stem, document.suite or path.resolve().parent.name
    experiment = Experiment(
        name=name,
        suite=suite,
        title=document.title or name,
        question=document.question,
        rows=tuple(rows),
        search=search,
        cited=tuple(cited),
        reference=document.reference,
        seed_rule=rule,
        columns=document.columns,
        resources=resources,
        data=data,
        path=path,
    )
    return experiment, []


def _rows(merged: Settings) -> tuple[list[Row], list[str]]:
    """Type each row; a mistake of the defaults that every row inherits is told once."""
    usual = {"seeds": merged.get("seeds", [0])} | merged.get("defaults", {})
    rows: list[Row] = []
    found: list[list[str]] = []  # the mistakes of each row
    for raw in merged["rows"]:
        row, mistakes = read_row(with_drops(lay(raw, usual)))
        if row is not None:
            rows.append(row)
        found.append(mistakes)
    shared: list[str] = []  # those that every row has, and the defaults by themselves
    if len(found) > 1:
        _, of_defaults = read_row(with_drops({"label": "defaults"} | usual))
        shared = [mistake for mistake in found[0] if all(mistake in one for one in [of_defaults, *found])]
    problems = [f"defaults.{told}" if told.startswith(("train.", "inference.", "split ")) else told for told in shared]
    for place, (raw, mistakes) in enumerate(zip(merged["rows"], found, strict=True)):
        problems += [f"{where(raw, place)}: {mistake}" for mistake in mistakes if mistake not in shared]
    return rows, problems


def _cited(document: Document) -> tuple[list[Cited], list[str]]:
    lines, problems = [], []
    for place, raw in enumerate(document.cited):
        line, mistakes = read_cited(raw)
        if line is not None:
            lines.append(line)
        problems += [f"cited.{place}: {mistake}" for mistake in mistakes]
    return lines, problems


def _search(document: Document, rows: Sequence[Row]) -> tuple[Search | None, list[str]]:
    """Return the search, if rows that it drew are still there."""
    search = read_search(document.search, MOST_ROWS_EVER)[0] if document.search is not None else None
    if search is None:
        return None, []
    problems = []
    if search.metric in CALIBRATION:
        problems.append(
            f"search.metric is {search.metric}, of which the least is the best, and which is measured after a training"
            f" alone; a search makes large what its trainings report: {', '.join(METRICS)}"
        )
    elif search.metric not in METRICS:
        problems.append(f"search.metric: {search.metric} is no metric; {suggestion(search.metric, METRICS)}")
    labels = frozenset(search.labels)
    drawn = [row for row in rows if row.label in labels]
    shortest = min((row.train.schedule.epochs for row in drawn), default=0)
    if drawn and search.asha and search.asha.grace_epochs >= shortest:
        problems.append(
            f"search.scheduler.asha.grace_epochs is {search.asha.grace_epochs}, but a training has only {shortest}"
            " epochs; nothing would stop early"
        )
    if not drawn:
        return None, problems
    return replace(search, labels=tuple(row.label for row in drawn)), problems
