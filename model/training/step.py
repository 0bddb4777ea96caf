"""One update of a training: matching, forward pass, losses, backward pass, optimizer.

Nothing in it makes the host wait for an accelerator, so that the next batch is on its way while this one computes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ScheduleConfig, TrainConfig
from model.data.images import STRIDE, normalize
from model.data.samples import Batch
from model.network.anchors import anchor_grid
from model.network.detector import RetinaNetConf
from model.parallel import total, world, wrap
from model.training.batches import MicroBatch
from model.training.losses import detector_losses
from model.training.matching import GroundTruth, match, num_samples, positive_cells


class TrainingStep:
    """A detector and its optimizer, with the one call that changes them."""

    def __init__(self, config: TrainConfig, detector: RetinaNetConf) -> None:
        """Take a detector on its device; in a process group its gradients are shared from now on."""
        self.config = config
        self.device = next(detector.parameters()).device
        # On the CPU, gradients of weights come in rows, and mixing both orders costs more than it saves.
        self.detector = detector.to(memory_format=torch.channels_last) if self.device.type == "cuda" else detector
        self.optimizer = _optimizer(detector, config.schedule)
        self.model = wrap(detector)
        self.num_processes = world()[1]

    def update(self, micro_batches: Sequence[MicroBatch], rate: float) -> Tensor:
        """One step on a global batch, of which this process has these parts; gives its share of the losses, [3]."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        samples = [self._samples(micro_batch) for micro_batch in micro_batches]
        normalizer = total(sum((part.num for part in samples), torch.zeros((), device=self.device)))
        self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(3, device=self.device)
        for place, part in enumerate(samples, start=1):
            synchronise = place == len(samples) or not hasattr(self.model, "no_sync")
            with nullcontext() if synchronise else cast(nn.parallel.DistributedDataParallel, self.model).no_sync():
                losses += self._accumulate(part, normalizer)
        if self.config.schedule.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.config.schedule.gradient_clip)
        self.optimizer.step()
        return losses

    def _samples(self, micro_batch: MicroBatch) -> "_Samples":
        model, batch = self.config.model, micro_batch.batch.to(self.device)
        grid = anchor_grid(batch.shape, self.device, model.anchor_rule)
        truth = GroundTruth(batch.boxes, batch.labels, batch.image_index)
        assigned = match(
            grid,
            (batch.sizes + STRIDE - 1) // STRIDE * STRIDE,
            truth,
            positive_iou=model.positive_iou,
            negative_iou=model.negative_iou,
        )
        return _Samples(batch, truth, assigned, num_samples(assigned) * micro_batch.counts, micro_batch.counts)

    def _accumulate(self, part: "_Samples", normalizer: Tensor) -> Tensor:
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
class _Samples:
    """A micro-batch on the device, with what its anchors learn."""

    batch: Batch
    truth: GroundTruth
    assigned: Tensor
    num: Tensor
    counts: bool


def _optimizer(detector: nn.Module, config: ScheduleConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=(config.momentum, 0.999), weight_decay=decay)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay)
