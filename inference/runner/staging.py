"""Takes values from the host to a device and back, and waits only where they are needed."""

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


class Fetch:
    """Values on their way from a device to the host, behind what the device does already."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        """Where they were made."""
        self._host = values.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def tolist(self) -> list[int]:
        """The values; waits for them, not for what the device was given to do since."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: list[int] = self._host.tolist()
        return found
