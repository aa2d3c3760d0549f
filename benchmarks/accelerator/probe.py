"""Measures the memory bandwidth and the matrix rate of a device with torch's operations."""

from __future__ import annotations

import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch

NUM_WARM_UPS = 5
NUM_RUNS = 50


class Probe(NamedTuple):
    """A device, and its measured limits."""

    name: str
    driver: str
    torch: str
    memory_bytes: int
    """0: unknown."""
    copy_bytes_per_second: float
    """Bytes read and written by a copy on the device."""
    read_bytes_per_second: float
    """Bytes read by a sum over a buffer."""
    bfloat16_flops_per_second: float
    fp8_flops_per_second: float | None
    """None if torch does not support fp8 products on the device."""

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth: the larger of both measurements."""
        return max(self.copy_bytes_per_second, self.read_bytes_per_second)

    def flops_per_second(self, dtype: str) -> float:
        """The matrix rate for weights of this type. fp8 may be multiplied as fp8 or bfloat16."""
        rates = [self.bfloat16_flops_per_second]
        if dtype == "fp8" and self.fp8_flops_per_second is not None:
            rates.append(self.fp8_flops_per_second)
        return max(rates)


def seconds(run: Callable[[], Any], device: str) -> float:
    """Median duration of many runs; on a GPU measured with CUDA events."""
    for _ in range(NUM_WARM_UPS):
        run()
    if device == "cpu":
        found = []
        for _ in range(NUM_RUNS):
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
        return statistics.median(found)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(NUM_RUNS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    milliseconds: list[float] = [a.elapsed_time(b) for a, b in pairwise(marks)]
    return statistics.median(milliseconds) / 1e3


def copy_rate(device: str, num_bytes: int) -> float:
    """Bytes per second of a copy; reads and writes both count."""
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def read_rate(device: str, num_bytes: int) -> float:
    """Bytes per second of a float32 sum, which only reads."""
    source = torch.ones(num_bytes // 4, device=device)
    return source.nbytes / seconds(source.sum, device)


def matrix_rate(device: str, size: int) -> float:
    """FLOP/s of a square matrix product in bfloat16."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / seconds(lambda: torch.matmul(left, right, out=out), device)


def fp8_rate(device: str, size: int) -> float | None:
    """FLOP/s in fp8 (e4m3) with bfloat16 results; None if torch does not support it."""
    one = torch.ones((), device=device)
    try:
        left, right = (
            torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2)
        )

        def multiply() -> torch.Tensor:
            # The operation requires a column-major right operand.
            return torch._scaled_mm(
                left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=device != "cpu"
            )

        return 2 * size**3 / seconds(multiply, device)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        print(f"no matrix rate in fp8: {str(error).splitlines()[0]}", file=sys.stderr)
        return None


def driver() -> str:
    """The driver version that nvidia-smi reports; for a CPU, the kernel's version."""
    if not torch.cuda.is_available():
        return f"{platform.system()} {platform.release()}"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.split("\n")[0].strip() or "unknown"


def probe(device: str, num_bytes: int, matrix_size: int) -> Probe:
    """Measures the device. `num_bytes` must be far larger than the device's caches."""
    on_gpu = device == "cuda"
    version = f"{torch.__version__}, CUDA {torch.version.cuda}" if on_gpu else torch.__version__
    return Probe(
        name=torch.cuda.get_device_name() if on_gpu else f"CPU {platform.machine()}",
        driver=driver(),
        torch=str(version),
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
        copy_bytes_per_second=copy_rate(device, num_bytes),
        read_bytes_per_second=read_rate(device, num_bytes),
        bfloat16_flops_per_second=matrix_rate(device, matrix_size),
        fp8_flops_per_second=fp8_rate(device, matrix_size),
    )


def main() -> None:
    """The command line."""
    device, mebibytes, matrix_size = sys.argv[1:]
    print(json.dumps(probe(device, int(mebibytes) * 2**20, int(matrix_size))._asdict()))


if __name__ == "__main__":
    main()
