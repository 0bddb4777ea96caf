"""Every setting of the detector, of its training and of its inference, with the paper's value as default.

The text beneath a setting says what it means; experiments/SETTINGS.md and `rnc settings` are made of these texts.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of COCO's evaluation in COCO's order. Here, because files and tables name them without torch."""
HEADS = {None: "RetinaNet", "box": "IoU-aware Net", "classification": "RetinaNet-Conf"}
"""What papers call a detector, by the tower that its confidence branch sits on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceConfig:
    """The object-confidence branch and its loss (Section 3.2, Tables 1 to 3)."""

    tower: Literal["classification", "box"] = "classification"
    """The tower whose last feature the branch reads: RetinaNet-Conf's, or IoU-aware Net's."""
    loss: Literal["ce", "l1", "smooth_l1", "l2", "gfocal"] = "ce"
    """Compares the confidence with the IoU of the predicted box (Table 2)."""
    loss_on: Literal["sigmoid", "logit"] = "sigmoid"
    """What L1, Smooth L1 and L2 compare with the IoU: Eqs. 6-7, or the released code's call."""
    negative_weight: float = 0.0
    """CE^w, and GFocal with negatives: the weight of samples whose target is 0; 0 counts positives alone (Table 3)."""
    smooth_l1_beta: float = 1.0
    """Where Smooth L1 turns from quadratic to linear; for no other loss."""
    gfocal_gamma: float = 2.0
    """The exponent of abs(y - p) before the cross entropy in GFocal (Eq. 13); for no other loss."""
    detach_iou_target: bool = False
    """Stop the gradient that reaches the box tower through the IoU target."""
    loss_weight: float = 1.0
    """The weight of the confidence loss in the total."""

    def __post_init__(self) -> None:
        _require(0.0 <= self.negative_weight <= 1.0, f"negative_weight is {self.negative_weight}, expected 0 to 1")
        _require(self.smooth_l1_beta > 0.0, f"smooth_l1_beta is {self.smooth_l1_beta}, expected more than 0")
        _require(
            self.gfocal_gamma == 0.0 or self.gfocal_gamma >= 1.0,
            f"gfocal_gamma is {self.gfocal_gamma}, expected 0 or at least 1; in between the gradient is infinite where "
            "the confidence equals the IoU",
        )
        _require(self.loss_weight >= 0.0, f"loss_weight is {self.loss_weight}, expected at least 0")
        _require(
            self.negative_weight == 0.0 or self.loss in ("ce", "gfocal"),
            f"negative_weight has no meaning for loss {self.loss!r}; it belongs to 'ce' and 'gfocal'",
        )
        _require(
            self.loss_on == "sigmoid" or self.loss in ("l1", "smooth_l1", "l2"),
            f"loss_on {self.loss_on!r} has no meaning for loss {self.loss!r}, which is defined on the sigmoid; it "
            "belongs to 'l1', 'smooth_l1' and 'l2'",
        )
        _require(
            self.smooth_l1_beta == 1.0 or self.loss == "smooth_l1",
            f"smooth_l1_beta has no meaning for loss {self.loss!r}; it belongs to 'smooth_l1'",
        )
        _require(
            self.gfocal_gamma == 2.0 or self.loss == "gfocal",
            f"gfocal_gamma has no meaning for loss {self.loss!r}; it belongs to 'gfocal'",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The detector: backbone, feature pyramid, towers and their losses."""

    backbone: Literal["resnet18", "resnet50", "resnet101", "resnet18_quarter", "resnet18_half"] = "resnet50"
    """The ResNet; `resnet18_quarter` and `resnet18_half` have so many of its channels, for trainings on a CPU."""
    backbone_weights: str | None = None
    """A file in the weights folder (RNC_WEIGHTS); None starts from random numbers."""
    detector_weights: str | None = None
    """A file in the weights folder with a whole RetinaNet to start from: our names, torchvision's or MMDetection's."""
    weights_input: Literal["imagenet", "caffe"] = "imagenet"
    """What the file's first convolution was trained on: torchvision's RGB / std, or Caffe's BGR from 0 to 255."""
    backbone_stride: Literal["3x3", "1x1"] = "3x3"
    """The convolution that carries a stage's stride: torchvision's, or that of Caffe weights."""
    backbone_norm: Literal["frozen_batch", "group"] = "frozen_batch"
    """Batch norm in inference mode with trainable scale and shift, or group norm for random starts."""
    frozen_stages: int = 1
    """Stages that do not learn, counted from the stem; 0 lets the stem learn as well."""
    channels: int = 256
    """Width of the feature pyramid and of both towers."""
    tower_depth: int = 4
    """3x3 convolutions in each tower."""
    tower_norm: Literal["none", "group"] = "none"
    """Normalisation after each tower convolution; the paper has none."""
    pyramid_extra_from: Literal["c5", "p5"] = "c5"
    """What P6 is computed from: the released neck's C5, or torchvision's P5."""
    pyramid_extra_relu: bool = False
    """A ReLU between P6 and P7: torchvision has one, the released neck none."""
    anchor_rule: Literal["paper", "torchvision"] = "paper"
    """Exact anchors, or torchvision's: whole-pixel sizes and corners, image size // map size as stride."""
    confidence: ConfidenceConfig | None = field(default_factory=ConfidenceConfig)
    """The object-confidence branch; None is plain RetinaNet."""
    focal_alpha: float = 0.25
    """Focal loss: the weight of the target class (1 - focal_alpha for the others)."""
    focal_gamma: float = 2.0
    """Focal loss: the exponent of the modulating factor."""
    positive_iou: float = 0.5
    """An anchor with at least this IoU learns its box."""
    negative_iou: float = 0.4
    """An anchor below this IoU learns background; in between it learns nothing."""

    def __post_init__(self) -> None:
        _require(0 <= self.frozen_stages <= 4, f"frozen_stages is {self.frozen_stages}, expected 0 to 4")
        least = 4 if self.tower_norm == "group" else 1  # a group of a single channel has nothing to compare
        _require(
            self.channels >= least,
            f"channels is {self.channels}, expected at least {least} with tower_norm {self.tower_norm!r}",
        )
        _require(1 <= self.tower_depth <= 8, f"tower_depth is {self.tower_depth}, expected 1 to 8")
        _require(0.0 <= self.focal_alpha <= 1.0, f"focal_alpha is {self.focal_alpha}, expected 0 to 1")
        _require(self.focal_gamma >= 0.0, f"focal_gamma is {self.focal_gamma}, expected at least 0")
        _require(
            0.0 <= self.negative_iou <= self.positive_iou <= 1.0,
            f"negative_iou {self.negative_iou} and positive_iou {self.positive_iou} must rise from 0 to 1",
        )
        for name in ("backbone_weights", "detector_weights"):
            file = getattr(self, name)
            _require(
                file is None or "/" not in file,
                f"{name} is {file!r}, expected a file name; its folder is RNC_WEIGHTS",
            )
        _require(
            self.backbone_weights is None or self.detector_weights is None,
            f"detector_weights {self.detector_weights!r} holds a backbone as well; set backbone_weights to null",
        )
        _require(
            self.weights_input == "imagenet" or self.weights is not None,
            f"weights_input {self.weights_input!r} is that of a file; set backbone_weights or detector_weights as well",
        )

    @property
    def head(self) -> str:
        """What papers call a detector whose confidence branch sits there."""
        return HEADS[self.confidence.tower if self.confidence else None]

    @property
    def weights(self) -> str | None:
        """The file that the first weights come from, whether of the backbone or of the whole detector."""
        return self.backbone_weights or self.detector_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What a training sees, and what it is validated on."""

    dataset: str = "coco"
    """The name of the data. `shapes` are the scenes that the project draws itself; any other is read from data.root, or
    else from RNC_COCO_ROOT, in whatever format it is."""
    train_split: str = "train2017"
    """The split to learn from, by the name that `rnc data` shows; in COCO's layout images are in `<root>/<split>/` and
    annotations in `<root>/annotations/instances_<split>.json`."""
    val_split: str = "val2017"
    """The split that is scored after an epoch and for the tables."""
    num_train_images: int | None = None
    """Train on the first images by id only; None takes all."""
    num_val_images: int | None = None
    """Validate on the first images by id only; None takes all."""
    short_edge: int = 600
    """Images are resized so that their short side has this many pixels, or fewer where long_edge is the limit."""
    long_edge: int = 1000
    """The most pixels that the long side of a resized image has."""
    flip_probability: float = 0.5
    """How often a training image is mirrored left to right."""
    train_on_empty_images: bool = False
    """Keep training images without any box; the released code leaves them out."""
    faults: Literal["refuse", "quarantine"] = "refuse"
    """Faults of the annotations stop the plan, or leave out what is faulty and report it."""

    def __post_init__(self) -> None:
        _require(
            bool(re.fullmatch(r"\w[\w.-]*", self.dataset)),
            f"dataset is {self.dataset!r}, expected a name of letters, digits, '_', '-' and '.'",
        )
        _require(
            self.dataset in ("coco", "shapes") or self.dataset.lower() not in ("coco", "shapes", "shape"),
            f"dataset is {self.dataset!r}, which is too like coco and shapes, the names of others; give it its own",
        )
        for name in ("num_train_images", "num_val_images"):
            count = getattr(self, name)
            _require(count is None or count >= 1, f"{name} is {count}, expected at least 1, or null for all")
        _require(self.short_edge >= 32, f"short_edge is {self.short_edge}, expected at least 32")
        _require(
            self.long_edge >= self.short_edge, f"long_edge is {self.long_edge}, below short_edge {self.short_edge}"
        )
        _require(0.0 <= self.flip_probability <= 1.0, f"flip_probability is {self.flip_probability}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How long, and with which updates (Section 4.1)."""

    epochs: int = 12
    """Passes over the training images."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The paper's SGD with momentum, or AdamW, which learns faster from random weights."""
    learning_rate: float = 0.01
    """The rate after warm-up, for the global batch."""
    lr_drop_epochs: tuple[int, ...] = (8, 11)
    """Zero-based epochs from which the rate is lower: the paper's 9th and 12th."""
    lr_drop_factor: float = 0.1
    """The factor of each drop."""
    warmup_iterations: int = 500
    """Updates over which the rate rises linearly."""
    warmup_ratio: float = 0.001
    """The first update's rate, as a part of learning_rate."""
    momentum: float = 0.9
    """SGD's momentum; AdamW's first beta."""
    weight_decay: float = 1e-4
    """L2 penalty on every parameter (decoupled under AdamW)."""
    gradient_clip: float | None = None
    """Largest gradient norm of one update; None does not clip."""
    validate_every: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs is {self.epochs}, expected at least 1")
        _require(self.learning_rate > 0.0, f"learning_rate is {self.learning_rate}, expected more than 0")
        _require(
            list(self.lr_drop_epochs) == sorted(set(self.lr_drop_epochs)) and min(self.lr_drop_epochs, default=1) >= 1,
            f"lr_drop_epochs is {list(self.lr_drop_epochs)}, expected rising epochs from 1 on",
        )
        _require(
            max(self.lr_drop_epochs, default=0) < self.epochs,
            f"lr_drop_epochs is {list(self.lr_drop_epochs)}, beyond the last of {self.epochs} epochs (counted from 0); "
            "set both",
        )
        _require(0.0 < self.lr_drop_factor <= 1.0, f"lr_drop_factor is {self.lr_drop_factor}, expected up to 1")
        _require(self.warmup_iterations >= 0, f"warmup_iterations is {self.warmup_iterations}, expected at least 0")
        _require(0.0 < self.warmup_ratio <= 1.0, f"warmup_ratio is {self.warmup_ratio}, expected up to 1")
        _require(0.0 <= self.momentum < 1.0, f"momentum is {self.momentum}, expected 0 to below 1")
        _require(self.weight_decay >= 0.0, f"weight_decay is {self.weight_decay}, expected at least 0")
        _require(
            self.gradient_clip is None or self.gradient_clip > 0.0,
            f"gradient_clip is {self.gradient_clip}, expected more than 0, or null",
        )
        _require(self.validate_every >= 1, f"validate_every is {self.validate_every}, expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training, whole: two equal TrainConfigs give the same weights, on any number of workers."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    global_batch: int = 16
    """Images of one update, over all workers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the forward pass; weights and losses stay float32."""
    deterministic: bool = False
    """On CUDA, let cuDNN choose among algorithms alone that give the same bits at each run. On the CPU all do."""
    gradient_compression: Literal["none", "bfloat16"] = "none"
    """bfloat16 halves what workers send each other, for slow networks; weights then depend on the number of workers."""
    seed: int = 0
    """Decides the first weights, the order of images and the flips."""

    def __post_init__(self) -> None:
        _require(self.global_batch >= 1, f"global_batch is {self.global_batch}, expected at least 1")
        _require(0 <= self.seed < 2**31, f"seed is {self.seed}, expected 0 to 2147483647")


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceConfig:
    """What turns a checkpoint into detections; changing it costs a scoring pass and no training."""

    fusion: Literal["power", "product"] = "power"
    """Score of a box: p^(1-e) * c^e with class probability p and confidence c (Eq. 11), or p * c (Table 4)."""
    confidence_exponent: float = 0.4
    """The paper's alpha, the e of fusion; 0 ranks by class alone and needs no confidence branch."""
    min_confidence: float = 0.0
    """Object filter: boxes whose confidence is not above this are dropped before the top-k (Table 4: 0.5)."""
    fuse_small_levels: bool = True
    """Fuse on all levels (Eq. 11); false: levels of at most nms_pre anchors keep p^(1-e), as in the released code."""
    score_threshold: float = 0.05
    """Boxes whose score is not above this are dropped."""
    nms_pre: int = 1000
    """Anchors of each level that reach NMS."""
    top_k_of: Literal["anchors", "pairs"] = "anchors"
    """What nms_pre counts: anchors by their best class, or torchvision's (anchor, class) pairs above the threshold."""
    nms_iou: float = 0.5
    """NMS drops a box that overlaps a better one of its class by more than this."""
    max_detections: int = 100
    """Boxes kept for each image."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the forward pass while scoring, whatever the training's; scores and boxes are float32."""

    def __post_init__(self) -> None:
        _require(
            0.0 <= self.confidence_exponent <= 1.0,
            f"confidence_exponent is {self.confidence_exponent}, expected 0 to 1",
        )
        _require(
            self.fusion == "power" or self.confidence_exponent == 0.4,
            "confidence_exponent has no effect on fusion 'product'; leave it out",
        )
        _require(
            self.fuse_small_levels or (self.fusion == "power" and self.min_confidence == 0.0),
            "fuse_small_levels: false is the released code's rule for fusion 'power' without an object filter; leave "
            "fusion and min_confidence at their defaults",
        )
        for name in ("min_confidence", "score_threshold", "nms_iou"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"{name} is {value}, expected 0 to 1")
        _require(self.nms_pre >= 1, f"nms_pre is {self.nms_pre}, expected at least 1")
        _require(self.max_detections >= 1, f"max_detections is {self.max_detections}, expected at least 1")

    @property
    def needs_confidence(self) -> bool:
        """Whether the score reads the confidence branch at all."""
        return self.fusion == "product" or self.confidence_exponent > 0.0 or self.min_confidence > 0.0


def require_branch(inference: InferenceConfig, *, has_branch: bool) -> None:
    """Refuse settings that read the confidence branch of a detector that has none.

    Raises:
        ValueError: the message names the settings and the ways out.
    """
    if has_branch or not inference.needs_confidence:
        return
    reads = []
    if inference.fusion == "product":
        reads.append("inference.fusion is product")
    elif inference.confidence_exponent > 0.0:
        reads.append(f"inference.confidence_exponent is {inference.confidence_exponent}")
    if inference.min_confidence > 0.0:
        reads.append(f"inference.min_confidence is {inference.min_confidence}")
    others = " or ".join(f"{{tower: {tower}}} for {head}" for tower, head in HEADS.items() if tower)
    raise ValueError(
        f"{', '.join(reads)}, but a {HEADS[None]} has no confidence branch (train.model.confidence is null); set "
        "inference.confidence_exponent: 0 and leave inference.fusion and inference.min_confidence out, or take a head "
        f"that has one: train.model.confidence: {others}"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
