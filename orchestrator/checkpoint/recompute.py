"""Computes the numbers of an evaluation again from its stored detections, without the checkpoint."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from model.settings import to_dict
from orchestrator.checkpoint.evaluate import COLUMNS, read_images, row_of
from orchestrator.figures.table import NOT_APPLICABLE, Cell, Table
from orchestrator.report.misalignment_table import COLUMNS as MISALIGNMENT
from orchestrator.site import Site
from orchestrator.tracking.detections import About, read_stored, require_same_images, write_coco_json


def recompute(
    file: Path, root: Path | None, split: str | None, coco_json: Path | None, site: Site, say: Callable[[str], None]
) -> Table:
    """Give the numbers of stored detections, and say whether they are those that the file records.

    Args:
        file: of detections, as `rnc evaluate --save`, `rnc pull` and MLflow have them.
        root: of the data set that they were made on; None takes the one that the site has under its name.
        split: its name there; None takes the file's.
        coco_json: where to write the detections, as the list that the COCO tools read.
        site: where data sets are.
        say: told what stands beside the numbers.

    Raises:
        UserError: the file is damaged, or of other data than these.
    """
    from model.evaluation.alignment import of_detections
    from model.evaluation.coco_eval import evaluate

    detections, about = read_stored(file)
    data = read_images(root, about.data, split or about.split, site, say)
    require_same_images(file, about, detections, data)
    metrics = evaluate(data, detections)
    if coco_json is not None:
        write_coco_json(coco_json, detections)
        say(f"{len(detections)} detections written to {coco_json}")
    statistics = of_detections(data, detections)
    columns = [MISALIGNMENT[name] for name in statistics]
    rows = [(*row_of("here", metrics), *_cells(statistics, statistics))]
    notes = [f"{len(detections)} detections on {len(data)} images of {data.root / data.split}.", _settings(about)]
    here, recorded = metrics | statistics, {**about.metrics, **about.statistics}
    if here == recorded:
        notes.append(f"Equal to the numbers recorded in {file.name}, to the last digit.")
    else:
        far = max(abs((here[name] or 0.0) - (recorded.get(name) or 0.0)) for name in here)
        rows.append((*row_of("recorded", about.metrics), *_cells(statistics, about.statistics)))
        notes.append(f"Not equal to the numbers recorded in {file.name}: they differ by up to {far:.2g}.")
    return Table(title=f"Detections of {file}", columns=(*COLUMNS, *columns), rows=tuple(rows), notes=tuple(notes))


def _cells(names: Iterable[str], statistics: Mapping[str, float | None]) -> Iterator[Cell]:
    return (Cell(statistics.get(name), absent=NOT_APPLICABLE) for name in names)


def _settings(about: About) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in to_dict(about.inference).items())
    return f"Training {about.train_key}, evaluation {about.evaluation_key}: {settings}."
