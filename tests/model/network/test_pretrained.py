"""Weights from files that others wrote, under the names of torchvision, MMDetection and the paper's fork of it."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet, RetinaNet_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from model.config import BoxConfig, ClassificationConfig, ConfidenceConfig, ModelConfig
from model.data.cache import file_sha256
from model.network import pretrained
from model.network.backbone import Backbone
from model.network.pretrained import load_backbone_weights, load_detector_weights, load_first_weights
from model.network.retinanet import RetinaNetConf, build_detector
from tests.detectors import images, small

pytestmark = pytest.mark.slow  # builds whole ResNets, again and again
SMALL = ModelConfig(
    backbone="resnet18_quarter", channels=16, tower_depth=2, confidence=None, detector_weights="retinanet.pth"
)
TORCHVISION = replace(
    SMALL, backbone="resnet18", channels=256, tower_depth=4, pyramid_extra_from="p5", pyramid_extra_relu=True
)
COCO_LIKE_IDS = (1, 2, 5)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def distinct(module: nn.Module) -> nn.Module:
    """Give every tensor numbers that no other has; variances stay positive."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            random = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + random.abs() if name.endswith("running_var") else random)
    return module


def save(weights: object, folder: Path, name: str = "retinanet.pth") -> Path:
    torch.save(weights, folder / name)
    return folder / name


def floats(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def write_pth(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save(weights, folder / "resnet18.pth")
    return folder / "resnet18.pth"


def write_safetensors(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file(weights, folder / "resnet18.safetensors")
    return folder / "resnet18.safetensors"


@pytest.mark.parametrize("write", [write_pth, write_safetensors])
def test_with_torchvisions_weights_the_features_are_torchvisions(
    write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path
) -> None:
    reference = distinct(resnet18(weights=None)).eval()
    backbone = Backbone(small(backbone="resnet18"))
    load_backbone_weights(backbone, write(reference.state_dict(), tmp_path))
    features = create_feature_extractor(reference, ["layer2", "layer3", "layer4"])(images(1, 3, 64, 64))
    for ours, theirs in zip(backbone(images(1, 3, 64, 64)), features.values(), strict=True):
        assert_close(ours, theirs)
        assert ours.abs().max() > 1e-3


def test_weights_of_another_resnet_are_refused_by_name(tmp_path: Path) -> None:
    weights = resnet18(weights=None).state_dict()
    file = write_pth(weights, tmp_path)
    with pytest.raises(
        ValueError, match=r"resnet18\.pth does not fit this backbone.*other shapes \['bn1.*model\.backbone"
    ):
        load_backbone_weights(Backbone(small()), file)
    with pytest.raises(ValueError, match=r"lacks \['layer1\.0\.bn3"):
        load_backbone_weights(Backbone(small(backbone="resnet50")), file)
    del weights["layer3.0.conv1.weight"]
    file = write_pth(weights | {"stem.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(ValueError, match=r"lacks \['layer3\.0\.conv1\.weight'\], has unknown \['stem\.weight'\]"):
        load_backbone_weights(Backbone(small(backbone="resnet18")), file)


@pytest.mark.parametrize("content", [bytes(range(256)) * 8, b""])
@pytest.mark.parametrize("name", ["garbage.pth", "garbage.safetensors"])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} holds no weights"):
        load_backbone_weights(Backbone(ModelConfig(backbone="resnet18_quarter")), file)


def test_a_file_that_holds_something_else_than_weights_is_named(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state dict"):
        load_backbone_weights(Backbone(ModelConfig(backbone="resnet18_quarter")), tmp_path / "list.pth")


@pytest.mark.skipif("RNC_WEIGHTS" not in os.environ, reason="RNC_WEIGHTS is not set")
def test_imagenet_weights_fit_resnet50() -> None:
    (file,) = sorted(Path(os.environ["RNC_WEIGHTS"]).glob("resnet50*.pth"))[:1]
    backbone = Backbone(small(backbone="resnet50", backbone_stride="1x1"))
    load_backbone_weights(backbone, file)
    stored = torch.load(file, weights_only=True)
    assert torch.equal(backbone.body.conv1.weight, stored["conv1.weight"].float())
    assert torch.equal(backbone.body.layer4[2].bn3.running_var, stored["layer4.2.bn3.running_var"].float())
    c5 = backbone(images(1, 3, 64, 64))[-1]
    assert c5.isfinite().all()
    assert 0.1 < (c5 > 0).float().mean() < 0.9


def test_a_pickle_that_would_run_code_is_refused_unread(tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    file = save({"conv1.weight": torch.zeros(1), "meta": Malice()}, tmp_path)
    with pytest.raises(
        ValueError, match=r"retinanet\.pth holds more than tensors \(posix\.mkdir\).*was not read; save"
    ):
        load_backbone_weights(Backbone(small()), file)
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_detector_weights(build_detector(SMALL, 3, seed=0), file)
    assert not (tmp_path / "ran").exists()


def to_mmdetection(weights: dict[str, Tensor], layers_apart: int) -> dict[str, Tensor]:
    """MMDetection 2's names, written out against those of the released checkpoints' modules."""
    rules = [
        (r"^backbone\.body\.", "backbone."),
        (r"^pyramid\.lateral\.(\d)", r"neck.lateral_convs.\1.conv"),
        (r"^pyramid\.output\.(\d)", r"neck.fpn_convs.\1.conv"),
        (r"^pyramid\.p6", "neck.fpn_convs.3.conv"),
        (r"^pyramid\.p7", "neck.fpn_convs.4.conv"),
        (r"^head\.class_logits", "bbox_head.retina_cls"),
        (r"^head\.box_deltas", "bbox_head.retina_reg"),
        (r"^head\.confidence_logits", "bbox_head.retina_iou"),
    ]
    for tower, convs in (("class", "cls"), ("box", "reg")):
        for layer in range(4):
            place, norm = layers_apart * layer, layers_apart * layer + 1
            rules.append((rf"^head\.{tower}_tower\.{place}\.", f"bbox_head.{convs}_convs.{layer}.conv."))
            if layers_apart == 3:
                rules.append((rf"^head\.{tower}_tower\.{norm}\.", f"bbox_head.{convs}_convs.{layer}.gn."))
    renamed = {}
    for name, tensor in weights.items():
        (new,) = [re.sub(old, new, name) for old, new in rules if re.search(old, name)]
        renamed[new] = tensor
    return renamed


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        replace(SMALL, backbone="resnet50", channels=32, tower_depth=4),
        replace(SMALL, confidence=ConfidenceConfig()),
        replace(SMALL, confidence=ConfidenceConfig(tower="box"), tower_norm="group"),
    ],
)
def test_every_tensor_of_an_mmdetection_checkpoint_arrives_at_its_place(
    model: ModelConfig, wrapped: bool, tmp_path: Path
) -> None:
    source = distinct(build_detector(model, 3, seed=1)).eval()
    weights = to_mmdetection(source.state_dict(), layers_apart=2 if model.tower_norm == "none" else 3)
    file = save({"meta": {"epoch": 12, "CLASSES": ("a", "b")}, "state_dict": weights} if wrapped else weights, tmp_path)
    detector = build_detector(model, 3, seed=2).eval()
    load_detector_weights(detector, file)
    assert equal(floats(detector), floats(source))
    with torch.no_grad():
        mine, theirs = detector(images(1, 3, 64, 64)), source(images(1, 3, 64, 64))
    for level, expected in zip(
        mine.class_logits + mine.box_deltas, theirs.class_logits + theirs.box_deltas, strict=True
    ):
        assert torch.equal(level, expected)


def test_the_names_are_those_of_the_released_neck_and_head(vectors_root: Path) -> None:
    model = replace(SMALL, tower_depth=4, confidence=ConfidenceConfig())
    names = {pretrained._their_name(name, "MMDetection's", model) for name in build_detector(model, 5, 0).state_dict()}
    for file, prefix in (("fpn.npz", "neck."), ("head_c5_128x160.npz", "bbox_head.")):
        released = {prefix + key[2:] for key in np.load(vectors_root / file).files if key.startswith("w:")}
        assert released == {name for name in names if name.startswith(prefix)}


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_our_own_weights_load_and_a_branch_that_they_lack_starts_at_random(
    write: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    source = distinct(build_detector(SMALL, 3, seed=1))
    file = tmp_path / ("retinanet.safetensors" if write is save_file else "retinanet.pth")
    write(source.state_dict(), file)
    detector = build_detector(replace(SMALL, confidence=ConfidenceConfig()), 3, seed=2)
    branch = {name: tensor.clone() for name, tensor in detector.state_dict().items() if "confidence" in name}
    load_first_weights(detector, file, category_ids=(1, 2, 3))
    assert len(branch) == 2
    assert equal(floats(detector), floats(source) | branch)


@pytest.mark.parametrize("names", ["our", "MMDetection's"])
def test_into_a_detector_of_distributions_a_file_brings_all_but_the_boxes(names: str, tmp_path: Path) -> None:
    source = distinct(build_detector(SMALL, 3, seed=1))
    weights = source.state_dict() if names == "our" else to_mmdetection(source.state_dict(), layers_apart=2)
    edges = replace(SMALL, box=BoxConfig(bins=9), classification=ClassificationConfig(edge_quality="gflv2"))
    detector = build_detector(edges, 3, seed=2)
    mine = {name: tensor.clone() for name, tensor in detector.state_dict().items() if "edge" in name}
    (note,) = load_detector_weights(detector, save(weights, tmp_path))
    assert "predicts deltas; distributions of edges (box.bins) start at random" in note
    brought = {name: tensor for name, tensor in floats(source).items() if "box_deltas" not in name}
    assert len(mine) == 6
    assert equal(floats(detector), brought | mine)


def test_distributions_come_from_a_file_that_has_them_and_fit_no_detector_of_deltas(tmp_path: Path) -> None:
    edges = replace(SMALL, box=BoxConfig(bins=9))
    source = distinct(build_detector(edges, 3, seed=1))
    file, detector = save(source.state_dict(), tmp_path), build_detector(edges, 3, seed=2)
    assert load_detector_weights(detector, file) == ()
    assert equal(floats(detector), floats(source))
    with pytest.raises(ValueError, match=r"lacks \['head\.box_deltas\.bias'.*edge_logits.*set .*box\.bins"):
        load_detector_weights(build_detector(SMALL, 3, seed=2), file)
    with pytest.raises(ValueError, match=r"other shapes \['head\.edge_logits\.bias'"):
        load_detector_weights(build_detector(replace(SMALL, box=BoxConfig(bins=17)), 3, seed=2), file)


def test_a_branch_that_the_detector_lacks_is_refused(tmp_path: Path) -> None:
    source = build_detector(replace(SMALL, confidence=ConfidenceConfig()), 3, seed=1)
    with pytest.raises(
        ValueError, match=r"our names, does not fit.*unknown \['head\.confidence_logits\.bias'.*set .*confidence"
    ):
        load_detector_weights(build_detector(SMALL, 3, seed=1), save(source.state_dict(), tmp_path))


def torchvision_retinanet(num_classes: int) -> RetinaNet:
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    reference = RetinaNet(body, num_classes).eval()
    distinct(reference)
    return reference


def loaded(source: RetinaNet | dict[str, Tensor], folder: Path, num_classes: int, **how: Any) -> RetinaNetConf:
    weights = source if isinstance(source, dict) else source.state_dict()
    detector = build_detector(TORCHVISION, num_classes, seed=2)
    load_detector_weights(detector, save(weights, folder), **how)
    return detector


def test_rows_of_a_torchvision_file_are_taken_by_category_id(tmp_path: Path) -> None:
    reference = torchvision_retinanet(7)
    whole = loaded(reference, tmp_path, 7).head.class_logits
    chosen = loaded(reference, tmp_path, 3, category_ids=COCO_LIKE_IDS).head.class_logits
    for part in ("weight", "bias"):
        rows = getattr(reference.head.classification_head.cls_logits, part).unflatten(0, (9, 7))
        assert torch.equal(getattr(whole, part).unflatten(0, (9, 7)), rows)
        assert torch.equal(getattr(chosen, part).unflatten(0, (9, 3)), rows[:, [1, 2, 5]])


@pytest.mark.parametrize("category_ids", [None, (1, 2, 7), (-1, 1, 2)])
def test_other_classes_that_no_category_id_can_tell_are_refused(
    category_ids: tuple[int, ...] | None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"detects 7 classes, this data set has 3, and no category ids tell"):
        loaded(torchvision_retinanet(7), tmp_path, 3, category_ids=category_ids)


def test_rows_of_an_mmdetection_file_have_no_category_ids(tmp_path: Path) -> None:
    weights = to_mmdetection(build_detector(SMALL, 7, seed=1).state_dict(), layers_apart=2)
    with pytest.raises(ValueError, match=r"detects 7 classes, this data set has 3"):
        load_detector_weights(build_detector(SMALL, 3, seed=1), save(weights, tmp_path), category_ids=COCO_LIKE_IDS)


def test_names_of_before_torchvision_013_are_understood_as_torchvision_does(tmp_path: Path) -> None:
    reference = torchvision_retinanet(3)
    old = {}
    for name, tensor in reference.state_dict().items():
        name = re.sub(r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2.", name)
        old[re.sub(r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}.", name)] = tensor
    assert "head.regression_head.conv.6.bias" in old and "backbone.fpn.inner_blocks.0.weight" in old
    other = torchvision_retinanet(3)
    other.load_state_dict(old)  # torchvision renames them itself
    assert equal(floats(loaded(old, tmp_path, 3)), floats(loaded(reference, tmp_path, 3)))


def test_torchvisions_coco_file_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"-{pretrained.EPS_FREE_SHA256}.pth" in RetinaNet_ResNet50_FPN_Weights.COCO_V1.url
    reference = torchvision_retinanet(3)
    plain = loaded(reference, tmp_path, 3).backbone.body.bn1.running_var
    monkeypatch.setattr(pretrained, "EPS_FREE_SHA256", file_sha256(tmp_path / "retinanet.pth")[:8])
    folded = loaded(reference, tmp_path, 3).backbone.body.bn1.running_var
    assert torch.equal(plain, reference.backbone.body.bn1.running_var)
    assert_close(folded.double() + 1e-5, plain.double(), rtol=0, atol=1e-7)
    assert not torch.equal(folded, plain)


def test_torchvisions_relu_has_to_be_set(tmp_path: Path) -> None:
    detector = build_detector(replace(TORCHVISION, pyramid_extra_relu=False), 3, seed=1)
    with pytest.raises(ValueError, match=r"set model\.pyramid_extra_relu to true"):
        load_detector_weights(detector, save(torchvision_retinanet(3).state_dict(), tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"pyramid_extra_from": "c5"},
            r"other shapes \['backbone\.fpn\.extra_blocks\.p6\.weight'\]; set .*pyramid_extra_from",
        ),
        (
            {"backbone": "resnet50"},
            r"torchvision's names, does not fit.*lacks \['backbone\.body\.layer1\.0\.bn3\.bias'",
        ),
        ({"tower_depth": 3}, r"has unknown \['head\.classification_head\.conv\.3\.0\.bias'"),
        ({"tower_norm": "group"}, r"lacks \['head\.classification_head\.conv\.0\.1\.bias'"),
    ],
)
def test_a_detector_of_another_config_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    detector = build_detector(replace(TORCHVISION, **changes), 3, seed=1)
    with pytest.raises(ValueError, match=said):
        load_detector_weights(detector, save(torchvision_retinanet(3).state_dict(), tmp_path))


def test_a_backbone_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no RetinaNet.*model\.backbone_weights"):
        load_detector_weights(build_detector(SMALL, 3, seed=1), save(resnet18(weights=None).state_dict(), tmp_path))


def test_a_detector_has_one_file_of_first_weights() -> None:
    with pytest.raises(ValueError, match="set backbone_weights to null"):
        replace(SMALL, backbone_weights="resnet18.pth")
    with pytest.raises(ValueError, match="expected a file name"):
        replace(SMALL, detector_weights="/elsewhere/retinanet.pth")
    assert (SMALL.weights, small(backbone_weights="b.pth").weights, small().weights) == ("retinanet.pth", "b.pth", None)
