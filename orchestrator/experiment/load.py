"""Loads experiment files: YAML, with what it extends, becomes checked and typed rows; mistakes are named by path."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import normpath
from pathlib import Path
from typing import Any

from model.config import CALIBRATION, METRICS
from model.settings import Settings, flat_differences, misspelt, read_settings, suggestion
from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.experiment.layers import lay, override, with_drops
from orchestrator.experiment.rows import (
    Cited,
    Places,
    Resources,
    Row,
    SeedRule,
    contradictions,
    misspelt_in_line,
    mixed_scales,
    read_cited,
    read_row,
)
from orchestrator.experiment.search import (
    MOST_ROWS,
    MOST_ROWS_EVER,
    Search,
    SearchForm,
    Settable,
    grid_rows,
    read_search,
    too_many,
)
from orchestrator.site import ROOT
from orchestrator.strict_yaml import read_yaml

CLAIMS = "claims.yaml"
"""The file of sentences that rest on the tables of its folder; it is no table itself."""
JUDGED = tuple(metric for metric in METRICS if metric not in ("AR1", "AR10"))
"""The metrics that have intervals over images; see report.resamples.ROWS."""
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""What a file may call itself and its suite."""
OF_ONE_FILE = ("name", "suite", "extends", "only", "changes", "grid")
"""Keys that say something of their own file alone; all else is inherited."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The top level of a file, before its rows and settings are looked into."""

    name: str | None = None
    suite: str | None = None
    title: str | None = None
    question: str = ""
    extends: tuple[str, ...] = ()
    """Files whose settings this one starts from; of two that say the same the later counts."""
    defaults: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    """Of every row that lists none of its own; or, instead of a list, a SeedRule."""
    rows: tuple[dict[str, Any], ...] | None = None
    grid: dict[str, tuple[Any, ...]] | None = None
    """Values by dotted setting, of which every combination is a row."""
    search: dict[str, Any] | None = None
    """A space of settings, from which rows are drawn."""
    only: tuple[str, ...] | None = None
    """Labels of the inherited rows to keep."""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings laid over inherited rows, by label."""
    cited: tuple[dict[str, Any], ...] = ()
    reference: str | None = None
    columns: tuple[str, ...] = METRICS[:6]
    resources: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    """Where data and first weights lie."""


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
    merged, problems = _read(path, (), most_rows)
    experiment, mistakes = _experiment(path, override(merged, _from_here(overrides or {})))
    if experiment is None or problems + mistakes:
        if overrides and not problems and not _experiment(path, merged)[1]:
            mistakes = [f"{mistake} (by --set)" for mistake in mistakes]
        raise _error(path, problems + mistakes)
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
        raise UserError(f"--row {label!r} is no row; {suggestion(label, labels)}")
    experiment, row = found[0]
    rule = experiment.seed_rule
    if seed is not None and seed not in (range(rule.most) if rule else row.seeds):
        known = f"0 to {rule.most - 1}" if rule else f"{list(row.seeds)}"
        raise UserError(f"{experiment.path}, row {label!r}: --seed {seed} is none of its seeds {known}")
    return experiment, row


def parent_file(path: Path, name: str) -> Path:
    """Return the file that `path` extends: beside it, or else among the project's own experiments."""
    beside, ours = Path(normpath(path.parent / name)), ROOT / "experiments" / name
    return ours if not beside.exists() and ours.is_file() else beside


def placed(own: Settings, folder: Path) -> Settings:
    """Make paths under `data` absolute, which count from the folder of the file that says them."""
    data = own.get("data")
    if not isinstance(data, Mapping):
        return own
    named = {
        name: normpath((folder / Path(value).expanduser()).absolute())
        for name, value in data.items()
        if name in ("root", "weights") and isinstance(value, str)
    }
    return own | {"data": {**data, **named}}


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


def _read(path: Path, chain: tuple[Path, ...], most_rows: int) -> tuple[Settings, list[str]]:
    """Return a file merged with what it extends, and its own mistakes of form; `chain` are the files that led here.

    Raises:
        UserError: the file is no mapping of settings, or one that it extends has mistakes.
    """
    if path.resolve() in [earlier.resolve() for earlier in chain]:
        raise UserError(f"{chain[0]}: extends goes in a circle: {' -> '.join(map(str, (*chain, path)))}")
    own = read_yaml(path, named_by=chain[-1] if chain else None)
    if isinstance(own.get("extends"), str):
        own["extends"] = [own["extends"]]
    # Names are checked here, file by file, since a merged document no longer tells where a misspelt one stands.
    problems = list(_misspelt_names(own))
    own = placed(own, path.parent)
    document, _, mistakes_of_form = _document(own)
    if document is None:
        raise _error(path, mistakes_of_form + problems)
    parents = [_read_parent(parent_file(path, name), (*chain, path), most_rows) for name in document.extends]
    merged, mistakes = _inherit(parents, own, most_rows)
    return merged, problems + mistakes


def _from_here(overrides: Settings) -> Settings:
    """Paths that a command line sets count from the current folder."""
    return placed(overrides, Path.cwd())


def _document(raw: Settings) -> tuple[Document | None, SeedRule | None, list[str]]:
    """Type a top level, and the rule that may stand there for seeds; return them, or None, and their mistakes."""
    if not isinstance(raw.get("seeds"), Mapping):
        document, problems = read_settings(Document, raw)
        others = ", such as [0, 1, 2], or {until: decided, at_least: 2, most: 8}"
        return document, None, [f"{told}{others if told.startswith('seeds is ') else ''}" for told in problems]
    rule, problems = read_settings(SeedRule, raw["seeds"], "seeds.")
    document, mistakes = read_settings(Document, {name: value for name, value in raw.items() if name != "seeds"})
    problems += mistakes
    if rule is None or document is None:
        return None, None, problems
    return replace(document, seeds=tuple(range(rule.at_least))), rule, []


def _ours_if_not_here(path: Path) -> Path:
    """Return the project's own file or folder of this name, such as experiments/paper, where there is none here."""
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def _read_parent(path: Path, chain: tuple[Path, ...], most_rows: int) -> Settings:
    """Read a file that another extends; one without rows is a part of experiments, which is checked within them."""
    merged, problems = _read(path, chain, most_rows)
    if merged.get("rows"):
        problems += _experiment(path, merged)[1]
    if problems:
        raise _error(path, problems)
    return merged


def _misspelt_names(own: Settings) -> Iterator[str]:
    """Name every key of a file, at any depth, that is no setting; where a mapping has to be and is none, nothing."""
    yield from misspelt(Document, own)
    parts = {"defaults": Settable, "resources": Resources, "data": Places, "search": SearchForm, "seeds": SeedRule}
    for name, kind in parts.items():
        yield from misspelt(kind, _mapping(own.get(name)), f"{name}.")
    for place, row in enumerate(_list(own.get("rows"))):
        for problem in misspelt_in_line(Row, row):
            yield f"{_where(row, place)}: {problem}"
    for label, row in _mapping(own.get("changes")).items():
        for problem in misspelt_in_line(Row, row):
            yield f"row {label!r}: changes: {problem}"
    for place, line in enumerate(_list(own.get("cited"))):
        for problem in misspelt_in_line(Cited, line):
            yield f"cited.{place}: {problem}"


def _inherit(parents: Sequence[Settings], own: Settings, most_rows: int) -> tuple[Settings, list[str]]:
    """Lay a checked document on those that it extends, and return the whole with the mistakes of doing so.

    Defaults and resources merge deeply. Rows are the document's own, then those of its grid, then those of its search.
    Where it has none of these, or picks with `only`, it begins with the rows of the last parent that has some.
    """
    inherited: Settings = {}
    for parent in parents:
        passed_on = {name: value for name, value in parent.items() if name not in OF_ONE_FILE}
        if not passed_on["rows"]:
            del passed_on["rows"]  # or a part without rows, named last, would take away those of an earlier parent
        inherited = _lay(passed_on, inherited)
    rows, problems = _listed_rows(inherited.get("rows") or [], own)
    if own.get("grid") is not None:
        combinations, mistakes = grid_rows(own["grid"], most_rows)
        rows, problems = rows + combinations, problems + mistakes
    if own.get("search") is not None:
        _, drawn, mistakes = read_search(own["search"], most_rows)
        rows, problems = rows + drawn, problems + mistakes
    if told := too_many(len(rows), most_rows):
        rows, problems = [], [*problems, f"there are {told}; list fewer"]
    return _lay(own, inherited) | {"rows": rows}, problems


def _lay(above: Settings, below: Settings) -> Settings:
    deep = {name: lay(above.get(name, {}), below.get(name, {})) for name in ("defaults", "resources", "data")}
    return below | above | deep


def _listed_rows(inherited: Sequence[Settings], own: Settings) -> tuple[list[Settings], list[str]]:
    """Return the rows that are listed, in the document or in a parent, and the mistakes of picking among them."""
    makes_rows = any(own.get(name) is not None for name in ("rows", "grid", "search"))
    if "rows" in own or (makes_rows and "only" not in own) or not inherited:
        problems = list(_picks_among_own_rows(own)) if makes_rows else []
        return list(own.get("rows") or ()), problems
    return _picked_rows(inherited, own)


def _picks_among_own_rows(own: Settings) -> Iterator[str]:
    for name, verb in (("only", "picks among"), ("changes", "is laid on")):
        if name in own:
            yield f"{name} {verb} inherited rows, but this file gives its own; leave one of them out"


def _picked_rows(rows: Sequence[Settings], own: Settings) -> tuple[list[Settings], list[str]]:
    """Keep the inherited rows that `only` names, in its order, and lay `changes` on them."""
    by_label: dict[str, Settings] = {row["label"]: row for row in rows}
    changes: dict[str, Settings] = own.get("changes", {})
    kept = own["only"] if own.get("only") is not None else list(by_label)
    problems = [
        f"only names {name!r}, which is no row; {suggestion(name, by_label)}" for name in kept if name not in by_label
    ]
    for label, settings in changes.items():
        if label not in by_label:
            problems.append(f"changes names {label!r}, which is no row; {suggestion(label, by_label)}")
        elif "label" in settings:
            problems.append(f"changes gives row {label!r} another label; give the row under rows instead")
    return [lay(changes.get(name, {}), by_label[name]) for name in kept if name in by_label], problems


def _experiment(path: Path, merged: Settings) -> tuple[Experiment | None, list[str]]:
    """Type a merged document; return the experiment, or None and its mistakes."""
    document, rule, _ = _document(merged)
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
    problems += _mistakes_of_document(document)
    problems += _mistakes_of_references(document, rows)
    problems += _mistakes_of_rule(document, rows) if rule else []
    problems += mixed_scales([*rows, *cited])
    problems += _mistakes_of_names(document, path)
    problems += _beyond_limits(rows, rule)
    # What needs several settings to be sound is compared only where each of them is.
    if resources is not None and not problems:
        problems += [f"resources.{problem}" for problem in contradictions(resources, [row.train for row in rows])]
        problems += _equal_rows(rows, search)
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
        problems += [f"{_where(raw, place)}: {mistake}" for mistake in mistakes if mistake not in shared]
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


def _equal_rows(rows: Sequence[Row], search: Search | None) -> Iterator[str]:
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


def _error(path: Path, problems: Iterable[str]) -> UserError:
    lines = [f"{path}{', ' if problem.startswith('row ') else ': '}{problem}" for problem in problems]
    return UserError("\n".join(dict.fromkeys(lines)))


def _where(row: Any, place: int) -> str:
    label = _mapping(row).get("label")
    return f"row {label!r}" if isinstance(label, str) else f"row {place + 1}"


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
