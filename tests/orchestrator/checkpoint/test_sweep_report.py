"""What `rnc sweep` shows of a sweep: its columns, what is best in them, and their width; the numbers are made up."""

import json
from itertools import combinations, product

import pytest

from model.config import CALIBRATION, METRICS, InferenceConfig
from orchestrator.checkpoint.sweep import OPTIONS, Axis, Spot, Sweep, parse_axis
from orchestrator.checkpoint.sweep_report import sweep_drawings, sweep_table
from orchestrator.figures.screen import on_screen
from orchestrator.figures.texts import width

LONGEST = {name: parse_axis(name, option, "0.25,0.75") for name, option in OPTIONS.items() if name != "suppression"}
LONGEST |= {"suppression": parse_axis("suppression", "--suppression", "nms,matrix_gaussian")}
"""An axis of each setting, with values as long as there are."""
OTHERS = ("rank_correlation", "ece", "oracle_AP")


def made_up(*axes: Axis, **changes: float) -> Sweep:
    """A sweep whose metrics are 30 and rise by one from line to line, but for oLRP, which is 100 and falls by one."""
    spots = []
    for place, own in enumerate(product(*(axis.values for axis in axes))):
        metrics: dict[str, float | None] = dict.fromkeys((*METRICS, *CALIBRATION, *OTHERS), 30.0 + place)
        metrics |= {"oLRP": 100.0 - place, "rank_correlation": -0.5 - place / 10} | changes
        spots.append(Spot(values=own, inference=InferenceConfig(), metrics=metrics, paper={}))
    return Sweep(name="made-up", title="Made up", axes=axes, spots=tuple(spots), notes=("Nothing was scored.",))


def test_laece_and_olrp_stand_behind_the_twelve_the_least_in_bold_and_that_less_is_better_is_said() -> None:
    table = sweep_table(made_up(LONGEST["confidence_exponent"]))
    text = table.to_text()
    heads, rule, first, second = text.splitlines()[2:6]
    assert heads.split() == ["exponent", *METRICS, "LaECE", "oLRP", "rank", "corr.", "ECE", "oracle"]
    assert set(rule) == {"─", " "}
    twelve = ["30.0"] * 12
    assert first.split() == ["0.25", *twelve, "30.0", "100.0", "-0.500", "30.0", "30.0"]
    assert second.split() == ["0.75", *["31.0"] * 13, "99.0", "-0.600", "31.0", "31.0"]
    assert "LaECE, oLRP, ECE: less is better (in figures: ↓)." in text.splitlines()
    lines = [line.split(" | ") for line in table.to_markdown().splitlines() if line.startswith("| 0.")]
    assert [line[13:15] for line in lines] == [["**30.0**", "100.0"], ["31.0", "**99.0**"]]
    assert [line[1] for line in lines] == ["30.0", "**31.0**"]


def test_programs_get_every_number_of_the_calibration() -> None:
    content = json.loads(sweep_table(made_up(LONGEST["nms_iou"], LONGEST["confidence_exponent"])).to_json())
    assert content["columns"][:2] == ["NMS IoU", "exponent"]
    assert content["columns"][2:] == [*METRICS, *CALIBRATION, "rank corr.", "ECE", "oracle AP"]
    assert [(row["NMS IoU"], row["exponent"], row["LaACE"], row["oLRP"]) for row in content["rows"]] == [
        (0.25, 0.25, 30.0, 100.0),
        (0.25, 0.75, 31.0, 99.0),
        (0.75, 0.25, 32.0, 98.0),
        (0.75, 0.75, 33.0, 97.0),
    ]
    assert any(note.startswith("LaECE, LaACE, D-ECE, LRP, oLRP, ECE: less is better") for note in content["notes"])


def test_of_two_settings_the_first_stands_as_a_heading_above_its_lines() -> None:
    table = sweep_table(made_up(LONGEST["suppression"], LONGEST["nms_iou"]))
    lines = table.to_text().splitlines()
    begun = [line.split()[0] for line in lines[4:11] if not line.startswith("─")]
    assert [line for line in lines if line.startswith("suppression ")] == [
        "suppression nms",
        "suppression matrix_gaussian",
    ]
    assert begun == ["suppression", "0.25", "0.75", "suppression", "0.25", "0.75"]
    assert lines[2].split()[:3] == ["NMS", "IoU", "AP"]


@pytest.mark.parametrize("names", [*((name,) for name in OPTIONS), *combinations(OPTIONS, 2)], ids=" and ".join)
def test_no_sweep_is_wider_than_130_columns(names: tuple[str, ...]) -> None:
    order = sorted(names, key=lambda name: name != "suppression")  # as parse_axes has them
    table = sweep_table(made_up(*(LONGEST[name] for name in order)))
    for text in (table.to_text(), on_screen(table, 130)):
        assert max(map(width, text.splitlines())) <= 130
        # In one piece: a screen too narrow for all columns shows them in several panels.
        assert text.count("AP50") == 1


def test_a_sweep_over_exponents_fits_a_screen_of_120_columns() -> None:
    table = sweep_table(made_up(LONGEST["confidence_exponent"], oLRP=60.0, rank_correlation=0.5))
    assert max(map(width, table.to_text().splitlines())) == 120


def test_figures_mark_what_wants_to_be_small() -> None:
    for axes in ([LONGEST["nms_iou"]], [LONGEST["suppression"]], [LONGEST["suppression"], LONGEST["nms_iou"]]):
        titles = [drawing.title.partition(" against ")[0] for drawing in sweep_drawings(made_up(*axes))]
        assert titles == [*METRICS, "LaECE ↓", "oLRP ↓", "rank corr.", "ECE ↓", "oracle AP"]
