"""ResNet and feature pyramid: images to five feature maps."""

from contextlib import nullcontext
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet

from model.config import ModelConfig
from model.network.layers.convolution import Pair, apply, convolve

C5_STAGES = (2, 3, 4)
"""Stages whose output the pyramid reads: C3, C4, C5 with strides 8, 16, 32."""
NARROW = {"resnet18_quarter": 16, "resnet18_half": 32}
"""Channels of the first stage, where torchvision's ResNets have 64."""


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm that always uses its stored mean and variance; scale and shift still learn."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, H, W]; the same for any batch."""
        return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Folded(nn.Identity):
    """In place of a frozen batch norm whose convolution has it in its weights already."""


def fold(module: nn.Module) -> None:
    """Put all frozen batch norms of a ResNet into the convolutions before them, for good: a step less in each pass."""
    for child in list(module.modules()):
        layers = dict(child.named_children())
        for name, norm in layers.items():
            if isinstance(norm, FrozenBatchNorm):
                # torchvision's names: conv1 and bn1, and in a shortcut 0 and 1.
                before = layers["0" if name == "1" else name.replace("bn", "conv")]
                assert isinstance(before, nn.Conv2d)
                weight, bias = _folded(before, norm)
                before.weight, before.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
                setattr(child, name, Folded())


def normalized(
    convolution: nn.Conv2d, norm: nn.Module, input: Tensor, *, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """norm(convolution(input)) plus residual, through a ReLU; a frozen batch norm goes into the convolution's weights.

    There it costs nothing, no map is kept between the two for the backward pass, and scale and shift learn through the
    weights.
    """
    stride, padding = cast(Pair, convolution.stride), cast(Pair, convolution.padding)
    if isinstance(norm, Folded):
        assert convolution.bias is not None
        return convolve(input, convolution.weight, convolution.bias, stride, padding, residual=residual, relu=relu)
    if not isinstance(norm, FrozenBatchNorm):
        output = norm(convolution(input))
        if residual is not None:
            output = output.add_(residual)
        return cast(Tensor, output.relu_() if relu else output)
    return convolve(input, *_folded(convolution, norm), stride, padding, residual=residual, relu=relu)


def _folded(convolution: nn.Conv2d, norm: FrozenBatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that normalises as well."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class _BasicBlock(resnet.BasicBlock):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        feature = normalized(self.conv1, self.bn1, x)
        return normalized(self.conv2, self.bn2, feature, residual=_shortcut(self, x))


class _Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        feature = normalized(self.conv1, self.bn1, x)
        feature = normalized(self.conv2, self.bn2, feature)
        return normalized(self.conv3, self.bn3, feature, residual=_shortcut(self, x))


def _shortcut(block: resnet.BasicBlock | resnet.Bottleneck, x: Tensor) -> Tensor:
    return x if block.downsample is None else normalized(block.downsample[0], block.downsample[1], x, relu=False)


class Backbone(nn.Module):
    """A torchvision ResNet without its classifier."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the ResNet with random weights; `model.network.pretrained` puts ImageNet's in."""
        super().__init__()
        norm = FrozenBatchNorm if config.backbone_norm == "frozen_batch" else group_norm
        self.body = _resnet(config.backbone, norm)  # type: ignore[arg-type]
        if config.backbone_stride == "1x1":
            _move_stride(self.body)
        stages = [nn.ModuleList([self.body.conv1, self.body.bn1]), *self._stages()]
        # 1 freezes the stem and the first stage, as in the released code.
        for stage in stages[: config.frozen_stages + 1 if config.frozen_stages else 0]:
            stage.requires_grad_(False)
        self.out_channels = [_out_channels(self._stages()[stage - 1]) for stage in C5_STAGES]

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> C3, C4, C5."""
        body = self.body
        feature = body.maxpool(normalized(body.conv1, body.bn1, images))
        outputs = []
        for number, stage in enumerate(self._stages(), start=1):
            feature = stage(feature)
            if number in C5_STAGES:
                outputs.append(feature)
        return outputs

    def _stages(self) -> list[nn.Sequential]:
        return [self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4]


class FeaturePyramid(nn.Module):
    """P3 to P7 from C3 to C5; by default P6 from C5, and P7 from P6 without a ReLU in between (the released neck)."""

    def __init__(
        self,
        in_channels: list[int],
        channels: int,
        extra_from: Literal["c5", "p5"] = "c5",
        extra_relu: bool = False,
    ) -> None:
        """Weights are Xavier-uniform, biases 0."""
        super().__init__()
        self.extra_from, self.extra_relu = extra_from, extra_relu
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        # The released neck reads C5; P5 is what torchvision's retinanet_resnet50_fpn reads.
        self.p6 = nn.Conv2d(in_channels[-1] if extra_from == "c5" else channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C3, C4, C5 -> P3 to P7, [B, channels, h, w] each."""
        merged = [apply(cast(nn.Conv2d, one), feature) for one, feature in zip(self.lateral, features, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            size, device = merged[level - 1].shape[-2:], merged[level].device.type
            # Autocast would make float32 of it on CUDA, though nothing is computed.
            with torch.autocast(device, enabled=False) if device == "cuda" else nullcontext():
                merged[level - 1] = merged[level - 1] + functional.interpolate(merged[level], size=size, mode="nearest")
        outputs = [apply(cast(nn.Conv2d, one), feature) for one, feature in zip(self.output, merged, strict=True)]
        p6 = apply(self.p6, features[-1] if self.extra_from == "c5" else outputs[-1])
        return [*outputs, p6, apply(self.p7, functional.relu(p6) if self.extra_relu else p6)]


def _resnet(name: str, norm: type[nn.Module]) -> resnet.ResNet:
    layout: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
        "resnet18": (_BasicBlock, [2, 2, 2, 2]),
        "resnet18_quarter": (_BasicBlock, [2, 2, 2, 2]),
        "resnet18_half": (_BasicBlock, [2, 2, 2, 2]),
        "resnet50": (_Bottleneck, [3, 4, 6, 3]),
        "resnet101": (_Bottleneck, [3, 4, 23, 3]),
    }
    block, depths = layout[name]
    body = resnet.ResNet(block, depths, norm_layer=norm)
    if name in NARROW:
        _narrow(body, depths, norm, NARROW[name])
    del body.fc, body.avgpool
    return body


def _narrow(body: resnet.ResNet, depths: list[int], norm: type[nn.Module], width: int) -> None:
    """Rebuild a ResNet of basic blocks with `width` channels in its first stage instead of 64."""
    body.inplanes = width
    body.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    body.bn1 = norm(width)
    for stage, depth in enumerate(depths):
        layer = body._make_layer(_BasicBlock, width * 2**stage, depth, stride=1 if stage == 0 else 2)
        setattr(body, f"layer{stage + 1}", layer)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            # The start that torchvision gives in its constructor, from which the new layers come too late.
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _move_stride(body: resnet.ResNet) -> None:
    """Put each stage's stride into its first 1x1 convolution, where Caffe's weights were trained with it."""
    for stage in (body.layer2, body.layer3, body.layer4):
        block = stage[0]
        assert isinstance(block, resnet.Bottleneck)
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def _out_channels(stage: nn.Sequential) -> int:
    last = stage[-1]
    convolution = cast(nn.Conv2d, last.conv3 if isinstance(last, resnet.Bottleneck) else last.conv2)
    return convolution.out_channels


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with at most 32 groups of at least 4 channels, all of one size; the same for any batch."""
    most = min(32, channels // 4)
    return nn.GroupNorm(max(groups for groups in range(1, most + 1) if channels % groups == 0), channels)
