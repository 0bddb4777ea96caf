"""Every setting of the detector, of its training and of its inference, with the paper's value as default.

The text beneath a setting says what it means; experiments/SETTINGS.md and `rnc settings` are made of these texts.
"""

import json
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of COCO's evaluation in COCO's order. Here, because files and tables name them without torch."""
CALIBRATION = ("LaECE", "LaACE", "D-ECE", "LRP", "oLRP")
"""What every evaluation says of its scores as estimates, 0 to 100, beside METRICS; of each the least is the best."""
HEADS = {None: "RetinaNet", "box": "IoU-aware Net", "classification": "RetinaNet-Conf"}
"""What papers call a detector, by the tower that its confidence branch sits on."""
CENTERNESS = "RetinaNet with centerness"
"""... and where that branch learns no IoU, but how central an anchor is, on either tower."""


# These stand first, as a class below makes its parts' defaults, which check themselves.
def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _only_for(config: Any, switch: str, **owners: tuple[str, ...]) -> None:
    """Refuse a setting that is not at its default, unless the choice of `switch` is among those that it belongs to."""
    kind: Any = type(config)
    choice, usual = getattr(config, switch), _defaults(kind)
    for name, choices in owners.items():
        if choice not in choices and getattr(config, name) != usual[name]:
            *others, last = map(repr, choices)
            listed = f"{', '.join(others)} and {last}" if others else last
            raise ValueError(
                f"{name} has no meaning for {switch} {choice!r}; it belongs to {listed}: leave it at "
                f"{json.dumps(usual[name])}, or take another {switch}"
            )


@cache
def _defaults(kind: Any) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfidenceConfig:
    """The object-confidence branch and its loss (Section 3.2, Tables 1 to 3)."""

    tower: Literal["classification", "box"] = "classification"
    """The tower whose last feature the branch reads: RetinaNet-Conf's, or IoU-aware Net's."""
    target: Literal["iou", "centerness"] = "iou"
    """What the branch learns: the IoU of the predicted box, or how central in its box the anchor is (FCOS)."""
    loss: Literal["ce", "l1", "smooth_l1", "l2", "gfocal"] = "ce"
    """Compares the confidence with its target (Table 2)."""
    loss_on: Literal["sigmoid", "logit"] = "sigmoid"
    """What L1, Smooth L1 and L2 compare with the target: Eqs. 6-7, or the released code's call."""
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
            self.loss_on == "sigmoid" or self.loss in ("l1", "smooth_l1", "l2"),
            f"loss_on {self.loss_on!r} has no meaning for loss {self.loss!r}, which is defined on the sigmoid; it "
            "belongs to 'l1', 'smooth_l1' and 'l2'",
        )
        _only_for(
            self, "loss", negative_weight=("ce", "gfocal"), smooth_l1_beta=("smooth_l1",), gfocal_gamma=("gfocal",)
        )
        _only_for(self, "target", detach_iou_target=("iou",))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationConfig:
    """The loss of the classification branch, and whether its target says how well the box lies."""

    loss: Literal["focal", "qfl", "vfl", "ia_bce", "mal"] = "focal"
    """What a positive's own class learns: 1 (focal loss, with focal_alpha and focal_gamma), or a target made of the IoU
    of its predicted box: GFL's QFL, VFNet's VFL, RF-DETR's IA-BCE, DEIM's MAL."""
    gamma: float | None = None
    """The exponent of the modulating factor of qfl (its beta), vfl, ia_bce and mal; null is that of its paper, 1.5 for
    mal and 2 for the others. Not for focal."""
    vfl_alpha: float = 0.75
    """VFL: the weight of negatives."""
    vfl_iou_weighted: bool = True
    """VFL: a positive weighs as much as its IoU; false: 1."""
    ia_bce_alpha: float = 0.25
    """IA-BCE: the class probability's power a in the target p^a * u^(1-a) with the IoU u, Eq. 11 as a target."""
    quality: Literal["iou", "alignment"] = "iou"
    """The target of a positive: its IoU, or the normalised alignment metric of assignment task_aligned (TOOD)."""
    edge_quality: Literal["gflv2", "dfine"] | None = None
    """A small network reads how sharp the distributions of a box's edges are (box.bins): GFLv2 multiplies the class
    probability by its quality, D-FINE adds it to the class logit."""
    loss_weight: float = 1.0
    """The weight of the classification loss in the total."""

    @property
    def uses_quality(self) -> bool:
        """Whether the target of a positive is made of its quality."""
        return self.loss != "focal"

    def __post_init__(self) -> None:
        _require(
            self.gamma is None or (self.loss != "focal" and self.gamma >= 0.0),
            f"gamma is {self.gamma} for loss {self.loss!r}, expected at least 0, and for 'qfl', 'vfl', 'ia_bce' or "
            "'mal'; focal loss has train.model.focal_gamma",
        )
        _require(
            self.loss != "qfl" or self.gamma is None or self.gamma == 0.0 or self.gamma >= 1.0,
            f"gamma is {self.gamma} for loss 'qfl', expected 0 or at least 1; in between the gradient is infinite "
            "where the class probability equals its target",
        )
        _require(self.vfl_alpha >= 0.0, f"vfl_alpha is {self.vfl_alpha}, expected at least 0")
        _require(0.0 <= self.ia_bce_alpha <= 1.0, f"ia_bce_alpha is {self.ia_bce_alpha}, expected 0 to 1")
        _require(self.loss_weight > 0.0, f"loss_weight is {self.loss_weight}, expected more than 0")
        _only_for(self, "loss", vfl_alpha=("vfl",), vfl_iou_weighted=("vfl",), ia_bce_alpha=("ia_bce",))
        _require(
            self.quality == "iou" or self.uses_quality,
            f"quality {self.quality!r} has no meaning for loss 'focal', whose target is 1; take 'qfl', 'vfl', "
            "'ia_bce' or 'mal'",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxConfig:
    """The loss of the box branch, and what it predicts."""

    loss: Literal["l1", "iou", "giou", "diou", "ciou"] = "l1"
    """L1 on the deltas, or one less the IoU, GIoU, DIoU or CIoU of the decoded box with its ground truth."""
    loss_weight: float = 1.0
    """The weight of the box loss in the total; GFL, ATSS and others give GIoU 2."""
    bins: int | None = None
    """DFL: each edge is a distribution over so many distances from the anchor's centre, 0, 1, 2 ... strides (GFL: 17),
    whose mean is the box; null predicts deltas."""
    distribution_loss_weight: float = 0.25
    """The weight of the distribution focal loss beside the box loss, for box.bins."""

    def __post_init__(self) -> None:
        _require(self.loss_weight > 0.0, f"loss_weight is {self.loss_weight}, expected more than 0")
        _require(self.bins is None or self.bins >= 2, f"bins is {self.bins}, expected at least 2, or null")
        _require(
            self.distribution_loss_weight >= 0.0,
            f"distribution_loss_weight is {self.distribution_loss_weight}, expected at least 0",
        )
        _require(
            self.bins is not None or self.distribution_loss_weight == 0.25,
            "distribution_loss_weight has no meaning without box.bins, whose distributions it trains",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignmentConfig:
    """The rule by which anchors learn boxes."""

    kind: Literal["max_iou", "atss", "task_aligned", "sim_ota", "paa"] = "max_iou"
    """RetinaNet's fixed IoUs (positive_iou, negative_iou); ATSS; TOOD's task alignment; YOLOX's SimOTA; PAA. The last
    three look at what the detector predicts."""
    top_k: int | None = None
    """Candidates: the nearest cells of each level (atss), the best anchors of a box and level (paa) or of a box
    (task_aligned), the IoUs that add up to a box's number of anchors (sim_ota); null is the paper's 9, 9, 13, 10."""
    alignment_class: float = 1.0
    """TOOD's alpha in the alignment s^alpha * u^beta of class score s and IoU u."""
    alignment_iou: float = 6.0
    """TOOD's beta."""
    ota_radius: float = 2.5
    """SimOTA: strides from a box's centre within which anchors are candidates."""
    ota_iou_weight: float = 3.0
    """SimOTA: the weight of -ln(IoU) beside the class cost."""
    paa_iou: float = 0.1
    """PAA: an anchor is a candidate from this IoU on."""

    @property
    def by_prediction(self) -> bool:
        """Whether the rule looks at predictions, so that it can run only after the forward pass."""
        return self.kind in ("task_aligned", "sim_ota", "paa")

    def __post_init__(self) -> None:
        _require(self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}, expected at least 1, or null")
        for name in ("alignment_class", "alignment_iou", "ota_iou_weight"):
            _require(getattr(self, name) >= 0.0, f"{name} is {getattr(self, name)}, expected at least 0")
        _require(
            self.alignment_class > 0.0 or self.alignment_iou > 0.0,
            "alignment_class and alignment_iou are both 0, so that no anchor is aligned better than another; leave one "
            "at its default",
        )
        _require(self.ota_radius > 0.0, f"ota_radius is {self.ota_radius}, expected more than 0")
        _require(0.0 < self.paa_iou <= 1.0, f"paa_iou is {self.paa_iou}, expected above 0 and up to 1")
        _only_for(
            self,
            "kind",
            top_k=("atss", "task_aligned", "sim_ota", "paa"),
            alignment_class=("task_aligned",),
            alignment_iou=("task_aligned",),
            ota_radius=("sim_ota",),
            ota_iou_weight=("sim_ota",),
            paa_iou=("paa",),
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
    confidence: ConfidenceConfig | None = ConfidenceConfig()
    """The object-confidence branch; None is plain RetinaNet."""
    classification: ClassificationConfig = ClassificationConfig()
    """The loss of the classification branch."""
    box: BoxConfig = BoxConfig()
    """The box branch: what it predicts, and its loss."""
    assignment: AssignmentConfig = AssignmentConfig()
    """Which anchors learn which boxes."""
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
        self._require_parts_that_fit()

    def _require_parts_that_fit(self) -> None:
        """Refuse combinations that mean nothing."""
        kind, losses = self.assignment.kind, self.classification
        _require(
            self.backbone_stride == "3x3" or self.backbone in ("resnet50", "resnet101"),
            f"backbone_stride '1x1' belongs to resnet50 and resnet101, whose blocks begin with 1x1, not to "
            f"{self.backbone}; leave it out",
        )
        _require(
            kind == "max_iou" or (self.positive_iou, self.negative_iou) == (0.5, 0.4),
            f"positive_iou and negative_iou have no meaning for assignment.kind {kind!r}; they belong to 'max_iou'",
        )
        _require(
            losses.loss == "focal" or (self.focal_alpha, self.focal_gamma) == (0.25, 2.0),
            f"focal_alpha and focal_gamma have no meaning for classification.loss {losses.loss!r}; set "
            "classification.gamma instead",
        )
        _require(
            losses.quality != "alignment" or kind == "task_aligned",
            f"classification.quality 'alignment' is measured by assignment.kind 'task_aligned' alone, not by {kind!r}; "
            "take that, or quality 'iou'",
        )
        _require(
            losses.edge_quality is None or self.box.bins is not None,
            f"classification.edge_quality {losses.edge_quality!r} reads the distributions of edges, and there are none "
            "without box.bins; set box.bins: 17",
        )
        if self.confidence is not None and self.confidence.target == "centerness":
            rule = f"{kind!r} with positive_iou {self.positive_iou}" if kind == "max_iou" else repr(kind)
            # An anchor that overlaps a box by half has its centre inside. What max-IoU matches below that, the best
            # anchors of a small box, may have it outside, and learns 0.
            _require(
                kind in ("atss", "task_aligned") or (kind == "max_iou" and self.positive_iou >= 0.5),
                "confidence.target 'centerness' needs anchors whose centres lie in their boxes, which assignment.kind "
                f"{rule} does not promise; take 'atss' or 'task_aligned', or 'max_iou' with a positive_iou of at least "
                "0.5",
            )

    @property
    def head(self) -> str:
        """What papers call a detector whose confidence branch sits there, and learns that."""
        if self.confidence is not None and self.confidence.target == "centerness":
            return CENTERNESS
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

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    global_batch: int = 16
    """Images of one update, over all workers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the forward pass; weights and losses stay float32."""
    deterministic: bool = False
    """On CUDA, let cuDNN choose among algorithms alone that give the same bits at each run. On the CPU all do,
    on processors with the same vector instructions."""
    gradient_compression: Literal["none", "bfloat16"] = "none"
    """bfloat16 halves what workers send each other, for slow networks; weights then depend on the number of workers."""
    seed: int = 0
    """Decides the first weights, the order of images and the flips."""

    def __post_init__(self) -> None:
        _require(self.global_batch >= 1, f"global_batch is {self.global_batch}, expected at least 1")
        bins, long_edge = self.model.box.bins, self.data.long_edge
        _require(
            # The coarsest level, P7, has a cell every 128 pixels.
            bins is None or (bins - 1) * 128 >= long_edge,
            f"model.box.bins is {bins}, whose edges reach {128 * ((bins or 1) - 1)} pixels on the coarsest level, less "
            f"than data.long_edge, {long_edge}; set bins to at least {-(-long_edge // 128) + 1}",
        )
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
    suppression: Literal[
        "nms", "soft_linear", "soft_gaussian", "iou_guided", "diou", "matrix_linear", "matrix_gaussian", "voting"
    ] = "nms"
    """What becomes of boxes that overlap a better one of their class: greedy NMS; soft-NMS and matrix NMS, which lower
    their scores; NMS by confidence, whose winners take the best score (IoU-Net); NMS by DIoU; NMS whose winners
    are the mean of what they drop, weighted by score and overlap (box voting)."""
    suppression_sigma: float | None = None
    """The width of the decay of soft_gaussian and matrix_gaussian, exp(-IoU^2 / sigma), and of the weights of voting,
    exp(-(1 - IoU)^2 / sigma); null is 0.5, 0.5 (SOLOv2's code has the factor 2), and 0.025
    (PAA's score voting)."""
    soft_floor: float = 0.001
    """soft-NMS and matrix NMS drop a box whose lowered score is not above this."""
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
            self.fuse_small_levels or (self.fusion, self.min_confidence, self.top_k_of) == ("power", 0.0, "anchors"),
            "fuse_small_levels: false is the released code's rule for fusion 'power' without an object filter, where "
            "nms_pre counts anchors; leave fusion, min_confidence and top_k_of at their defaults",
        )
        _require(
            self.fuse_small_levels or self.confidence_exponent < 1.0,
            "confidence_exponent is 1 and fuse_small_levels false: each box of a small level would score p^0 = 1; take "
            "an exponent below 1, or fuse_small_levels: true",
        )
        for name in ("min_confidence", "score_threshold", "nms_iou"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"{name} is {value}, expected 0 to 1")
        decays = self.suppression.startswith(("soft", "matrix"))
        _require(
            self.suppression_sigma is None or self.suppression_sigma > 0.0,
            f"suppression_sigma is {self.suppression_sigma}, expected more than 0, or null",
        )
        _only_for(
            self,
            "suppression",
            suppression_sigma=("soft_gaussian", "matrix_gaussian", "voting"),
            soft_floor=("soft_linear", "soft_gaussian", "matrix_linear", "matrix_gaussian"),
            # Linear soft-NMS lowers what overlaps by more than that; other decays know no limit.
            nms_iou=("nms", "soft_linear", "iou_guided", "diou", "voting"),
        )
        _require(0.0 <= self.soft_floor < 1.0, f"soft_floor is {self.soft_floor}, expected 0 to below 1")
        _require(
            not decays or self.soft_floor <= self.score_threshold,
            f"soft_floor is {self.soft_floor}, above score_threshold, {self.score_threshold}: boxes that nothing "
            "overlaps would be dropped by it; set it to at most score_threshold",
        )
        _require(self.nms_pre >= 1, f"nms_pre is {self.nms_pre}, expected at least 1")
        _require(self.max_detections >= 1, f"max_detections is {self.max_detections}, expected at least 1")

    @property
    def needs_confidence(self) -> bool:
        """Whether anything reads the confidence branch: the score, the object filter, or IoU-guided NMS."""
        return self.score_reads_confidence or self.min_confidence > 0.0 or self.suppression == "iou_guided"

    @property
    def score_reads_confidence(self) -> bool:
        """Whether the confidence is a factor of the score."""
        return self.fusion == "product" or self.confidence_exponent > 0.0


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
    if inference.suppression == "iou_guided":
        reads.append("inference.suppression is iou_guided")
    left_out = "inference.fusion and inference.min_confidence"
    if inference.suppression == "iou_guided":
        left_out = "inference.fusion, inference.min_confidence and inference.suppression"
    others = " or ".join(f"{{tower: {tower}}} for {head}" for tower, head in HEADS.items() if tower)
    raise ValueError(
        f"{', '.join(reads)}, but a {HEADS[None]} has no confidence branch (train.model.confidence is null); set "
        f"inference.confidence_exponent: 0 and leave {left_out} out, or take a head that has one: "
        f"train.model.confidence: {others}"
    )
