"""Train one detector: one process of a torch.distributed group, or alone."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from model.config import InferenceConfig, TrainConfig
from model.data.coco import read_for_scoring, read_for_training
from model.data.faults import DataError, named
from model.data.split import CocoData, category_differences
from model.evaluation.scoring import score
from model.inference.table import DetectionTable
from model.names import ETA_S, IMAGES_PER_S, LEARNING_RATE, LOSS, LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE, VAL
from model.network.checkpoint import load_resume, load_weights, save_checkpoint
from model.network.finite import NonFiniteError
from model.network.pretrained import load_first_weights
from model.network.retinanet import RetinaNetConf, build_detector
from model.parallel import total, world
from model.training.batches import epoch_batches, updates
from model.training.schedule import learning_rate
from model.training.step import TrainingStep, prepared

LOG_EVERY = 10
"""Updates from one report of the losses to the next; the first of all is reported as well."""


class TrainingError(RuntimeError):
    """A training that cannot go on as it was set up; the message says what to change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a training reports: after its first update, every LOG_EVERY updates, and at the end of each epoch."""

    step: int
    """Updates made."""
    num_steps: int
    """Updates of the whole training."""
    epoch: float
    """Epochs done, with the part of the current one."""
    metrics: dict[str, float] = field(default_factory=dict)
    """By their names in MLflow: train/loss, train/lr, perf/images_per_s, val/AP ..."""
    checkpoint: Path | None = None
    """On rank 0 at the end of an epoch: the checkpoint's folder."""
    end_of_epoch: bool = False
    """Whether this is the report that carries the checkpoint, on every rank."""
    validation: tuple[CocoData, DetectionTable] | None = None
    """At the end of an epoch with a validation: its images, and what was detected on all of them."""


def train(
    config: TrainConfig,
    *,
    data_root: Path,
    weights_file: Path | None = None,
    folder: Path,
    report: Callable[[Progress], None],
    local_batch: int | None = None,
    num_loader_processes: int = 0,
    resume: Path | None = None,
    device: torch.device = torch.device("cpu"),
    use_graphs: bool = True,
) -> None:
    """Train to the last epoch; weights and metrics do not depend on the number of processes.

    Args:
        config: the training's identity.
        data_root: of the data set, in any format that `read_for_training` knows.
        weights_file: the first weights, where `config.model.weights` names some.
        folder: where checkpoints are written, one folder an epoch, by rank 0.
        report: called on every rank, equally often.
        local_batch: images in one forward pass; a larger share of the global batch is accumulated.
        num_loader_processes: processes that decode images; 0 decodes in this one.
        resume: a checkpoint of the same training to go on from.
        device: of the weights.
        use_graphs: as in TrainingStep.

    Raises:
        DataError: the data set cannot be trained on.
        ValueError: weights or checkpoint belong to something else.
        TrainingError: the loss, or what the network says in a validation, is no longer finite.
    """
    data = read_for_training(data_root, config.data)
    validation = read_for_scoring(data_root, config.data, config.data.val_split)
    if differing := category_differences(data, validation):  # else the first validation would tell, after an epoch
        raise DataError(f"{data.root}: both splits need the same categories, but {named(differing)}")
    detector = build_detector(config.model, len(data.category_ids), config.seed)
    if weights_file is not None and resume is None:
        load_first_weights(detector, weights_file, data.category_ids)
    state = None
    if resume is not None:
        state = load_resume(resume, config, (data.category_ids, data.category_names), data.fingerprint)
        detector.load_state_dict(load_weights(resume))
    trainer = TrainingStep(config, detector.to(device), use_graphs=use_graphs)
    first_epoch, step = 0, 0
    if state is not None:
        trainer.load_optimizer(state["optimizer"])
        first_epoch, step = state["epoch"], state["step"]
    steps_per_epoch = len(epoch_batches(data, config, 0))
    num_steps = steps_per_epoch * config.schedule.epochs
    epochs = range(first_epoch, config.schedule.epochs)
    todo = prepared(trainer, updates(data, config, epochs, local_batch, num_loader_processes))
    for epoch in epochs:
        clock, losses = time.perf_counter(), []
        seen = 0
        for place, (update, parts) in enumerate(islice(todo, steps_per_epoch), start=1):
            rate = learning_rate(config.schedule, epoch, step)
            # Kept as tensors: for a number, the host would have to wait for the device.
            losses.append(trainer.step(parts, rate))
            step += 1
            seen += update.num_images
            if step == 1 or place % LOG_EVERY == 0 or place == steps_per_epoch:
                metrics = _loss_metrics(losses, step, config.precision)
                elapsed = time.perf_counter() - clock
                metrics |= {
                    LEARNING_RATE: rate,
                    IMAGES_PER_S: seen / elapsed,
                    ETA_S: elapsed / place * (num_steps - step),
                }
                losses = []
                report(Progress(step=step, num_steps=num_steps, epoch=step / steps_per_epoch, metrics=metrics))
        done = epoch + 1
        metrics, detections = {}, None
        if done % config.schedule.validate_every == 0 or done == config.schedule.epochs:
            try:
                metrics, detections = _validate(config, detector, validation, num_loader_processes)
            except NonFiniteError as error:  # the last update may spoil weights whose loss was finite
                raise TrainingError(f"after update {step} and epoch {done}, {error}") from error
        checkpoint = None
        if world()[0] == 0:
            checkpoint = save_checkpoint(
                folder / f"epoch-{done:04d}",
                weights=detector.state_dict(),
                config=config,
                epoch=done,
                step=step,
                categories=(data.category_ids, data.category_names),
                data_fingerprint=data.fingerprint,
                optimizer=trainer.optimizer.state_dict(),
            )
        report(
            Progress(
                step=step,
                num_steps=num_steps,
                epoch=float(done),
                metrics=metrics,
                checkpoint=checkpoint,
                end_of_epoch=True,
                validation=None if detections is None else (validation, detections),
            )
        )


def _loss_metrics(losses: list[Tensor], step: int, precision: str) -> dict[str, float]:
    """Means over the updates since the last report, added up over the processes."""
    classification, box, confidence = total(torch.stack(losses).mean(dim=0)).tolist()
    loss = classification + box + confidence
    # A sum over all processes, so that all of them stop at the same update.
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at update {step}: lower train.schedule.learning_rate, lengthen "
            "train.schedule.warmup_iterations, or set train.schedule.gradient_clip"
            + (", or train.precision: float32 (it is bfloat16)" if precision == "bfloat16" else "")
        )
    return {
        LOSS: loss,
        LOSS_CLASS: classification,
        LOSS_BOX: box,
        LOSS_CONFIDENCE: confidence,
    }


def _validate(
    config: TrainConfig, detector: RetinaNetConf, validation: CocoData, num_loader_processes: int
) -> tuple[dict[str, float], DetectionTable]:
    """The COCO numbers under the default inference setting of this kind of detector, and the detections."""
    setting = InferenceConfig() if config.model.confidence else InferenceConfig(confidence_exponent=0.0)
    (scores,) = score(
        detector, validation, [setting], config.data, counting=False, num_loader_processes=num_loader_processes
    )
    return {f"{VAL}{name}": value for name, value in scores.metrics.items() if value is not None}, scores.detections
