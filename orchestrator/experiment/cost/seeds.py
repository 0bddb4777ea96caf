"""Seeds until decided: which seeds rows have by now, at which level each look may decide, and what one more costs.

Whoever looks at an interval after every seed, and stops when it excludes 0, is wrong more often than 5 times in 100.
So the 5 % are spread over the looks: alpha spending, Lan and DeMets (1983), "Discrete sequential boundaries for
clinical trials", Biometrika 70.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import NormalDist

from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, RowKeys, row_keys, why_evaluation_is_missing
from orchestrator.experiment.rows import Row, SeedRule

ERROR = 0.05
"""The chance that any look of a row decides although there is no difference."""
Asked = frozenset[tuple[str, str]]
"""Trainings that a submit has just decided to add, as (table, train key), and that MLflow does not hold yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One comparison of a row with the reference, after so many seeds of both."""

    num_seeds: int
    level: float
    """Of its interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """A seed that a row may have next."""

    table: str
    label: str
    number: int
    asked: Asked
    """Its training, and that of the row that it is compared with."""
    hours: float | None = None
    """What it costs; None where that is unknown, or was not asked."""

    def __str__(self) -> str:
        """Say it as in a sentence."""
        return f"seed {self.number} of {self.label}{'' if self.hours is None else f' ({self.hours:.2g})'}"


Cost = Callable[[Asked], float | None]


def looks(rule: SeedRule, num_seeds: int) -> list[Look]:
    """Return the looks at a row that has so many seeds; all that a rule allows together err in about 5 of 100 rows.

    The spending function of O'Brien-Fleming type, alpha(t) = 2 - 2 Phi(z / sqrt(t)) with z of 97.5 % and t the share
    of the seeds, gives little to early looks, whose spread has few degrees of freedom. Each look has what was added
    since the one before; as probabilities of a union are at most their sum, this needs no independence of the looks.
    They err in no more than 5 as far as intervals keep their level, of which those of few seeds fall short (see
    `half_width`): up to 6.2 of 100 rows are decided without an effect by a rule of 2 to 3 seeds, 1 to 3 by 2 to 8.
    """
    return [
        Look(num_seeds=number, level=1.0 - _spent(rule, number) + _spent(rule, number - 1))
        for number in range(rule.at_least, num_seeds + 1)
    ]


def grown(experiment: Experiment, ledger: Ledger, asked: Asked = frozenset()) -> Experiment:
    """Return an experiment with the seeds that its rows have by now: 0, 1, ... as far as they were run or asked for.

    Nothing but the ledger says so, so that a report, a plan and a later submit agree. A row that others are compared
    with has at least as many seeds as any of these, since a seed counts only in pairs.
    """
    rule = experiment.seed_rule
    if rule is None:
        return experiment

    def count(row: Row, most: int) -> int:
        number = rule.at_least
        while number < most and _is_there(experiment.name, keys_of(row, number), ledger, asked):
            number += 1
        return number

    references = {label: count(row, rule.most) for label, row in _references(experiment).items()}
    numbers = [
        references.get(row.label) or count(row, references[experiment.reference_of(row)]) for row in experiment.rows
    ]
    rows = [replace(row, seeds=tuple(range(number))) for row, number in zip(experiment.rows, numbers, strict=True)]
    return replace(experiment, rows=tuple(rows))


def at_most(experiment: Experiment) -> Experiment:
    """Return an experiment with all the seeds that its rows may come to have, as if they were listed."""
    rule = experiment.seed_rule
    if rule is None:
        return experiment
    rows = tuple(replace(row, seeds=tuple(range(rule.most))) for row in experiment.rows)
    return replace(experiment, rows=rows, seed_rule=None)


def next_seeds(experiment: Experiment, labels: Collection[str]) -> list[Seed]:
    """Return one more seed for each of these rows that may have one; what each is compared with needs it as well.

    Args:
        experiment: as `grown` gives it.
        labels: of rows that are still open.
    """
    rule, found, references = experiment.seed_rule, [], _references(experiment)
    for row in experiment.rows:
        reference = references.get(experiment.reference_of(row), row)
        # A row that others are compared with may be ahead of its own reference.
        number = min(len(row.seeds), len(reference.seeds))
        if rule is not None and row.label in labels and number < rule.most:
            pair = (keys_of(one, number) for one in (row, reference))
            asked = frozenset((experiment.name, keys.train_key) for keys in pair)
            found.append(Seed(table=experiment.name, label=row.label, number=number, asked=asked))
    return found


def cheapest_seeds(seeds: Sequence[Seed], cost: Cost, hours: float | None) -> tuple[list[Seed], list[Seed]]:
    """Choose the seeds that are added, the cheapest first, and those for which the hours that are left do not suffice.

    The answers come with what each costs beyond those before it: rows share the reference, and may share trainings.

    Args:
        seeds: at most one of each row.
        cost: gives the hours of some trainings together; None where that is unknown.
        hours: of the budget; None has no end.
    """
    added: list[Seed] = []
    left_out: list[Seed] = []
    asked: Asked = frozenset()
    alone = {seed: cost(seed.asked) for seed in seeds}
    for seed in sorted(seeds, key=lambda seed: inf if (known := alone[seed]) is None else known):
        before, after = cost(asked), cost(asked | seed.asked)
        beyond = None if before is None or after is None else after - before
        costed = replace(seed, hours=beyond)
        if hours is not None and (after or 0.0) > hours:
            left_out.append(costed)
        else:
            added.append(costed)
            asked |= seed.asked
    return added, left_out


def _references(experiment: Experiment) -> dict[str | None, Row]:
    """Return the rows that others are compared with, by label; that of the table is always one of them."""
    labels = {experiment.reference_of(row) for row in experiment.rows}
    return {row.label: row for row in experiment.rows if row.label in labels}


def keys_of(row: Row, seed: int) -> RowKeys:
    """Return the keys of a row for one seed, whether it has that or not."""
    (keys,) = row_keys(replace(row, seeds=(seed,)))
    return keys


def note_on_looks(rule: SeedRule, num_seeds: int) -> str:
    """Say how many looks there were at the rows of a table, and at which levels.

    Args:
        rule: of the table.
        num_seeds: the most that one of its rows and what it is compared with are both measured by.
    """
    said = f"Seeds are added until decided, {rule.at_least} to {rule.most}"
    made = looks(rule, num_seeds)
    if not made:
        return f"{said}: no look so far, the first is after {rule.at_least} seeds, and no interval before it."
    levels = ", ".join(f"{100 * look.level:.4g} % after {look.num_seeds}" for look in made)
    number = f"{len(made)} look{'s' if len(made) > 1 else ''}"
    return (
        f"{said}: {number} so far, each at a level of its own ({levels} seeds), so that"
        " all looks at a row err in about 5 of 100 (alpha spending, Lan and DeMets 1983);"
        " an interval is what all looks at its row have in common."
    )


def _is_there(table: str, keys: RowKeys, ledger: Ledger, asked: Asked) -> bool:
    """Whether a seed of a row was asked for by its table, or is measured already because another table asked."""
    record = ledger.trainings.get(keys.train_key)
    return (
        (table, keys.train_key) in asked
        or (record is not None and table in record.wanted_by)
        or why_evaluation_is_missing(ledger, keys.train_key, keys.evaluation_key) is None
    )


def _spent(rule: SeedRule, num_seeds: int) -> float:
    """Return the part of ERROR that may be used up after so many seeds; before the first look nothing is."""
    if num_seeds < rule.at_least:
        return 0.0
    normal = NormalDist()
    z = normal.inv_cdf(1.0 - ERROR / 2)
    return 2.0 - 2.0 * normal.cdf(z / (num_seeds / rule.most) ** 0.5)
