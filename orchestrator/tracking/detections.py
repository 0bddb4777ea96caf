"""Files of detections: Parquet with all that is needed to compute the numbers again, and the JSON of COCO's tools."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.config import DataConfig, InferenceConfig
from model.inference.table import DetectionTable, read_detections, write_detections
from model.settings import read_settings, to_dict
from orchestrator.errors import UserError
from orchestrator.experiment.plan import evaluation_key, train_key

if TYPE_CHECKING:
    from model.data.split import CocoData
    from model.evaluation.scoring import Scores
    from model.network.checkpoint import Card

MAKE_ANOTHER = "make another with `rnc evaluate DIR --save FILE.parquet`, or fetch it from MLflow with `rnc pull`"


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
    return detections, about


def require_same_images(file: Path, about: About, detections: DetectionTable, data: "CocoData") -> None:
    """Refuse data on which these detections were not made.

    Raises:
        UserError: the images are others, or a detection lies on none of them or in none of their categories.
    """
    if data.fingerprint != about.data_fingerprint:
        here = _images(len(data), str(data.root / data.split), data.fingerprint)
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
                f"{data.root / data.split}; the file was changed: {MAKE_ANOTHER}"
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


def _images(count: int, where: str, fingerprint: str) -> str:
    return f"{count} images of {where} (fingerprint {fingerprint[:12]})"
