"""GPUs: how many a machine shows, why torch cannot use them, and the one that Ray has given a worker."""

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from model.names import PEAK_MEMORY_MIB
from orchestrator.errors import UserError

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
WAYS_OUT = {
    "not compiled with CUDA": "install a torch that is built for CUDA, as requirements.lock has it",
    "too old": "update the driver, or install a torch that is built for the CUDA of this driver",
    "no NVIDIA driver": "install the driver, or give the container its GPUs (docker run --gpus all)",
    "No CUDA GPUs": f"unset {VISIBLE} where Ray is started, or name GPUs in it that are there",
}
"""What helps against a word of torch's messages."""
ANY_WAY_OUT = "look at `nvidia-smi` there"


def count_gpus() -> int:
    """Count the GPUs that CUDA, and so Ray, may use on this machine; importing torch to ask would take seconds."""
    return len(visible_gpus(os.environ.get(VISIBLE), _uuids()))


def visible_gpus(visible: str | None, uuids: list[str]) -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves to a process, by what it calls them.

    Args:
        visible: its value: indices, beginnings of UUIDs (GPU-...), or MIG instances (MIG-...); None where it is unset.
        uuids: of the machine's GPUs, by index; an empty text stands for one that is not known.
    """
    if visible is None:
        return [str(index) for index in range(len(uuids))]
    found: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdigit():
            is_there = int(name) < len(uuids)
        elif name.startswith("MIG-"):
            # An instance is a GPU of its own to CUDA, of which Ray's own count makes one for each board.
            is_there = bool(uuids)
        else:
            is_there = name.startswith("GPU-") and any(uuid.startswith(name) or not uuid for uuid in uuids)
        # CUDA takes none from the first on that is not there, as -1; Ray would count that one as well.
        if not is_there or name in found:
            break
        found.append(name)
    return found


def _uuids() -> list[str]:
    """The UUIDs of all GPUs of the machine, by index; empty texts where the driver does not tell them."""
    with suppress(Exception):  # pynvml is not there, or the driver does not talk to it
        return _uuids_of_driver()
    # A GPU that is there and cannot be used is better refused by a worker, which says why, than not seen at all.
    names = os.listdir("/dev") if os.path.isdir("/dev") else []
    return [""] * sum(name.startswith("nvidia") and name[6:].isdigit() for name in names)


def _uuids_of_driver() -> list[str]:
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def why_no_cuda() -> str:
    """Say in torch's words why this process can use no GPU, and what helps; empty where it can use one."""
    import torch

    if torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        words = "No CUDA GPUs are available"
    except (RuntimeError, AssertionError) as error:
        words = " ".join(str(error).split())
    way_out = next((way for part, way in WAYS_OUT.items() if part in words), ANY_WAY_OUT)
    visible = f", {VISIBLE}={os.environ[VISIBLE]!r}" if VISIBLE in os.environ else ""
    return f"{words.partition('. ')[0].rstrip('.')} (torch {torch.__version__}{visible}); {way_out}"


def require_cuda() -> None:
    """Refuse a process that is to train on a GPU and cannot.

    Raises:
        UserError: the message says why, and what helps.
    """
    if why := why_no_cuda():
        raise UserError(
            f"resources.gpus_per_worker asks for a GPU, which torch cannot use on {socket.gethostname()}: {why}; or "
            "set resources.gpus_per_worker: 0 to train on CPUs"
        )


def peak_memory(device: "torch.device") -> dict[str, float]:
    """Return the most memory that torch has held for this process on a GPU, by its metric's name; on the CPU none."""
    import torch

    # Not what tensors take alone: recorded graphs keep memory in which no tensor lives between their replays.
    return {PEAK_MEMORY_MIB: torch.cuda.max_memory_reserved(device) / 2**20} if device.type == "cuda" else {}


def worker_device(gpus_per_worker: float) -> "torch.device":
    """Return the device of this worker of Ray Train, and make it torch's current one.

    A worker with a part of a GPU gets that part of its memory and no more: a training that needs more fails itself,
    and not the one beside it.

    Raises:
        UserError: Ray has given it a GPU that torch does not see.
    """
    import torch

    if not gpus_per_worker:
        return torch.device("cpu")
    require_cuda()
    from ray.train.torch import get_device

    try:
        device: torch.device = get_device()
        torch.cuda.set_device(device)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the GPU that Ray gave this worker is not among those of {VISIBLE}={os.environ.get(VISIBLE)!r} on "
            f"{socket.gethostname()} ({error}); unset {VISIBLE} and RAY_EXPERIMENTAL_NOSET_{VISIBLE} where Ray is "
            "started, or name GPUs in it that are there"
        ) from error
    if gpus_per_worker < 1.0:
        with suppress(RuntimeError, ValueError):  # an allocator that knows no parts
            torch.cuda.set_per_process_memory_fraction(gpus_per_worker, device)
    return device
