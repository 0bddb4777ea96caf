"""One pass of a checkpoint over a data set, under any number of inference settings."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import InferenceConfig
from model.evaluation.shards import Pass, score_missing, scores_of
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from model.data.coco import CocoData
    from model.evaluation.scoring import Scores


def score_checkpoint(
    folder: Path,
    data: "CocoData",
    settings: Sequence[InferenceConfig],
    progress: Callable[[int, int], None] = lambda done, total: None,
    keep: Path | None = None,
) -> "list[Scores]":
    """Score on the GPU of this machine, or else on its CPU.

    Args:
        folder: a checkpoint.
        data: the images; their categories have to be those of the checkpoint.
        settings: as many as wanted, for hardly more than the price of one.
        progress: called with (images done, images in all).
        keep: where shards are kept as they are scored, so that what was killed, or done before, is not done again.

    Raises:
        UserError: the checkpoint is damaged, or learnt other categories.
    """
    import torch

    from model.evaluation.scoring import load_detector, score
    from model.network.checkpoint import read_card, require_categories

    try:
        require_categories(folder, (data.category_ids, data.category_names), f"split {data.split}")
        detector = load_detector(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    on_cuda = torch.cuda.is_available()
    detector, card = detector.to("cuda" if on_cuda else "cpu"), read_card(folder)
    num_loader_processes = min(8, os.cpu_count() or 1) if on_cuda else 0
    if keep is None:
        return score(
            detector, data, settings, card.config.data, num_loader_processes=num_loader_processes, progress=progress
        )
    work = Pass(
        detector=detector,
        weights_sha256=card.weights_sha256,
        data=data,
        config=card.config.data,
        settings=settings,
        keep=keep,
        num_loader_processes=num_loader_processes,
    )
    score_missing(work, progress=progress)
    return list(scores_of(work, settings))
