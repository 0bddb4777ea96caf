"""Reads files of weights: tensors by name, out of whatever they are wrapped in, and the input that they expect."""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.data.images import STD
from model.foreign import NoFileError, require_file

Weights = dict[str, Tensor]
WeightsInput = Literal["imagenet", "caffe"]
PARTS = ("state_dict", "model_state_dict", "model")
"""The keys of checkpoints under which weights lie."""
AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
"""The keys of their moving averages."""
WRAPPERS = ("module.", "model.", "_orig_mod.", "ema.")
"""What data-parallel, compiled and averaged modules put before every name."""
DETECTRON2 = re.compile(r"^((?:backbone\.)?(?:bottom_up\.)?)((?:stem\.conv1|res[2-5]\.\d+\.(?:conv[1-3]|shortcut))\.)")
"""The names of Detectron2's ResNets, by themselves or in its detectors."""
MOST_WRAPPERS = 8
"""Dicts within dicts in which a state dict is looked for."""
MOST_HEADER = 8 * 2**20
"""Bytes of the header of a safetensors file: 100,000 tensors have as many."""
CORRELATION = ((1.0, 0.93, 0.85), (0.93, 1.0, 0.95), (0.85, 0.95, 1.0))
"""Of red, green and blue in photographs, roughly."""
CORRELATION_LENGTH = 10.0
"""Pixels over which the correlation of neighbours in photographs of 224 pixels falls to 1/e, roughly."""
CAFFE_BELOW = {"measured": 0.02, "folded": 0.004}
"""The variance after the first convolution, as a share of the expected one, below which its input was not divided by
the standard deviation (58): such files have 1/3400 of others. Expected is what the batch norm has measured; where its
statistics were folded into scale and shift, 1. The MSRA ResNet-50, converted to torchvision's input, has 1.25 and
1.66; as Caffe has it, 0.0004 and 0.0005."""


class WeightFile(NamedTuple):
    """What a file holds."""

    weights: Weights
    notes: tuple[str, ...]
    """What was chosen among several things, a sentence each, for people."""


def read_weights(path: Path) -> WeightFile:
    """Read a state dict, or a checkpoint that has one; a pickle of anything else is refused unread.

    Raises:
        ValueError: it is none, or to read it could run what it says.
    """
    _require_modest(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # whatever an unpickler meets in a file that is damaged in some way
        if _is_foreign_pickle(path):
            raise ValueError(
                f"{path} is a pickle, as Detectron2 publishes its weights; to read it could run any code, so it was "
                "not read; take torchvision's file of the same ResNet, or, where you trust it, save its arrays as "
                "tensors with torch.save, by the names of Detectron2's modules or torchvision's (for MSRA's, set "
                "model.weights_input to caffe and model.backbone_stride to 1x1)"
            ) from error
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{path} holds more than tensors ({found[1]}), and to read that could run any code: it was not read; "
                "save the state dict alone, or name another file"
            ) from error
        name = type(error).__name__
        raise ValueError(f"{path} holds no weights ({name}); fetch the file again, or name another") from error
    notes = []
    for _ in range(MOST_WRAPPERS):  # a pickle's dict may hold itself
        if not isinstance(content, dict) or _is_state_dict(content):
            break
        parts = [key for key in (*PARTS, *AVERAGES) if isinstance(content.get(key), dict)]
        if not parts:
            break
        if parts[0] in PARTS and (averages := [key for key in parts if key in AVERAGES]):
            notes.append(
                f"{path} holds a moving average ({averages[0]}) beside the weights under {parts[0]}, which were taken; "
                "to start from the average, save it alone"
            )
        content = content[parts[0]]
    if not isinstance(content, dict) or not _is_state_dict(content):
        keys = f" (its keys: {', '.join(map(str, list(content)[:6]))})" if isinstance(content, dict) else ""
        raise ValueError(f"{path} holds no state dict of tensors by name{keys}; save one, or name another file")
    _require_own_numbers(path, content)
    # A batch norm that never updates its statistics needs no count of the updates; not every file has it.
    weights = {name: tensor for name, tensor in content.items() if not name.endswith("num_batches_tracked")}
    for wrapper in _wrappers(weights):
        weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    return WeightFile(weights, tuple(notes))


def _require_modest(path: Path) -> None:
    """Refuse what is no file, or unpacks to far more than it holds, before it is read.

    Raises:
        ValueError: it says so.
    """
    try:
        size = require_file(path)
    except NoFileError as error:
        raise ValueError(f"{path} holds no weights: it {error.strerror}; name another") from error
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            header = int.from_bytes(file.read(8), "little")
            if size >= 8 and MOST_HEADER < header <= size:
                raise ValueError(
                    f"{path} holds no weights: its header has {header / 2**20:,.1f} MiB, those of the largest networks "
                    f"have less than {MOST_HEADER / 2**20:g}; save the tensors without metadata, or name another file"
                )
        else:
            try:
                unpacked = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
            except Exception:  # no archive, as old files are none, or a damaged one, of which torch says what is wrong
                return
            if unpacked > 2 * size + 2**20:  # torch.save compresses nothing
                raise ValueError(
                    f"{path} holds no weights that torch.save wrote: its {size:,} bytes unpack to {unpacked:,}; fetch "
                    "the file again, or name another"
                )


def _require_own_numbers(path: Path, weights: Weights) -> None:
    """Refuse tensors that are no plain numbers, or views of fewer numbers than they seem to have.

    Raises:
        ValueError: names the first.
    """
    for name, tensor in weights.items():
        plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {name}, of shape {list(tensor.shape)}, is no tensor with numbers of its own; save it as a "
                "contiguous one, or name another file"
            )


def resnet_of(path: Path, file: WeightFile) -> WeightFile:
    """The one ResNet of a file by torchvision's names, without its classifier, whatever stands before its names.

    Raises:
        ValueError: there are several.
    """
    if any(DETECTRON2.match(name) for name in file.weights):
        weights = {_from_detectron2(name): tensor for name, tensor in file.weights.items() if DETECTRON2.match(name)}
        return WeightFile(weights, (*file.notes, f"of {path}, the ResNet by Detectron2's names was taken"))
    ends = ("conv1.weight", "layer1.0.conv1.weight")
    starts = [name.removesuffix(ends[0]) for name in file.weights if name.endswith(ends[0])]
    starts = [start for start in starts if start + ends[1] in file.weights]
    if len(starts) > 1:
        raise ValueError(f"{path} holds several ResNets ({', '.join(map(repr, starts))}); save the one alone")
    start = starts[0] if starts else ""
    body = {name.removeprefix(start): tensor for name, tensor in file.weights.items() if name.startswith(start)}
    body = {name: tensor for name, tensor in body.items() if not name.startswith("fc.")}
    others = len(file.weights) - len(body)
    if not start or not others:
        return WeightFile(body, file.notes)
    note = f"of {path}, the backbone alone was taken: {len(body)} tensors under {start!r}, and not {others} others"
    return WeightFile(body, (*file.notes, note))


def _from_detectron2(name: str) -> str:
    """torchvision's name of a tensor of Detectron2's ResNet: res2 is layer1, and norms are named as parts."""
    name = DETECTRON2.sub(r"\2", name).removeprefix("stem.")
    name = re.sub(r"^res([2-5])\.", lambda stage: f"layer{int(stage[1]) - 1}.", name)
    name = re.sub(r"conv([1-3])\.norm\.", r"bn\1.", name)
    return name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")


def require_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse numbers that no network can compute with.

    Raises:
        ValueError: a tensor holds NaN or infinity, or a variance below 0.
    """
    for name, tensor in weights.items():
        wrong = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if wrong:
            raise ValueError(
                f"{path}: {name} holds NaN or infinity, {wrong} of its {tensor.numel()} numbers; fetch the file again, "
                "or name another"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"{path}: {name} holds a variance below 0; fetch the file again, or name another")


def to_imagenet_input(path: Path, body: Weights, expects: WeightsInput) -> Weights:
    """The weights of a ResNet for our input: RGB, less the mean, divided by the standard deviation of ImageNet.

    Caffe's expect BGR, less the mean, of levels from 0 to 255. Both are linear in the pixels, so that the difference
    goes into the first convolution, for good: w_rgb * std.

    Args:
        path: of the file.
        body: by torchvision's names; without a batch norm nobody can tell what they expect.
        expects: what the settings say.

    Raises:
        ValueError: the weights say otherwise.
    """
    seen = seen_input(body)
    if seen is not None and seen != expects:
        what = {
            "caffe": "levels from 0 to 255 less their mean, as Caffe's weights do (BGR)",
            "imagenet": "RGB divided by its standard deviation, as torchvision's weights do",
        }
        raise ValueError(
            f"{path}: by the size of its first convolution it expects {what[seen]}, but model.weights_input is "
            f"{expects}; set it to {seen}"
            + (", and, for Caffe's own ResNet-50 and 101, model.backbone_stride to 1x1" if seen == "caffe" else "")
        )
    if expects == "imagenet":
        return body
    first = body["conv1.weight"].float().flip(1) * torch.tensor(STD, dtype=torch.float32)[:, None, None]
    return body | {"conv1.weight": first}


def seen_input(body: Mapping[str, Tensor]) -> WeightsInput | None:
    """The input that the first convolution and its batch norm fit: photographs come out of it as that expects."""
    names = ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.running_var")
    if not all(name in body for name in names):
        return None
    convolution, scale, mean, variance = (body[name].float() for name in names)
    size = torch.arange(convolution.shape[-1], dtype=torch.float32)
    places = torch.cartesian_prod(size, size)
    neighbours = torch.exp(-torch.cdist(places, places) / CORRELATION_LENGTH)
    photographs = torch.kron(torch.tensor(CORRELATION, dtype=torch.float32), neighbours)
    filters = convolution.flatten(1)
    found = torch.einsum("oi,ij,oj->o", filters, photographs, filters)
    # Detectron's files have a mean of 0 and a variance of 1, with the true ones in scale and shift.
    is_folded = not mean.any() and bool((variance.max() - variance.min()) < 1e-3)
    share = (found * scale**2 if is_folded else found / variance.clamp(min=1e-12)).median().item()
    if share <= 0:  # of no use to anybody, but no sign of another input
        return None
    return "caffe" if share < CAFFE_BELOW["folded" if is_folded else "measured"] else "imagenet"


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return (
        bool(content)
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, Tensor) for value in content.values())
    )


def _wrappers(weights: Sequence[str] | Mapping[str, Tensor]) -> list[str]:
    """What stands before every name, from the outermost on."""
    names, found = list(weights), []
    while wrapper := next((one for one in WRAPPERS if names and all(name.startswith(one) for name in names)), None):
        found.append(wrapper)
        names = [name.removeprefix(wrapper) for name in names]
    return found


def _is_foreign_pickle(path: Path) -> bool:
    """Whether a file is a pickle that torch.save did not write, whose own old ones begin with a magic number."""
    with path.open("rb") as file:
        begin = file.read(4)
    return begin[:1] == b"\x80" and begin[2:] != b"\x8a\x0a"
