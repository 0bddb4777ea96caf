"""The match of detections with objects, from which every COCO number of a data set can be counted, and its file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.data.split import CocoData
from model.foreign import open_parquet
from model.inference.table import DetectionTable

if TYPE_CHECKING:
    import pyarrow as pa

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's; bit t of a mask stands for the t-th."""
MAX_DETECTIONS = 100
"""Of one image and category; COCO leaves out the rest."""
ALL = (1 << len(IOU_THRESHOLDS)) - 1
RECALLS = np.linspace(0, 1, 101)
"""Those at which COCO reads precision."""
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
"""COCO's least and largest areas in square pixels, both included."""
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MatchTable:
    """The matches of one evaluation by cell: a pair of an image and a category with a detection or an object.

    Cells are sorted by category, then image; detections stand best first within their cell.
    """

    num_images: int
    num_categories: int
    category_ids: tuple[int, ...] = ()
    """Rising; empty of a file that was written before there were such, as are the names."""
    category_names: tuple[str, ...] = ()
    images: NDArray[np.int32]
    """[C] an image's place among the rising ids of the data set."""
    categories: NDArray[np.int32]
    """[C] a category's place among the rising ids."""
    num_truths: NDArray[np.int32]
    """[C] objects to find, crowds left out."""
    offsets: NDArray[np.int32]
    """[C + 1]; cell c owns the detections offsets[c] to offsets[c + 1]."""
    scores: NDArray[np.float32]
    """[D]."""
    true: NDArray[np.uint16]
    """[D] the thresholds, as a mask, at which the detection finds an object."""
    ignored: NDArray[np.uint16]
    """[D] the thresholds at which it lies on a crowd, and is neither right nor wrong."""
    by_size: Mapping[str, "MatchTable"] = field(default_factory=dict)
    """The same cells and detections where objects of one size of SIZES alone are to be found; empty of a file that was
    written before there were such. Ignored is, too, what is matched with an object of another size, or with none and
    is itself of another size."""


def match(data: CocoData, detections: DetectionTable) -> MatchTable:
    """Match detections and objects as pycocotools does, at all thresholds at once.

    Best first, a detection takes the object of its image and category that it overlaps most among those yet free, of
    equal ones the last, if the IoU reaches the threshold; failing that, it lies on a crowd that it overlaps as much.

    Raises:
        ValueError: a detection's image or category is none of the data's.
    """
    boxes, scores, detected = _best_detections(data, detections)
    truth = np.repeat(np.arange(len(data)), np.diff(data.offsets)) + len(data) * data.annotation_labels.astype(np.int64)
    crowd = data.annotation_crowds
    by_cell = np.argsort(truth, kind="stable")
    first = np.searchsorted(truth[by_cell], detected)
    count = np.searchsorted(truth[by_cell], detected, side="right") - first
    of_detection = np.repeat(np.arange(len(detected)), count)
    rank = np.arange(len(of_detection)) - np.repeat(np.cumsum(count) - count, count)
    of_truth = by_cell[np.repeat(first, count) + rank]
    written = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    overlap = written_overlap(written[of_detection], data.annotation_boxes[of_truth], crowd[of_truth])
    close = overlap >= IOU_THRESHOLDS[0]
    of_detection, of_truth, overlap = of_detection[close], of_truth[close], overlap[close]
    cells = np.unique(np.concatenate([detected, truth]))
    of_cells = np.searchsorted(cells, truth)

    def matches(ignorable: NDArray[np.bool_], elsewhere: NDArray[np.bool_], **tables: MatchTable) -> MatchTable:
        # lexsort's first key is its last argument: by detection, objects to find before others, larger IoU, later one.
        order = np.lexsort((-of_truth, -overlap, ignorable[of_truth], of_detection))
        pairs = of_detection[order], of_truth[order], overlap[order]
        true, ignored = _assign(*pairs, ignorable, crowd, len(detected))
        return MatchTable(
            num_images=len(data),
            num_categories=len(data.category_ids),
            category_ids=data.category_ids,
            category_names=data.category_names,
            images=(cells % max(1, len(data))).astype(np.int32),
            categories=(cells // max(1, len(data))).astype(np.int32),
            num_truths=np.bincount(of_cells[~ignorable], minlength=len(cells)).astype(np.int32),
            offsets=np.append(np.searchsorted(detected, cells), len(detected)).astype(np.int32),
            scores=scores,
            true=true,
            ignored=np.where(elsewhere, ALL & ~true, ignored),
            by_size=tables,
        )

    sides = boxes[:, 2:] - boxes[:, :2]
    areas, own_areas = data.annotation_areas, sides[:, 0] * sides[:, 1]
    by_size = {
        name: matches(crowd | (areas < least) | (areas > most), (own_areas < least) | (own_areas > most))
        for name, (least, most) in SIZES.items()
    }
    return matches(crowd, np.zeros(len(detected), np.bool_), **by_size)


def _best_detections(
    data: CocoData, detections: DetectionTable
) -> tuple[NDArray[np.float64], NDArray[np.float32], Ints]:
    """The boxes, scores and cells of the detections that count, by cell and best first."""
    images = places(detections.image_ids, data.image_ids, "image")
    labels = places(detections.category_ids, np.array(data.category_ids, np.int64), "category")
    cells = images + len(data) * labels
    order = np.lexsort((-detections.scores, cells))
    cells = cells[order]
    counted = np.arange(len(cells)) - np.searchsorted(cells, cells) < MAX_DETECTIONS
    order = order[counted]
    return detections.boxes[order].astype(np.float64), detections.scores[order], cells[counted]


def _assign(
    of_detection: Ints,
    of_truth: Ints,
    overlap: NDArray[np.float64],
    ignorable: NDArray[np.bool_],
    crowd: NDArray[np.bool_],
    num_detections: int,
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Match pairs greedily, given by detection (best first), then by preference; return `true` and `ignored`, [D]."""
    reached = (1 << np.searchsorted(IOU_THRESHOLDS, overlap, side="right")) - 1
    true, ignored = [0] * num_detections, [0] * num_detections
    free = dict.fromkeys(of_truth.tolist(), ALL)
    kinds = (ignorable.astype(int) + crowd)[of_truth]
    pairs = zip(of_detection.tolist(), of_truth.tolist(), reached.tolist(), kinds.tolist(), strict=True)
    for detection, truth, thresholds, kind in pairs:
        taken = thresholds & ~(true[detection] | ignored[detection])
        if kind < 2:
            # A crowd alone is never used up: any number of detections may lie on it.
            taken &= free[truth]
            free[truth] &= ~taken
        if kind:
            ignored[detection] |= taken
        else:
            true[detection] |= taken
    return np.array(true, np.uint16), np.array(ignored, np.uint16)


def places(ids: Ints, known: Ints, what: str) -> Ints:
    """Return the place of each id among the known ones, which rise.

    Raises:
        ValueError: one is none of them; `what` it is stands in the message.
    """
    found = np.searchsorted(known, ids)
    strange = ids[(found == len(known)) | (np.append(known, 0)[found] != ids)]
    if len(strange):
        raise ValueError(f"{what} {strange[0]} of a detection is not in the data set")
    return found


def written_overlap(
    boxes: NDArray[np.float64], truths: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """IoU of boxes and objects (xywh both), pair by pair; with a crowd, the share of the box that lies on it."""
    low, side = boxes[:, :2], boxes[:, 2:]
    # As pycocotools has it, from corners that it adds up again.
    common = np.minimum(low + side, truths[:, :2] + truths[:, 2:]) - np.maximum(low, truths[:, :2])
    shared = np.where((common[:, 0] > 0) & (common[:, 1] > 0), common[:, 0] * common[:, 1], 0.0)
    area = side[:, 0] * side[:, 1]
    union = np.where(crowd, area, area + truths[:, 2] * truths[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def precisions(matches: MatchTable) -> NDArray[np.float64]:
    """Return COCO's precision by IoU threshold, recall and category, [10, 101, K], 0 to 1; NaN without an object.

    Of each threshold and category, the highest at that recall or a higher one; 0 where that is never reached. They are
    the numbers of which all of AP are means, bit for bit those of pycocotools' accumulate().
    """
    positives = truths_of(matches)[0]
    categories = np.repeat(matches.categories, np.diff(matches.offsets))
    order = np.lexsort((-matches.scores, categories))  # of equal scores the first image comes first
    starts = np.searchsorted(categories[order], np.arange(matches.num_categories + 1))
    bits = np.arange(len(IOU_THRESHOLDS))[:, None]
    found = np.full((len(IOU_THRESHOLDS), len(RECALLS), matches.num_categories), np.nan)
    for category in np.flatnonzero(positives):
        rows = order[starts[category] : starts[category + 1]]
        is_true = matches.true[rows] >> bits & 1
        true = np.cumsum(is_true, axis=1, dtype=np.float64)
        wrong = np.cumsum(1 - (is_true | matches.ignored[rows] >> bits & 1), axis=1, dtype=np.float64)
        # pycocotools adds the last term, so that nothing over nothing is 0; it moves the last bit of others.
        recall, precision = true / positives[category], true / (wrong + true + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for threshold in range(len(IOU_THRESHOLDS)):
            reached = np.searchsorted(recall[threshold], RECALLS)
            found[threshold, :, category] = np.append(precision[threshold], 0.0)[reached]
    return found


def truths_of(matches: MatchTable) -> tuple[Ints, Ints]:
    """Return how many objects there are to find of each category, and on how many images, [K] each; no crowds."""
    objects = np.bincount(matches.categories, matches.num_truths, minlength=matches.num_categories)
    images = np.bincount(matches.categories[matches.num_truths > 0], minlength=matches.num_categories)
    return objects.astype(np.int64), images.astype(np.int64)


def write_matches(matches: MatchTable, file: Path) -> None:
    """Write a Parquet file with one row for each cell."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def lists(values: NDArray[np.generic]) -> object:
        return pa.ListArray.from_arrays(pa.array(matches.offsets), pa.array(values))

    columns = {name: getattr(matches, name) for name in ("images", "categories", "num_truths")}
    columns |= {name: lists(getattr(matches, name)) for name in ("scores", "true", "ignored")}
    for size, table in matches.by_size.items():
        columns |= {f"num_truths_{size}": table.num_truths}
        columns |= {f"{name}_{size}": lists(getattr(table, name)) for name in ("true", "ignored")}
    sizes = {"num_images": str(matches.num_images), "num_categories": str(matches.num_categories)}
    known = {"category_ids": json.dumps(matches.category_ids), "category_names": json.dumps(matches.category_names)}
    pq.write_table(pa.table(columns).replace_schema_metadata(sizes | known), file, compression="zstd")


def read_matches(file: Path) -> MatchTable:
    """Read back what `write_matches` wrote.

    Raises:
        ValueError: the file is no such table.
    """
    import pyarrow as pa

    try:
        with open_parquet(file) as opened:
            table = opened.read()
        cells = {name: table[name].to_numpy() for name in ("images", "categories", "num_truths")}
        lists = {name: table[name].combine_chunks() for name in ("scores", "true", "ignored")}
        matches = MatchTable(
            num_images=int(table.schema.metadata[b"num_images"]),
            num_categories=int(table.schema.metadata[b"num_categories"]),
            category_ids=tuple(json.loads(table.schema.metadata.get(b"category_ids", b"[]"))),
            category_names=tuple(json.loads(table.schema.metadata.get(b"category_names", b"[]"))),
            offsets=lists["scores"].offsets.to_numpy(),
            **cells,
            **{name: column.flatten().to_numpy() for name, column in lists.items()},
        )
        sizes = [size for size in SIZES if f"true_{size}" in table.column_names]
        return replace(matches, by_size={size: _of_size(matches, table, size) for size in sizes})
    except (pa.ArrowException, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} holds no matches: {error}") from error


def _of_size(matches: MatchTable, table: "pa.Table", size: str) -> MatchTable:
    lists = {name: table[f"{name}_{size}"].combine_chunks().flatten().to_numpy() for name in ("true", "ignored")}
    return replace(matches, num_truths=table[f"num_truths_{size}"].to_numpy(), **lists)
