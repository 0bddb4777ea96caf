"""The part of a page that shows classes: what is drawn of how many."""

from dataclasses import replace

import numpy as np

from orchestrator.figures.page import html_page
from orchestrator.report.classes.section import MOST_CURVES, OPEN_CLASSES, classes_section
from tests.orchestrator.report.classes.test_numbers import BASE, OTHER, measured, samples_of

DRAWN = [29.0, 30.0, 31.0]


def test_rows_have_letters_dots_and_two_curves_a_class() -> None:
    one = samples_of([30.0, np.nan], [DRAWN, [np.nan] * 3])
    other = samples_of([35.0, np.nan], [[value + 5 for value in DRAWN], [np.nan] * 3])
    section = classes_section(measured([BASE, OTHER], [[one], [other]]), "classes-table")
    assert section.title == "table: classes" and section.html.startswith('<section id="classes-table">')
    assert section.html.count('aria-label="Precision by recall: thing 1"') == 1
    assert "Precision by recall: thing 2" not in section.html  # there is nothing to find
    assert section.html.count("<polyline") == 4  # two rows, at 0.5 and 0.75
    assert section.html.count('<circle class="hollow"') == 1  # the reference
    assert "base (reference)" in section.html and "35.0*" in section.html and "<details>" not in section.html
    assert section.html in html_page("page", [], sections=[section])


def test_of_many_classes_the_least_are_open_the_others_folded_and_the_last_not_drawn() -> None:
    count = MOST_CURVES + 30
    samples = samples_of([float(count - n) / 2 for n in range(count)], [DRAWN] * count)
    html = classes_section(measured([BASE], [[samples]], None), "many").html
    shown, folded = html.split("<details>")
    assert shown.count('aria-label="Precision by recall') == OPEN_CLASSES
    assert f'aria-label="Precision by recall: thing {count}"' in shown
    assert folded.count('aria-label="Precision by recall') == MOST_CURVES - OPEN_CLASSES
    said = f"{count - OPEN_CLASSES} more classes, {MOST_CURVES - OPEN_CLASSES} of them drawn"
    assert f"<summary>{said}</summary>" in folded
    assert (shown.count("<tr>"), folded.count("<tr>")) == (1 + OPEN_CLASSES, 1 + count - OPEN_CLASSES)


def test_of_many_rows_the_reference_and_the_best_are_drawn() -> None:
    rows = [replace(BASE, label=f"row {n}", train=replace(BASE.train, global_batch=n)) for n in range(1, 8)]
    classes = measured(rows, [[samples_of([10.0 + n], [DRAWN])] for n in range(7)], reference="row 1")
    html = classes_section(classes, "rows").html
    assert html.count("<polyline") == 8 and "4 of 7 rows: the reference and the best." in html
    assert "row 7" in html and "row 3" not in html


def test_a_name_is_text_and_no_markup() -> None:
    html = classes_section(measured([BASE], [[samples_of([1.0], [DRAWN], names=("<b>&",))]], None), "x").html
    assert "<b>" not in html and html.count("&lt;b&gt;&amp;") >= 3
