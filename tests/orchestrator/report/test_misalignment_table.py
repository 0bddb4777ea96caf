"""The rows of a table by what their scores say of placement."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from model.config import ConfidenceConfig, InferenceConfig, ModelConfig, TrainConfig
from model.evaluation.misalignment import STATISTICS
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, row_keys
from orchestrator.experiment.rows import Row
from orchestrator.figures.table import Table, show
from orchestrator.report.files import make_reports, reports_page, write_reports
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS, has_several_heads, misalignment_table
from orchestrator.report.results.rows import measure
from orchestrator.site import Site
from orchestrator.tracking.suite import Suite

PLAIN = Row(
    label="RetinaNet",
    train=TrainConfig(model=ModelConfig(confidence=None)),
    inference=InferenceConfig(confidence_exponent=0.0),
)
CONF = Row(label="RetinaNet-Conf")
BOX = Row(label="IoU-aware", train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(tower="box"))))
SAID = {"rank_correlation": 0.25, "rank_correlation_well_placed": 0.5, "ece": 20.0, "oracle_AP": 60.0}
SAID |= {"oracle_nms_AP": 70.0, "dropped_better": 1.5, "objects_lost": 12.0}


def experiment(*rows: Row) -> Experiment:
    return Experiment(name="heads", suite="suite", title="Heads", question="Which?", rows=rows, path=Path("heads.yaml"))


def ledger(*scored: tuple[Row, list[dict[str, float]]]) -> Ledger:
    """What is measured of each row, for each of its seeds: AP 30, and these statistics."""
    trainings, evaluations = {}, {}
    for row, by_seed in scored:
        for (_, trained, evaluated), numbers in zip(row_keys(row), by_seed, strict=True):
            trainings[trained] = Record(status="FINISHED", run_id="t")
            evaluations[evaluated] = Record(
                status="FINISHED",
                run_id="e",
                metrics={"AP": 30.0},
                misalignment={f"misalignment/{name}": value for name, value in numbers.items()},
            )
    return Ledger(trainings=trainings, evaluations=evaluations)


def table(of: Experiment, held: Ledger) -> Table:
    return misalignment_table(of, measure(of, held))


def shown(one: Table) -> list[list[str]]:
    return [[show(cell, column) for cell, column in zip(row, one.columns, strict=True)] for row in one.cells()]


def test_the_columns_are_the_statistics_of_the_model() -> None:
    assert tuple(MISALIGNMENT_COLUMNS) == STATISTICS


def test_statistics_stand_beside_ap_with_the_best_of_each_in_bold() -> None:
    better = SAID | {"rank_correlation": 0.3, "ece": 25.0, "oracle_AP": 65.0}
    one = table(experiment(PLAIN, CONF), ledger((PLAIN, [SAID]), (CONF, [better])))
    assert shown(one) == [
        ["RetinaNet", "30.0", "0.250", "0.500", "20.0", "60.0", "70.0", "1.50", "12.0"],
        ["RetinaNet-Conf", "30.0", "0.300", "0.500", "25.0", "65.0", "70.0", "1.50", "12.0"],
    ]
    assert one.to_latex().isascii() and r"on IoU $\geq$ 0.5" in one.to_latex()
    # Correlations are best high, errors and losses low, both bold where equal; an oracle's AP is no merit.
    assert [[cell.bold for cell in row[2:]] for row in one.cells()] == [
        [False, True, True, False, False, True, True],
        [True, True, False, False, False, True, True],
    ]


def test_several_seeds_give_a_mean_and_a_spread() -> None:
    row = replace(PLAIN, seeds=(0, 1))
    one = table(experiment(row), ledger((row, [SAID, SAID | {"ece": 24.0}])))
    assert shown(one)[0][4] == "22.0 ± 2.8"


def test_what_was_never_measured_says_why_and_how_it_would_be() -> None:
    one = table(experiment(PLAIN, CONF, BOX), ledger((PLAIN, [SAID | {}]), (CONF, [{}])))
    assert shown(one)[1] == ["RetinaNet-Conf", "30.0", *["—"] * 7, ""]
    assert shown(one)[2] == ["IoU-aware", "—", *["—"] * 7, "not run"]
    assert "In bold: the best as measured; no interval is asked." in one.notes
    assert one.notes[-1].startswith("Scored before this was measured: RetinaNet-Conf. To measure them, delete")
    partly = {name: value for name, value in SAID.items() if name != "objects_lost"}
    assert shown(table(experiment(PLAIN), ledger((PLAIN, [partly]))))[0][-1] == "n/a"  # images without objects


def holding(experiments: list[Experiment], ledger: Ledger, uri: str | None, home: Path) -> Suite:
    """A suite of which MLflow would hold this."""
    return cast(Suite, type("Held", (Suite,), {"ledger": ledger, "uri": uri})(experiments, Site(home=home)))


def test_a_page_has_a_section_of_misalignment_where_heads_are_compared(tmp_path: Path) -> None:
    several, alone = experiment(PLAIN, CONF, BOX), replace(experiment(CONF), name="alone", title="Alone")
    assert has_several_heads(several) and not has_several_heads(alone)
    exponents = experiment(CONF, replace(CONF, inference=InferenceConfig(confidence_exponent=0.2)))
    losses = replace(CONF, train=TrainConfig(model=ModelConfig(confidence=ConfidenceConfig(loss="l1"))))
    assert not has_several_heads(exponents) and not has_several_heads(experiment(CONF, losses))
    held = ledger((PLAIN, [SAID]), (CONF, [SAID]), (BOX, [SAID]))
    reports = make_reports(holding([several, alone], held, None, tmp_path), bootstrap=False)
    page = reports_page(reports)
    assert page.count("<h2>") == 3 and "<h2>Misalignment: Heads</h2>" in page
    assert page.index("<h2>Misalignment: Heads</h2>") < page.index("<h2>Alone</h2>")
    assert page.count("<svg") == 2 and page.index("<svg") < page.index("<h2>Misalignment: Heads</h2>")
    write_reports(tmp_path / "out", reports)
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {f"heads_misalignment.{suffix}" for suffix in ("txt", "md", "tex", "json")} <= written
    assert not any(name.startswith("alone_misalignment") for name in written)
    (unmeasured,) = make_reports(holding([several], ledger((PLAIN, [{}])), None, tmp_path), bootstrap=False)
    assert unmeasured.tables() == [unmeasured.table]
