"""Broken model folders: each is refused with one line that names the file, and no traceback."""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.application import application
from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.model.config_files import ConfigFields
from inference.model.weights.weights import open_weights
from inference.settings import InferenceSettings
from mesh.process.lifecycle import StartupError

BAD_VALUES: list[Any] = [
    *(-1, 0, 1.5, 10**30, -(10**30), 2**31, 2**63, float("inf"), float("nan"), True),
    *("x", "64", "\ud800", [], ["a"], [[1]], [None], {}, {"a": 1}),
]

COMPLETE: dict[str, Any] = {
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
    "layer_types": ["full_attention"],
    "sliding_window": 5,
    "no_rope_layers": [1],
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": True,
    "max_window_layers": 3,
    "no_rope_layer_interval": 4,
    "eos_token_id": [1],
    "rope_theta": 1e4,
    "head_dim": 16,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 64,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.5,
    "num_experts_per_tok": 1,
    "mlp_only_layers": [1],
    "final_logit_softcapping": 3.0,
}
"""Optional fields of config.json, so that a test can break each."""

STRICT = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a small model's folder that a test can modify."""
    return Path(shutil.copytree(model_folder("llama-tied-gqa"), tmp_path / "model"))


def paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all keys in a JSON object."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield (*path, key)
            yield from paths(each, (*path, key))


def with_value(content: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    section = changed
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return changed


def refusal(folder: Path) -> str | None:
    """The error of `load_config`; None if it accepts the folder. Fails on any other error."""
    try:
        load_config(folder)
    except ModelLoadError as error:
        return str(error)
    return None


def test_every_field_of_the_config_may_be_broken(folder: Path) -> None:
    """Each key gets each bad value: accepted, or refused in one line with the file's name."""
    path = folder / "config.json"
    written = json.loads(path.read_text())
    # SmolLM3 reads every field.
    content = {**written, **COMPLETE, "architectures": ["SmolLM3ForCausalLM"]}
    content = {
        k: v for k, v in content.items() if k in {"architectures", *ConfigFields.model_fields}
    }
    del content["rope_parameters"]
    refused = set()
    for key in paths(content):
        for bad in BAD_VALUES:
            path.write_text(json.dumps(with_value(content, key, bad)))
            message = refusal(folder)
            if message is not None:
                assert "\n" not in message
                assert "config.json" in message
                refused.add((key[-1], repr(bad)))
    assert {(name, repr(bad)) for name in STRICT for bad in (-1, 0, 1.5, "64", [])} <= refused


def test_every_field_of_the_generation_config_may_be_broken(folder: Path) -> None:
    """Sampling defaults that no request may send are ignored; broken end tokens are refused."""
    path = folder / "generation_config.json"
    content: dict[str, Any] = {"eos_token_id": 1, "do_sample": True, "temperature": 1, "top_k": 1}
    for key in paths(content):
        for bad in BAD_VALUES:
            path.write_text(json.dumps(with_value(content, key, bad)))
            message = refusal(folder)
            assert (
                message is None or "generation_config.json" in message or "config.json" in message
            )
    path.write_text('{"eos_token_id": ["a"]}')
    expected = "generation_config.json: eos_token_id.0 must be a valid integer. Given: 'a'"
    assert (refusal(folder) or "").endswith(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_key_value_heads": 3}, r"num_attention_heads must be a multiple of .*\(3\)"),
        ({"head_dim": 15}, "must be even and at least 2. Given: 15"),
        ({"eos_token_id": [1, 99_999]}, r"eos_token_id must be below vocab_size .*Given: 99999"),
        ({"hidden_size": "64"}, "hidden_size must be a valid integer. Given: '64'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported, only silu, gelu"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a valid list"),
    ],
)
def test_the_field_and_the_value_are_named(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    """Also for fields that contradict each other."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ModelLoadError, match=message):
        load_config(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"null"]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_files_that_are_no_json_object_are_named(folder: Path, name: str, content: bytes) -> None:
    """Cut off, a list, no UTF-8, nested too deeply, too long a number, null."""
    (folder / name).write_bytes(content)
    assert is_line(refusal(folder), name)


def is_line(message: str | None, name: str) -> bool:
    """Whether the message is one line that names the file."""
    return message is not None and "\n" not in message and name in message


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ["model.safetensors"]}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "/etc/model.safetensors"}}',
        '{"weight_map": {"a": "..\\\\model.safetensors"}}',
        '{"weight_map": {"a": "model.bin"}}',
        "{" * 100_000,
    ],
)
def test_an_index_names_files_of_its_folder_only(folder: Path, index: str) -> None:
    """Anything else is refused, also if the file exists."""
    outside = folder.parent / "other"
    outside.mkdir()
    shutil.copy(folder / "model.safetensors", outside)
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelLoadError, match=r"^\S+model\.safetensors\.index\.json[^\n]*$"):
        open_weights(folder)


def damaged(folder: Path) -> list[tuple[str, bytes]]:
    """Contents for model.safetensors that are broken in one way each."""
    good = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])

    def encoded(changed: object) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + good[8 + length :]

    first = next(name for name in header if name != "__metadata__")
    broken = [{**header, first: {**header[first], field: bad}} for field, bad in BROKEN_HEADERS]
    return [
        ("empty", b""),
        ("short", good[:100]),
        ("huge header", struct.pack("<Q", 2**63) + good[8:]),
        ("no JSON", struct.pack("<Q", 3) + b"{{{" + good),
        ("list", encoded([])),
        *((f"header {number}", encoded(each)) for number, each in enumerate(broken)),
    ]


BROKEN_HEADERS: list[tuple[str, Any]] = [
    ("dtype", "F7"),
    ("dtype", 1),
    ("shape", [-1]),
    ("shape", [2**62, 2**62]),
    ("shape", "x"),
    ("data_offsets", [5, 1]),
    ("data_offsets", [0, 2**62]),
    ("data_offsets", None),
]


def test_damaged_weights_are_named(folder: Path) -> None:
    """Whatever is wrong in the file, before any of its tensors is read."""
    for kind, content in damaged(folder):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelLoadError) as caught:
            open_weights(folder)
        assert is_line(str(caught.value), "model.safetensors is not a safetensors file"), kind


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float8_e4m3fn])
def test_tensors_of_other_types_are_refused(folder: Path, dtype: torch.dtype) -> None:
    """Quantised weights need their scales; without them every answer would be garbage."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.norm.weight"
    save_file({**tensors, name: tensors[name].to(dtype)}, folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.norm\.weight must have one of the types F64"):
        open_weights(folder).take(name, tuple(tensors[name].shape))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}', "vocab_size is missing"),
        ("generation_config.json", '{"eos_token_id": ["a"]}', "must be a valid integer"),
        ("model.safetensors.index.json", "[]", "is not a JSON object"),
        ("model.safetensors", "{}", "is not a safetensors file"),
        ("tokenizer.json", '{"model": 1}', "model.vocab must be an object or a list"),
    ],
)
async def test_the_service_does_not_start(
    folder: Path, name: str, content: str, message: str
) -> None:
    """StartupError, which the process logs as one line before it exits with 3."""
    (folder / name).write_text(content)
    settings = InferenceSettings(model=str(folder), device="cpu", threads=1)
    with pytest.raises(StartupError, match=message) as caught:
        async with application(settings):
            pass
    assert "\n" not in str(caught.value)


async def test_too_little_memory_is_one_line(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The allocator's own error; the traceback is logged at DEBUG only."""
    settings = InferenceSettings(
        model=str(folder), device="cpu", threads=1, kernels="torch", kv_cache_tokens=1 << 50
    )
    with pytest.raises(StartupError, match=r"^\S+ the model cannot be loaded: [^\n]+$"):
        async with application(settings):
            pass
    assert not [each for each in caplog.records if each.levelname in ("WARNING", "ERROR")]
