"""How many numbers a detector learns, and how many bytes a training and an evaluation leave behind, about."""

from collections.abc import Iterable
from dataclasses import dataclass

from model.config import ModelConfig, TrainConfig
from orchestrator.experiment.plan import Plan

NUM_CLASSES = {"coco": 80, "shapes": 6}
"""Of each data set; one in COCO's format may have others, which changes little."""
BACKBONES = {
    "resnet18_quarter": (702_096, (32, 64, 128)),
    "resnet18_half": (2_798_880, (64, 128, 256)),
    "resnet18": (11_176_512, (128, 256, 512)),
    "resnet50": (23_508_032, (512, 1024, 2048)),
    "resnet101": (42_500_160, (512, 1024, 2048)),
}
"""Parameters of each ResNet without its classifier, and the channels of C3 to C5."""
NUM_ANCHORS = 9
DETECTION_BYTES = 70
"""A detection, with its match and its share of what is counted and drawn of an evaluation, compressed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """Bytes that the missing trainings and evaluations of a plan take at most."""

    ray: int
    """The two checkpoints of each training that Ray keeps to resume from."""
    mlflow: int
    """The last weights of each training, and the detections of each evaluation."""


def disk(plan: Plan) -> Disk:
    """Add up what is missing of a plan."""
    configs = [run.config for key, run in plan.trainings.items() if key in plan.missing_trainings]
    missing = [evaluation for key, evaluation in plan.evaluations.items() if key in plan.missing_evaluations]
    detections = sum(
        num_scored_images(plan.trainings[evaluation.train_key].config) * evaluation.inference.max_detections
        for evaluation in missing
    )
    return Disk(
        ray=sum(2 * checkpoint_bytes(config) for config in configs),
        mlflow=sum(map(weights_bytes, configs)) + detections * DETECTION_BYTES,
    )


def needed_while_training(configs: Iterable[TrainConfig]) -> int:
    """Return the bytes of trainings at their largest: two checkpoints kept, a third being written, and MLflow's."""
    return sum(3 * checkpoint_bytes(config) + weights_bytes(config) for config in configs)


def num_scored_images(config: TrainConfig) -> int:
    """Return the images of one scoring pass: those of the config, or of COCO's val2017."""
    return config.data.num_val_images or (300 if config.data.dataset == "shapes" else 5000)


def weights_bytes(config: TrainConfig) -> int:
    """Return the bytes of a detector's weights, which are float32."""
    return 4 * num_parameters(config.model, NUM_CLASSES[config.data.dataset])


def checkpoint_bytes(config: TrainConfig) -> int:
    """Return the bytes of weights and optimizer: one momentum for each parameter, two under AdamW."""
    return (3 if config.schedule.optimizer == "adamw" else 2) * weights_bytes(config)


def num_parameters(model: ModelConfig, num_classes: int) -> int:
    """Count the parameters of a detector."""
    backbone, widths = BACKBONES[model.backbone]
    channels = model.channels
    square = 9 * channels * channels + channels  # a 3x3 convolution with bias
    top = widths[-1] if model.pyramid_extra_from == "c5" else channels
    pyramid = sum(widths) * channels + 3 * channels + 3 * square + 9 * top * channels + channels + square
    layer = square + (channels if model.tower_norm == "group" else 0)  # a norm's scale and shift, and no bias
    outputs = NUM_ANCHORS * (num_classes + 4 + (1 if model.confidence else 0))
    head = 2 * model.tower_depth * layer + (9 * channels + 1) * outputs
    return backbone + pyramid + head
