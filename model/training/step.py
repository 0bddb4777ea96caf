"""One update of a detector: assignment, forward pass, losses, backward pass, optimizer; on CUDA replayed as a graph.

A rule that looks at predictions assigns after the forward pass. Nobody knows then before the last of them by how many
samples the global batch is divided, so losses are taken whole, and their gradients, linear in them, divided at the end.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.assignment.assign import assign
from model.assignment.samples import Assignment, GroundTruth, loss_normalizer, positive_cells, predicted
from model.config import ScheduleConfig, TrainConfig
from model.data.images import STRIDE, Batch, normalize
from model.network.anchors import AnchorGrid, anchor_grid
from model.network.retinanet import Predictions, RetinaNetConf
from model.parallel import FlatGradients, total, world, wrap
from model.training.batches import MicroBatch, Update
from model.training.losses import detector_losses

Accumulate = Callable[["Prepared", Tensor], Tensor]
"""Adds the gradients of a prepared micro-batch, whose losses are divided by a number [], and gives the three losses and
this part of the samples, [4]."""
BOXES = 32
"""A graph has room for so many boxes an image, and in a batch with more for the next power of two: COCO has 7 an image,
so that each shape of batches needs one graph."""
FEW_BOXES = 16
"""Where a graph assigns as well, which takes longer the more room it has: so many an image, and once BOXES, as the
fewer images a batch has, the farther from 7 its mean may be."""
NOWHERE = -1e4
"""Where the boxes that fill up a graph's room lie, in pixels: far from all anchors, and without area."""
MOST_GRAPHS = 16
"""Shapes that are replayed as graphs; COCO has about ten at 600 x 1000. What is beyond runs operation by operation."""


class TrainingStep:
    """A detector and its optimizer, with the one call that changes them."""

    def __init__(self, config: TrainConfig, detector: RetinaNetConf, *, use_graphs: bool = True) -> None:
        """Take a detector on its device; in a process group its gradients are shared from now on.

        Args:
            config: of the training.
            detector: on its device.
            use_graphs: on CUDA, record a shape of batches at its second occurrence, and replay it from then on.
        """
        self.config = config
        self.by_prediction = config.model.assignment.by_prediction
        self.device = next(detector.parameters()).device
        on_cuda = self.device.type == "cuda"
        # On the CPU, gradients of weights come in rows, and mixing both orders costs more than it saves.
        self.detector = detector.to(memory_format=torch.channels_last) if on_cuda else detector
        self.optimizer = _optimizer(detector, config.schedule, fused=on_cuda)
        # A graph holds the addresses of its gradients, which DistributedDataParallel would change.
        self.gradients = FlatGradients(detector, config.gradient_compression) if on_cuda else None
        self.model = detector if on_cuda else wrap(detector, config.gradient_compression)
        # DistributedDataParallel averages the processes' gradients; their sum is the update.
        self.scale = 1 if on_cuda else world()[1]
        has_gpu = on_cuda and torch.cuda.is_available()  # else tensors are imagined
        if has_gpu:
            # Graphs are recorded on the current device: on another one, they would be empty.
            torch.cuda.set_device(self.device)
        self.graphs = _Graphs() if has_gpu and use_graphs else None
        self._ahead = torch.cuda.Stream(self.device) if has_gpu else None  # type: ignore[no-untyped-call]

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Go on with an optimizer's state, from whatever device it was saved on."""
        way = self.optimizer.param_groups[0]["fused"]
        groups = [group | {"fused": way} for group in state["param_groups"]]
        self.optimizer.load_state_dict(state | {"param_groups": groups})
        # The CPU keeps other strides than CUDA, and a fused kernel refuses what lies otherwise than its parameter.
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if value is not None and value.shape == parameter.shape and value.stride() != parameter.stride():
                    kept[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def update(self, micro_batches: Sequence[MicroBatch], rate: float) -> Tensor:
        """One step on a global batch, of which this process has these parts; gives its share of the losses, [3]."""
        return self.step(self.prepare(micro_batches), rate)

    def prepare(self, micro_batches: Sequence[MicroBatch]) -> "list[Prepared]":
        """Copy batches to the device and, unless predictions decide, assign; on CUDA beside what runs there already."""
        if self._ahead is None:
            return [self._prepare(micro_batch) for micro_batch in micro_batches]
        with torch.cuda.stream(self._ahead):
            return [self._prepare(micro_batch) for micro_batch in micro_batches]

    def step(self, parts: "Sequence[Prepared]", rate: float) -> Tensor:
        """`update` on batches that are prepared."""
        if self._ahead is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._ahead)
            for part in parts:
                part.keep()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.by_prediction:
            normalizer = torch.ones((), device=self.device)
        else:
            # Before any backward pass: every part is divided by the positives of the whole global batch.
            normalizer = total(sum((part.normalizer for part in parts), torch.zeros((), device=self.device)))
        if self.gradients is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.gradients.zero()
        sums = torch.zeros(4, device=self.device)
        with _algorithms(self.device, self.config):
            for place, part in enumerate(parts, start=1):
                # Gradients are averaged with the last part alone, else each part would send all of them.
                synchronise = place == len(parts) or not hasattr(self.model, "no_sync")
                with nullcontext() if synchronise else cast(nn.parallel.DistributedDataParallel, self.model).no_sync():
                    sums += self._accumulate(part, normalizer)
        if self.gradients is not None:
            self.gradients.share()
        losses = sums[:3]
        if self.by_prediction:
            normalizer = total(sums[3].clone())
            self._divide_gradients(normalizer)
            losses = losses / normalizer
        if self.config.schedule.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.config.schedule.gradient_clip)
        self.optimizer.step()
        return losses

    def _divide_gradients(self, normalizer: Tensor) -> None:
        if self.gradients is not None:
            self.gradients.values.div_(normalizer)
            return
        for parameter in self.detector.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(normalizer)

    def _prepare(self, micro_batch: MicroBatch) -> "Prepared":
        batch = micro_batch.batch.to(self.device)
        grid = anchor_grid(batch.shape, self.device, self.config.model.anchor_rule)
        part = Prepared(batch, grid, None, torch.zeros((), device=self.device), micro_batch.counts)
        if self.by_prediction:
            return part
        assignment = self._assign(part)
        return replace(part, assignment=assignment, normalizer=loss_normalizer(assignment.assigned) * part.counts)

    def _assign(self, part: "Prepared", predictions: Predictions | None = None) -> Assignment:
        """What the anchors of a part learn."""
        padded_sizes = (part.batch.sizes + STRIDE - 1) // STRIDE * STRIDE
        said = None if predictions is None else predicted(predictions, part.grid)
        return assign(part.grid, padded_sizes, part.truth, self.config.model, said)

    def _accumulate(self, part: "Prepared", normalizer: Tensor) -> Tensor:
        if self.graphs is None or not part.counts:
            return self._accumulate_by_operations(part, normalizer)
        return self.graphs.run(part, normalizer, self._accumulate_by_operations)

    def _accumulate_by_operations(self, part: "Prepared", normalizer: Tensor) -> Tensor:
        model, grid, assignment, samples = self.config.model, part.grid, part.assignment, part.normalizer
        images = normalize(part.batch.images, part.batch.sizes).contiguous(memory_format=torch.channels_last)
        # Before it is known which cells learn boxes, the box tower has to run on all of them.
        cells = None if assignment is None else positive_cells(assignment.assigned, grid)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            predictions = self.model(images, cells)
        if assignment is None:
            assignment = self._assign(part, predictions)
            samples = loss_normalizer(assignment.assigned) * part.counts
        losses = detector_losses(predictions, grid, assignment, part.truth, normalizer, model)
        (losses.total * (self.scale * part.counts)).backward()  # type: ignore[no-untyped-call]
        parts = [loss.detach().sum() * part.counts for loss in (losses.classification, losses.box, losses.confidence)]
        return torch.stack([*parts, samples.to(parts[0])])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A micro-batch on the device, with what its anchors learn."""

    batch: Batch
    grid: AnchorGrid
    """N anchors; held here, as a graph reads them after the cache of grids may have dropped them."""
    assignment: Assignment | None
    """None where the rule looks at predictions, which there are none of yet."""
    normalizer: Tensor
    """[] this part of the losses' divisor; void without an assignment."""
    counts: bool

    @property
    def truth(self) -> GroundTruth:
        """The boxes that the assignment points into."""
        return GroundTruth(self.batch.boxes, self.batch.labels, self.batch.image_index)

    @property
    def tensors(self) -> list[Tensor]:
        """Those that differ from batch to batch."""
        assigned = [] if self.assignment is None else [self.assignment.assigned]
        return [*(getattr(self.batch, field.name) for field in fields(self.batch)), *assigned, self.normalizer]

    def keep(self) -> None:
        """Say that the current stream reads the tensors, so that their memory is not given to others before."""
        for tensor in (*self.tensors, self.grid.boxes):
            tensor.record_stream(torch.cuda.current_stream())


def prepared(trainer: TrainingStep, updates: Iterable[Update]) -> Iterator[tuple[Update, list[Prepared]]]:
    """Prepare each update, on CUDA while the device still works on the one before."""
    waiting: deque[tuple[Update, list[Prepared]]] = deque()
    for update in updates:
        waiting.append((update, trainer.prepare(update.micro_batches)))
        if len(waiting) > (trainer.device.type == "cuda"):
            yield waiting.popleft()
    yield from waiting


class _Graphs:
    """Forward and backward passes by the shape of their batch: launched as one, they cost the host next to nothing."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, ...]] = set()
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Prepared, Tensor, Tensor]] = {}
        # Graphs run one after the other and leave nothing behind, so that they can use the same memory.
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, part: Prepared, normalizer: Tensor, accumulate: Accumulate) -> Tensor:
        """accumulate(part, normalizer), with gradients added to those that there are."""
        part = _with_room(part)
        key = (*part.batch.images.shape, len(part.batch.boxes))
        if key not in self._recorded:
            if key not in self._seen or len(self._recorded) == MOST_GRAPHS:
                # The first time prepares: cuDNN tries its algorithms, and kernels are compiled.
                self._seen.add(key)
                return accumulate(part, normalizer)
            self._recorded[key] = self._record(part, normalizer, accumulate)
        graph, its_part, its_normalizer, sums = self._recorded[key]
        for mine, given in zip([*its_part.tensors, its_normalizer], [*part.tensors, normalizer], strict=True):
            mine.copy_(given)
        graph.replay()
        return sums.clone()

    def _record(
        self, part: Prepared, normalizer: Tensor, accumulate: Accumulate
    ) -> tuple[torch.cuda.CUDAGraph, Prepared, Tensor, Tensor]:
        mine = Prepared(
            Batch(**{field.name: getattr(part.batch, field.name).clone() for field in fields(part.batch)}),
            part.grid,
            None if part.assignment is None else Assignment(part.assignment.assigned.clone()),
            part.normalizer.clone(),
            counts=True,
        )
        its_normalizer, sums = normalizer.clone(), torch.zeros(4, device=normalizer.device)
        torch.cuda.empty_cache()  # what operations took by themselves; a graph has its own memory
        graph = torch.cuda.CUDAGraph()
        # Other threads of this process may call CUDA: the loader's, which pins memory, and NCCL's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            sums.copy_(accumulate(mine, its_normalizer))
        return graph, mine, its_normalizer, sums


def _with_room(part: Prepared) -> Prepared:
    """The same with boxes of the last image that no anchor learns at the end."""
    batch, count = part.batch, len(part.batch.boxes)
    room = BOXES * len(batch.images) if part.assignment is not None else FEW_BOXES * len(batch.images) + BOXES
    missing = max(room, 1 << (count - 1).bit_length()) - count
    boxes, labels = batch.boxes.new_full((missing, 4), NOWHERE), batch.labels.new_zeros(missing)
    image_index = batch.image_index.new_full((missing,), len(batch.images) - 1)
    return replace(
        part,
        batch=replace(
            batch,
            boxes=torch.cat([batch.boxes, boxes]),
            labels=torch.cat([batch.labels, labels]),
            image_index=torch.cat([batch.image_index, image_index]),
        ),
    )


@contextmanager
def _algorithms(device: torch.device, config: TrainConfig) -> Iterator[None]:
    """How cuDNN chooses its algorithms: by trying them out, or among those that repeat bit by bit."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    if device.type == "cuda":
        cudnn.benchmark, cudnn.deterministic = not config.deterministic, config.deterministic
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def _optimizer(detector: nn.Module, config: ScheduleConfig, *, fused: bool) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    rate, decay = config.learning_rate, config.weight_decay
    # One kernel for all parameters; None leaves the choice to torch, as on the CPU.
    way = True if fused else None
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=way)
    return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=way)
