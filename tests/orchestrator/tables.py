"""Tables as their readers see them."""

from orchestrator.figures.table import Table, show


def shown(table: Table) -> list[dict[str, str]]:
    """Return the cells of each row as they are printed, by column."""
    names = [column.name for column in table.columns]
    texts = [[show(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.cells()]
    return [dict(zip(names, row, strict=True)) for row in texts]
