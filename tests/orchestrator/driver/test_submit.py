"""What a submit gives back: as a notebook shows it, and where a table has to be left out."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import names
from orchestrator.driver.submit import Submitted, submit
from orchestrator.experiment.plan import row_keys
from orchestrator.experiment.rows import Row
from orchestrator.figures.table import Column, Table
from orchestrator.site import Site
from orchestrator.tracking.ledger import read_ledger
from orchestrator.tracking.runs import open_tracking, write
from orchestrator.tracking.suite import Suite
from tests.orchestrator.ledgers import experiment, record


def test_a_notebook_shows_all_tables_of_a_submit() -> None:
    tables = [Table(title=title, columns=(Column("AP"),), rows=((1.25,),)) for title in ("First <1>", "Second")]
    reports: Any = [SimpleNamespace(table=table) for table in tables]
    html = Submitted(exit_code=0, reports=reports)._repr_html_()
    assert html.count("<table>") == 2 and html.index("<h3>First &lt;1&gt;</h3>") < html.index("<h3>Second</h3>")


def test_a_table_of_two_versions_of_the_data_is_left_out_and_the_others_are_written(
    mlflow_uri: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    suite, site = open_tracking(mlflow_uri, request.node.name), Site(home=tmp_path, tracking_uri=mlflow_uri)
    row = Row(label="ours", seeds=(0, 7))
    tables = [
        replace(experiment(name, [replace(row, seeds=seeds)]), suite=suite.suite)
        for name, seeds in (("both", (0, 7)), ("alone", (7,)))
    ]
    record(suite, tables, site.storage / suite.suite)
    older = read_ledger(suite).evaluations[row_keys(row)[0].evaluation_key]
    write(mlflow_uri, older.run_id, tags={names.FINGERPRINT: "older data"})
    said: list[str] = []
    submitted = submit(Suite(tables, site), said.append)
    assert submitted.exit_code == 1
    assert [report.experiment.name for report in submitted.reports] == ["alone"]
    (left_out,) = [line for line in said if line.startswith("left out: ")]
    assert "table both: row 'ours', seed 0, was scored on another version" in left_out
    assert "seed 7 (fingerprints older data and val data)" in left_out
    folder = site.home / "reports" / suite.suite
    assert (folder / "alone.txt").is_file() and not (folder / "both.txt").exists()
    write(mlflow_uri, older.run_id, tags={names.FINGERPRINT: "val data"})
    assert submit(Suite(tables, site), said.append).exit_code == 0 and (folder / "both.txt").is_file()
