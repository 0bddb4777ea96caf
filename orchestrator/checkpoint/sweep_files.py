"""A sweep as files: its table in every format, its page, its picture."""

from pathlib import Path

from orchestrator.checkpoint.sweep import Sweep
from orchestrator.checkpoint.sweep_picture import write_picture
from orchestrator.checkpoint.sweep_report import sweep_page, sweep_table
from orchestrator.errors import UserError
from orchestrator.figures.page import render
from orchestrator.report.files import SUFFIXES


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write the table in every format, a page with the figures, and the figures as a picture.

    Raises:
        UserError: they cannot be written there.
    """
    table = sweep_table(sweep)
    files = {f"sweep.{suffix}": render(table, form) + "\n" for form, suffix in SUFFIXES.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (files | {"index.html": sweep_page(sweep)}).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_picture(sweep, folder / "sweep.png")
    except OSError as error:
        raise UserError(f"--output: cannot write to {folder} ({error.strerror}); name another folder") from error
