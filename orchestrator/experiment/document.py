"""The top level of an experiment file, and what it takes from the files that it extends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.settings import Settings, merge, suggestion
from orchestrator.experiment.grid import grid_rows
from orchestrator.experiment.search import read_search

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of an evaluation, by the names of model.evaluation.coco_eval, too heavy to import here."""

OF_ONE_FILE = ("name", "suite", "extends", "only", "changes", "grid")
"""What a file says of itself alone; all else is inherited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The top level of a file, before its rows and settings are looked into."""

    name: str | None = None
    suite: str | None = None
    title: str | None = None
    question: str = ""
    extends: tuple[str, ...] = ()
    """Files whose settings this one starts from; of two that say the same the later counts."""
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
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


def inherit(parents: Sequence[Settings], own: Settings) -> tuple[Settings, list[str]]:
    """Lay a checked document on those that it extends, and return the whole with the mistakes of doing so.

    Defaults and resources merge deeply. Rows are the document's own, then those of its grid, then those of its search.
    Where it has none of these, or picks with `only`, it begins with the rows of the last parent that has some.
    """
    inherited: Settings = {}
    for parent in parents:
        passed_on = {name: value for name, value in parent.items() if name not in OF_ONE_FILE}
        if not passed_on["rows"]:
            del passed_on["rows"]
        inherited = _lay(passed_on, inherited)
    rows, problems = _rows(inherited.get("rows") or [], own)
    for made, mistakes in (
        grid_rows(own["grid"]) if own.get("grid") is not None else ([], []),
        read_search(own["search"])[1:] if own.get("search") is not None else ([], []),
    ):
        rows += made
        problems += mistakes
    return _lay(own, inherited) | {"rows": rows}, problems


def _rows(inherited: Sequence[Settings], own: Settings) -> tuple[list[Settings], list[str]]:
    """Return the rows that are listed, here or in a parent."""
    makes_rows = any(own.get(name) is not None for name in ("rows", "grid", "search"))
    if "rows" in own or (makes_rows and "only" not in own) or not inherited:
        problems = list(_picks_among_own_rows(own)) if makes_rows else []
        return list(own.get("rows") or ()), problems
    return _inherited_rows(inherited, own)


def _lay(above: Settings, below: Settings) -> Settings:
    deep = {name: merge(below.get(name, {}), above.get(name, {})) for name in ("defaults", "resources")}
    return below | above | deep


def _inherited_rows(rows: Sequence[Settings], own: Settings) -> tuple[list[Settings], list[str]]:
    """Keep the rows that `only` names, in its order, and lay `changes` on them."""
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
    return [merge(by_label[name], changes.get(name, {})) for name in kept if name in by_label], problems


def _picks_among_own_rows(own: Settings) -> Iterator[str]:
    for name, verb in (("only", "picks among"), ("changes", "is laid on")):
        if name in own:
            yield f"{name} {verb} inherited rows, but this file gives its own; leave one of them out"
