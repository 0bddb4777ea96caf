"""What looking at a whole suite again costs: 45 evaluations of 5,000 images, from their stored files.

Of each evaluation the detections and what was counted are read, the twelve COCO numbers and all statistics are
computed, and Figures 1 and 2 are drawn; then there is a table of all, and the figures of three heads side by side. The
truth is as in bootstrap.py. Detections are made from it by noise, about 90 an image, and what NMS dropped is made up in
the number of the objects.
"""

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from coco_metrics import SPLIT, detections, write_truth

from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.coco.metrics import evaluate
from model.evaluation.misalignment import (
    BINS,
    IOUS,
    SCORES,
    DroppedTable,
    Misalignment,
    Statistics,
    read_misalignment,
    statistics,
    write_misalignment,
)
from model.inference.table import DetectionTable, read_detections, write_detections
from orchestrator.figures.charts import proportions, save, score_against_iou
from orchestrator.figures.table import Cell, Column, Table, Value
from orchestrator.report.misalignment_table import MISALIGNMENT_COLUMNS, statistics_cells

FOUND = "detections.parquet"
TIMES = 7
"""So often an object is found or a false box lies near it, about."""


@click.command(help=__doc__)
@click.option("--rows", default=45, show_default=True, help="Evaluations.")
@click.option("--images", default=5000, show_default=True, help="Images, the first by id.")
def main(rows: int, images: int) -> None:
    """Measure, and print seconds and megabytes."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_truth(root, images)
        folders = [root / f"{row:02d}" for row in range(rows)]
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:  # making them takes memory of its own
            list(pool.map(partial(_store, root), folders))
        stored = sum(file.stat().st_size for file in folders[0].iterdir()) / 1e6
        start, cpu = time.perf_counter(), time.process_time()
        data = read_coco(root, SPLIT, check_images=False)
        looked = [_look(data, folder) for folder in folders]
        heads = {f"head {folder.name}": read_misalignment(folder) for folder in folders[:3]}
        for name, draw in (("figure1", score_against_iou), ("figure2", proportions)):
            save(draw(heads), root, name)
        _table(looked)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(f"{len(data)} images, {looked[0][2]} detections and {stored:.1f} MB of files a row")
    click.echo(f"{rows} rows: {seconds:.1f} s on {os.cpu_count()} cores, {cpu:.1f} s of which one would be busy")
    click.echo(f"memory: at most {memory:.0f} MB")


def _look(data: CocoData, folder: Path) -> tuple[dict[str, float | None], Statistics, int]:
    """Everything about one evaluation."""
    found, _ = read_detections(folder / FOUND)
    counted = read_misalignment(folder)
    save(score_against_iou({folder.name: counted}), folder, "figure1", ("png",))
    save(proportions({folder.name: counted}), folder, "figure2", ("png",))
    return evaluate(data, found), statistics(data, found, counted), len(found)


def _table(looked: list[tuple[dict[str, float | None], Statistics, int]]) -> str:
    columns = (Column("row", numeric=False), Column("AP"), *MISALIGNMENT_COLUMNS.values())
    rows: list[tuple[Cell | Value, ...]]
    rows = [(str(n), Cell(numbers["AP"]), *statistics_cells(said)) for n, (numbers, said, *_) in enumerate(looked)]
    table = Table(title="all", columns=columns, rows=tuple(rows))
    return table.to_text() + table.to_markdown() + table.to_latex() + table.to_json()


def _store(root: Path, folder: Path) -> None:
    data, seed = read_coco(root, SPLIT, check_images=False), int(folder.name)
    generator = np.random.default_rng(seed)
    folder.mkdir()
    plain = DetectionTable.concatenate([detections(data, TIMES * seed + time) for time in range(TIMES)])
    ious = np.clip(plain.scores + generator.normal(0, 0.2, len(plain)), 0, 1).astype(np.float32)
    found = replace(plain, ious=ious, anchors=np.arange(len(plain), dtype=np.int32))
    write_detections(found, folder / FOUND, {"row": seed})
    write_misalignment(folder, _made_up(data, found, generator), {"row": seed})


def _made_up(data: CocoData, found: DetectionTable, generator: np.random.Generator) -> Misalignment:
    images, lost = len(data), len(data.annotation_ids)

    def numbers(*shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
        return generator.integers(0, 1000, shape).astype(np.int32)

    dropped = found.take(generator.integers(0, len(found), lost))
    known = {name: getattr(dropped, name) for name in DroppedTable.__slots__ if hasattr(dropped, name)}
    before, after = (generator.poisson(20, (BINS, BINS)) for _ in range(2))
    return Misalignment(
        image_ids=data.image_ids,
        num_objects=np.diff(data.offsets).astype(np.int32),
        num_positive_anchors=numbers(images),
        num_before=numbers(images),
        num_after=numbers(images),
        scores_before=numbers(images, len(SCORES)),
        scores_after=numbers(images, len(SCORES)),
        ious_before=numbers(images, len(IOUS)),
        ious_after=numbers(images, len(IOUS)),
        density_before=before,
        density_after=after,
        dropped=DroppedTable(
            **known,
            kept_anchors=numbers(lost),
            kept_ious=(dropped.ious / 2).astype(np.float32),
            objects=np.arange(lost),
            counts=numbers(lost),
        ),
        oracle=replace(found, scores=found.ious),
    )


if __name__ == "__main__":
    main()
