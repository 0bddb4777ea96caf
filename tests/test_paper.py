"""experiments/paper holds the paper's tables: rows, order, settings and numbers, as they are printed."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from orchestrator.experiment.load import load_experiments
from orchestrator.experiment.plan import gather, row_keys
from orchestrator.experiment.rows import Cited, Row
from orchestrator.report.claims.boxes import BOXES, CONDITIONS, read_boxes

PAPER = Path(__file__).parents[1] / "experiments" / "paper"
TABLES = load_experiments([PAPER])
DIGEST = "4c3ba584942e2af4477176b1214df7e780efe0a3ef31427d42dd063797c8426b"
"""sha256 of `_content` of these files when they agreed with the paper's tables, line by line."""
DIGEST_OF_BOXES = "68d985073cb556fec1d57846bfe5d4b6737579f940380fa5754ac77798b03b35"
"""sha256 of the counts of boxes in ten images, likewise; their lines end as the file has them."""
SAME = (  # what the paper prints number by number alike is one evaluation
    ("table1_heads: RetinaNet", "table6_detectors: RetinaNet, R50, 1x"),
    ("table1_heads: IoU-aware Net", "table5_exponents: IoU-aware Net, alpha 0.0"),
    (
        "table1_heads: RetinaNet-Conf",
        "table2_losses: CE loss",
        "table4_fusion: cls",
        "table5_exponents: RetinaNet-Conf, alpha 0.0",
    ),
    (
        "table3_samples: CE loss (alpha=0.4)",
        "table4_fusion: product (alpha=0.4)",
        "table5_exponents: RetinaNet-Conf, alpha 0.4",
        "table6_detectors: RetinaNet-Conf, R50, 1x",
    ),
    ("table5_exponents: IoU-aware Net, alpha 0.5", "table6_detectors: IoU-aware Net, R50, 1x"),
)


def test_the_tables_are_45_rows_of_13_trainings_and_36_evaluations():
    plan = gather(TABLES)
    assert [len(table.rows) for table in TABLES] == [3, 7, 2, 6, 20, 7]
    assert [len(table.cited) for table in TABLES] == [0, 0, 0, 0, 0, 7]
    assert (len(plan.trainings), len(plan.evaluations)) == (13, 36)


def test_rows_that_the_paper_prints_alike_are_one_evaluation():
    key = {f"{table.name}: {row.label}": row_keys(row)[0].evaluation_key for table in TABLES for row in table.rows}
    for alike in SAME:
        assert len({key[row] for row in alike}) == 1, alike
    assert len({key[alike[0]] for alike in SAME}) == len(SAME)


def test_the_files_are_those_that_were_compared_with_the_paper():
    content = json.dumps(_content(), sort_keys=True)
    assert hashlib.sha256(content.encode()).hexdigest() == DIGEST


def test_the_files_agree_with_the_papers_tables_line_by_line():
    if "RNC_PAPER" not in os.environ:
        pytest.skip("RNC_PAPER names no folder with the paper's tables.json")
    tables = json.loads((Path(os.environ["RNC_PAPER"]) / "tables.json").read_text())["tables"]
    for table, (name, printed) in zip(TABLES, tables.items(), strict=True):
        assert table.name.startswith(f"{name}_")
        # The paper sets what is cited first, ours last.
        theirs = sorted(printed["rows"], key=lambda row: "cited" in row)
        lines: list[Row | Cited] = [*table.rows, *table.cited]
        for line, row in zip(lines, theirs, strict=True):
            assert _letters(line.label) == _letters(_printed_label(name, row))
            assert dict(line.paper) == row["paper"], line.label
            assert list(table.columns) == list(row["paper"]), "columns as printed"
            if isinstance(line, Row):
                assert _scoring(line) == (
                    row.get("fusion", "power"),
                    # A product has no exponent.
                    row.get("alpha"),
                    row.get("min_confidence", 0.0),
                ), line.label
            else:
                assert row["cited"] and line.source


def test_the_counts_of_boxes_are_those_that_were_compared_with_the_paper():
    assert hashlib.sha256(BOXES.read_bytes()).hexdigest() == DIGEST_OF_BOXES


def test_the_counts_of_boxes_agree_with_the_papers_line_by_line():
    if "RNC_PAPER" not in os.environ:
        pytest.skip("RNC_PAPER names no folder with the paper's tables.json")
    printed = json.loads((Path(os.environ["RNC_PAPER"]) / "tables.json").read_text())["boxes_of_ten_images"]
    boxes = read_boxes()
    assert list(boxes.positive_anchors) == printed["positive_anchors"]
    assert list(printed["before_nms"]) == list(printed["after_nms"]) == list(CONDITIONS), "in the paper's order"
    for condition in CONDITIONS:
        assert list(boxes.before_nms[condition]) == printed["before_nms"][condition], condition
        assert list(boxes.after_nms[condition]) == printed["after_nms"][condition], condition


def _content() -> list[object]:
    content: list[object] = []
    for table in TABLES:
        lines: list[Row | Cited] = [*table.rows, *table.cited]
        content.append([table.name, table.columns, [_line(line) for line in lines]])
    return content


def _line(line: Row | Cited) -> list[object]:
    scoring = _scoring(line) if isinstance(line, Row) else line.source
    return [line.label, scoring, dict(line.paper)]


def _scoring(row: Row) -> tuple[str, float | None, float]:
    inference = row.inference
    exponent = inference.confidence_exponent if inference.fusion == "power" else None
    return inference.fusion, exponent, inference.min_confidence


def _printed_label(table: str, row: dict[str, object]) -> str:
    label = str(row["label"])
    if table == "table5":
        return f"{label}, alpha {row['alpha']}"
    if table == "table6":
        short = {"ResNet-50-FPN": "R50", "ResNet-101-FPN": "R101"}.get(str(row["backbone"]), row["backbone"])
        return f"{label}, {short}, {row['schedule']}"
    return label


def _letters(label: str) -> str:
    """A label without marks of citation, and without the marks in which print and plain text differ."""
    return re.sub(r"[\s^,-]", "", re.sub(r"\[\d+\]|\(ours\)", "", label))
