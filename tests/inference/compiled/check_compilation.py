"""Compiles the Triton kernels for several GPUs; run by tests/inference/model/test_kernels.py.

The tests call the operations with tensors on the CPU. The launches are compiled to machine code
with their types, constants and options, but not executed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime.jit import JITFunction

from inference.kv_cache.kv_cache import KVCache
from inference.model.kernels.attention.launches import Launches
from inference.model.kernels.product import Device
from inference.model.kernels.sample import gumbel_argmax
from inference.model.kernels.triton_operations import TritonOperations
from inference.model.layers.linear import Linear
from inference.model.layers.rotary import RotaryEmbedding
from inference.runner.step_inputs import make_inputs
from tests.inference.model.kernel_checks import make_config
from tests.inference.steps import Span, make_step

CPU = torch.device("cpu")
SHARED_MEMORY = {80: 163, 89: 99, 90: 227, 100: 227}
"""KiB per program, by compute capability: A100, L4 and RTX 40, H100 and H200, B200."""

NAMES = ("_attend", "_combine", "_rotate_and_store")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class AbsentDriver(CudaDriver):  # type: ignore[misc]  # Triton has no types
    """Pretends that a GPU of this compute capability is present."""

    def __init__(self, capability: int) -> None:
        self._capability = capability
        # Triton caches kernels by device, so each capability is a separate device.
        self.get_current_device = lambda: capability
        self.get_current_stream = lambda _: 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self._capability, 32)


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel and its resources."""

    name: str
    variant: str
    shared_bytes: int
    registers: int
    spilled_bytes: int


@pytest.fixture
def compiled(
    capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[list[Compiled]]:
    """The kernels that a test compiles."""
    found: list[Compiled] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
        said = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", tmp_path / "kernel.cubin"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", said)[0]
        found.append(
            Compiled(self.__name__, kernel.hash, kernel.metadata.shared, int(registers), int(stack))
        )

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", AbsentDriver(capability))
    yield found
    for each in found:
        print(capability, each)


def operations(**values: Any) -> TritonOperations:
    """The operations of a model with Llama 3.1's heads, or with these values."""
    config = make_config(
        **{"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "max_position": 8192, **values}
    )
    made = TritonOperations(config, RotaryEmbedding(config, config.max_position, CPU))
    made.launches = Launches(
        num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, num_programs=264
    )
    return made


@pytest.mark.parametrize(
    ("capability", "values"),
    [
        *((capability, {}) for capability in SHARED_MEMORY),
        (90, {"head_dim": 80, "num_heads": 14, "num_kv_heads": 2, "qk_norm": True}),
        (89, {"head_dim": 256, "num_heads": 8, "num_kv_heads": 1, "sliding_window": 4096}),
    ],
)
def test_attention_fits(capability: int, compiled: list[Compiled], values: dict[str, Any]) -> None:
    """One stream and a prompt fit in shared memory, without spilled registers."""
    made = operations(**values)
    config = made.config
    size = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    norms = (torch.ones(config.head_dim).bfloat16(),) * 2 if config.qk_norm else None
    cache = KVCache(config, 1000, 16, torch.bfloat16, CPU)
    steps: list[list[Span]] = [[(4000, 1)], [(0, 500)]]
    for spans in steps:
        inputs = make_inputs(make_step(spans, 16, num_blocks=1000), 16, CPU)
        attention = made.attention(inputs, cache)
        attention(torch.zeros(inputs.num_tokens, size).bfloat16(), 0, norms, rotates=True)
    assert {each.name for each in compiled} == set(NAMES)
    check(compiled, capability)


@pytest.mark.parametrize("capability", [90])
def test_steps_of_other_sizes_use_the_same_kernels(compiled: list[Compiled]) -> None:
    """No step is delayed by a compilation because of its lengths."""
    made = operations()
    config = made.config
    cache = KVCache(config, 100, 16, torch.bfloat16, CPU)
    for spans in ([(100, 1)], [(130, 1)] * 2, [(300, 1)] * 3, [(17, 1)] * 5, [(900, 1)] * 16):
        inputs = make_inputs(make_step(spans, 16, num_blocks=1000), 16, CPU)
        qkv = torch.zeros(inputs.num_tokens, 48 * 128).bfloat16()
        made.attention(inputs, cache)(qkv, 0, None, rotates=True)
    variants = {name: {e.variant for e in compiled if e.name == name} for name in NAMES}
    # One variant with split keys, one without.
    assert {name: len(found) for name, found in variants.items()} == {
        "_attend": 2,
        "_combine": 1,
        "_rotate_and_store": 1,
    }


@pytest.mark.parametrize("capability", [90])
def test_other_kernels_fit(capability: int, compiled: list[Compiled]) -> None:
    """At the sizes of Llama 3.1 8B and 405B."""
    made = operations()
    gumbel_argmax(torch.zeros(3, 128_256), torch.zeros(3, dtype=torch.int64))
    for size, inner in ((4096, 14_336), (16_384, 53_248)):
        x, weight = torch.zeros(3, size).bfloat16(), torch.ones(size).bfloat16()
        made.norm(x, weight)
        made.add_norm(x, x.clone(), weight)
        made.gate(torch.zeros(3, 2 * inner).bfloat16())
        made.quantise(x)
        made.quantise(torch.zeros(3, inner).bfloat16())
    check(compiled, capability)


def matrix(num_outputs: int, num_inputs: int, *, fp8: bool = False) -> Linear:
    """A matrix with uninitialised weights."""
    dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
    found = Linear(torch.empty(num_outputs, num_inputs, dtype=dtype))
    found.scales = torch.ones(1, num_outputs) if fp8 else None
    return found


@pytest.mark.parametrize("capability", [90])
def test_one_row_fits(capability: int, compiled: list[Compiled]) -> None:
    """The products of a layer of Llama 3.1 8B, including the gate."""
    made = operations(hidden_size=4096)
    x, inner = torch.zeros(1, 4096).bfloat16(), torch.zeros(1, 14_336).bfloat16()
    made.multiply(x, matrix(6144, 4096))
    made.multiply(x, matrix(4096, 4096))
    made.multiply_gate(x, matrix(2 * 14_336, 4096))
    made.multiply(inner, matrix(4096, 14_336))
    assert {each.name for each in compiled} == {"_matvec"}
    check(compiled, capability)


@pytest.mark.parametrize(("capability", "fp8"), [(80, False), (90, False), (89, True)])
def test_products_fit(capability: int, compiled: list[Compiled], fp8: bool) -> None:
    """For each kind of tile, without and with parts."""
    made = operations(hidden_size=4096)
    made.products.device = Device(shared_memory=SHARED_MEMORY[capability] * 1024)
    for num_rows in (1, 64, 400):
        for num_outputs, num_inputs in ((4096, 4096), (4096, 14_336)):
            x = torch.zeros(num_rows, num_inputs).bfloat16()
            made.product(x, matrix(num_outputs, num_inputs, fp8=fp8))
    found = [each for each in compiled if each.name == "_product"]
    assert len(found) == 6
    # The largest tile fills the registers; it spills some outside of its loop.
    check(found, capability, most_spilled=64)


@pytest.mark.parametrize("capability", [90])
def test_attention_in_parts_fits(capability: int, compiled: list[Compiled]) -> None:
    """Split keys, and all parts in one program, which spills registers between parts."""
    made = operations().batch_invariant()
    made.launches = Launches(num_heads=32, num_kv_heads=8, num_programs=264, part=256)
    cache = KVCache(made.config, 100, 16, torch.bfloat16, CPU)
    steps: list[list[Span]] = [[(4000, 1)], [(0, 500)]]
    for spans in steps:
        inputs = make_inputs(make_step(spans, 16, num_blocks=1000), 16, CPU)
        qkv = torch.zeros(inputs.num_tokens, 48 * 128).bfloat16()
        made.attention(inputs, cache)(qkv, 0, None, rotates=True)
    names = {each.name for each in compiled}
    assert names == {"_attend", "_combine_in_order", "_rotate_and_store"}
    check(compiled, capability, most_spilled=64)


def check(compiled: list[Compiled], capability: int, *, most_spilled: int = 0) -> None:
    """Asserts that the kernels fit in shared memory and spill few registers."""
    for each in compiled:
        assert each.shared_bytes <= SHARED_MEMORY[capability] * 1024, each
        assert each.spilled_bytes <= most_spilled, each
