"""How busy the machine is, under MLflow's names for it; sampled between two steps, without a thread."""

import logging
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

INTERVAL = 10.0  # seconds, as MLflow's own monitor has it


class Machine:
    """Samples the CPUs and the memory of the node, and the GPU of this process if it has one."""

    def __init__(self, device: "torch.device", interval: float = INTERVAL) -> None:
        """Begin to count.

        Args:
            device: on which the process trains.
            interval: seconds from one sample to the next.
        """
        self._gpu = device if device.type == "cuda" else None
        self._interval, self._next = interval, 0.0
        psutil.cpu_percent()  # what it returns is the load since the call before

    def sample(self) -> dict[str, float]:
        """Return the metrics if it is time for them, else none."""
        now = time.monotonic()
        if now < self._next:
            return {}
        self._next = now + self._interval
        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": round(memory.used / 1e6, 1),
            "system/system_memory_usage_percentage": memory.percent,
            **self._sample_gpu(),
        }

    def _sample_gpu(self) -> dict[str, float]:
        if self._gpu is None:
            return {}
        try:
            return _gpu(self._gpu)
        except Exception as error:  # a driver that hides its numbers must not end a training
            logger.warning("the GPU is not sampled: %s", error)
            self._gpu = None
            return {}


def _gpu(device: "torch.device") -> dict[str, float]:
    """Return the use of one GPU, which is called the first, as it is to its process."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {
        "system/gpu_0_memory_usage_megabytes": round((total - free) / 1e6, 1),
        "system/gpu_0_memory_usage_percentage": round(100 * (1 - free / total), 1),
        "system/gpu_0_utilization_percentage": torch.cuda.utilization(device),
        "system/gpu_0_power_usage_watts": torch.cuda.power_draw(device) / 1000,
    }
