"""What MLflow keeps of one evaluation: statistics, and files for whoever looks closer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.settings import to_dict
from orchestrator.tracking.detections import NAME, describe, write_stored
from orchestrator.tracking.ledger import MATCHES

if TYPE_CHECKING:
    from model.data.coco import CocoData
    from model.evaluation.scoring import Scores
    from model.network.checkpoint import Card


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """The files that were written, and what they say."""

    detections: Path
    matches: Path
    misalignment: tuple[Path, ...]
    """What was counted before and after NMS, figures of it, and pictures of boxes on three images.

    They are the same images for every evaluation of the data.
    """
    statistics: Mapping[str, float | None]
    """By the names of model.evaluation.alignment."""


def write_findings(folder: Path, card: "Card", data: "CocoData", scores: "Scores", label: str) -> Findings:
    """Write the files of an evaluation into an empty folder.

    Args:
        folder: to write to.
        card: of the checkpoint that was scored.
        data: the images.
        scores: of all of them, with what was counted.
        label: of the row, as figures name it.
    """
    from model.evaluation.alignment import statistics
    from model.evaluation.matches import match, write_matches
    from model.evaluation.misalignment_files import write_misalignment
    from orchestrator.figures.charts import proportions, save, score_against_iou
    from orchestrator.figures.pictures import write_examples

    assert scores.misalignment is not None
    found = statistics(data, scores.detections, scores.misalignment)
    about = describe(card, card.config.data, data, scores, found)
    write_stored(folder / NAME, scores.detections, about)
    write_matches(match(data, scores.detections), folder / MATCHES)
    counts = {label: scores.misalignment}
    files = write_misalignment(folder, scores.misalignment, to_dict(about))
    files += save(score_against_iou(counts), folder, "figure1", ("png",))
    files += save(proportions(counts), folder, "figure2", ("png",))
    files += write_examples(folder, data, scores, label)
    return Findings(
        detections=folder / NAME,
        matches=folder / MATCHES,
        misalignment=tuple(files),
        statistics=found,
    )
