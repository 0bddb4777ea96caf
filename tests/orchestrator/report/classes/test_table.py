"""Tables of classes: what people and programs are shown; numbers are those put in."""

import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.errors import UserError
from orchestrator.experiment.rows import Row
from orchestrator.figures.texts import width
from orchestrator.report.classes.numbers import Classes
from orchestrator.report.classes.table import LONGEST_NAME, MOST_ROWS, classes_table, shortened, tables_of
from tests.orchestrator.report.classes.test_numbers import BASE, OTHER, measured, samples_of

LOW, HIGH = [8.0, 10.0, 12.0], [28.0, 30.0, 32.0]
NONE = [np.nan] * 3


def two_rows() -> Classes:
    base = samples_of([30.0, np.nan, 10.0], [HIGH, NONE, LOW], num_images=np.array([15, 0, 4]))
    better = [value + 5 for value in HIGH], NONE, LOW
    other = samples_of([35.0, np.nan, 10.0], better, num_images=np.array([15, 0, 4]))
    return measured([BASE, OTHER], [[base], [other]])


def test_rows_stand_side_by_side_and_those_surely_apart_from_the_reference_are_marked() -> None:
    assert classes_table(two_rows()).to_text().splitlines() == [
        "table: AP of each class",
        "",
        "class    objects  images     A      B",
        "───────  ───────  ──────  ────  ─────",
        "thing 1       20      15  30.0  35.0*",
        "thing 2        0       0   n/a    n/a",
        "thing 3       20       4  10.0   10.0",
        "",
        "A: base, the reference.",
        "B: other.",
        "objects, images: objects to find, crowds left out, and images with one.",
        "n/a: no object to find (1 class).",
        "* The 95 % interval of the difference to the reference excludes 0.",
        "Of 20 classes that do not differ, one does so by chance.",
        "Intervals, class by class: --row LABEL.",
    ]


def test_a_row_with_a_reference_of_its_own_is_compared_with_that() -> None:
    base, better = samples_of([30.0], [HIGH]), samples_of([35.0], [[value + 5 for value in HIGH]])
    third = replace(OTHER, label="third", reference="other", train=replace(OTHER.train, global_batch=4))
    classes = measured([BASE, OTHER, third], [[base], [better], [better]])
    lines = classes_table(classes).to_text().splitlines()
    assert lines[4].split() == ["thing", "1", "20", "20", "30.0", "35.0*", "35.0"]
    assert lines[6:9] == ["A: base, the reference.", "B: other.", "C: third."] and "Reference of third: other." in lines
    alone = classes_table(classes, "third").to_text().splitlines()
    assert alone[4].endswith("  0.0 [0.0, 0.0]") and "Reference of third: other." in alone


def test_one_row_has_its_intervals_and_its_difference_to_the_reference() -> None:
    lines = classes_table(two_rows(), "other", by_ap=True).to_text().splitlines()
    assert lines[0] == "table: AP of each class, other"
    assert lines[2:7] == [
        "class    objects  images                 AP   AP over reference",
        "───────  ───────  ──────  ─────────────────  ──────────────────",
        "thing 3       20       4  10.0 [8.1, 11.9]‡      0.0 [0.0, 0.0]",
        "thing 1       20      15  35.0 [33.1, 36.9]  +5.0 [+5.0, +5.0]*",
        "thing 2        0       0                n/a                 n/a",
    ]
    assert "‡ On fewer than 10 images: too few to tell, the interval is too narrow." in lines
    base = classes_table(two_rows(), "base").to_text().splitlines()
    assert base[4].split() == ["thing", "1", "20", "15", "30.0", "[28.1,", "31.9]"]


def test_notes_say_where_no_difference_is_sure_and_a_row_alone_is_named() -> None:
    one = samples_of([30.0], [HIGH])
    lines = classes_table(measured([BASE, OTHER], [[one], [one]])).to_text().splitlines()
    assert "No 95 % interval of a difference to the reference excludes 0." in lines and "*" not in "".join(lines)
    alone = classes_table(measured([BASE], [[one]], None)).to_text().splitlines()
    assert alone[0] == "table: AP of each class, base" and not any("reference" in line for line in alone)


def test_programs_get_a_record_for_each_class_and_row() -> None:
    table = classes_table(two_rows())
    frame = table.to_pandas()
    assert list(frame["class"]) == [f"thing {n}" for n in (1, 1, 2, 2, 3, 3)] and list(frame["row"][:2]) == [
        "base",
        "other",
    ]
    pivot = frame.pivot(index="class", columns="row", values="AP")
    assert pivot.loc["thing 1"].tolist() == pytest.approx([30.0, 35.0]) and pivot.loc["thing 2"].isna().all()
    (second,) = [one for one in json.loads(table.to_json())["rows"] if (one["id"], one["row"]) == (1, "other")]
    numbers = [second[name] for name in ("objects", "images", "AP", "AP50", "AP75", "AP over reference")]
    assert numbers == pytest.approx([20, 15, 35.0, 70.0, 17.5, 5.0])
    assert [second[f"AP {end}"] for end in ("low", "high")] == pytest.approx([33.1, 36.9])
    assert [second[f"AP over reference {end}"] for end in ("low", "high")] == pytest.approx([5.0, 5.0])


def many_rows() -> Classes:
    rows = [replace(BASE, label=f"row {n}", train=replace(BASE.train, global_batch=n)) for n in range(1, 9)]
    found = [[samples_of([10.0 + n], [[9.0, 10.0, 11.0]])] for n in range(8)]
    return measured(rows, found, reference="row 1")


def test_of_many_rows_the_reference_and_the_best_are_shown_in_80_columns() -> None:
    wide = samples_of([50.0] * 2, [HIGH] * 2, names=("a name that is far longer than a column of a table", "日本" * 20))
    rows = [replace(BASE, label=f"row {n}", train=replace(BASE.train, global_batch=n)) for n in range(1, 9)]
    text = classes_table(measured(rows, [[wide]] * 8, "row 1")).to_text()
    body = text.split("\n\n")[1].splitlines()
    assert max(map(width, body)) <= 80 and "a name that is far lo…" in text
    lines = classes_table(many_rows()).to_text().splitlines()
    assert [line for line in lines if line[1:2] == ":"] == [
        "A: row 1, the reference.",
        "B: row 5.",
        "C: row 6.",
        "D: row 7.",
        "E: row 8.",
    ]
    assert f"{MOST_ROWS} of 8 rows: the reference and the best; others by --row LABEL." in lines
    assert len(classes_table(many_rows()).rows) == 8


def test_a_name_is_cut_to_the_columns_that_it_takes_on_a_screen() -> None:
    assert shortened("short") == "short"
    assert width(shortened("日本" * 20)) <= LONGEST_NAME


def test_1203_classes_are_a_line_each() -> None:
    samples = samples_of([float(n % 90) for n in range(1203)], [HIGH] * 1203)
    body = classes_table(measured([BASE], [[samples]], None)).to_text().split("\n\n")[1].splitlines()
    assert len(body) == 2 + 1203 and max(map(width, body)) <= 80


def test_a_label_that_is_none_is_answered_with_a_guess() -> None:
    with pytest.raises(UserError, match=r"--row: 'othr' is not measured class by class; did you mean other"):
        classes_table(two_rows(), "othr")
    lost = measured([BASE, OTHER], [[samples_of([1.0], [LOW])], []])
    with pytest.raises(UserError, match="'other' is not measured class by class; its matches are lost"):
        classes_table(lost, "other")


def test_of_several_tables_those_that_have_the_row_are_shown() -> None:
    alone = measured([Row(label="alone")], [[samples_of([1.0], [LOW])]], None)
    tables = [("first", two_rows()), ("second", alone), ("third", None)]
    assert len(tables_of(tables)) == 2
    assert [one.title for one in tables_of(tables, "alone")] == ["table: AP of each class, alone"]
    with pytest.raises(UserError, match="third: no matches of any row are known"):
        tables_of(tables[2:])
    with pytest.raises(UserError, match="'neither' is not measured"):
        tables_of(tables, "neither")
