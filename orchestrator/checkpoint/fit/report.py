"""What `rnc sweep --fit` writes: tables, a page with the curves of both splits, and the recalibrations as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.fit.run import AP_DIGITS, JUDGED, Calibrated, Fit, Metrics
from orchestrator.errors import UserError
from orchestrator.figures.drawing import Drawing, small_multiples, write_png
from orchestrator.figures.page import html_image, html_page
from orchestrator.figures.plots import curve_plot
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Column, Table, Value
from orchestrator.figures.texts import for_json
from orchestrator.report.files import every_format
from orchestrator.report.results.table import mark_of_few, notes_on_marks

CURVES = ("AP", "AP50", "AP75")
"""The metrics of the table of all exponents."""


def fit_tables(fit: Fit) -> dict[str, Table]:
    """Return the tables by the names of their files: the choice, what it was made of, and the recalibrations."""
    curve = {"curve": _curve_table(fit)} if len(fit.tried) > 1 else {}
    return {"exponent": _exponent_table(fit), "recalibration": _recalibration_table(fit)} | curve


def fit_drawing(fit: Fit) -> Drawing:
    """Draw AP by exponent on both splits, with the fitted exponent and the usual one marked."""
    digits = _digits(fit)
    curves = {
        f"{fit.fitted_on}: fitted on": [(one.exponent, one.fitted_on["AP"] or 0.0) for one in fit.tried],
        f"{fit.scored}: scored": [(one.exponent, one.scored["AP"] or 0.0) for one in fit.tried],
    }
    marked = {f"fitted, {fit.chosen:.{digits}f}": fit.chosen}
    if fit.usual != fit.chosen:
        marked |= {f"{fit.usual_is}, {fit.usual:.{digits}f}": fit.usual}
    return curve_plot("AP", "exponent", curves, fit.title, marked=marked)


def fit_json(fit: Fit) -> str:
    """Return everything that is known of a fit, for a program."""
    content: dict[str, Any] = {
        "title": fit.title,
        "fitted_on": fit.fitted_on,
        "scored": fit.scored,
        "exponent": {"usual": fit.usual, "fitted": fit.chosen, "best_on_scored": fit.best_there},
        "gain": None if fit.gain is None else {name: getattr(fit.gain, name) for name in ("value", "low", "high")},
        "curve": [
            {"exponent": one.exponent, "fitted_on": dict(one.fitted_on), "scored": dict(one.scored)}
            for one in fit.tried
        ],
        "recalibration": [
            {
                "name": one.name,
                "exponent": one.exponent,
                "errors": dict(one.errors),
                "reliability": _bins(one),
                "fitted": None if one.by is None else asdict(one.by),
            }
            for one in fit.calibrated
        ],
        "tables": {name: json.loads(table.to_json()) for name, table in fit_tables(fit).items()},
        "notes": fit.notes,
    }
    return for_json(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False))


def write_fit(folder: Path, fit: Fit) -> str:
    """Write the tables in every format, figures, everything as JSON, each recalibration, and a page, which is returned.

    Raises:
        UserError: they cannot be written there.
    """
    from model.evaluation.calibration.recalibration import to_json
    from orchestrator.figures.charts import reliability_diagrams, save

    tables = fit_tables(fit)
    files = {"fit.json": fit_json(fit) + "\n"}
    for name, table in tables.items():
        files |= every_format(name, table)
    for one in fit.calibrated:
        if one.by is not None:
            about = {"what": fit.title, "fitted_on": fit.fitted_on, "confidence_exponent": one.exponent}
            files[f"{one.name}.json"] = to_json(one.by, about)
    shown = {one.name: one for one in fit.calibrated if one.exponent == fit.chosen}
    diagrams = reliability_diagrams(
        {name: one.bins for name, one in shown.items()}, {name: one.errors for name, one in shown.items()}
    )
    drawn = [fit_drawing(fit)] if len(fit.tried) > 1 else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_png(drawn, "Confidence exponent", folder / "curve.png", across=1)
        png, _ = save(diagrams, folder, "reliability")
        below = html_image(png.read_bytes(), "png", f"How well scores say the IoU on {fit.scored}, before and after")
        page = files["index.html"] = html_page(fit.title, [*tables.values()], [small_multiples(drawn), below])
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: cannot write to {folder} ({error.strerror}); name another folder") from error
    return page


def _exponent_table(fit: Fit) -> Table:
    """Show AP at the usual exponent and at the fitted one, and apart from them the optimum on the scored split."""
    chosen = {fit.usual_is: fit.usual}
    notes, mark = [], ""
    if len(fit.tried) > 1:
        chosen |= {f"fitted on {fit.fitted_on}": fit.chosen, f"best on {fit.scored} itself": fit.best_there}
        notes += [
            f"Fitted: the highest AP on {fit.fitted_on}, to {10**-AP_DIGITS:g}; of equal ones the nearest to "
            f"{fit.usual:g}. The AP to quote is that of this line on {fit.scored}.",
            f"The best on {fit.scored} itself is an optimum over the images that are scored, and no result: it says "
            "how much a better choice could give at most.",
        ]
        if fit.gain is not None:
            mark = mark_of_few(fit.gain.num_with_objects)
            notes.append(
                f"The interval, of 95 %, is by images of {fit.scored} that are drawn again: of this training, with the "
                "exponent as it was chosen."
            )
            notes += notes_on_marks(mark)
    columns = (
        Column("exponent is", numeric=False),
        Column("exponent", digits=_digits(fit)),
        Column(f"AP on {fit.fitted_on}", is_soft=True),
        Column(f"AP on {fit.scored}"),
        Column(f"over {fit.usual:g}", signed=True),
        Column(f"AP50 on {fit.scored}"),
        Column(f"AP75 on {fit.scored}"),
    )
    rows: list[tuple[Cell | Value, ...]] = []
    for place, (name, exponent) in enumerate(chosen.items()):
        at, usual = fit.at(exponent), fit.at(fit.usual)
        is_optimum = place == 2
        own = [Cell(at.scored[metric], soft=is_optimum, absent=NOT_APPLICABLE) for metric in CURVES]
        over = (at.scored["AP"] or 0.0) - (usual.scored["AP"] or 0.0)
        known = place == 1 and fit.gain is not None
        interval = (fit.gain.low, fit.gain.high) if known and fit.gain else None
        gain = Cell(over, interval=interval, mark=mark if known else "", soft=is_optimum)
        before = Cell(at.fitted_on["AP"], absent=NOT_APPLICABLE)
        rows.append((name, exponent, before, own[0], gain if place else Cell(None), *own[1:]))
    return Table(
        title=fit.title,
        columns=columns,
        rows=tuple(rows),
        rules_before=(2,) if len(rows) > 2 else (),
        notes=(*notes, *fit.notes),
    )


def _recalibration_table(fit: Fit) -> Table:
    """Show the errors of the scores as they are, and after each recalibration."""
    columns = (
        Column("scores", numeric=False),
        Column("exponent", digits=_digits(fit)),
        Column("fitted", numeric=False),
        *(Column(name) for name in JUDGED),
    )
    rows: list[tuple[Cell | Value, ...]] = [
        (one.name, one.exponent, _said(one), *(Cell(one.errors[name], absent=NOT_APPLICABLE) for name in JUDGED))
        for one in fit.calibrated
    ]
    return Table(
        title=f"Calibration on {fit.scored}, fitted on {fit.fitted_on}",
        columns=columns,
        rows=tuple(rows),
        notes=(
            "LaECE and LaACE hold scores against the IoU with the object that is found, 0 of a false positive, D-ECE "
            "against whether one is found; 0 to 100, the least is the best.",
            "LaACE is least for scores at the median of the IoUs, which is 0 where most detections are false, so that "
            "scores at their mean may have more of it.",
            "Temperature and isotonic regression are fitted to those IoUs, of all classes together; the ranking of "
            "boxes, and so AP, stays, but where isotonic regression makes scores equal.",
        ),
    )


def _curve_table(fit: Fit) -> Table:
    columns = [Column("exponent", digits=_digits(fit))]
    columns += [Column(f"{metric} on {split}") for split in (fit.fitted_on, fit.scored) for metric in CURVES]
    return Table(
        title=f"Every exponent on {fit.fitted_on}, and on {fit.scored}",
        columns=tuple(columns),
        rows=tuple((one.exponent, *_cells(one.fitted_on), *_cells(one.scored)) for one in fit.tried),
    )


def _cells(metrics: Metrics) -> Sequence[Cell]:
    return [Cell(metrics[metric], absent=NOT_APPLICABLE) for metric in CURVES]


def _said(one: Calibrated) -> str:
    from model.evaluation.calibration.recalibration import Isotonic, Temperature

    match one.by:
        case Temperature(temperature):
            return f"T = {temperature:.3f}"
        case Isotonic(scores, _):
            return f"{len(scores)} points"
    return ""


def _bins(one: Calibrated) -> list[dict[str, float]]:
    """What the diagram shows of each bin of the score that is not empty."""
    names = ("counts", "scores", "ious", "precision")
    columns = [getattr(one.bins, name).tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True) if values[0]]


def _digits(fit: Fit) -> int:
    """Decimals that tell the exponents apart, at least two."""
    return max(2, *(len(f"{one.exponent!r}".partition(".")[2]) for one in fit.tried))
