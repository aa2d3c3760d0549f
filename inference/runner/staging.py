"""Asynchronous copies between host and device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor with these values; on the CPU it shares their memory.

    On a GPU the copy is asynchronous, in stream order. It needs pinned memory, which torch's
    caching allocator does not reuse before the copy is done.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Fetch:
    """An asynchronous copy from the device to the host, in stream order."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        """On the device."""
        self._host = values.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def tolist(self) -> list[int]:
        """Wait for the copy, and not for later work of the device; return the values."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[int] = self._host.tolist()
        return values
