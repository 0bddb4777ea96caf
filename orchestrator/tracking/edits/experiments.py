"""Finds the MLflow experiments that are suites, by their tag `suite`, whatever somebody has renamed them to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from orchestrator import names
from orchestrator.errors import UserError
from orchestrator.tracking import rest


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteExperiment:
    """An experiment of MLflow that holds the runs of a suite."""

    id: str
    name: str
    suite: str
    is_deleted: bool = False
    """Whether it lies in MLflow's trash, from where it can be restored."""
    created: int = 0
    """Milliseconds since 1970."""


def find_experiment(uri: str, suite: str) -> SuiteExperiment | None:
    """Find the experiment of a suite: the one that is called after it, or else the one whose tag says so.

    Raises:
        UserError: it was renamed, and two have its tag.
    """
    named = _by_name(uri, suite)
    if named is not None and not named.is_deleted:
        return named
    tagged = _by_tag(uri, suite)
    there = [one for one in tagged if not one.is_deleted]
    if len(there) > 1:
        listed = " and ".join(f"{one.name} (id {one.id})" for one in there)
        raise UserError(
            f"MLflow at {uri}: {listed} both have the tag {names.SUITE} = {suite}, and neither is called "
            f"{names.experiment_name(suite)}; rename the one that counts to that, or remove the tag of the other"
        )
    if there:
        return there[0]
    # The newest: what was deleted before it was given up for that one.
    return max([*([named] if named else []), *tagged], key=lambda one: one.created, default=None)


def all_suites(uri: str) -> dict[str, str]:
    """Return the id of MLflow's experiment of each suite, without those in the trash."""
    found: dict[str, SuiteExperiment] = {}
    named, tagged = f"name LIKE '{names.SUITE_PREFIX}%'", f"tags.{names.SUITE} LIKE '%'"
    for one in (*_search(uri, named), *_search(uri, tagged)):
        counts = one.suite not in found or one.name == names.experiment_name(one.suite)
        # Of another project a suite may have this tag, too; and ours are folders, never paths of several.
        may_be_ours = PurePath(one.suite).name == one.suite != ".." and not any(names.mistakes_of_suite(one.suite))
        if counts and may_be_ours and _is_ours(uri, one):
            found[one.suite] = one
    return {suite: one.id for suite, one in found.items()}


def others_of(uri: str, suite: str, experiment_id: str) -> list[SuiteExperiment]:
    """Return the other experiments that say they are this suite, which count for nothing."""
    return [one for one in _by_tag(uri, suite) if one.id != experiment_id and not one.is_deleted]


def quoted(text: str) -> str:
    """Write a text as a filter of MLflow does, which knows two quotation marks and no escape."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _by_name(uri: str, suite: str) -> SuiteExperiment | None:
    try:
        told = rest.get(uri, "experiments/get-by-name", {"experiment_name": names.experiment_name(suite)})
    except rest.Refused as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    found = _read(told["experiment"])
    return found if found.suite == suite else None


def _by_tag(uri: str, suite: str) -> list[SuiteExperiment]:
    found = _search(uri, f"tags.{names.SUITE} = {quoted(suite)}", "ALL")
    return [one for one in found if one.suite == suite and _is_ours(uri, one)]


def _is_ours(uri: str, experiment: SuiteExperiment) -> bool:
    """Say whether an experiment is called as ours are, or holds a run of ours; a tag `suite` is a common thing."""
    if experiment.name.startswith(names.SUITE_PREFIX):
        return True
    where = f"tags.{names.SUITE} = {quoted(experiment.suite)} and tags.{names.KIND} != ''"
    asked = {"experiment_ids": [experiment.id], "filter": where, "max_results": 1, "run_view_type": "ALL"}
    return bool(rest.post(uri, "runs/search", asked).get("runs"))


def _search(uri: str, where: str, view: str = "ACTIVE_ONLY") -> Iterator[SuiteExperiment]:
    asked = {"max_results": 1000, "filter": where, "view_type": view}
    return (_read(told) for told in rest.pages(uri, "experiments/search", asked, "experiments"))


def _read(told: Mapping[str, Any]) -> SuiteExperiment:
    tags = {tag["key"]: str(tag.get("value", "")) for tag in told.get("tags", [])}
    name = str(told["name"])
    return SuiteExperiment(
        id=str(told["experiment_id"]),
        name=name,
        # Before it had a tag, its name said it.
        suite=tags.get(names.SUITE) or name.removeprefix(names.SUITE_PREFIX),
        is_deleted=told.get("lifecycle_stage") == "deleted",
        created=int(told.get("creation_time", 0)),
    )
