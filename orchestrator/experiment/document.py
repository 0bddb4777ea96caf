"""The top level of an experiment file, merged with what the file extends; mistakes of form are named by path."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import exists, expanduser, isfile, normpath, realpath
from pathlib import Path
from typing import Any

from model.config import METRICS
from model.settings import Settings, misplaced, misspelt, read_settings, suggestion
from orchestrator.errors import UserError
from orchestrator.experiment.layers import lay
from orchestrator.experiment.rows import Cited, Places, Resources, Row, SeedRule, misspelt_in_line
from orchestrator.experiment.search import SearchForm, Settable, grid_rows, read_search, too_many
from orchestrator.site import ROOT
from orchestrator.strict_yaml import read_yaml

OF_ONE_FILE = ("name", "suite", "extends", "only", "changes", "grid")
"""Keys that say something of their own file alone; all else is inherited."""
Check = Callable[[Path, Settings], list[str]]
"""Returns what is wrong with a merged file beyond its form."""


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


def read_document(path: Path, check: Check, most_rows: int, chain: tuple[Path, ...] = ()) -> tuple[Settings, list[str]]:
    """Return a file merged with what it extends, and its own mistakes of form.

    Args:
        path: of the file.
        check: finds the other mistakes of those that it extends.
        most_rows: more are taken for a slip.
        chain: the files that led here.

    Raises:
        UserError: the file is no mapping of settings, or one that it extends has mistakes.
    """
    if realpath(path) in map(realpath, chain):
        raise UserError(f"{chain[0]}: extends goes in a circle: {' -> '.join(map(str, (*chain, path)))}")
    own = read_yaml(path, named_by=chain[-1] if chain else None)
    if isinstance(own.get("extends"), str):
        own["extends"] = [own["extends"]]
    # Names are checked here, file by file, since a merged document no longer tells where a misspelt one stands.
    problems = list(_misspelt_names(own))
    own = placed(own, path.parent)
    document, _, mistakes_of_form = typed(own)
    mistakes_of_form += misplaced(Settable, _mapping(own.get("defaults")), "defaults.")
    if document is None or mistakes_of_form:
        raise error_of(path, mistakes_of_form + problems)
    if any("\0" in name for name in document.extends):
        raise error_of(path, ["extends holds a NUL, which no name of a file does; write the name again"])
    parents = [_read_parent(parent_file(path, name), check, most_rows, (*chain, path)) for name in document.extends]
    merged, mistakes = _inherit(parents, own, most_rows)
    return merged, problems + mistakes


def typed(raw: Settings) -> tuple[Document | None, SeedRule | None, list[str]]:
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


def parent_file(path: Path, name: str) -> Path:
    """Return the file that `path` extends: beside it, or else among the project's own experiments."""
    beside, ours = Path(normpath(path.parent / name)), ROOT / "experiments" / name
    return ours if not exists(beside) and isfile(ours) else beside


def placed(own: Settings, folder: Path) -> Settings:
    """Make paths under `data` absolute, which count from the folder of the file that says them."""
    data = own.get("data")
    if not isinstance(data, Mapping):
        return own
    named = {
        name: normpath((folder / expanduser(value)).absolute())
        for name, value in data.items()
        if name in ("root", "weights") and isinstance(value, str)
    }
    return own | {"data": {**data, **named}}


def error_of(path: Path, problems: Iterable[str]) -> UserError:
    """Return the error that names the mistakes of a file, one to a line."""
    lines = [f"{path}{', ' if problem.startswith('row ') else ': '}{problem}" for problem in problems]
    return UserError("\n".join(dict.fromkeys(lines)))


def where(row: Any, place: int) -> str:
    """Name a row, as far as it was written, by its label or its place."""
    label = _mapping(row).get("label")
    return f"row {label!r}" if isinstance(label, str) else f"row {place + 1}"


def _read_parent(path: Path, check: Check, most_rows: int, chain: tuple[Path, ...]) -> Settings:
    """Read a file that another extends; one without rows is a part of experiments, which is checked within them."""
    merged, problems = read_document(path, check, most_rows, chain)
    if merged.get("rows"):
        problems += check(path, merged)
    if problems:
        raise error_of(path, problems)
    return merged


def _misspelt_names(own: Settings) -> Iterator[str]:
    """Name every key of a file, at any depth, that is no setting; where a mapping has to be and is none, nothing."""
    yield from misspelt(Document, own)
    parts = {"defaults": Settable, "resources": Resources, "data": Places, "search": SearchForm, "seeds": SeedRule}
    for name, kind in parts.items():
        yield from misspelt(kind, _mapping(own.get(name)), f"{name}.")
    for place, row in enumerate(_list(own.get("rows"))):
        for problem in misspelt_in_line(Row, row):
            yield f"{where(row, place)}: {problem}"
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


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
