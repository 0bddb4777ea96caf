"""Files of detections: Parquet with all that is needed to compute the numbers again, and the JSON of COCO's tools."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.config import DataConfig, InferenceConfig
from model.foreign import parse_json, require_file
from model.inference.table import DetectionTable, read_detections, write_detections
from model.settings import read_settings, to_dict
from orchestrator.errors import UserError
from orchestrator.experiment.plan import evaluation_key, train_key

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.evaluation.scoring import Scores
    from model.network.checkpoint import Card

MAKE_ANOTHER = (
    "make another with `rnc evaluate CHECKPOINT --save FILE.parquet`, or fetch it from MLflow with `rnc pull`; the "
    "results of another detector are read as JSON"
)

MAX_DETECTIONS = 100
"""Of one image and category, that COCO's evaluation counts."""
LEAVING, CORNERS = 0.5, 0.95
"""The shares of boxes that have to leave their images, and to fit them as corners, to be taken for corners."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """The metadata of a file of detections: of which data, checkpoint and settings they are, and their numbers."""

    data: DataConfig
    """As the training had it; what a split holds for it follows from this."""
    split: str
    data_fingerprint: str
    """CocoData.fingerprint of the images that were scored."""
    num_images: int
    inference: InferenceConfig
    train_key: str
    evaluation_key: str
    weights_sha256: str
    metrics: Mapping[str, float | None]
    """The twelve COCO numbers, to the last digit; None where the images have no such object."""
    statistics: Mapping[str, float | None] = field(default_factory=dict)
    """What the detections say of misalignment, by the names of model.evaluation.misalignment.OF_DETECTIONS."""

    @property
    def images(self) -> str:
        """The images, in words."""
        return _images(self.num_images, f"{self.data.dataset} {self.split}", self.data_fingerprint)


def describe(
    card: "Card",
    config: DataConfig,
    data: "CocoData",
    scores: "Scores",
    statistics: Mapping[str, float | None],
) -> About:
    """Return the metadata of the detections of a scoring.

    Args:
        card: of the checkpoint.
        config: its data settings, or those that the images were read with in their stead.
        data: the images.
        scores: of all of them.
        statistics: of all of them, as model.evaluation.misalignment names them; those of the detections alone are kept.
    """
    from model.evaluation.misalignment import OF_DETECTIONS

    key = train_key(card.config)
    return About(
        data=config,
        split=data.split,
        data_fingerprint=data.fingerprint,
        num_images=len(data),
        inference=scores.inference,
        train_key=key,
        evaluation_key=evaluation_key(key, scores.inference, data.split),
        weights_sha256=card.weights_sha256,
        metrics=scores.metrics,
        statistics={name: statistics[name] for name in OF_DETECTIONS},
    )


def write_stored(file: Path, detections: DetectionTable, about: About) -> None:
    """Write the file, whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_detections(detections, file, to_dict(about))
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror or error}); name another place") from error


def read_stored(file: Path) -> tuple[DetectionTable, About]:
    """Read back what `write_stored` wrote.

    Raises:
        UserError: the file is cut off, damaged, of an earlier form, or none of detections.
    """
    try:
        detections, said = read_detections(file)
    except ValueError as error:
        raise UserError(f"{error}; {MAKE_ANOTHER}") from error
    about, problems = read_settings(About, said)
    if about is None:
        raise UserError(f"{file} does not say what its detections are ({'; '.join(problems)}); {MAKE_ANOTHER}")
    for name, width in (("boxes", 4), ("scores", 1)):
        wrong = np.flatnonzero(~np.isfinite(getattr(detections, name).reshape(len(detections), width)).all(axis=1))
        if len(wrong):
            raise UserError(
                f"{file}: {len(wrong)} of {len(detections)} detections have {name} that are NaN or infinite, the first "
                f"in row {wrong[0]} (image {detections.image_ids[wrong[0]]}); {MAKE_ANOTHER}"
            )
    return detections, about


def require_same_images(file: Path, about: About, detections: DetectionTable, data: "CocoData") -> None:
    """Refuse data on which these detections were not made.

    Raises:
        UserError: the images are others, or a detection lies on none of them or in none of their categories.
    """
    if data.fingerprint != about.data_fingerprint:
        here = _images(len(data), f"{data.root}, split {data.split}", data.fingerprint)
        raise UserError(
            f"{file} holds detections on {about.images}, but the data are {here}; name the data set that they were "
            "made on with --data, and --split if the split has another name there"
        )
    known = {"image": data.image_ids, "category": np.array(data.category_ids, np.int64)}
    for what, ids in (("image", detections.image_ids), ("category", detections.category_ids)):
        strange = ids[~np.isin(ids, known[what])]
        if len(strange):
            raise UserError(
                f"{file}: {len(strange)} detections have {what} id {strange[0]} or others that are not in "
                f"{data.root}, split {data.split}; the file was changed: {MAKE_ANOTHER}"
            )


def write_json(file: Path, content: object) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content))
        partial.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); name another place") from error


def write_coco_json(file: Path, table: DetectionTable) -> None:
    """Write detections as the list that COCO's tools load: image_id, category_id, bbox (x, y, width, height), score."""
    boxes = table.boxes.astype(float)
    # COCO's boxes are x, y, width, height; in float64, so that the differences are not rounded again.
    boxes[:, 2:] -= boxes[:, :2]
    columns = (table.image_ids, table.category_ids, boxes, table.scores.astype(float))
    keys = ("image_id", "category_id", "bbox", "score")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*(column.tolist() for column in columns), strict=True)]
    write_json(file, rows)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Results:
    """Detections as COCO's tools exchange them, in the numbers of their file."""

    image_ids: NDArray[np.int64]
    """[D]."""
    category_ids: NDArray[np.int64]
    """[D]."""
    boxes: NDArray[np.float64]
    """[D, 4], x, y, width and height."""
    scores: NDArray[np.float64]
    """[D]."""
    notes: tuple[str, ...]
    """What is worth to know of them, a sentence each, for people."""


def holds_json(file: Path) -> bool:
    """Whether a file begins as JSON of objects and lists does."""
    try:
        require_file(file)
        with file.open("rb") as stream:
            return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{")
    except OSError:
        return False


def read_results(file: Path, data: "CocoData") -> Results:
    """Read a results file of COCO's tools: a list of {image_id, category_id, bbox (x, y, width, height), score}.

    Raises:
        UserError: it is none, or its detections are not of these data; all that is wrong is told at once.
    """
    rows = _rows(file)
    images, image_texts = _ids(rows, "image_id")
    categories, category_texts = _ids(rows, "category_id")
    boxes = _numbers([_four(row.get("bbox")) for row in rows]).reshape(-1, 4)
    scores = _numbers([[row.get("score")] for row in rows]).reshape(-1)
    problems = [
        _problem(rows, [one is None for one in images], "image_id", "is no whole number"),
        _problem(rows, [one is None for one in categories], "category_id", "is no whole number"),
        _problem(rows, ~np.isfinite(boxes).all(axis=1), "bbox", "is not four finite numbers"),
        _problem(rows, (boxes[:, 2:] < 0).any(axis=1), "bbox", "has a negative width or height (x, y, width, height)"),
        _problem(rows, ~np.isfinite(scores), "score", "is no finite number"),
    ]
    if not any(problems):
        image_ids, category_ids = np.array(images, np.int64), np.array(categories, np.int64)
        places = np.searchsorted(data.image_ids, image_ids).clip(max=len(data) - 1)
        problems = [
            _strange(data, "image_id", image_ids, data.image_ids),
            _strange(data, "category_id", category_ids, np.array(data.category_ids, np.int64)),
        ]
        if not any(problems):
            problems = [_other_form(boxes, data.sizes[places, ::-1].astype(np.float64))]
    if found := [problem for problem in problems if problem]:
        raise UserError(
            "\n  ".join([f"{file}: not the results of a detector on {data.root}, split {data.split}", *found])
        )
    notes = [
        f"{count} {key} are numbers written as text"
        for key, count in (("image_id", image_texts), ("category_id", category_texts))
        if count
    ]
    return Results(
        image_ids=image_ids,
        category_ids=category_ids,
        boxes=boxes,
        scores=scores,
        notes=(*notes, *_counts(image_ids, category_ids, len(data))),
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        require_file(file)
        content = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} does not read as JSON ({error}); fetch or write it again") from error
    if isinstance(content, dict):
        keys = ", ".join(map(repr, list(content)[:5]))
        raise UserError(
            f"{file} is an object ({keys}), expected a list of {{image_id, category_id, bbox, score}}; name that list, "
            "and the data set with --data"
        )
    if not isinstance(content, list):
        raise UserError(
            f"{file} is a {type(content).__name__}, expected a list of {{image_id, category_id, bbox, score}}"
        )
    for place, row in enumerate(content):
        if not isinstance(row, dict):
            raise UserError(f"{file}: entry {place} is {row!r:.60}, expected {{image_id, category_id, bbox, score}}")
        if "bbox" not in row and "segmentation" in row:
            raise UserError(f"{file}: entry {place} has a segmentation and no bbox; boxes alone are evaluated here")
    return content


def _ids(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int | None], int]:
    """Whole numbers, None for what is none, and how many of them are written as text."""
    ids, num_texts = [], 0
    for row in rows:
        value: Any = row.get(key)
        if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,19}", value):
            value, num_texts = int(value), num_texts + 1
        is_whole = type(value) is int or (type(value) is float and value.is_integer() and abs(value) < 2**53)
        ids.append(int(value) if is_whole and abs(value) < 2**63 else None)
    return ids, num_texts


def _four(box: object) -> list[Any]:
    return box if isinstance(box, list) and len(box) == 4 else [None] * 4


def _numbers(rows: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    """Floats, with NaN for what is none."""
    return np.array(
        [float(one) if type(one) in (int, float) and abs(one) < 1e300 else np.nan for row in rows for one in row],
        dtype=np.float64,
    )


def _problem(rows: Sequence[Mapping[str, Any]], wrong: Any, key: str, what: str) -> str:
    """Say how many entries are wrong, of which `wrong` has a flag each, and show the first."""
    places = np.flatnonzero(wrong)
    if not len(places):
        return ""
    shown = json.dumps(rows[places[0]].get(key))
    return f"{key} of {len(places)} of {len(rows)} entries {what}: entry {places[0]} has {shown:.80}"


def _strange(data: "CocoData", key: str, ids: NDArray[np.int64], known: NDArray[np.int64]) -> str:
    """Say which ids are not in the data, and what they may be instead."""
    strange = ids[~np.isin(ids, known)]
    if not len(strange):
        return ""
    what = "images" if key == "image_id" else "categories"
    named = ", ".join(map(str, np.unique(strange)[:5].tolist()))
    text = f"{len(strange)} of {len(ids)} detections have {key} {named}{', ...' if len(np.unique(strange)) > 5 else ''}"
    text += f", which are none of the {len(known)} {what} (ids {known.min()} to {known.max()})"
    for first in (0, 1):
        if ids.min() >= first and ids.max() < first + len(known):
            return f"{text}; they look like places in the list of {what}, counted from {first}: write the ids instead"
    return f"{text}; name the data that they were made on with --data, and --split"


def _other_form(boxes: NDArray[np.float64], bounds: NDArray[np.float64]) -> str:
    """Say in which form boxes seem to be written, where they are not x, y, width and height in pixels.

    Args:
        boxes: [D, 4], as the file has them.
        bounds: [D, 2], width and height of their images.
    """
    if not len(boxes):
        return ""
    width, height = bounds[0].astype(int).tolist()
    example = f"the first is {boxes[0].tolist()}, in an image of {width} x {height}"
    if (boxes >= 0).all() and (boxes <= 1).all() and (bounds > 2).all():
        return f"boxes look like fractions of the image ({example}); write them in pixels"
    first, second = boxes[:, :2], boxes[:, 2:]
    leaves = (first + second > bounds + 1).any(axis=1)
    corners = ((second >= first) & (second <= bounds + 1)).all(axis=1)
    if leaves.mean() >= LEAVING and corners.mean() >= CORNERS:
        return f"boxes look like corners (x1, y1, x2, y2; {example}); write x, y, x2 - x1 and y2 - y1"
    return ""


def _counts(image_ids: NDArray[np.int64], category_ids: NDArray[np.int64], num_images: int) -> list[str]:
    """Tell of images without detections, and of those with more than COCO's evaluation counts."""
    notes = []
    seen = len(np.unique(image_ids))
    if seen < num_images:
        notes.append(f"{num_images - seen} of {num_images} images have no detection")
    _, counts = np.unique(np.stack([image_ids, category_ids]), axis=1, return_counts=True)
    if over := int((counts > MAX_DETECTIONS).sum()):
        notes.append(
            f"{over} pairs of image and category have more than {MAX_DETECTIONS} detections, of which COCO counts the "
            f"best {MAX_DETECTIONS}"
        )
    return notes


def _images(count: int, where: str, fingerprint: str) -> str:
    return f"{count} images of {where} (fingerprint {fingerprint[:12]})"
