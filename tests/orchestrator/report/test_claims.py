"""Each kind of claim is supported, contradicted or left open by intervals that are worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.config import DataConfig, TrainConfig
from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiments
from orchestrator.experiment.rows import Row
from orchestrator.report.claims import Claim, Judgement, claims_table, find_claims, judge, load_claims
from orchestrator.report.results import RowResult

ROOT = Path(__file__).parents[3]
SHAPES = TrainConfig(data=DataConfig(dataset="shapes", train_split="train", val_split="val"))
NOISE = np.linspace(-0.5, 0.5, 1001)
"""95 % of it lie within 0.475 of 0; every second row has it, so that neighbours differ by it."""


def measured(label: str, ap: float | None, slope: float) -> RowResult:
    """A row whose resamples scatter by `slope` times what NOISE does; differences by the difference of slopes."""
    numbers = {} if ap is None else {0: {"AP": ap, "AP50": ap}}
    samples = {} if ap is None else {0: np.tile(ap + slope * NOISE, (3, 1))}
    return RowResult(row=Row(label=label), by_seed=numbers, resampled=samples, state="")


def judgement(
    kind: str, values: Sequence[float | None], num_rows: int, *, value: float = 0.0, metric: str = "AP"
) -> Judgement:
    """Judge rows a, b, c ... of these APs, the first `num_rows` as rows, the others as over."""
    labels = "abcdefg"[: len(values)]
    rows = [measured(label, ap, float(place % 2)) for place, (label, ap) in enumerate(zip(labels, values, strict=True))]
    claim = Claim(
        sentence="s",
        kind=kind,  # type: ignore[arg-type]
        table="t",
        rows=tuple(labels[:num_rows]),
        over=tuple(labels[num_rows:]),
        metric=metric,
        value=value,
    )
    return judge([claim], {"t": rows})[0]


@pytest.mark.parametrize(
    ("ap", "verdict"),
    [(31.2, "supported"), (30.9, "undecided"), (30.2, "contradicted")],  # 30.7 +- 0.475 is left open
)
def test_at_least_compares_a_difference_with_its_bound(ap: float, verdict: str) -> None:
    found = judgement("at_least", [ap, 30.0], 1, value=0.7)
    assert found.verdict == verdict
    assert (
        found.numbers
        == {
            "supported": "+1.2 [+0.7, +1.7], claimed +0.7",
            "undecided": "+0.9 [+0.4, +1.4], claimed +0.7",
            "contradicted": "+0.2 [-0.3, +0.7], claimed +0.7",
        }[verdict]
    )


def test_at_least_compares_a_row_with_its_bound() -> None:
    assert judgement("at_least", [38.5], 1, value=38.4).verdict == "supported"  # row a does not scatter
    assert judgement("at_least", [38.3], 1, value=38.4).verdict == "contradicted"


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([30.0, 30.9], "supported"),
        ([30.5, 30.0], "supported"),
        ([31.1, 30.0], "undecided"),
        ([32.0, 31.1], "contradicted"),
    ],
)
def test_best_is_above_each_of_the_others(others: list[float], verdict: str) -> None:
    assert judgement("best", [31.0, *others], 1).verdict == verdict


def test_rows_that_are_one_training_are_not_above_each_other() -> None:
    same = [measured("a", 30.0, 1.0), measured("b", 30.0, 1.0)]
    claim = Claim(sentence="s", kind="best", table="t", rows=("a",), over=("b",))
    assert judge([claim], {"t": same})[0].verdict == "undecided"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([30.0, 30.1, 30.0], "supported"), ([30.0, 30.2, 30.0], "undecided"), ([30.0, 31.1, 30.0], "contradicted")],
)
def test_flat_keeps_every_pair_within_its_width(values: list[float], verdict: str) -> None:
    """Gaps of 0.1, 0.2, 1.1 +- 0.475 against 0.6."""
    found = judgement("flat", values, 3, value=0.6)
    assert found.verdict == verdict
    if verdict == "contradicted":
        assert found.numbers in (
            "widest gap -1.1 [-1.6, -0.6], claimed within 0.6",
            "widest gap +1.1 [+0.6, +1.6], claimed within 0.6",
        )


@pytest.mark.parametrize("values", [[30.0, 31.1], [31.1, 30.0]])
def test_flat_looks_up_and_down(values: list[float]) -> None:
    assert judgement("flat", values, 2, value=0.6).verdict == "contradicted"


def test_each_metric_has_resamples_of_its_own() -> None:
    row = RowResult(
        row=Row(label="a"),
        by_seed={0: {"AP": 30.0, "AP50": 50.0, "AP75": 32.0, "APs": 9.0}},
        resampled={0: np.stack([NOISE, 2 * NOISE, 3 * NOISE])},
        state="",
    )
    halves = [
        found.high - found.value if (found := row.estimate(name)) else None for name in ("AP", "AP50", "AP75", "APs")
    ]
    assert halves == [pytest.approx(0.475), pytest.approx(0.95), pytest.approx(1.425), None]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([31.0, 30.9, 30.0, 30.1], "supported"),  # a step up of 0.1 may be chance
        ([31.0, 30.3, 30.4, 30.7], "undecided"),  # -0.3 from first to last
        ([31.0, 30.0, 30.6, 29.0], "contradicted"),  # a step up of 0.6 is none
        ([30.0, 30.3, 30.3, 30.6], "contradicted"),  # no step is sure, the whole is
    ],
)
def test_falls_sinks_as_a_whole_and_rises_nowhere_for_sure(values: list[float], verdict: str) -> None:
    assert judgement("falls", values, 4, metric="AP50").verdict == verdict


def test_what_is_not_there_leaves_a_claim_open() -> None:
    found = judgement("best", [31.0, None], 1)
    assert (found.verdict, found.numbers) == ("undecided", "not run: b")
    bare = RowResult(row=Row(label="a"), by_seed={0: {"AP": 31.0}}, resampled={}, state="")
    claim = Claim(sentence="s", kind="at_least", table="t", rows=("a",), value=30)
    assert judge([claim], {"t": [bare]})[0].numbers == "for want of matches no interval: a"
    assert judge([claim], {})[0].numbers == "table t is not among those shown"
    with pytest.raises(UserError, match="'a' is no row of t; did you mean"):
        judge([claim], {"t": [measured("aa", 30.0, 0.0)]})


def test_the_table_counts_the_verdicts() -> None:
    judgements = [judgement("best", [31.0, 30.0], 1), judgement("best", [31.0, None], 1)]
    table = claims_table(judgements, {"t": [measured("a", 31.0, 0.0)]})
    assert table.rows[0] == ("s", "supported", "+1.0 [+0.5, +1.5] over b")
    assert table.notes[0] == "1 supported, 0 contradicted, 1 undecided."
    assert table.notes[2] == "Measured on COCO val2017."
    drawn = replace(measured("a", 31.0, 0.0), row=Row(label="a", train=SHAPES, split="val"))
    told = claims_table(judgements, {"t": [drawn]}).notes[2]
    assert told == "Measured on shapes val; the paper speaks of COCO val2017."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("claims: [{sentence: s, kind: best, table: t, rows: [a]}]", "claim 's': over is [], expected at least one"),
        ("claims: [{sentence: s, kind: falls, table: t, rows: [a]}]", "expected at least two for kind falls"),
        ("claims: [{sentence: s, kind: flat, table: t, rows: [a, b]}]", "value is 0.0, expected more than 0"),
        (
            "claims: [{sentence: s, kind: at_least, table: t, rows: [a], metric: APs}]",
            "metric is 'APs', expected one of",
        ),
        ("claims: [{sentence: s, kind: best, table: t, rows: [a], over: [a]}]", "expected different rows"),
        ("claims: [{sentence: s, knd: best, table: t, rows: [a]}]", "knd is not a setting; did you mean kind"),
        ("claims: [{sentence: s, kind: bets, table: t, rows: [a]}]", 'kind is "bets"'),
        ("claim: []", "claims is missing"),
    ],
)
def test_mistakes_of_a_file_are_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_claims(tmp_path / "claims.yaml")
    assert says in str(error.value) and "claims.yaml" in str(error.value)


@pytest.mark.parametrize("suite", ["paper", "miniature"])
def test_the_papers_claims_name_rows_that_both_suites_have(suite: str) -> None:
    experiments = load_experiments([ROOT / "experiments" / suite])
    file = find_claims([one.path for one in experiments])
    assert file.resolve() == ROOT / "experiments" / "paper" / "claims.yaml"
    tables = {
        one.name: [RowResult(row=row, by_seed={}, resampled={}, state="not run") for row in one.rows]
        for one in experiments
    }
    judgements = judge(load_claims(file), tables)
    assert len(judgements) == 9 and all(one.numbers.startswith("not run") for one in judgements)


def test_a_folder_without_claims_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the file: --claims FILE"):
        find_claims([tmp_path / "suite" / "table.yaml"])
