"""torchvision's RetinaNet and ours with its weights and its rules: one image, the same numbers. It is the reference."""

import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from model.config import InferenceConfig, ModelConfig
from model.data.images import load_image, normalize
from model.inference.postprocess import detect
from model.inference.table import DetectionTable
from model.network.anchors import anchor_grid
from model.network.backbone import Backbone
from model.network.pretrained import load_backbone_weights, load_detector_weights
from model.network.retinanet import Predictions, RetinaNetConf, build_detector, flat

pytestmark = pytest.mark.slow  # builds torchvision's detectors whole
MODEL = ModelConfig(
    backbone="resnet18",
    detector_weights="retinanet.pth",
    confidence=None,
    pyramid_extra_from="p5",
    pyramid_extra_relu=True,
    anchor_rule="torchvision",
)
INFERENCE = InferenceConfig(confidence_exponent=0.0, top_k_of="pairs", max_detections=300)
SIZE = (160, 224)
"""P6 has 3x4 cells and P7 2x2, so that torchvision's strides there are 53, 56 and 80, 112."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def photo(height: int, width: int) -> Tensor:
    """uint8 [3, height, width]: a corner of a real photograph where there is one, else smooth noise."""
    if "RNC_COCO_ROOT" in os.environ:
        first = min(Path(os.environ["RNC_COCO_ROOT"]).glob("val2017/*.jpg"))
        return load_image(first)[:, :height, :width].contiguous()
    noise = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    return (255 * nn.functional.interpolate(noise, size=(height, width), mode="bilinear"))[0].to(torch.uint8)


def imagenet_file() -> Path:
    if "RNC_WEIGHTS" not in os.environ:
        pytest.skip("RNC_WEIGHTS is not set")
    return min(Path(os.environ["RNC_WEIGHTS"]).glob("resnet50*.pth"))


def torchvision_retinanet(
    backbone: str = "resnet18", num_classes: int = 91, size: tuple[int, int] = SIZE, v2: bool = False
) -> RetinaNet:
    """As retinanet_resnet50_fpn builds it for its COCO weights; v2 has P6 from C5, and group norm in the towers."""
    extra = LastLevelP6P7({"resnet18": 512, "resnet50": 2048}[backbone] if v2 else 256, 256)
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, trainable_layers=5, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    head = RetinaNetHead(256, 9, num_classes, norm_layer=partial(nn.GroupNorm, 32)) if v2 else None
    return RetinaNet(body, num_classes, min_size=min(size), max_size=max(size), head=head).eval()


@torch.no_grad()
def enliven(reference: RetinaNet, image: Tensor, *, norms: bool = True) -> RetinaNet:
    """Statistics that are not those of a fresh network, and outputs of a size that makes many detections."""
    generator = torch.Generator().manual_seed(1)
    for module in reference.modules() if norms else []:
        if isinstance(module, FrozenBatchNorm2d):
            for tensor in (module.running_mean, module.bias):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
            for tensor in (module.running_var, module.weight):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    for convolution in reference.head.modules():
        if isinstance(convolution, nn.Conv2d):
            nn.init.kaiming_normal_(convolution.weight, generator=generator)
    outputs = torchvision_outputs(reference, image)
    classes, boxes = reference.head.classification_head.cls_logits, reference.head.regression_head.bbox_reg
    classes.weight.mul_(1.2 / (outputs["cls_logits"] - outputs["cls_logits"].mean()).std())
    boxes.weight.mul_(0.3 / outputs["bbox_regression"].std())
    classes.bias.fill_(-4.0)
    return reference


@torch.no_grad()
def torchvision_outputs(reference: RetinaNet, image: Tensor) -> dict[str, Tensor]:
    """In float64: in float32 the order in which a processor sums moves them by up to 1e-5 of the largest."""
    precise = deepcopy(reference).double()
    images, _ = precise.transform([image.double() / 255])
    outputs: dict[str, Tensor] = precise.head(list(precise.backbone(images.tensors).values()))
    return outputs


@torch.no_grad()
def detections(reference: RetinaNet, image: Tensor) -> dict[str, Tensor]:
    (found,) = reference([image / 255])
    return dict(found)


def with_weights_of(
    reference: nn.Module, folder: Path, model: ModelConfig = MODEL, num_classes: int = 91, **how: Any
) -> RetinaNetConf:
    torch.save(reference.state_dict(), folder / "retinanet.pth")
    detector = build_detector(model, num_classes, seed=1).eval()
    load_detector_weights(detector, folder / "retinanet.pth", **how)
    return detector


@dataclass(frozen=True)
class Ours:
    """What our whole path makes of one uint8 image; the network's outputs in float64, as those of the reference."""

    precise: Predictions
    detections: DetectionTable

    def outputs(self, num_classes: int) -> dict[str, Tensor]:
        maps = self.precise
        return {"cls_logits": flat(maps.class_logits, num_classes), "bbox_regression": flat(maps.box_deltas, 4)}


@torch.no_grad()
def ours(detector: RetinaNetConf, image: Tensor, inference: InferenceConfig = INFERENCE) -> Ours:
    size = torch.tensor([image.shape[1:]])
    images = normalize(image[None], size)
    grid = anchor_grid(tuple(image.shape[1:]), rule=detector.config.anchor_rule)
    (found,) = detect(detector(images), grid, size, torch.ones(1, 2), inference)
    return Ours(deepcopy(detector).double()(images.double()), found)


def assert_outputs_close(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """To 1e-6 of the largest, and the largest is no small number."""
    for name, largest in (("cls_logits", 5.0), ("bbox_regression", 0.5)):
        assert theirs[name].abs().max() > largest
        assert_close(mine[name], theirs[name], rtol=0, atol=1e-6 * float(theirs[name].abs().max()))


def assert_same_detections(mine: DetectionTable, theirs: Mapping[str, Tensor], at_least: int) -> None:
    """As many, of the same classes, scores and boxes, in the same order but for scores that are equal to 1e-5."""
    scores, boxes, labels = (torch.from_numpy(part) for part in (mine.scores, mine.boxes, mine.category_ids))
    assert len(scores) == len(theirs["scores"]) >= at_least
    assert_close(scores, theirs["scores"], rtol=0, atol=1e-5)
    far = (boxes[:, None] - theirs["boxes"]).abs().amax(dim=2) + 1e6 * (labels[:, None] != theirs["labels"])
    nearest, place = far.min(dim=1)
    assert nearest.max() < 2e-3
    assert sorted(place.tolist()) == list(range(len(place)))
    assert_close(scores, theirs["scores"][place], rtol=0, atol=1e-5)


def assert_same(mine: Ours, reference: RetinaNet, image: Tensor, num_classes: int = 91, at_least: int = 300) -> None:
    assert_outputs_close(mine.outputs(num_classes), torchvision_outputs(reference, image))
    assert_same_detections(mine.detections, detections(reference, image), at_least)


@pytest.mark.parametrize("size", [SIZE, (256, 320), (608, 1024), (800, 1344), (32, 32), (64, 96)])
def test_anchors_are_torchvisions_to_the_last_bit(size: tuple[int, int]) -> None:
    grid = anchor_grid(size, rule="torchvision")
    maps = [torch.zeros(1, 1, *level) for level in grid.level_sizes]
    (theirs,) = torchvision_retinanet().anchor_generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    assert torch.equal(grid.boxes, theirs)
    assert not torch.equal(grid.boxes, anchor_grid(size).boxes)


@pytest.fixture(scope="module")
def reference() -> RetinaNet:
    return enliven(torchvision_retinanet(num_classes=3), photo(*SIZE))


@pytest.mark.parametrize("num_classes", [91, 3])
def test_the_same_image_gives_the_same_logits_deltas_and_detections(
    num_classes: int, reference: RetinaNet, tmp_path: Path
) -> None:
    image = photo(*SIZE)
    if num_classes != 3:
        reference = enliven(torchvision_retinanet(num_classes=num_classes), image)
    mine = ours(with_weights_of(reference, tmp_path, num_classes=num_classes), image)
    assert_same(mine, reference, image, num_classes)


def test_torchvisions_second_retinanet_has_group_norm_and_takes_p6_from_c5(tmp_path: Path) -> None:
    image = photo(*SIZE)
    reference = enliven(torchvision_retinanet(v2=True), image)
    model = replace(MODEL, tower_norm="group", pyramid_extra_from="c5")
    mine = ours(with_weights_of(reference, tmp_path, model), image)
    assert_same(mine, reference, image)


@pytest.mark.slow
def test_with_imagenet_weights_resnet50_gives_the_same_detections(tmp_path: Path) -> None:
    image, size = photo(416, 608), (416, 608)
    reference = torchvision_retinanet("resnet50", size=size)
    stored = torch.load(imagenet_file(), weights_only=True)
    reference.backbone.body.load_state_dict({k: v for k, v in stored.items() if not k.startswith("fc.")})
    enliven(reference, image, norms=False)
    mine = ours(with_weights_of(reference, tmp_path, replace(MODEL, backbone="resnet50")), image)
    assert_same(mine, reference, image)


def test_boxes_come_back_in_the_pixels_of_an_image_that_torchvision_resized(
    reference: RetinaNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(208, 320)
    monkeypatch.setattr(reference.transform, "min_size", (200,))
    monkeypatch.setattr(reference.transform, "max_size", 256)
    detector = with_weights_of(reference, tmp_path, num_classes=3)
    images, _ = reference.transform([image / 255])
    (resized,), padded = images.image_sizes, tuple(images.tensors.shape[-2:])
    assert resized == (166, 256) and padded == (192, 256)
    size = torch.tensor([resized])
    with torch.no_grad():
        predictions = detector(images.tensors)
    grid = anchor_grid((padded[0], padded[1]), rule="torchvision")
    (mine,) = detect(predictions, grid, size, size / torch.tensor([image.shape[1:]]), INFERENCE)
    assert_same_detections(mine, detections(reference, image), at_least=300)
    assert 310 < mine.boxes[:, 2].max() <= 320.01


@pytest.mark.parametrize(
    ("num_classes", "settings"),
    [
        (80, {"score_threshold": 0.05, "nms_iou": 0.5, "max_detections": 300, "nms_pre": 1000}),
        (2, {"score_threshold": 0.3, "nms_iou": 0.6, "max_detections": 5000, "nms_pre": 150}),
        (3, {"score_threshold": 0.999, "nms_iou": 0.5, "max_detections": 300, "nms_pre": 1000}),
    ],
)
def test_the_same_predictions_are_made_into_the_same_detections(num_classes: int, settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    grid = anchor_grid(SIZE, rule="torchvision")
    maps = Predictions(
        [1.5 * torch.randn(1, 9 * num_classes, *level, generator=generator) - 2 for level in grid.level_sizes],
        [0.4 * torch.randn(1, 36, *level, generator=generator) for level in grid.level_sizes],
        None,
    )
    (mine,) = detect(maps, grid, torch.tensor([SIZE]), torch.ones(1, 2), replace(INFERENCE, **settings))
    reference = torchvision_retinanet(num_classes=num_classes)
    reference.score_thresh, reference.nms_thresh = settings["score_threshold"], settings["nms_iou"]
    reference.detections_per_img, reference.topk_candidates = settings["max_detections"], settings["nms_pre"]
    logits, deltas = flat(maps.class_logits, num_classes), flat(maps.box_deltas, 4)
    heads = {"cls_logits": logits.split(grid.level_lengths, 1), "bbox_regression": deltas.split(grid.level_lengths, 1)}
    (theirs,) = reference.postprocess_detections(heads, [list(grid.boxes.split(grid.level_lengths))], [SIZE])
    assert_close(torch.from_numpy(mine.scores), theirs["scores"], rtol=1e-6, atol=0)
    assert torch.equal(torch.from_numpy(mine.category_ids), theirs["labels"])
    assert_close(torch.from_numpy(mine.boxes), theirs["boxes"], rtol=0, atol=1e-3)
    assert (len(mine.scores) > 50) == (settings["score_threshold"] < 0.9)


@pytest.fixture(scope="module")
def same_as_reference(reference: RetinaNet, tmp_path_factory: pytest.TempPathFactory) -> RetinaNetConf:
    """A detector with the weights of the reference, and the same detections however many are kept."""
    detector = with_weights_of(reference, tmp_path_factory.mktemp("weights"), num_classes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "detections_per_img", 5000)
        mine = ours(detector, photo(*SIZE), replace(INFERENCE, max_detections=5000))
        assert_same(mine, reference, photo(*SIZE), num_classes=3, at_least=301)
    return detector


@pytest.mark.parametrize(
    ("field", "value"),
    [("pyramid_extra_relu", False), ("anchor_rule", "paper"), ("top_k_of", "anchors"), ("max_detections", 300)],
)
def test_each_setting_is_needed_for_it(
    field: str,
    value: Any,
    reference: RetinaNet,
    same_as_reference: RetinaNetConf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "detections_per_img", 5000)
    image, inference, detector = photo(*SIZE), replace(INFERENCE, max_detections=5000), same_as_reference
    if hasattr(INFERENCE, field):
        inference = replace(inference, **{field: value})
    else:
        other = build_detector(replace(MODEL, **{field: value}), 3, seed=1).eval()
        other.load_state_dict(detector.state_dict())
        detector = other
    mine = ours(detector, image, inference)
    with pytest.raises(AssertionError):
        assert_same(mine, reference, image, num_classes=3)


def test_a_file_whose_batch_norms_added_nothing_to_the_variance_is_folded(tmp_path: Path) -> None:
    image = photo(*SIZE)
    reference = enliven(torchvision_retinanet(num_classes=3), image)
    for module in reference.modules():
        if isinstance(module, FrozenBatchNorm2d):
            scale = 2e-4 / module.running_var  # small enough for 1e-5 to matter
            module.running_var.mul_(scale)
            module.weight.mul_(scale.sqrt())
    overwrite_eps(reference, 0.0)  # what torchvision does for its COCO_V1 file
    theirs = torchvision_outputs(reference, image)
    mine = ours(with_weights_of(reference, tmp_path, num_classes=3, norm_eps=0.0), image)
    assert_outputs_close(mine.outputs(3), theirs)
    unfolded = ours(with_weights_of(reference, tmp_path, num_classes=3), image)
    assert (unfolded.outputs(3)["cls_logits"] - theirs["cls_logits"]).abs().max() > 0.1


def test_with_caffes_stride_c3_to_c5_are_those_of_torchvisions_resnet50_with_its_strides_moved() -> None:
    file = imagenet_file()
    reference = resnet50(weights=None).eval()
    reference.load_state_dict(torch.load(file, weights_only=True))
    backbone = Backbone(ModelConfig(backbone_stride="1x1"))
    load_backbone_weights(backbone, file)
    for network in (reference, backbone):
        network.double()
    images = normalize(photo(224, 320)[None], torch.tensor([[224, 320]])).double()
    extract = create_feature_extractor(reference, ["layer2", "layer3", "layer4"])
    with torch.no_grad():
        unmoved = extract(images)
        for stage in (reference.layer2, reference.layer3, reference.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        for mine, theirs, other in zip(backbone(images), extract(images).values(), unmoved.values(), strict=True):
            assert_close(mine, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))
            assert (other - theirs).abs().max() > 0.1 * theirs.abs().max()
