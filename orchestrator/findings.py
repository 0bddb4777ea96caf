"""What MLflow keeps of one evaluation: statistics, and files for whoever looks closer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.settings import to_dict
from orchestrator.stored import NAME, describe, write_stored
from orchestrator.tracking import MATCHES

if TYPE_CHECKING:
    from model.checkpoint import Card
    from model.data import CocoData
    from model.scoring import Scores


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
    """By the names of model.alignment."""


def write_findings(folder: Path, card: "Card", data: "CocoData", scores: "Scores", label: str) -> Findings:
    """Write the files of an evaluation into an empty folder.

    Args:
        folder: to write to.
        card: of the checkpoint that was scored.
        data: the images.
        scores: of all of them, with what was counted.
        label: of the row, as figures name it.
    """
    from model.alignment import statistics
    from model.matches import match, write_matches
    from model.misalignment_files import write_misalignment
    from orchestrator.box_pictures import write_examples
    from orchestrator.charts import proportions, save, score_against_iou

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
