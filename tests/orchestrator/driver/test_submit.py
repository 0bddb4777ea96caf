"""What a submit gives back, as a notebook shows it."""

from types import SimpleNamespace
from typing import Any

from orchestrator.driver.submit import Submitted
from orchestrator.figures.table import Column, Table


def test_a_notebook_shows_all_tables_of_a_submit() -> None:
    tables = [Table(title=title, columns=(Column("AP"),), rows=((1.25,),)) for title in ("First <1>", "Second")]
    reports: Any = [SimpleNamespace(table=table) for table in tables]
    html = Submitted(exit_code=0, reports=reports)._repr_html_()
    assert html.count("<table>") == 2 and html.index("<h3>First &lt;1&gt;</h3>") < html.index("<h3>Second</h3>")
