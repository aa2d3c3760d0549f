"""The digest by which replicas of a model recognise each other as equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.model.identity import model_sha256, read_vocabulary_sha256
from inference.model.loading import EngineOptions, load_engine
from inference.model.weights.weights import open_weights
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.inference.client import collect, make_request, serving

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

TOKENIZER = Path("models/demo/tokenizer.json")


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a small model's folder that a test can modify."""
    return Path(shutil.copytree(model_folder("llama-tied-gqa"), tmp_path / "model"))


def digest(folder: Path, dtype: str = "float32") -> str:
    vocabulary = read_vocabulary_sha256(folder)
    return model_sha256(load_config(folder), dtype, vocabulary, open_weights(folder))


def change_tensor(folder: Path, name: str) -> None:
    """Adds 1 to every element of a tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **values}))


PLAIN_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


class OneSample:
    """Weights whose only sample is fixed."""

    def samples(self) -> Iterator[bytes]:
        return iter([b"weights"])


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ({}, "c40ca00d15e228df198f930a465e0cbe69408eed1c66f9a3f2f0c2b4afcbdfec"),
        (
            {"rope_scaling": LLAMA3_ROPE},
            "600d903fcc1cb7aad7c2da6c4f21b0a5ce5fdd84171863a51c0b4452dc94598e",
        ),
    ],
)
def test_a_new_version_does_not_change_the_digest(
    tmp_path: Path, added: Mapping[str, object], expected: str
) -> None:
    """They are fixed, so that engines of two versions serve a model together in a rollout."""
    change_config(tmp_path, "config.json", **PLAIN_LLAMA, **added)
    if added:
        change_config(tmp_path, "generation_config.json", temperature=0.6, eos_token_id=[2, 3])
    weights: Any = OneSample()
    assert model_sha256(load_config(tmp_path), "bfloat16", "vocabulary", weights) == expected


def test_a_feature_that_is_used_is_in_the_digest(tmp_path: Path) -> None:
    """A field that differs from its default changes it."""
    weights: Any = OneSample()
    digests = set()
    for dims in (1.0, 0.5, 0.25):
        change_config(tmp_path, "config.json", **PLAIN_LLAMA, partial_rotary_factor=dims)
        digests.add(model_sha256(load_config(tmp_path), "bfloat16", "vocabulary", weights))
    assert len(digests) == 3


CHANGES: dict[str, Callable[[Path], None]] = {
    "matrix": lambda folder: change_tensor(folder, "model.layers.1.mlp.up_proj.weight"),
    "norm": lambda folder: change_tensor(folder, "model.layers.0.input_layernorm.weight"),
    "setting": lambda folder: change_config(folder, "config.json", rms_norm_eps=0.5),
    "end token": lambda folder: change_config(folder, "generation_config.json", eos_token_id=5),
    "vocabulary": lambda folder: change_config(folder, "tokenizer.json", model={"vocab": {"a": 0}}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_decides_the_tokens_is_in_the_digest(
    folder: Path, change: Callable[[Path], None]
) -> None:
    """Each kind of change gives another digest."""
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


def test_layout_and_names_of_the_files_are_not(folder: Path) -> None:
    """A sharded copy has the same digest; weights of another type in memory have another one."""
    before = digest(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number in range(2):
        names = sorted(tensors)[number::2]
        save_file({name: tensors[name] for name in names}, folder / f"part-{number}.safetensors")
    assert digest(folder) == before
    assert digest(folder, "bfloat16") != before


def test_a_broken_tokenizer_json_stops_the_start(folder: Path) -> None:
    """The error names the file and the field."""
    (folder / "tokenizer.json").write_text('{"model": {"vocab": 5}}')
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json: model\.vocab must be an object"):
        read_vocabulary_sha256(folder)


async def test_the_service_reports_both_digests_and_compares_them(folder: Path) -> None:
    """A prompt for another model is refused as UNAVAILABLE, so that it goes to another replica."""
    shutil.copy(TOKENIZER, folder)
    options = EngineOptions.defaults(folder, "m")
    threads = torch.get_num_threads()
    options = replace(options, device="cpu", kernels="torch", kv_cache_tokens=256, threads=threads)
    async with serving(lambda: load_engine(options)) as served:
        stub: Stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        info = await call_unary(stub.GetModel, inference_pb2.GetModelRequest())
        assert info.vocabulary_sha256 == read_vocabulary_sha256(folder)
        assert info.model_sha256 == digest(folder)
        request = make_request([1, 2])
        request.model_sha256 = info.model_sha256
        assert (await collect(stub, request))[-1].HasField("finish")
        request.model_sha256 = "0" * 64
        with pytest.raises(MeshError, match="model_sha256 must be that of") as caught:
            await collect(stub, request)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        inputs = inference_pb2.InferenceServiceEmbedRequest(model_sha256="0" * 64)
        inputs.inputs.add(ids=[1, 2])
        with pytest.raises(MeshError, match="model_sha256 must be that of"):
            await call_unary(stub.Embed, inputs)
