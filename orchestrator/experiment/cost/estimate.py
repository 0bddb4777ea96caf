"""What the missing part of a plan costs: hours of training from measured or given throughput, and bytes of disk."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from statistics import fmean
from typing import Literal, NamedTuple

from model.config import DataConfig, ModelConfig, TrainConfig
from model.names import EPOCH, IMAGES_PER_S
from orchestrator.experiment.cost.seeds import at_most
from orchestrator.experiment.plan import Ledger, Place, Plan, TrainRun, gather, lacking
from orchestrator.site import NUM_SHAPES

Device = Literal["GPU", "CPU"]
DEVICES: tuple[Device, ...] = ("GPU", "CPU")
CountImages = Callable[[DataConfig], int | None]
"""Gives the training images of one epoch; None where nobody can tell without reading the data."""
NUM_CLASSES = {"coco": 80, "shapes": 6}
"""Of each data set; one in COCO's format may have others, which changes little."""
BACKBONES = {
    "resnet18_quarter": (702_096, (32, 64, 128)),
    "resnet18_half": (2_798_880, (64, 128, 256)),
    "resnet18": (11_176_512, (128, 256, 512)),
    "resnet50": (23_508_032, (512, 1024, 2048)),
    "resnet101": (42_500_160, (512, 1024, 2048)),
}
"""Parameters of each ResNet without its classifier, and the channels of C3 to C5. A test compares them with torch's."""
NUM_ANCHORS = 9
DETECTION_BYTES = 70
"""A detection in MLflow, compressed: its row, its match, and its share of the counts and pictures of its evaluation."""


class Kind(NamedTuple):
    """What the throughput of one worker depends on most."""

    backbone: str
    short_edge: int
    long_edge: int
    precision: str
    device: Device

    def __str__(self) -> str:
        """Say it as in a sentence."""
        return f"{self.backbone} at {self.short_edge} x {self.long_edge} in {self.precision} on a {self.device}"


class Method(NamedTuple):
    """What else it depends on; trainings of one kind and method are taken to be equally fast.

    The class losses are not in it, which differ by 4 to 6 % (experiments/LOG.md).
    """

    assignment: str
    bins: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """The throughput of one worker."""

    images_per_s: float
    is_measured: bool
    """Measured by a training that ran; or else given by whoever asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingTime:
    """The images and seconds that are left of one missing training, and the GPUs or CPUs that it takes."""

    key: str
    kind: Kind
    amount: float
    """GPUs that it takes, or CPUs where it trains on them; no more than there are."""
    is_cut: bool
    """Whether it asks for more than that."""
    num_images: int | None
    """Over all epochs that are left; None where the data set's size is unknown."""
    images_per_epoch: int | None
    seconds: float | None
    """None where that or the throughput is unknown."""

    @property
    def hours(self) -> float | None:
        """Hours of one GPU, or of one CPU where it trains on them: the same on many as on few; None where unknown."""
        return None if self.seconds is None else self.seconds * self.amount / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTime:
    """The time of a plan's missing trainings, without validation and scoring."""

    trainings: tuple[TrainingTime, ...]
    speeds: dict[Kind, Speed]
    """What is known, of the kinds that are missing: the mean of each, which counts where none of the method ran."""
    gpus: float | None
    """GPUs to spread the trainings over; None leaves that open."""
    cpus: float
    """CPUs for those that train without a GPU."""
    all_seeds: "AllSeeds | None" = None
    """Where seeds are added until decided, the most that it may come to."""

    @property
    def unknown(self) -> tuple[Kind, ...]:
        """The kinds of missing trainings whose throughput is unknown."""
        return tuple(dict.fromkeys(t.kind for t in self.trainings if t.kind not in self.speeds))

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of the trainings whose time is known."""
        return sum(t.hours for t in self.trainings if t.hours and t.kind.device == "GPU")

    def device_hours(self, device: Device) -> float | None:
        """Hours of GPUs, or of CPUs, of all trainings; None where one is unknown."""
        return _sum_of_hours(t for t in self.trainings if t.kind.device == device)

    @property
    def hours(self) -> float | None:
        """Hours until all have ended; None where something for that is unknown."""
        longest = 0.0
        for device, capacity in (("GPU", self.gpus), ("CPU", self.cpus)):
            jobs = [(t.seconds, t.amount) for t in self.trainings if t.kind.device == device]
            if not jobs:
                continue
            known = [(seconds, amount) for seconds, amount in jobs if seconds is not None]
            if capacity is None or len(known) < len(jobs):
                return None
            longest = max(longest, makespan(known, capacity))
        return longest / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class AllSeeds:
    """A plan whose rows have all the seeds that may be added to them, and its time."""

    plan: Plan
    time: PlanTime


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCost:
    """What one row of a table would cost, if it alone were run now."""

    place: Place
    num_trainings: int
    """Missing ones."""
    num_evaluations: int
    """Missing ones."""
    hours: dict[Device, float | None]
    """Hours of GPUs and of CPUs that its missing trainings take; None where that is unknown."""
    shared_with: tuple[Place, ...]
    """The other rows, in the order of the files, that need one of its missing trainings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Bytes that the missing trainings and evaluations of a plan take at most."""

    ray: int
    """The two checkpoints of each training that Ray keeps to resume from."""
    mlflow: int
    """The last weights of each training, and the detections of each evaluation."""


def estimate_time(
    plan: Plan,
    ledger: Ledger,
    count_images: CountImages,
    *,
    gpus: float | None = None,
    cpus: float = 1.0,
    images_per_s: float | None = None,
) -> PlanTime:
    """Estimate how long the missing trainings of a plan take.

    Args:
        plan: of one suite.
        ledger: of the same; its trainings tell what was measured.
        count_images: of a training's data.
        gpus: to spread the trainings over.
        cpus: of the machine, for trainings without GPU.
        images_per_s: of one worker, where none was measured.
    """
    missing = [run for key, run in plan.trainings.items() if key in plan.missing_trainings]
    measured, by_method = _measured_throughputs(plan, ledger)
    speeds: dict[Kind, Speed] = {}
    for kind in dict.fromkeys(map(_kind, missing)):
        if kind in measured:
            speeds[kind] = Speed(images_per_s=measured[kind], is_measured=True)
        elif images_per_s is not None:
            speeds[kind] = Speed(images_per_s=images_per_s, is_measured=False)
    times = []
    for run in missing:
        capacity = gpus if _kind(run).device == "GPU" else cpus
        own = by_method.get((_kind(run), _method(run)))
        if own is None and (of_kind := speeds.get(_kind(run))) is not None:
            own = of_kind.images_per_s
        times.append(_time(run, ledger, count_images(run.config.data), own, capacity))
    time = PlanTime(trainings=tuple(times), speeds=speeds, gpus=gpus, cpus=cpus)
    if not any(experiment.seed_rule for experiment in plan.experiments):
        return time
    full = lacking(gather([at_most(experiment) for experiment in plan.experiments]), ledger)
    most = estimate_time(full, ledger, count_images, gpus=gpus, cpus=cpus, images_per_s=images_per_s)
    return replace(time, all_seeds=AllSeeds(plan=full, time=most))


def row_costs(plan: Plan, time: PlanTime) -> list[RowCost]:
    """Say what each row would cost alone, in the order of the files; a training that rows share counts in each."""
    times = {one.key: one for one in time.trainings}
    needed: dict[Place, list[str]] = {}  # the missing trainings of each row
    missing: dict[Place, int] = {}  # its missing evaluations
    for experiment in plan.experiments:
        for number, row in enumerate(experiment.rows):
            place, own = Place(experiment.name, number, row.label), plan.evaluations_of(experiment.name, row.label)
            needed[place] = [one.train_key for one in own if one.train_key in plan.missing_trainings]
            missing[place] = sum(one.key in plan.missing_evaluations for one in own)
    rows_of: dict[str, list[Place]] = {}  # by training
    for place, trainings in needed.items():
        for key in trainings:
            rows_of.setdefault(key, []).append(place)
    return [
        RowCost(
            place=place,
            num_trainings=len(trainings),
            num_evaluations=missing[place],
            hours={
                device: _sum_of_hours(times[key] for key in trainings if times[key].kind.device == device)
                for device in DEVICES
            },
            shared_with=tuple(dict.fromkeys(other for key in trainings for other in rows_of[key] if other != place)),
        )
        for place, trainings in needed.items()
    ]


def estimate_disk(plan: Plan) -> Disk:
    """Add up the bytes of what is missing of a plan."""
    configs = [run.config for key, run in plan.trainings.items() if key in plan.missing_trainings]
    missing = [evaluation for key, evaluation in plan.evaluations.items() if key in plan.missing_evaluations]
    detections = sum(
        num_scored_images(plan.trainings[evaluation.train_key].config, evaluation.split)
        * evaluation.inference.max_detections
        for evaluation in missing
    )
    return Disk(
        ray=sum(2 * checkpoint_bytes(config) for config in configs),
        mlflow=sum(map(weights_bytes, configs)) + detections * DETECTION_BYTES,
    )


def needed_while_training(configs: Iterable[TrainConfig]) -> int:
    """Return the bytes of trainings at their largest: two checkpoints kept, a third being written, and MLflow's."""
    return sum(3 * checkpoint_bytes(config) + weights_bytes(config) for config in configs)


def makespan(jobs: Sequence[tuple[float, float]], capacity: float) -> float:
    """Return when the last of (duration, amount) ends, if they start by amount and then duration, the largest first.

    Whatever still fits beside those that run starts at once, so that a large one may be overtaken, as Ray does it.
    """
    waiting: dict[float, list[float]] = {}  # durations by amount, the longest last
    for duration, amount in sorted(jobs):
        waiting.setdefault(amount, []).append(duration)
    running: list[tuple[float, float]] = []
    now, free = 0.0, capacity
    while waiting or running:
        for amount in sorted(waiting, reverse=True):
            while waiting[amount] and amount <= free + 1e-9:  # ten tenths of a GPU are not exactly 1 in floats
                heappush(running, (now + waiting[amount].pop(), amount))
                free -= amount
            if not waiting[amount]:
                del waiting[amount]
        if not running:
            raise ValueError(f"a job of {max(waiting)} can never start on {capacity}")
        now, amount = heappop(running)
        free += amount
    return now


def num_scored_images(config: TrainConfig, split: str) -> int:
    """Return the images of one scoring pass: as many as the config says, or the whole split, such as val2017."""
    data = config.data
    if split == data.val_split and data.num_val_images is not None:
        return data.num_val_images
    return NUM_SHAPES.get(split, 0) if data.dataset == "shapes" else 5000


def weights_bytes(config: TrainConfig) -> int:
    """Return the bytes of a detector's weights, which are float32."""
    return 4 * num_parameters(config.model, NUM_CLASSES.get(config.data.dataset, NUM_CLASSES["coco"]))


def checkpoint_bytes(config: TrainConfig) -> int:
    """Return the bytes of weights and optimizer: one momentum for each parameter, two under AdamW."""
    return (3 if config.schedule.optimizer == "adamw" else 2) * weights_bytes(config)


def num_parameters(model: ModelConfig, num_classes: int) -> int:
    """Count the parameters of a detector."""
    backbone, widths = BACKBONES[model.backbone]
    channels = model.channels
    square = 9 * channels * channels + channels  # a 3x3 convolution with its bias
    top = widths[-1] if model.pyramid_extra_from == "c5" else channels
    pyramid = sum(widths) * channels + 3 * channels + 3 * square + 9 * top * channels + channels + square
    layer = square + (channels if model.tower_norm == "group" else 0)  # a norm's scale and shift, and no bias
    # The confidence branch has no tower of its own: it is one more output of a tower that is counted already.
    outputs = NUM_ANCHORS * (num_classes + 4 * (model.box.bins or 1) + (1 if model.confidence else 0))
    head = 2 * model.tower_depth * layer + (9 * channels + 1) * outputs
    if model.classification.edge_quality and model.box.bins:
        # 64 hidden numbers read the four largest probabilities of each edge and their mean, and one comes out.
        head += 64 * 4 * (min(4, model.box.bins) + 1) + 64 + 64 + 1
    return backbone + pyramid + head


def _kind(run: TrainRun) -> Kind:
    data = run.config.data
    return Kind(
        backbone=run.config.model.backbone,
        short_edge=data.short_edge,
        long_edge=data.long_edge,
        precision=run.config.precision,
        device="GPU" if run.resources.gpus_per_worker else "CPU",
    )


def _sum_of_hours(times: Iterable[TrainingTime]) -> float | None:
    hours = [time.hours for time in times]
    return None if None in hours else sum((one for one in hours if one is not None), 0.0)


def _method(run: TrainRun) -> Method:
    return Method(assignment=run.config.model.assignment.kind, bins=run.config.model.box.bins)


def _measured_throughputs(plan: Plan, ledger: Ledger) -> tuple[dict[Kind, float], dict[tuple[Kind, Method], float]]:
    """Return images/s of one worker by kind, and by kind and method, averaged over the suite's trainings that ran.

    Also over those that no row asks for any more, as of other epochs.
    """
    of_kinds: dict[Kind, list[float]] = {}
    of_methods: dict[tuple[Kind, Method], list[float]] = {}
    for key, record in ledger.trainings.items():
        run, speed = plan.trainings.get(key), record.metrics.get(IMAGES_PER_S)
        ran = record.resources or (run.resources if run else None)
        what = (_kind(run), _method(run)) if run else _recorded(record.params)
        if not speed or ran is None or what is None:
            continue
        # A training that ran on CPUs says nothing of the GPUs that its file asks for now.
        kind, method = what[0]._replace(device="GPU" if ran.gpus_per_worker else "CPU"), what[1]
        of_kinds.setdefault(kind, []).append(speed / ran.num_workers)
        of_methods.setdefault((kind, method), []).append(speed / ran.num_workers)
    return (
        {kind: fmean(speeds) for kind, speeds in of_kinds.items()},
        {one: fmean(speeds) for one, speeds in of_methods.items()},
    )


def _recorded(params: Mapping[str, str]) -> tuple[Kind, Method] | None:
    """What a training was by its params in MLflow; None where somebody wrote others, or they are unknown."""
    usual = TrainConfig()
    bins = params.get("box.bins", "none")
    try:
        kind = Kind(
            backbone=params.get("backbone", usual.model.backbone),
            short_edge=int(params.get("short_edge", usual.data.short_edge)),
            long_edge=int(params.get("long_edge", usual.data.long_edge)),
            precision=params.get("precision", usual.precision),
            device="GPU",
        )
        method = Method(
            assignment=params.get("assignment.kind", usual.model.assignment.kind),
            bins=None if bins == "none" else int(bins),
        )
    except ValueError:
        return None
    return (kind, method) if params else None


def _time(
    run: TrainRun, ledger: Ledger, images: int | None, images_per_s: float | None, capacity: float | None
) -> TrainingTime:
    kind, resources = _kind(run), run.resources
    per_worker = resources.gpus_per_worker or resources.cpus_per_worker
    amount = resources.num_workers * per_worker
    is_cut = capacity is not None and amount > capacity
    if capacity is not None:
        amount = min(amount, capacity)
    record = ledger.trainings.get(run.key)
    done = int(record.metrics.get(EPOCH, 0.0)) if record else 0
    left = None if images is None else images * max(run.config.schedule.epochs - done, 0)
    seconds = None
    if left is not None and images_per_s is not None:
        # On fewer GPUs or CPUs than asked for, fewer workers run, each at the same speed.
        seconds = left / (images_per_s * amount / per_worker)
    return TrainingTime(
        key=run.key, kind=kind, amount=amount, is_cut=is_cut, num_images=left, images_per_epoch=images, seconds=seconds
    )
