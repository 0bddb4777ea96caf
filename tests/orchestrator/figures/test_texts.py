"""Texts that anybody may have written: shown, never obeyed, whatever the form of a table or a note."""

import json

import pytest

from orchestrator.figures.page import FORMATS, html_page, render
from orchestrator.figures.screen import on_screen
from orchestrator.figures.table import Column, Group, Table
from orchestrator.figures.templating import fill
from orchestrator.figures.texts import for_json, for_latex, for_markdown, printable

ESC, CSI, BELL, RTL = "\x1b", "\x9b", "\x07", "\u202e"
HOSTILE = f"a{ESC}]0;title{BELL}b{ESC}[2Jc{CSI}31md{RTL}e\rf\0g\u2028h"
OBEYED = (ESC, CSI, BELL, RTL, "\r", "\0", "\u2028")


def test_control_characters_are_shown_as_python_writes_them() -> None:
    shown = r"a\x1b]0;title\x07b\x1b[2Jc\x9b31md\u202ee\rf\x00g\u2028h"
    assert printable(HOSTILE) == shown
    assert printable("two\tcolumns\nand a line of Größe ✓") == "two\tcolumns\nand a line of Größe ✓"
    assert printable(b"n\xe4me".decode(errors="surrogateescape")) == r"n\udce4me"


def test_json_is_read_back_as_it_was() -> None:
    text = json.dumps({"label": HOSTILE}, ensure_ascii=False, indent=2)
    assert not any(sign in for_json(text) for sign in OBEYED)
    assert json.loads(for_json(text)) == {"label": HOSTILE}


def hostile_table() -> Table:
    return Table(
        title=HOSTILE,
        columns=(Column(HOSTILE, numeric=False), Column("AP", heading=f"AP{ESC}[1m")),
        rows=((HOSTILE, 1.0),),
        caption=HOSTILE,
        notes=(HOSTILE,),
        groups=(Group(0, HOSTILE),),
    )


@pytest.mark.parametrize("form", FORMATS)
def test_no_form_of_a_table_holds_what_a_terminal_obeys(form: str) -> None:
    text = render(hostile_table(), form)
    assert not [sign for sign in OBEYED if sign in text]
    assert "title" in text


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_a_screen_shows_it_as_text(columns: int) -> None:
    text = on_screen(hostile_table(), columns)
    assert not [sign for sign in OBEYED if sign in text]
    assert all(len(line) <= columns or " " not in line.strip() for line in text.splitlines())


def test_a_page_and_a_note_hold_no_markup_of_a_label() -> None:
    label = "<img src=x onerror=alert(1)> [here](javascript:alert(1)) **bold** &lt;b&gt;"
    page = html_page("Page", [Table(title="T", columns=(Column("row", numeric=False),), rows=((label,),))])
    assert "<img src=x" not in page and "&lt;img src=x" in page
    note = fill("run_note.md", rows=[(label, "link", [label])], training=label, training_link="link", evaluations=None)
    assert "<img" not in note.replace("\\<img", "")
    assert "[here](" not in note.replace("\\[here\\](", "")
    assert for_markdown("**b** <i>") == r"\*\*b\*\* \<i\>"
    assert ESC not in for_latex(HOSTILE)


def test_github_reads_no_mathematics_and_no_names_of_signs_in_a_text() -> None:
    assert for_markdown("$y$ &lt; R&D & &#35;") == r"\$y\$ \&lt; R&D & \&#35;"
