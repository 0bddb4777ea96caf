"""Files of weights as people have them: wrapped, averaged, of another input, damaged; torchvision is the reference."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from model.config import ModelConfig
from model.data.images import MEAN, STD, normalize
from model.network.backbone import Backbone
from model.network.pretrained import load_backbone_weights, load_detector_weights, load_first_weights
from model.network.retinanet import build_detector
from model.network.weight_files import require_finite, to_imagenet_input
from tests.detectors import small


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A small ResNet's, with random numbers of which no two are alike."""
    generator = torch.Generator().manual_seed(1)
    weights = Backbone(small()).body.state_dict()
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            random = 0.1 * torch.randn(tensor.shape, generator=generator)
            weights[name] = 0.5 + random.abs() if name.endswith("running_var") else random
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


def save(content: object, folder: Path, name: str = "resnet.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def loaded(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    backbone = Backbone(small())
    notes = load_backbone_weights(backbone, file)
    return backbone.body.state_dict(), notes


def same(found: dict[str, Tensor], weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("start", "part"),
    [
        ("", "state_dict"),
        ("module.", None),
        ("backbone.", "state_dict"),
        ("model.", "model_state_dict"),
        ("body.", "model"),
        ("backbone.body.", None),
        ("module.model.", "ema_state_dict"),
        ("_orig_mod.module.", "model_ema"),
    ],
)
def test_weights_are_found_whatever_they_are_wrapped_in(
    weights: dict[str, Tensor], tmp_path: Path, start: str, part: str | None
) -> None:
    named = {start + name: tensor for name, tensor in weights.items()} | {f"{start}fc.weight": torch.zeros(7, 3)}
    found, _ = loaded(save(named if part is None else {part: named, "epoch": 3}, tmp_path))
    assert same(found, weights)


def test_of_a_whole_detector_the_backbone_is_taken_and_told(weights: dict[str, Tensor], tmp_path: Path) -> None:
    others = {"neck.weight": torch.zeros(2), "head.conv1.weight": torch.zeros(3)}
    file = save({f"backbone.{name}": tensor for name, tensor in weights.items()} | others, tmp_path)
    found, notes = loaded(file)
    assert same(found, weights)
    assert notes == (
        f"of {file}, the backbone alone was taken: {len(weights)} tensors under 'backbone.', and not 2 others",
    )


def test_of_several_resnets_none_is_chosen(weights: dict[str, Tensor], tmp_path: Path) -> None:
    both = {f"{which}.{name}": tensor for which in ("encoder_q", "encoder_k") for name, tensor in weights.items()}
    with pytest.raises(ValueError, match=r"holds several ResNets \('encoder_q\.', 'encoder_k\.'\); save the one alone"):
        loaded(save(both, tmp_path))


@pytest.mark.parametrize("start", ["", "backbone.bottom_up."])
def test_a_resnet_by_detectron2s_names_is_taken(tmp_path: Path, start: str) -> None:
    body = Backbone(small(backbone="resnet50")).body.state_dict()
    names = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.conv1.weight": "res2.0.conv1.weight",
        "layer1.0.bn3.bias": "res2.0.conv3.norm.bias",
        "layer2.0.downsample.0.weight": "res3.0.shortcut.weight",
        "layer2.0.downsample.1.running_mean": "res3.0.shortcut.norm.running_mean",
        "layer4.2.conv2.weight": "res5.2.conv2.weight",
    }

    def theirs(name: str) -> str:
        part, kind = name.rsplit(".", 1)
        part = re.sub(r"^layer(\d)", lambda layer: f"res{int(layer[1]) + 1}", part)
        part = re.sub(r"bn(\d)", r"conv\1.norm", part).replace("downsample.0", "shortcut")
        part = part.replace("downsample.1", "shortcut.norm")
        return f"{part if part.startswith('res') else f'stem.{part}'}.{kind}"

    assert {name: theirs(name) for name in names} == names
    weights = {name: tensor.clone() for name, tensor in body.items() if tensor.is_floating_point()}
    others = {"backbone.fpn_lateral3.weight": torch.zeros(2), "head.bbox_pred.weight": torch.zeros(3)}
    file = save({start + theirs(name): tensor for name, tensor in weights.items()} | others, tmp_path)
    backbone = Backbone(small(backbone="resnet50"))
    notes = load_backbone_weights(backbone, file)
    assert same(backbone.body.state_dict(), weights)
    assert notes == (f"of {file}, the ResNet by Detectron2's names was taken",)


@pytest.mark.parametrize("part", ["state_dict_ema", "ema_state_dict", "model_ema"])
def test_a_moving_average_beside_the_weights_is_told(weights: dict[str, Tensor], tmp_path: Path, part: str) -> None:
    average = {name: 2 * tensor for name, tensor in weights.items()}
    found, notes = loaded(save({part: average, "state_dict": weights}, tmp_path))
    assert same(found, weights)
    (note,) = notes
    assert f"holds a moving average ({part}) beside the weights under state_dict, which were taken" in note


def test_a_detector_is_found_behind_a_prefix_and_without_its_moving_average(tmp_path: Path) -> None:
    config = ModelConfig(
        backbone="resnet18_quarter", channels=16, tower_depth=1, confidence=None, detector_weights="all.pth"
    )
    trained = build_detector(config, 3, seed=1).state_dict()
    copies = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in trained.items()}
    file = save({f"module.{name}": tensor for name, tensor in (trained | copies).items()}, tmp_path)
    detector = build_detector(config, 3, seed=0)
    load_detector_weights(detector, file)
    assert same(detector.state_dict(), trained)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_arrays_is_refused_unread_with_the_way_out(tmp_path: Path, protocol: int) -> None:
    class Malice:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    content = {"model": {"stem.conv1.weight": Malice()}, "__author__": "Model Zoo"}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match=r"R-50\.pkl is a pickle, as Detectron2.* not read.*take torchvision's file"):
        loaded(tmp_path / "R-50.pkl")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no state dict of tensors by name \(its keys: epoch, optimizer\)"):
        loaded(save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path))


@pytest.mark.parametrize(
    ("name", "number", "says"),
    [
        ("layer1.0.conv1.weight", float("nan"), "layer1.0.conv1.weight holds NaN or infinity, 1 of its 2304 numbers"),
        ("bn1.bias", float("-inf"), "bn1.bias holds NaN or infinity, 1 of its 16 numbers"),
        ("layer4.1.bn2.running_var", -1e-3, "layer4.1.bn2.running_var holds a variance below 0"),
    ],
)
def test_numbers_that_nobody_can_compute_with_name_file_and_tensor(
    weights: dict[str, Tensor], tmp_path: Path, name: str, number: float, says: str
) -> None:
    broken = weights | {name: weights[name].clone()}
    broken[name].view(-1)[3] = number
    file = save(broken, tmp_path)
    with pytest.raises(ValueError, match=rf"{re.escape(f'{file}: {says}')}; fetch the file again"):
        loaded(file)
    # What is not loaded does not count.
    assert same(loaded(save(weights | {"fc.weight": torch.tensor([float("nan")])}, tmp_path))[0], weights)
    with pytest.raises(ValueError, match=re.escape(says)):
        require_finite(file, broken)


def caffe(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function of BGR from 0 to 255, less the mean."""
    return weights | {"conv1.weight": (weights["conv1.weight"].float() / torch.tensor(STD)[:, None, None]).flip(1)}


def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function, with the statistics of the first batch norm in its scale and shift, as Detectron's files."""
    scale = weights["bn1.weight"] / torch.sqrt(weights["bn1.running_var"] + 1e-5)
    return weights | {
        "bn1.weight": scale,
        "bn1.bias": weights["bn1.bias"] - weights["bn1.running_mean"] * scale,
        "bn1.running_mean": torch.zeros_like(scale),
        "bn1.running_var": torch.full_like(scale, 1 - 1e-5),
    }


def test_caffes_weights_give_the_features_that_they_give_on_caffes_input(tmp_path: Path) -> None:
    reference = resnet18(weights=None).eval()
    generator = torch.Generator().manual_seed(1)
    state = {
        name: 0.5 + torch.rand(tensor.shape, generator=generator) if "bn1.running_var" in name else tensor
        for name, tensor in reference.state_dict().items()
    }
    state["conv1.weight"] = torch.randn(64, 3, 7, 7, generator=generator) / 58 / 12
    reference.load_state_dict(state)
    backbone = Backbone(small(backbone="resnet18"))
    load_backbone_weights(backbone, save(state, tmp_path), expects="caffe")
    pixels = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=generator)
    by_caffe = pixels.float().flip(1) - torch.tensor(MEAN).flip(0)[:, None, None]
    features = create_feature_extractor(reference, ["layer2", "layer3", "layer4"])(by_caffe)
    ours = backbone(normalize(pixels, torch.tensor([[64, 96]])))
    for mine, theirs in zip(ours, features.values(), strict=True):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        assert mine.abs().max() > 1e-2


@pytest.mark.parametrize("form", [dict, folded])
def test_weights_of_the_other_input_are_refused_with_the_setting(
    weights: dict[str, Tensor], tmp_path: Path, form: type[dict[str, Tensor]]
) -> None:
    theirs, ours = save(form(caffe(weights)), tmp_path, "caffe.pth"), save(form(weights), tmp_path, "ours.pth")
    backbone = Backbone(small())
    with pytest.raises(
        ValueError, match=r"caffe\.pth: by the size.*0 to 255.*weights_input is imagenet; set it to caffe, and"
    ):
        load_backbone_weights(backbone, theirs)
    with pytest.raises(ValueError, match=r"ours\.pth: by the size.*RGB.*weights_input is caffe; set it to imagenet$"):
        load_backbone_weights(backbone, ours, expects="caffe")
    load_backbone_weights(backbone, theirs, expects="caffe")
    assert_close(backbone.body.conv1.weight, weights["conv1.weight"], rtol=1e-6, atol=1e-8)


def test_a_detector_with_caffes_backbone_is_converted_by_its_setting(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    config = ModelConfig(
        backbone="resnet18_quarter", channels=16, tower_depth=1, confidence=None, detector_weights="all.pth",
        weights_input="caffe",
    )  # fmt: skip
    trained = build_detector(config, 3, seed=1).state_dict()
    trained |= {f"backbone.body.{name}": tensor for name, tensor in caffe(weights).items()}
    detector = build_detector(config, 3, seed=0)
    load_first_weights(detector, save(trained, tmp_path), [1, 2, 3])
    assert_close(detector.backbone.body.conv1.weight, weights["conv1.weight"], rtol=1e-6, atol=1e-8)
    assert torch.equal(detector.backbone.body.layer1[0].conv1.weight, trained["backbone.body.layer1.0.conv1.weight"])


def test_an_input_without_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="weights_input 'caffe' is that of a file; set backbone_weights or"):
        ModelConfig(weights_input="caffe")


def test_the_input_of_real_weights_is_told_by_their_first_layers(weights_root: Path) -> None:
    (file,) = sorted(weights_root.glob("resnet50*.pth"))[:1]
    real = {name: tensor.float() for name, tensor in torch.load(file, weights_only=True).items()}
    for form in (dict, folded):
        assert torch.equal(to_imagenet_input(file, form(real), "imagenet")["conv1.weight"], real["conv1.weight"])
        converted = to_imagenet_input(file, form(caffe(real)), "caffe")["conv1.weight"]
        assert_close(converted, real["conv1.weight"], rtol=1e-5, atol=1e-6)
        for wrong, expects in ((form(caffe(real)), "imagenet"), (form(real), "caffe")):
            with pytest.raises(ValueError, match="by the size of its first convolution it expects"):
                to_imagenet_input(file, wrong, expects)  # type: ignore[arg-type]
