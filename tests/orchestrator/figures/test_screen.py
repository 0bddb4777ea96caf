"""A table on screens of several widths: nothing is wider than the screen, and no word is broken."""

import re
from dataclasses import replace

import pytest

from orchestrator.figures.screen import Look, on_screen
from orchestrator.figures.table import Cell, Column, Group, Table
from orchestrator.figures.texts import width

STATUS = Table(
    title="Status of suite photos",
    columns=(
        Column("table", numeric=False, narrow="heading"),
        Column("row", numeric=False),
        Column("epoch"),
        Column("images/s", narrow="left out"),
        Column("scored", numeric=False),
    ),
    rows=(
        ("heads_of_the_detector", "RetinaNet", "12/12", 80.0, "yes"),
        ("heads_of_the_detector", "RetinaNet-Conf, alpha 0.4", "3/12", 81.5, "waits for its training"),
        ("losses", "L1 loss", "0/12", None, "no"),
    ),
    rules_before=(0, 2),
    notes=("RetinaNet-Conf, alpha 0.4: /runs/ray/photos/0e201f6bbccd/error-0.log",),
)


def fits(text: str, columns: int) -> bool:
    """Whether no line is wider, but for one that is a single word."""
    return all(width(line) <= columns or " " not in line.strip() for line in text.splitlines())


def test_a_table_that_fits_is_the_one_of_a_file() -> None:
    assert on_screen(STATUS, 120) == STATUS.to_text()


def test_on_a_narrow_screen_a_column_becomes_headings_and_then_another_is_left_out() -> None:
    assert on_screen(STATUS, 80).splitlines()[2:9] == [
        "row                        epoch  images/s  scored",
        "─────────────────────────  ─────  ────────  ──────────────────────",
        "heads_of_the_detector",
        "RetinaNet                  12/12      80.0  yes",
        "RetinaNet-Conf, alpha 0.4   3/12      81.5  waits for its training",
        "─────────────────────────  ─────  ────────  ──────────────────────",
        "losses",
    ]
    narrower = on_screen(STATUS, 60)
    assert "images/s" not in narrower and "waits for its training" in narrower and fits(narrower, 60)


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 160])
def test_no_screen_breaks_a_word(columns: int) -> None:
    text = on_screen(STATUS, columns)
    assert fits(text, columns)
    words = {word for row in STATUS.rows for cell in row if isinstance(cell, str) for word in cell.split()}
    broken = [word for word in words if not re.search(rf"(?<!\S){re.escape(word)}(?![^\s,:])", text)]
    assert broken == []
    assert "/runs/ray/photos/0e201f6bbccd/error-0.log" in text.split()


def test_long_texts_are_broken_between_words_and_go_on_set_in() -> None:
    table = Table(
        title="Results",
        columns=(Column("row", numeric=False), Column("AP"), Column("better dropped"), Column("gain", signed=True)),
        rows=(
            ("RetinaNet-Conf, class score alone", 23.6, 8.1, Cell(0.1, interval=(-0.2, 0.4))),
            ("RetinaNet", 23.5, 7.9, None),
        ),
    )
    assert on_screen(table, 60).splitlines() == [
        "Results",
        "",
        "                                   better",
        "row                           AP  dropped               gain",
        "──────────────────────────  ────  ───────  ─────────────────",
        "RetinaNet-Conf, class       23.6      8.1  +0.1 [-0.2, +0.4]",
        "  score alone",
        "RetinaNet                   23.5      7.9                  —",
    ]


def test_numbers_that_do_not_fit_stand_in_panels_beside_their_rows() -> None:
    columns = (Column("alpha", numeric=False), *(Column(f"0.{n}", digits=2) for n in range(10)))
    rows = tuple((label, *(20.0 + n for n in range(10))) for label in ("IoU-aware Net", "RetinaNet-Conf"))
    table = Table(title="Exponents", columns=columns, rows=rows, groups=(Group(0, "AP"),))
    text = on_screen(table, 50)
    assert fits(text, 50) and text.count("RetinaNet-Conf") == 2 and text.count("\nAP\n") == 2
    assert [text.count(f"{20 + n}.00") for n in range(10)] == [2] * 10


def test_a_panel_has_the_details_of_its_own_columns_and_room_for_its_texts() -> None:
    columns = (
        Column("row", numeric=False),
        *(Column(f"AP{n}") for n in range(6)),
        Column("AP0, paper", under="AP0", detail="the paper"),
        Column("state", numeric=False),
    )
    table = Table(
        title="Results",
        columns=columns,
        rows=(("RetinaNet", *[20.0] * 6, 35.3, "1 of 2 seeds: never run (seed 2)"),),
        folds=True,
    )
    assert on_screen(table, 48).splitlines()[2:] == [
        "row           AP0   AP1   AP2   AP3   AP4   AP5",
        "───────────  ────  ────  ────  ────  ────  ────",
        "RetinaNet    20.0  20.0  20.0  20.0  20.0  20.0",
        "  the paper  35.3",
        "",
        "row        state",
        "─────────  ────────────────────────────────",
        "RetinaNet  1 of 2 seeds: never run (seed 2)",
    ]


def test_rows_of_long_words_become_blocks() -> None:
    path = "/runs/ray/photos/0e201f6bbccd/checkpoint_manager_snapshot.json"
    table = Table(
        title="What takes space",
        columns=(Column("what", numeric=False), Column("MB"), Column("because", numeric=False)),
        rows=((path, 27.54, "it is finished, and its weights stand in MLflow"), ("gone", None, None)),
    )
    assert on_screen(table, 60).splitlines()[2:] == [
        path,
        "  MB 27.5",
        "  because: it is finished, and its weights stand in MLflow",
        "gone",
    ]


def test_wrapped_tables_are_wrapped_to_the_screen() -> None:
    table = Table(
        title="Claims",
        columns=(
            Column("claim", numeric=False, wrap=40),
            Column("verdict", numeric=False, wrap=40),
            Column("why", numeric=False, wrap=40, under="verdict"),
        ),
        rows=(("RetinaNet-Conf gains " * 4, "supported", "more than was claimed " * 4), ("short", "open", None)),
    )
    assert fits(on_screen(table, 60), 60) and max(map(width, on_screen(table, 60).splitlines())) > 45
    assert on_screen(table, 120) == table.to_text()


def test_notes_are_wrapped_and_keep_their_own_lines() -> None:
    table = replace(
        STATUS, notes=("red: data, driver: lacks a folder\n    set RNC_COCO_ROOT to the folder of the data",)
    )
    assert on_screen(table, 40).splitlines()[-3:] == [
        "red: data, driver: lacks a folder",
        "    set RNC_COCO_ROOT to the folder of",
        "    the data",
    ]


def test_looks_are_put_around_texts_and_take_no_room() -> None:
    def styled(text: str, look: Look) -> str:
        return text if look == "plain" else f"<{look}>{text}</{look}>"

    table = Table(
        title="Doctor",
        columns=(Column("state", numeric=False), Column("AP")),
        rows=((Cell("green", tone="good"), Cell(35.2, bold=True)), (Cell("red", tone="bad"), Cell(9.1, soft=True))),
        notes=("red: mend it", "nothing else"),
    )
    assert on_screen(table, 80, styled).splitlines() == [
        "<bold>Doctor</bold>",
        "",
        "<bold>state</bold>    <bold>AP</bold>",
        "─────  ────",
        "<good>green</good>  <bold>35.2</bold>",
        "<bad>red</bad>     <soft>9.1</soft>",
        "",
        "<bad>red</bad>: mend it",
        "nothing else",
    ]
    assert re.sub(r"<.*?>", "", on_screen(table, 80, styled)) == table.to_text()
