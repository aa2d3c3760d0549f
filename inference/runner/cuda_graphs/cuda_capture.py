"""Captures what a function does on the GPU as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inference.engine.errors import ModelLoadError


class CudaCapture:
    """Implements `Capture`; all graphs of one object share their memory, so one runs at a time.

    Raises ModelLoadError where something cannot be captured.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # Once before, aside: kernels are compiled and workspaces made, which no graph may hold.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                result = compute()
        except RuntimeError as error:
            raise ModelLoadError(
                f"steps cannot be captured: {error}; INFERENCE_CUDA_GRAPHS=false does without"
            ) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
