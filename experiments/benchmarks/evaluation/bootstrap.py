"""What a paired bootstrap of a whole suite costs: 45 rows on 5,000 images, 1,000 resamples, on all cores.

The truth is `scale/instances_val2017_intbox.json` under RNC_COCO_ROOT, where there is such a file (4,910 images), or
5,000 images of random boxes; the detections of each row are made from it by noise of its own. Matching is timed apart,
as it is done once, when an evaluation is recorded. Beside it stands what one would do without: write down the data set
that a resample draws, and evaluate that with hotcoco; on a few resamples of one row, the rest is by multiplication.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import numpy as np
from coco_metrics import SPLIT, detections, write_truth
from numpy.typing import NDArray

from model.data.coco import read_coco
from model.data.split import CocoData
from model.evaluation.coco.matches import match, write_matches
from model.evaluation.coco.metrics import evaluate
from model.evaluation.coco.reweighted import of_sizes, precision_and_recall
from model.inference.table import DetectionTable
from orchestrator.report.statistics.resamples import resample


@click.command(help=__doc__)
@click.option("--rows", default=45, show_default=True, help="Evaluations.")
@click.option("--resamples", default=1000, show_default=True, help="Of each evaluation.")
@click.option("--images", default=5000, show_default=True, help="Images, the first by id.")
@click.option("--naive", default=3, show_default=True, help="Resamples of the way without matches.")
@click.option("--rounds", default=2, show_default=True, help="How often it is measured.")
@click.option("--by-size", is_flag=True, help="Resample APs to ARl, too.")
def main(rows: int, resamples: int, images: int, naive: int, rounds: int, by_size: bool) -> None:
    """Measure, and print seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        write_truth(Path(scratch), images)
        data = read_coco(Path(scratch), SPLIT, check_images=False)
    found = [detections(data, seed) for seed in range(rows)]
    start = time.perf_counter()
    tables = [match(data, one) for one in found]
    click.echo(
        f"{rows} rows of {len(data)} images, {len(data.annotation_ids)} boxes, {len(found[0].scores)} detections; "
        f"matched in {(time.perf_counter() - start) / rows:.2f} s a row"
    )
    with tempfile.TemporaryDirectory() as scratch:
        sizes = []
        for name, one in (("all", tables[0]), ("old", replace(tables[0], by_size={}))):
            write_matches(one, Path(scratch, name))
            sizes.append(Path(scratch, name).stat().st_size / 1e6)
    click.echo(f"a file of matches has {sizes[0]:.2f} MB, {sizes[1]:.2f} MB of which without those by size")
    for number in range(rounds):
        start, cpu = time.perf_counter(), time.process_time()
        weights = resample(len(data), resamples)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            numbers = list(threads.map(precision_and_recall, tables, repeat(weights)))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        click.echo(
            f"round {number + 1}: {seconds:.1f} s for {resamples} resamples of {rows} rows on {os.cpu_count()} cores, "
            f"{cpu:.1f} s of which one core would be busy"
        )
    if by_size:
        again = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(of_sizes, tables, repeat(weights)))
        click.echo(f"by size, which is done where it is asked for: {time.perf_counter() - again:.1f} s more")
    start = time.perf_counter()
    slow = [_evaluate_drawn(data, found[0], weights[:, place]) for place in range(naive)]
    each = (time.perf_counter() - start) / max(1, naive)
    hours = each * resamples * rows / 3600
    click.echo(
        f"hotcoco on the data set so drawn: {each:.2f} s a resample, so {hours:.1f} h for all of them "
        f"(by multiplication), {hours * 3600 / seconds:.0f} times as long"
    )
    apart = np.abs(numbers[0][:3, :naive] - np.array(slow).T).max(initial=0.0)
    click.echo(f"both ways differ by at most {apart:.4f} AP, from equal scores within an image")


def _evaluate_drawn(data: CocoData, found: DetectionTable, weights: NDArray[Any]) -> list[float]:
    drawn = np.repeat(np.arange(len(data)), weights.astype(int))
    starts = np.searchsorted(found.image_ids, data.image_ids[drawn])
    stops = np.searchsorted(found.image_ids, data.image_ids[drawn], side="right")
    rows = np.concatenate([np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)])
    truth = np.concatenate([np.arange(*data.offsets[image : image + 2]) for image in drawn])
    copy = CocoData(
        root=data.root,
        split=data.split,
        folder=data.folder,
        image_ids=np.arange(1, len(drawn) + 1),
        names=data.names[drawn],
        sizes=data.sizes[drawn],
        category_ids=data.category_ids,
        category_names=data.category_names,
        offsets=np.append(0, np.cumsum(np.diff(data.offsets)[drawn])),
        annotation_ids=np.arange(1, len(truth) + 1),
        annotation_boxes=data.annotation_boxes[truth],
        annotation_areas=data.annotation_areas[truth],
        annotation_labels=data.annotation_labels[truth],
        annotation_crowds=data.annotation_crowds[truth],
        fingerprint="",
    )
    table = DetectionTable.plain(
        np.repeat(copy.image_ids, stops - starts),
        *(getattr(found, name)[rows] for name in ("category_ids", "boxes", "scores")),
    )
    numbers = evaluate(copy, table)
    return [numbers[name] or 0.0 for name in ("AP", "AP50", "AP75")]


if __name__ == "__main__":
    main()
