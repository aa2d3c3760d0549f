"""Takes values from the host to a device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor with these values; on the CPU it shares their memory.

    Elsewhere the copy is queued behind what the device does already, and nobody waits for it.
    That takes pinned memory, which torch's allocator gives to nobody else before the copy is done.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
