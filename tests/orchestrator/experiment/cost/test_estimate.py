"""How long a plan takes, by hand, and how large a detector is, by counting those that are built."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.config import (
    AssignmentConfig,
    BoxConfig,
    ClassificationConfig,
    ConfidenceConfig,
    DataConfig,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
)
from orchestrator.experiment.cost.estimate import (
    BACKBONES,
    Kind,
    checkpoint_bytes,
    estimate_time,
    makespan,
    num_parameters,
    weights_bytes,
)
from orchestrator.experiment.load import Experiment
from orchestrator.experiment.plan import Ledger, Record, make_plan, row_keys
from orchestrator.experiment.rows import Resources, Row
from orchestrator.site import Site
from orchestrator.tracking.records import training_params

R50, R101 = TrainConfig(), TrainConfig(model=ModelConfig(backbone="resnet101"))
R50_KIND = Kind("resnet50", 600, 1000, "float32", "GPU")


def experiment(*trainings: TrainConfig, num_workers: int = 4, gpus: float = 1.0, cpus: float = 1.0) -> Experiment:
    resources = Resources(num_workers=num_workers, gpus_per_worker=gpus, cpus_per_worker=cpus)
    rows = tuple(Row(label=str(place), train=config) for place, config in enumerate(trainings))
    return Experiment(name="table", suite="suite", title="", rows=rows, resources=resources, path=Path("table.yaml"))


def key(config: TrainConfig) -> str:
    return row_keys(Row(label="", train=config))[0].train_key


def ran(config: TrainConfig, speed: float, status: str = "FINISHED", epoch: float = 12.0, **resources: float) -> Ledger:
    record = Record(
        status=status,  # type: ignore[arg-type]
        run_id="r",
        metrics={"perf/images_per_s": speed, "train/epoch": epoch},
        resources=Resources(**resources) if resources else None,  # type: ignore[arg-type]
    )
    return Ledger(trainings={key(config): record})


L1 = replace(R50, model=ModelConfig(confidence=ConfidenceConfig(loss="l1")))
"""Another training of the same speed."""


def test_a_measured_throughput_counts_for_every_training_with_this_backbone_size_and_device() -> None:
    held = ran(R50, 80.0, num_workers=8, gpus_per_worker=1.0)
    plan = make_plan([experiment(R50, L1, R101)], held)
    time = estimate_time(plan, held, lambda _: 1200, gpus=4)
    assert set(plan.missing_trainings) == {key(L1), key(R101)}
    assert (time.speeds[R50_KIND].images_per_s, time.speeds[R50_KIND].is_measured) == (10.0, True)
    # 12 x 1,200 images at 4 x 10 images/s
    assert [one.seconds for one in time.trainings] == [360.0, None]
    assert [kind.backbone for kind in time.unknown] == ["resnet101"]
    assert time.gpu_hours == pytest.approx(0.4)  # 360 s of 4 GPUs
    assert time.hours is None  # R101 leaves it open


def test_a_training_with_another_assignment_counts_by_its_own_throughput_where_one_of_those_ran() -> None:
    paa, atss = (
        replace(L1, model=replace(L1.model, assignment=AssignmentConfig(kind=kind))) for kind in ("paa", "atss")
    )
    held = Ledger(trainings={**ran(R50, 40.0).trainings, **ran(paa, 20.0).trainings})
    plan = make_plan([experiment(R50, L1, paa, replace(paa, global_batch=8), atss)], held)
    time = estimate_time(plan, held, lambda _: 100, gpus=4)
    # 12 x 100 images at 40, at 20, and, as nothing is known of ATSS, at the mean of both.
    assert {one.key: one.seconds for one in time.trainings} == {
        key(L1): 30.0,
        key(replace(paa, global_batch=8)): 60.0,
        key(atss): 40.0,
    }
    assert time.speeds[R50_KIND].images_per_s == 7.5


@pytest.mark.parametrize(
    ("earlier", "speed"),
    [
        (replace(R50, schedule=ScheduleConfig(epochs=1, lr_drop_epochs=())), 10.0),
        (replace(R50, model=replace(R50.model, box=BoxConfig(bins=17))), 10.0),
        (replace(R50, data=DataConfig(short_edge=300, long_edge=500)), None),
        (R101, None),
    ],
)
def test_a_training_that_no_row_asks_for_any_more_tells_its_throughput(
    earlier: TrainConfig, speed: float | None
) -> None:
    (held,) = ran(earlier, 80.0, num_workers=8, gpus_per_worker=1.0).trainings.values()
    ledger = Ledger(trainings={key(earlier): replace(held, params=training_params(earlier))})
    time = estimate_time(make_plan([experiment(R50)], ledger), ledger, lambda _: 1200)
    assert [one.images_per_s for one in time.speeds.values()] == ([] if speed is None else [speed])


def test_where_the_resources_were_not_recorded_those_of_the_file_are_meant() -> None:
    held = ran(R50, 80.0)
    plan = make_plan([experiment(R50, L1)], held)
    assert estimate_time(plan, held, lambda _: 1).speeds[R50_KIND].images_per_s == 20.0


def test_what_a_cpu_made_says_nothing_of_a_gpu() -> None:
    held = ran(R50, 80.0, num_workers=8, gpus_per_worker=0.0)
    assert not estimate_time(make_plan([experiment(R50, L1)], held), held, lambda _: 1).speeds


def test_another_size_of_images_has_another_throughput() -> None:
    small = replace(R50, data=DataConfig(short_edge=300, long_edge=500))
    held = ran(small, 80.0)
    assert not estimate_time(make_plan([experiment(small, R50)], held), held, lambda _: 1).speeds


def test_a_given_throughput_counts_only_where_none_was_measured() -> None:
    held = ran(R50, 80.0)
    time = estimate_time(make_plan([experiment(R50, L1, R101)], held), held, lambda _: 1, images_per_s=7.0)
    assert [(speed.images_per_s, speed.is_measured) for speed in time.speeds.values()] == [(20.0, True), (7.0, False)]


def test_of_an_interrupted_training_the_epochs_that_are_left_count() -> None:
    held = ran(R50, 80.0, status="KILLED", epoch=5.7)
    (time,) = estimate_time(make_plan([experiment(R50)], held), held, lambda _: 100).trainings
    assert time.num_images == 700  # epochs 5 to 11: the sixth begins anew


def test_a_training_that_asks_for_more_gpus_than_there_are_takes_as_many_as_there_are() -> None:
    plan = make_plan([experiment(R50)], Ledger())
    time = estimate_time(plan, Ledger(), lambda _: 3600, gpus=2, images_per_s=1.0)
    assert (time.trainings[0].amount, time.trainings[0].is_cut) == (2.0, True)
    assert time.hours == 12 / 2


def test_parts_of_cpus_let_several_trainings_run_side_by_side() -> None:
    seeds = [replace(R50, schedule=ScheduleConfig(epochs=12, warmup_iterations=n)) for n in range(4)]
    plan = make_plan([experiment(*seeds, num_workers=1, gpus=0.0, cpus=0.66)], Ledger())
    time = estimate_time(plan, Ledger(), lambda _: 300, cpus=2.0, images_per_s=1.0)
    assert time.hours == 2.0  # one hour each, three at once
    assert time.gpu_hours == 0.0


@pytest.mark.parametrize(
    ("jobs", "capacity", "ends"),
    [
        ([], 1.0, 0.0),
        ([(5.0, 1.0), (3.0, 1.0)], 1.0, 8.0),
        ([(5.0, 1.0), (3.0, 1.0)], 2.0, 5.0),
        # the two of 4 first, then 2 and 2 side by side: 10 + 10 + 3
        ([(3.0, 2.0), (10.0, 4.0), (3.0, 2.0), (10.0, 4.0)], 4.0, 23.0),
        # beside the 3 runs the 1, not the 2, which starts when the 3 ends: 4 + 5
        ([(4.0, 3.0), (5.0, 2.0), (4.0, 1.0)], 4.0, 9.0),
        ([(1.0, 0.66)] * 3, 2.0, 1.0),
        # the long one first, the others beside it
        ([(1.0, 1.0)] * 10 + [(10.0, 1.0)], 2.0, 10.0),
    ],
)
def test_the_last_training_ends_when_worked_out_by_hand(
    jobs: list[tuple[float, float]], capacity: float, ends: float
) -> None:
    assert makespan(jobs, capacity) == ends


def test_what_can_never_start_is_an_error() -> None:
    with pytest.raises(ValueError, match="can never start"):
        makespan([(1.0, 2.0)], 1.0)


def test_of_a_whole_train2017_the_images_with_boxes_count_and_of_a_part_of_it_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train2017").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "train2017" / name).touch()
    site = Site(home=tmp_path, coco_root=tmp_path)
    assert site.num_images(DataConfig()) == 2
    monkeypatch.setattr("orchestrator.site.TRAIN2017", {"all": 2, "with_boxes": 1})
    assert site.num_images(DataConfig()) == 1
    assert site.num_images(DataConfig(train_on_empty_images=True)) == 2


def test_training_images_come_from_the_config_the_folder_or_what_coco_published(tmp_path: Path) -> None:
    bare, there = Site(home=tmp_path), Site(home=tmp_path, coco_root=tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "mine" / name).touch()
    mine = DataConfig(train_split="mine")
    assert (there.num_images(mine), bare.num_images(mine)) == (2, None)
    assert there.num_images(replace(mine, num_train_images=1)) == 1
    assert bare.num_images(replace(mine, num_train_images=7)) == 7
    for site in (bare, there):
        assert site.num_images(DataConfig()) == 117_266
        assert site.num_images(DataConfig(train_on_empty_images=True)) == 118_287
    assert bare.num_images(DataConfig(dataset="shapes", num_train_images=1500)) == 1500
    assert bare.num_images(DataConfig(dataset="shapes")) == 2000


@pytest.mark.parametrize(
    "model",
    [
        *(ModelConfig(backbone=name) for name in BACKBONES),  # type: ignore[arg-type]
        ModelConfig(backbone="resnet18_half", backbone_norm="group", channels=64, tower_depth=2, tower_norm="group"),
        ModelConfig(backbone="resnet18_quarter", confidence=None, pyramid_extra_from="p5", channels=32, tower_depth=1),
        ModelConfig(backbone="resnet18_quarter", box=BoxConfig(bins=17)),
        *(
            ModelConfig(
                backbone="resnet18_quarter",
                box=BoxConfig(bins=bins),
                classification=ClassificationConfig(edge_quality=kind),  # type: ignore[arg-type]
            )
            for kind, bins in (("gflv2", 17), ("dfine", 3))
        ),
    ],
)
@pytest.mark.parametrize("num_classes", [6, 80])
def test_parameters_are_counted_as_torch_counts_them(model: ModelConfig, num_classes: int) -> None:
    import torch

    from model.network.retinanet import RetinaNetConf

    with torch.device("meta"):
        detector = RetinaNetConf(model, num_classes)
    assert num_parameters(model, num_classes) == sum(parameter.numel() for parameter in detector.parameters())


def test_a_checkpoint_holds_weights_and_one_momentum_or_two() -> None:
    """The files of a miniature training: 4.6 MB of weights and 9.2 MB to resume from, under AdamW."""
    recipe = TrainConfig(
        model=ModelConfig(
            backbone="resnet18_quarter", backbone_norm="group", channels=64, tower_depth=2, tower_norm="group"
        ),
        data=DataConfig(dataset="shapes"),
        schedule=ScheduleConfig(optimizer="adamw"),
    )
    assert weights_bytes(recipe) == pytest.approx(4_581_884, rel=0.02)
    assert checkpoint_bytes(recipe) == pytest.approx(4_581_884 + 9_217_259, rel=0.02)
    assert checkpoint_bytes(TrainConfig()) == 2 * weights_bytes(TrainConfig())
