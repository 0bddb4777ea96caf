"""Seeds until decided: the levels are worked out by hand, and that looking again does not cheat by simulation."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from model.config import ConfidenceConfig, ModelConfig, TrainConfig
from orchestrator.experiment.cost.seeds import (
    Asked,
    Seed,
    at_most,
    cheapest_seeds,
    grown,
    keys_of,
    looks,
    next_seeds,
    note_on_looks,
)
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record
from orchestrator.experiment.rows import Row, SeedRule
from orchestrator.report.results.rows import RowResult
from tests.orchestrator.ledgers import experiment, finished

RULE = SeedRule(until="decided", at_least=2, most=4)
BASE = Row(label="base", train=TrainConfig(model=ModelConfig(confidence=None)), seeds=(0, 1))
OURS = Row(label="ours", seeds=(0, 1))
BOX = Row(label="box", train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))), seeds=(0, 1))
SHARED = Row(label="shared", train=OURS.train, split="minival", seeds=(0, 1))


def table(*rows: Row, rule: SeedRule = RULE, name: str = "table") -> Experiment:
    return replace(experiment(name, [BASE, *rows]), reference="base", seed_rule=rule)


def num_seeds(of: Experiment) -> list[int]:
    return [len(row.seeds) for row in of.rows]


def wanted(*pairs: tuple[Row, int], by: str = "table", status: str = "KILLED") -> Ledger:
    """Trainings of these rows and seeds, which a table asked for."""
    record = Record(status=status, run_id="r", wanted_by=frozenset({by}))  # type: ignore[arg-type]
    return Ledger(trainings={keys_of(row, seed).train_key: record for row, seed in pairs})


def test_the_levels_of_all_looks_spend_five_percent_as_the_spending_function_says() -> None:
    made = looks(RULE, 4)
    assert [look.num_seeds for look in made] == [2, 3, 4]
    # 2 - 2 Phi(1.95996 / sqrt(t)) at t = 1/2, 3/4 and 1: 0.00557, 0.02362 and 0.05
    assert [1 - look.level for look in made] == pytest.approx([0.00557, 0.01805, 0.02638], abs=1e-5)
    assert sum(1 - look.level for look in looks(SeedRule(until="decided", at_least=3, most=8), 8)) == pytest.approx(
        0.05
    )
    assert looks(RULE, 1) == []
    (only,) = looks(SeedRule(until="decided", at_least=3, most=3), 3)
    assert only.level == pytest.approx(0.95)


def simulated(effect: float, rule: SeedRule, rng: np.random.Generator, shared: float) -> tuple[bool, int, bool]:
    """Whether a row is ever decided, after how many seeds, and whether a plain 95 % interval would have been at any.

    The seeds of a difference scatter by 1; the images shift all of them by one error, of variance `shared`.
    """
    error, noise = shared**0.5 * rng.standard_normal(), rng.standard_normal(200)
    numbers = {seed: {"AP": effect + error + rng.standard_normal()} for seed in range(rule.most)}
    samples = {seed: np.tile(shared**0.5 * noise, (3, 1)) for seed in numbers}
    row = RowResult(row=OURS, by_seed=numbers, resampled=samples, state="", seed_rule=rule)
    base = RowResult(
        row=BASE,
        by_seed={seed: {"AP": 0.0} for seed in numbers},
        resampled={seed: np.zeros((3, 200)) for seed in numbers},
        state="",
    )
    plain = False
    for number in range(rule.at_least, rule.most + 1):
        so_far = replace(row, by_seed={seed: numbers[seed] for seed in range(number)})
        so_far = replace(so_far, resampled={seed: samples[seed] for seed in range(number)})
        once = replace(so_far, seed_rule=None).difference(base, "AP")
        plain = plain or (once is not None and once.excludes_zero)
        gain = so_far.difference(base, "AP")
        assert gain is not None
        if gain.excludes_zero:
            return True, number, plain
    return False, rule.most, plain


@pytest.mark.parametrize("shared", [0.02, 0.5])
def test_without_an_effect_looking_after_every_seed_decides_at_most_five_rows_in_a_hundred(shared: float) -> None:
    rng, rule = np.random.default_rng(0), SeedRule(until="decided", at_least=2, most=6)
    found = [simulated(0.0, rule, rng, shared) for _ in range(1000)]
    assert np.mean([decided for decided, _, _ in found]) <= 0.05
    assert np.mean([plain for _, _, plain in found]) > 0.07  # what ever smaller steps of 5 % come to


def test_an_effect_is_found_with_fewer_seeds_than_the_most() -> None:
    rng, rule = np.random.default_rng(1), SeedRule(until="decided", at_least=2, most=6)
    found = [simulated(3.0, rule, rng, 0.1) for _ in range(200)]
    assert np.mean([decided for decided, _, _ in found]) > 0.9
    assert np.mean([number for _, number, _ in found]) < 5.0


def test_once_decided_a_row_stays_decided_whatever_further_seeds_say() -> None:
    rule = SeedRule(until="decided", at_least=2, most=3)
    z = NormalDist().inv_cdf((1 + looks(rule, 2)[0].level) / 2)
    # no scatter of seeds in the first two: the interval is that of the images, whose error is 1
    noise = np.random.default_rng(0).standard_normal(1000)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    samples = np.tile(noise, (3, 1))

    def result(row: Row, values: list[float], spread: float) -> RowResult:
        numbers = {seed: {"AP": value} for seed, value in enumerate(values)}
        resampled = {seed: spread * samples for seed in numbers}
        return RowResult(row=row, by_seed=numbers, resampled=resampled, state="", seed_rule=rule)

    base = result(BASE, [0.0] * 3, 0.0)
    early = result(OURS, [4.0, 4.0], 1.0).difference(base, "AP")
    assert early is not None and (early.low, early.high) == pytest.approx((4 - z, 4 + z), abs=0.01)
    late = result(OURS, [4.0, 4.0, -2.0], 1.0)
    alone = replace(late, seed_rule=None).difference(replace(base, seed_rule=None), "AP")
    all_looks = late.difference(base, "AP")
    assert alone is not None and not alone.excludes_zero
    assert all_looks is not None and all_looks.low == early.low and all_looks.excludes_zero
    assert all_looks.value == pytest.approx(2.0)


def test_rows_have_the_seeds_that_their_table_asked_for_and_the_reference_as_many() -> None:
    fresh = table(OURS, BOX)
    assert num_seeds(grown(fresh, Ledger())) == [2, 2, 2]
    assert num_seeds(grown(fresh, wanted((BASE, 2), (OURS, 2)))) == [3, 3, 2]
    # no pair, no seed: the reference was not asked for, and a gap ends the count
    assert num_seeds(grown(fresh, wanted((OURS, 2)))) == [2, 2, 2]
    assert num_seeds(grown(fresh, wanted((BASE, 2), (BASE, 3), (OURS, 3)))) == [4, 2, 2]
    assert num_seeds(grown(fresh, wanted((BASE, 2), (OURS, 2), by="another"))) == [2, 2, 2]
    assert num_seeds(grown(fresh, wanted(*((row, seed) for row in (BASE, OURS) for seed in range(9))))) == [4, 4, 2]
    assert grown(experiment("listed", [OURS]), wanted((OURS, 2))).rows == (OURS,)


def test_seeds_that_another_table_has_measured_already_are_there_for_nothing() -> None:
    held = wanted((BASE, 2), (OURS, 2), by="another", status="FINISHED")
    scored = {keys_of(row, 2).evaluation_key: finished(AP=30.0) for row in (BASE, OURS)}
    assert num_seeds(grown(table(OURS), replace(held, evaluations=scored))) == [3, 3]
    assert num_seeds(grown(table(OURS), held)) == [2, 2]  # trained, but not scored for these rows


def test_a_row_is_paired_with_a_reference_of_its_own() -> None:
    """Box over ours, ours over base: by a third seed of both, ours is ahead of base."""
    box = replace(BOX, reference="ours")
    ahead = grown(table(OURS, box), wanted((OURS, 2), (BOX, 2)))
    assert num_seeds(ahead) == [2, 3, 3]
    asked = {seed.label: (seed.number, seed.asked) for seed in next_seeds(ahead, ["ours", "box"])}
    of = {(row.label, seed): ("table", keys_of(row, seed).train_key) for row in (BASE, OURS, BOX) for seed in (2, 3)}
    # the pair of ours that lacks is with base's third seed; its own is there already
    assert asked == {
        "ours": (2, frozenset({of["base", 2], of["ours", 2]})),
        "box": (3, frozenset({of["ours", 3], of["box", 3]})),
    }


def test_rows_that_share_a_training_get_its_seed_together() -> None:
    (seed,) = next_seeds(table(OURS, SHARED), ["ours"])
    assert (seed.label, seed.number) == ("ours", 2)
    assert num_seeds(grown(table(OURS, SHARED), Ledger(), seed.asked)) == [3, 3, 3]


def test_a_row_with_all_its_seeds_gets_no_more_and_one_that_is_decided_none() -> None:
    every = at_most(table(OURS, BOX))
    assert num_seeds(every) == [4, 4, 4] and every.seed_rule is None
    full = replace(every, seed_rule=RULE)
    assert next_seeds(full, ["ours", "box"]) == []
    assert next_seeds(table(OURS, BOX), []) == []


def test_the_cheapest_seeds_are_added_first_and_share_what_they_have_in_common() -> None:
    prices = {"base": 1.0, "cheap": 2.0, "dear": 5.0}

    def seed(label: str) -> Seed:
        return Seed(table="t", label=label, number=2, asked=frozenset({("t", "base"), ("t", label)}))

    def cost(asked: Asked) -> float | None:
        return sum(prices[key] for _, key in asked)

    both = [seed("dear"), seed("cheap")]
    added, left_out = cheapest_seeds(both, cost, None)
    assert [(one.label, one.hours) for one in added] == [("cheap", 3.0), ("dear", 5.0)] and not left_out
    added, left_out = cheapest_seeds(both, cost, 7.9)
    assert [one.label for one in added] == ["cheap"] and [(one.label, one.hours) for one in left_out] == [("dear", 5.0)]
    assert cheapest_seeds(both, cost, 8.0)[1] == []
    added, _ = cheapest_seeds(both, lambda asked: None if asked else 0.0, 0.5)  # unknown: the first that runs will tell
    assert [one.hours for one in added] == [None, None] and str(added[0]) == "seed 2 of dear"


def test_a_table_notes_its_looks_and_their_levels() -> None:
    assert note_on_looks(RULE, 3).startswith(
        "Seeds are added until decided, 2 to 4: 2 looks so far, each at a level of its own (99.44 % after 2, 98.19 %"
        " after 3 seeds), so that all looks at a row err in about 5 of 100"
    )
    assert "2 to 4: no look so far, the first is after 2 seeds" in note_on_looks(RULE, 1)
