"""Captures the GPU work of a function as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inference.engine.errors import ModelLoadError


class CudaCapture:
    """Implements `Capture`. All graphs of one object share a memory pool: one runs at a time.

    Raises ModelLoadError if the work cannot be captured.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        # Run once on a side stream: compiling kernels and allocating workspaces cannot be captured.
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
                f"steps cannot be captured: {error}; set INFERENCE_CUDA_GRAPHS=false to run without"
            ) from error

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
