"""How `rnc doctor` shows its findings, to people and to programs."""

import json
from typing import Any

import pytest

from orchestrator.doctor.finding import SEEN_BROKEN, SEEN_WIDTH, Finding, findings_table, merged
from orchestrator.figures.page import render


def finding(check: str, where: str, level: Any, seen: str = "seen") -> Finding:
    return Finding(check=check, where=where, level=level, seen=seen, way_out="" if level == "ok" else "the way out")


def test_what_is_not_green_needs_a_way_out():
    with pytest.raises(ValueError, match="without a way out"):
        Finding(check="any", where="driver", level="warn", seen="something")


def test_for_people_what_is_alike_stands_once_and_the_worst_of_a_check_first():
    found = [
        finding("one", "a", "ok"),
        finding("two", "a", "ok"),
        finding("one", "b", "ok"),
        finding("one", "c", "fail"),
    ]
    assert [(one.check, one.where, one.level) for one in merged(found)] == [
        ("one", "c", "fail"),
        ("one", "a, b", "ok"),
        ("two", "a", "ok"),
    ]
    text = render(findings_table(found, for_people=True), "text")
    assert text.splitlines()[0] == "rnc doctor: 3 green, 1 red"
    assert "red: one, c: the way out" in text


def test_what_is_long_or_of_many_machines_is_cut_and_told_whole_below():
    found = [finding("one", f"n{place}", "fail", seen="word " * 40) for place in range(9)]
    text = render(findings_table(found, for_people=True), "text")
    (line,) = (line for line in text.splitlines() if line.startswith("one"))
    assert "n0, n1, n2 and 6 others" in line and line.endswith("…") and len(line) < 125
    assert "word " * 39 in text


def test_for_programs_every_finding_is_a_row():
    found = [finding("one", "a", "ok"), finding("one", "b", "warn")]
    rows = json.loads(render(findings_table(found, for_people=False), "json"))["rows"]
    assert [(row["where"], row["state"], row["way out"]) for row in rows] == [
        ("a", "green", None),
        ("b", "yellow", "the way out"),
    ]


def test_what_was_seen_is_cut_between_words_and_whole_where_a_screen_has_lines_for_it():
    long = f"data /runs/data/shapes, split train: {'1,500 images; ' * 4}5420 of 5420 boxes are learnt"
    seen = [finding("data", "driver", "ok", long)]
    tables = [findings_table(seen, for_people=True, most=most) for most in (SEEN_WIDTH, SEEN_BROKEN)]
    cut, whole = (str(table.cells()[0][3].value) for table in tables)
    assert cut.endswith(" …") and long.startswith(cut[:-2]) and long[len(cut) - 2] == " "
    assert len(cut) <= SEEN_WIDTH and whole == long


def test_levels_are_cells_in_their_colour():
    found = [finding(check, "driver", level) for check, level in zip("abc", ("ok", "warn", "fail"), strict=True)]
    cells = [row[2] for row in findings_table(found, for_people=True).cells()]
    assert [(cell.value, cell.tone) for cell in cells] == [("green", "good"), ("yellow", "warn"), ("red", "bad")]
