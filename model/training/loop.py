"""Train one detector: one process of a torch.distributed group, or alone."""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.config import InferenceConfig, ScheduleConfig, TrainConfig
from model.data.coco import read_for_scoring, read_for_training
from model.data.images import STRIDE, Batch, normalize
from model.data.split import CocoData
from model.evaluation.scoring import score
from model.inference.table import DetectionTable
from model.names import ETA_S, IMAGES_PER_S, LEARNING_RATE, LOSS, LOSS_BOX, LOSS_CLASS, LOSS_CONFIDENCE, VAL
from model.network.anchors import anchor_grid
from model.network.assignment import GroundTruth, assign, loss_normalizer, positive_cells
from model.network.checkpoint import load_resume, load_weights, save_checkpoint
from model.network.pretrained import load_first_weights
from model.network.retinanet import RetinaNetConf, build_detector
from model.parallel import total, world, wrap
from model.training.batches import MicroBatch, epoch_batches, updates
from model.training.losses import detector_losses

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
) -> None:
    """Train to the last epoch; weights and metrics do not depend on the number of processes.

    Args:
        config: the training's identity.
        data_root: a folder with `<split>/` and `annotations/`.
        weights_file: the first weights, where `config.model.weights` names some.
        folder: where checkpoints are written, one folder an epoch, by rank 0.
        report: called on every rank, equally often.
        local_batch: images in one forward pass; a larger share of the global batch is accumulated.
        num_loader_processes: processes that decode images; 0 decodes in this one.
        resume: a checkpoint of the same training to go on from.
        device: of the weights.

    Raises:
        DataError: the data set cannot be trained on.
        ValueError: weights or checkpoint belong to something else.
        TrainingError: the loss is no longer finite.
    """
    data = read_for_training(data_root, config.data)
    validation = read_for_scoring(data_root, config.data, config.data.val_split)
    detector = build_detector(config.model, len(data.category_ids), config.seed)
    if weights_file is not None and resume is None:
        load_first_weights(detector, weights_file, data.category_ids)
    state = None
    if resume is not None:
        state = load_resume(resume, config, (data.category_ids, data.category_names), data.fingerprint)
        detector.load_state_dict(load_weights(resume))
    trainer = TrainingStep(config, detector.to(device))
    first_epoch, step = 0, 0
    if state is not None:
        trainer.optimizer.load_state_dict(state["optimizer"])
        first_epoch, step = state["epoch"], state["step"]
    steps_per_epoch = len(epoch_batches(data, config, 0))
    num_steps = steps_per_epoch * config.schedule.epochs
    for epoch in range(first_epoch, config.schedule.epochs):
        clock, losses = time.perf_counter(), []
        seen = 0
        todo = updates(data, config, epoch, local_batch, num_loader_processes)
        for place, update in enumerate(todo, start=1):
            rate = learning_rate(config.schedule, epoch, step)
            # Kept as tensors: for a number, the host would have to wait for the device.
            losses.append(trainer.update(update.micro_batches, rate))
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
            metrics, detections = _validate(config, detector, validation, num_loader_processes)
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


class TrainingStep:
    """A detector and its optimizer, with the one call that changes them."""

    def __init__(self, config: TrainConfig, detector: RetinaNetConf) -> None:
        """Take a detector on its device; in a process group its gradients are shared from now on."""
        self.config = config
        self.device = next(detector.parameters()).device
        # On the CPU, gradients of weights come in rows, and mixing both orders costs more than it saves.
        self.detector = detector.to(memory_format=torch.channels_last) if self.device.type == "cuda" else detector
        self.optimizer = _optimizer(detector, config.schedule)
        self.model = wrap(detector, config.gradient_compression)
        self.num_processes = world()[1]

    def update(self, micro_batches: Sequence[MicroBatch], rate: float) -> Tensor:
        """One step on a global batch, of which this process has these parts; gives its share of the losses, [3]."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = [self._assign(micro_batch) for micro_batch in micro_batches]
        # Before any backward pass: every part is divided by the positives of the whole global batch.
        normalizer = total(sum((part.normalizer for part in parts), torch.zeros((), device=self.device)))
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(3, device=self.device)
        for place, part in enumerate(parts, start=1):
            # Gradients are averaged with the last part alone, else each part would send all of them.
            synchronise = place == len(parts) or not hasattr(self.model, "no_sync")
            with nullcontext() if synchronise else cast(nn.parallel.DistributedDataParallel, self.model).no_sync():
                losses += self._accumulate(part, normalizer)
        if self.config.schedule.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.config.schedule.gradient_clip)
        self.optimizer.step()
        return losses

    def _assign(self, micro_batch: MicroBatch) -> "_Assigned":
        model, batch = self.config.model, micro_batch.batch.to(self.device)
        grid = anchor_grid(batch.shape, self.device, model.anchor_rule)
        truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
        assigned = assign(
            grid,
            (batch.sizes + STRIDE - 1) // STRIDE * STRIDE,
            truth,
            positive_iou=model.positive_iou,
            negative_iou=model.negative_iou,
        )
        return _Assigned(batch, truth, assigned, loss_normalizer(assigned) * micro_batch.counts, micro_batch.counts)

    def _accumulate(self, part: "_Assigned", normalizer: Tensor) -> Tensor:
        images = normalize(part.batch.images, part.batch.sizes).contiguous(memory_format=torch.channels_last)
        grid = anchor_grid(part.batch.shape, self.device, self.config.model.anchor_rule)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            predictions = self.model(images, positive_cells(part.assigned, grid))
        losses = detector_losses(predictions, grid, part.assigned, part.truth, normalizer, self.config.model)
        # The processes' gradients are averaged; their sum is the update.
        (losses.total * (self.num_processes * part.counts)).backward()  # type: ignore[no-untyped-call]
        parts = (losses.classification, losses.box, losses.confidence)
        return torch.stack([loss.detach().sum() for loss in parts]) * part.counts


@dataclass(frozen=True, slots=True)
class _Assigned:
    """A micro-batch on the device, with what its anchors learn."""

    batch: Batch
    truth: GroundTruth
    assigned: Tensor
    normalizer: Tensor
    """[] this part of the losses' divisor."""
    counts: bool


def _optimizer(detector: nn.Module, config: ScheduleConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=(config.momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)


def learning_rate(config: ScheduleConfig, epoch: int, iteration: int) -> float:
    """The rate of one update: linear warm-up, then a factor for each drop (Section 4.1).

    Args:
        config: rate, warm-up and drops.
        epoch: zero-based epoch of the update.
        iteration: zero-based update, counted over the whole training.
    """
    # bisect_right: the epoch of a drop already has the lower rate.
    rate = config.learning_rate * config.lr_drop_factor ** bisect_right(config.lr_drop_epochs, epoch)
    if iteration >= config.warmup_iterations:
        return rate
    missing = (1 - iteration / config.warmup_iterations) * (1 - config.warmup_ratio)
    return rate * (1 - missing)
