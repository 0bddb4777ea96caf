"""A file of claims is read whole, and each of its mistakes named: file, claim, value, and what was probably meant."""

from pathlib import Path
from typing import get_args

import pytest

from orchestrator.errors import UserError
from orchestrator.experiment.load import load_experiments
from orchestrator.report.claims.file import Kind, find_claims, load_claims, means, place_of

ROOT = Path(__file__).parents[4]
PAPER = ROOT / "experiments" / "paper" / "claims.yaml"
TABLE = """
rows: [{label: CE loss}, {label: L1 loss, train: {model: {confidence: {loss: l1}}}}]
cited: [{label: Theirs, paper: {AP: 40}, source: a paper}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "losses.yaml").write_text(TABLE)
    return tmp_path


def load(folder: Path, text: str) -> object:
    (folder / "claims.yaml").write_text(text)
    return load_claims(folder / "claims.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("claims: [{sentence: s, kind: best, table: t, rows: [a]}]", "claim 1, 's': over is [], expected at least one"),
        ("claims: [{sentence: s, kind: falls, table: t, rows: [a]}]", "expected at least two for kind falls"),
        ("claims: [{sentence: s, kind: flat, table: t, rows: [a, b]}]", "value is 0.0, expected more than 0"),
        (
            "claims: [{sentence: s, kind: at_least, table: t, rows: [a], metric: APx}]",
            "metric is 'APx', which is none of t; did you mean AP",
        ),
        ("claims: [{sentence: s, kind: best, table: t, rows: [a], over: [a]}]", "expected different rows"),
        ("claims: [{sentence: s, knd: best, table: t, rows: [a]}]", "knd is not a setting; did you mean kind"),
        ("claims: [{sentence: s, kind: bets, table: t, rows: [a]}]", 'kind is "bets"'),
        ("claim: []", "claims is missing"),
        ("claims: [{sentence: s, parts: []}]", "parts is empty, expected at least one"),
        ("claims: [{sentence: s, parts: [{kind: best}], table: t}]", "table stands beside parts; put it into a part"),
        ("claims: [{sentence: s, parts: [{knd: best, table: t, rows: a}]}]", "part 1: knd is not a setting"),
        (
            "claims: [{sentence: s, kind: equals, table: losses, rows: CE loss, tolerance: -1}]",
            "tolerance is -1.0, expected 0 or more",
        ),
        (
            "claims: [{sentence: s, kind: above, table: loses, rows: CE loss, over: L1 loss}]",
            "claim 1, 's': table is 'loses', which is no table; did you mean losses?",
        ),
        (
            "claims: [{sentence: s, kind: above, table: losses, rows: CE los, over: L1 loss}]",
            "claim 1, 's': 'CE los' is no row of losses; did you mean CE loss?",
        ),
        (
            "claims: [{sentence: s, kind: above, table: losses, rows: CE loss, over: Their}]",
            "claim 1, 's': 'Their' is no row of losses; did you mean Theirs?",
        ),
        (
            "claims: [{sentence: s, kind: above, table: losses, rows: CE loss, over: 'loses: L1 loss'}]",
            "table is 'loses', which is no table",
        ),
        (
            "claims: [{sentence: s, kind: at_least, table: losses, rows: CE loss, metric: mean of APm and APL}]",
            "metric is 'mean of APm and APL', which is none of losses; did you mean APl?",
        ),
        (
            "claims: [{sentence: s, kind: equals, table: boxes_of_ten_images, rows: Image11, metric: iou>0.5 by NMS}]",
            "'Image11' is no row of boxes_of_ten_images; did you mean Image1",
        ),
        (
            "claims: [{sentence: s, kind: equals, table: boxes_of_ten_images, rows: mean, metric: 'iou>0.55 by NMS'}]",
            "metric is 'iou>0.55 by NMS', which is none of boxes_of_ten_images; did you mean iou>0.5 by NMS?",
        ),
        (
            "claims: [{sentence: s, kind: at_least, table: losses, rows: CE loss, metric: misalignment/eec}]",
            "metric is 'misalignment/eec', which is none of losses; did you mean misalignment/ece?",
        ),
        (
            "claims: [{sentence: s, kind: share, table: losses, rows: CE loss, value: 101}]",
            "expected up to 100 per cent",
        ),
        (
            "claims: [{sentence: s, kind: at_least, table: losses, rows: CE loss, as_printed: {row: L1 loss}}]",
            "row is not a setting; did you mean rows?",
        ),
        (
            "claims: [{sentence: r, kind: flat, table: losses, rows: [CE loss, L1 loss], value: 1},"
            " {sentence: s, kind: at_least, table: losses, rows: CE loss}]",
            "claims.yaml: claim 2, 's': value is missing for kind at_least; say the number that is claimed, such as",
        ),
        (
            "claims: [{sentence: s, parts: [{kind: at_most, table: losses, rows: CE loss, over: L1 loss}]}]",
            "claim 1, 's': part 1: value is missing for kind at_most",
        ),
        (
            "claims: [{sentence: s, kind: above, table: losses, rows: CE loss, over: L1 loss,"
            " as_printed: {kind: equals}}]",
            "claim 1, 's': as_printed: value is missing for kind equals",
        ),
        ("claims: []\nprinted: {names: {loses: Table 1}}", "printed.names: loses is no table; did you mean losses?"),
        ("claims: []\nprinted: {bold: {losses: {AP: CE los}}}", "printed.bold.losses: 'CE los' is no row of losses"),
    ],
)
def test_mistakes_of_a_file_are_named(folder: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        load(folder, text)
    assert says in str(error.value) and "claims.yaml" in str(error.value)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_says_how_many_rows_it_takes_and_is_documented(folder: Path, kind: str) -> None:
    with pytest.raises(UserError, match="rows is \\[\\], expected at least"):
        load(folder, f"claims: [{{sentence: s, kind: {kind}, table: losses, rows: []}}]")
    assert f"`{kind}`" in (ROOT / "experiments" / "README.md").read_text()


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as error:
        load(
            folder,
            "claims:\n  - {sentence: one, kind: best, table: losses, rows: CE loss, over: L9 loss}\n"
            "  - {sentence: two, kind: at_least, table: losses, rows: CE loss, metric: AQ, value: 1}\n",
        )
    first, second = str(error.value).splitlines()
    assert "claim 1, 'one': 'L9 loss'" in first and "claim 2, 'two': metric is 'AQ'" in second


def test_a_claim_may_be_about_tables_that_are_shown_and_lie_elsewhere(folder: Path) -> None:
    own = folder / "own" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("claims: [{sentence: s, kind: above, table: losses, rows: CE loss, over: L1 loss}]")
    with pytest.raises(UserError, match="table is 'losses', which is no table"):
        load_claims(own)
    file = load_claims(own, load_experiments([folder / "losses.yaml"]))
    assert file.claims[0].parts[0].over == ("L1 loss",) and file.tables == {}


def test_one_row_or_metric_needs_no_list_and_a_row_may_be_another_tables() -> None:
    file = load_claims(PAPER)
    fused = file.claims[12].parts[0]
    assert place_of(fused, fused.rows[0]) == ("table3_samples", "CELoss^w (alpha=0.4)")
    assert place_of(fused, fused.over[0]) == ("table2_losses", "CELoss^w (w=0.0001)")
    assert [means(metric) for metric in file.claims[7].parts[-1].metric] == [("ARm", "ARl")]
    assert file.claims[7].parts[-1].literal.metric == ("mean of APm and APl",)


@pytest.mark.parametrize("suite", ["paper", "miniature", "demo", "photos/aquarium", "photos/blood_cpu"])
def test_the_papers_claims_are_found_from_each_suite(suite: str) -> None:
    experiments = load_experiments([ROOT / "experiments" / suite])
    file = find_claims([one.path for one in experiments])
    assert file.resolve() == PAPER
    assert len(load_claims(file, experiments).claims) == 28


def test_a_folder_without_claims_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the file: --claims FILE"):
        find_claims([tmp_path / "suite" / "table.yaml"])
