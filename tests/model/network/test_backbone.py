"""The ResNet and the feature pyramid; torchvision's own models are the reference."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import resnet
from torchvision.models.feature_extraction import create_feature_extractor

from model.network.anchors import level_sizes
from model.network.backbone import Backbone, FeaturePyramid, FrozenBatchNorm, group_norm
from model.network.retinanet import RetinaNetConf
from tests.detectors import images, small


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms statistics, scales and shifts that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            with torch.no_grad():
                for tensor in (layer.running_mean, layer.bias):
                    tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
                for tensor in (layer.running_var, layer.weight):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return module


@pytest.mark.parametrize("size", [(64, 96), (96, 160), (32, 32)])
def test_the_five_maps_have_strides_8_to_128(size: tuple[int, int]) -> None:
    backbone = Backbone(small())
    features = backbone(images(2, 3, *size))
    assert [tuple(feature.shape[-2:]) for feature in features] == list(level_sizes(size)[:3])
    assert [feature.shape[1] for feature in features] == backbone.out_channels == [32, 64, 128]
    pyramid = FeaturePyramid(backbone.out_channels, 16)
    assert [tuple(level.shape) for level in pyramid(features)] == [(2, 16, *level) for level in level_sizes(size)]


@pytest.mark.parametrize(("kind", "part"), [("resnet18_half", 2), ("resnet18_quarter", 4)])
def test_a_narrow_resnet_is_torchvisions_with_a_part_of_the_channels(kind: str, part: int) -> None:
    whole = resnet.resnet18(weights=None).state_dict()
    narrow = Backbone(small(backbone=kind)).body.state_dict()
    assert {name for name in whole if not name.startswith("fc.")} == set(narrow)
    for name, tensor in narrow.items():
        shape = [size if size == 3 and place == 1 else size // part for place, size in enumerate(whole[name].shape[:2])]
        assert list(tensor.shape[:2]) == shape, name  # 3 colours stay 3
        assert tensor.shape[2:] == whole[name].shape[2:], name


@pytest.mark.parametrize("frozen_stages", [0, 1, 2, 4])
def test_frozen_stages_get_no_gradient_and_the_others_do(frozen_stages: int) -> None:
    detector = RetinaNetConf(small(frozen_stages=frozen_stages), num_classes=2)
    predictions = detector(images(1, 3, 64, 64))
    sum(level.sum() for level in [*predictions.class_logits, *predictions.box_deltas]).backward()
    learn = {
        name.split(".")[0]: {parameter.requires_grad for _, parameter in child.named_parameters()}
        for name, child in detector.backbone.body.named_children()
        if list(child.parameters())
    }
    stages = [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]
    first = frozen_stages + 1 if frozen_stages else 0
    assert learn == {name: {place >= first} for place, names in enumerate(stages) for name in names}
    for parameter in detector.backbone.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad


def test_frozen_batch_norm_is_batch_norm_in_inference_mode_even_while_training() -> None:
    frozen, reference = lively(FrozenBatchNorm(6)), nn.BatchNorm2d(6)
    reference.load_state_dict(frozen.state_dict())
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    batch = images(4, 6, 5, 5) * 3 + 1
    assert torch.equal(frozen.train()(batch), reference.eval()(batch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())


def test_frozen_batch_norm_still_learns_scale_and_shift() -> None:
    frozen = FrozenBatchNorm(6)
    frozen(images(4, 6, 5, 5)).square().sum().backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).all() for parameter in frozen.parameters())


def test_group_norm_replaces_every_batch_norm_and_leaves_images_independent() -> None:
    backbone = Backbone(small(backbone_norm="group")).train()
    kinds = {type(module) for module in backbone.modules() if "Norm" in type(module).__name__}
    assert kinds == {nn.GroupNorm}
    batch = images(3, 3, 64, 64)
    for whole, alone in zip(backbone(batch), backbone(batch[1:2]), strict=True):
        assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "groups"),
    # At least 4 channels each, at most 32, all of one size: 144 are 24 groups of 6, as 32 do not divide them.
    [(4, 1), (6, 1), (16, 4), (20, 5), (48, 12), (64, 16), (128, 32), (144, 24), (256, 32), (257, 1)],
)
def test_group_norm_divides_any_number_of_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups
    assert group_norm(channels)(images(1, channels, 2, 2)).isfinite().all()


def test_caffes_stride_sits_in_the_first_1x1_convolution_of_a_stage() -> None:
    strides = {}
    for kind in ("3x3", "1x1"):
        backbone = Backbone(small(backbone="resnet50", backbone_stride=kind))
        blocks = [backbone.body.layer2[0], backbone.body.layer3[0], backbone.body.layer4[0]]
        strides[kind] = [(block.conv1.stride, block.conv2.stride) for block in blocks]
        sizes = [tuple(feature.shape[1:]) for feature in backbone(images(1, 3, 64, 96))]
        assert sizes == [(512, 8, 12), (1024, 4, 6), (2048, 2, 3)]
    assert strides == {"3x3": [((1, 1), (2, 2))] * 3, "1x1": [((2, 2), (1, 1))] * 3}


def test_a_resnet_without_1x1_convolutions_cannot_have_caffes_stride() -> None:
    with pytest.raises(ValueError, match=r"'1x1' belongs to resnet50 and resnet101, .*not to resnet18_quarter"):
        small(backbone_stride="1x1")


def test_the_pyramid_is_linear_so_there_is_no_relu_between_p6_and_p7() -> None:
    pyramid = FeaturePyramid([32, 64, 128], 16)
    features = [images(1, 32, 8, 8), images(1, 64, 4, 4), images(1, 128, 2, 2)]
    for level, mirrored in zip(pyramid(features), pyramid([-feature for feature in features]), strict=True):
        assert_close(mirrored, -level)
        assert level.abs().max() > 1e-3


def test_coarse_maps_reach_fine_levels_but_not_the_other_way_round() -> None:
    pyramid = FeaturePyramid([32, 64, 128], 16)
    features = [images(1, 32, 8, 8), images(1, 64, 4, 4), images(1, 128, 2, 2)]
    before = pyramid(features)
    reached = []
    for changed in range(3):
        moved = [feature + (place == changed) for place, feature in enumerate(features)]
        reached.append([not torch.equal(*pair) for pair in zip(before, pyramid(moved), strict=True)])
    assert reached == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, True, True],
    ]


@pytest.mark.parametrize("kind", ["resnet18", "resnet50"])
def test_frozen_batch_norm_learns_the_same_inside_the_convolutions_as_behind_them(kind: str) -> None:
    """The reference is torchvision's ResNet, which runs convolution and batch norm one after the other."""
    backbone = Backbone(small(backbone=kind, frozen_stages=0)).double()
    reference = lively(getattr(resnet, kind)(weights=None, norm_layer=FrozenBatchNorm)).double()
    backbone.body.load_state_dict(reference.state_dict(), strict=False)
    batch = images(2, 3, 64, 64).double()
    features = create_feature_extractor(reference, ["layer2", "layer3", "layer4"])(batch)
    for outputs in (backbone(batch), features.values()):
        sum(output.square().mean() for output in outputs).backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in backbone.body.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
        assert_close(parameter.grad, theirs[name], msg=name)
