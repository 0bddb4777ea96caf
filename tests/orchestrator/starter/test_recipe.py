"""Settings that suit data and machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.starter.facts import DataFacts, Machine, Split
from orchestrator.starter.recipe import LEAST_BOX, choose

PHOTOS = DataFacts(
    root=Path("/photos"),
    train=Split(name="train", num_images=448, num_empty=0, num_boxes=3323),
    val=Split(name="val", num_images=127, num_empty=0, num_boxes=909),
    classes=("fish", "shark"),
    faults="refuse",
    short_side=480,
    long_side=640,
    small_box=0.05,
)
CPU = Machine(num_gpus=0, num_cores=2, weights=Path("/w/resnet50-0676ba61.pth"))
GPU = replace(CPU, num_gpus=1, num_cores=16)


def train(data: DataFacts = PHOTOS, machine: Machine = GPU, asked: dict[str, Any] | None = None) -> dict[str, Any]:
    return choose(data, machine, asked).train


def test_a_gpu_trains_the_papers_detector_at_the_size_of_the_images() -> None:
    chosen = train()
    assert "model.channels" not in chosen and "model.frozen_stages" not in chosen
    assert (chosen["data.short_edge"], chosen["data.long_edge"]) == (480, 640)
    assert (chosen["global_batch"], chosen["schedule.epochs"], chosen["precision"]) == (8, 54, "bfloat16")
    assert chosen["schedule.lr_drop_epochs"] == [36, 50]
    assert choose(PHOTOS, GPU).resources == {"num_workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 8}


def test_a_cpu_trains_small() -> None:
    chosen = train(machine=CPU)
    assert (chosen["data.short_edge"], chosen["data.long_edge"]) == (256, 352)
    assert (chosen["model.channels"], chosen["model.frozen_stages"], chosen["schedule.epochs"]) == (128, 3, 8)
    assert choose(PHOTOS, CPU).resources == {"num_workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 2}


def test_many_images_need_few_epochs_and_small_boxes_large_images() -> None:
    many = replace(PHOTOS, train=replace(PHOTOS.train, num_images=118_000))
    assert (train(many)["schedule.epochs"], train(many)["global_batch"]) == (12, 16)
    large = replace(PHOTOS, short_side=2000, long_side=3000)
    assert train(large)["data.short_edge"] == 608
    assert train(replace(large, small_box=LEAST_BOX / 800))["data.short_edge"] == 800
    assert train(replace(large, small_box=0.001))["data.short_edge"] == 1024


def test_boxes_that_no_anchor_fits_are_told() -> None:
    (told,) = choose(replace(PHOTOS, small_box=0.02), GPU).warnings
    assert "smaller than 10 pixels" in told and "raise data.short_edge" in told
    assert choose(replace(PHOTOS, small_box=0.2), GPU).warnings == ()


@pytest.mark.parametrize("machine", [GPU, CPU])
def test_without_weights_all_of_the_backbone_learns_for_longer(machine: Machine) -> None:
    bare = replace(machine, weights=None)
    chosen = train(machine=bare)
    assert (chosen["model.backbone_norm"], chosen["model.frozen_stages"]) == ("group", 0)
    assert chosen["schedule.epochs"] == 3 * train(machine=machine)["schedule.epochs"]
    assert any("no ImageNet weights were found" in told for told in choose(PHOTOS, bare).warnings)


def test_weights_decide_the_backbone_and_whose_stride_it_has() -> None:
    chosen = train(machine=replace(GPU, weights=Path("/w/resnet50_imagenet_msra_fp16.pth")))
    assert (chosen["model.backbone"], chosen["model.backbone_stride"]) == ("resnet50", "1x1")
    assert "model.backbone_stride" not in train() and "model.weights_input" not in train()
    assert train(machine=replace(GPU, weights_input="caffe"))["model.weights_input"] == "caffe"
    assert train(machine=replace(GPU, weights=Path("/w/resnet18-f37072fd.pth")))["model.backbone"] == "resnet18"


def test_what_is_asked_for_decides_the_length_of_the_rest() -> None:
    chosen = train(machine=CPU, asked={"schedule": {"epochs": 1}, "data": {"num_train_images": 64}})
    assert (chosen["schedule.epochs"], chosen["schedule.lr_drop_epochs"]) == (1, [])
    assert chosen["schedule.warmup_iterations"] == 16 // 12
    assert train(asked={"schedule": {"epochs": "many"}}) == train()
