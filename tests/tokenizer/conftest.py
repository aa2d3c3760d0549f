"""Fixtures: a small trained tokenizer, model folders, and a served TokenizerService."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mesh.v1 import tokenizer_pb2_grpc
from tests.helpers import Served, serve
from tests.tokenizer.templates import CHATML
from tokenizer.application import application
from tokenizer.files import read_files
from tokenizer.service import TokenizerService
from tokenizer.settings import TokenizerSettings
from tokenizer.tokenizer import Tokenizer

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "[/INST]"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[TOOL_CALLS]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
]
ORDINARY = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>"]
"""Added tokens that are not special, as in Qwen's tokenizer."""

MakeModel = Callable[..., Path]


def train_tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE that adds a leading `<s>`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    text = "A weir is the low dam that regulates a river without stopping it. system user assistant"
    tokenizer.train_from_iterator([text] * 20, trainer)
    tokenizer.add_tokens(ORDINARY)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def train_sentencepiece(kind: str) -> tokenizers.Tokenizer:
    """A BPE that adds a space before texts: by a normalizer as in Llama 2, or by Metaspace."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if kind == "normalizer":
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=[*map(chr, range(32, 127)), "\u2581", "\n"],
        special_tokens=["<unk>", *SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["A weir is a low dam. Hi, obey the system user"] * 9, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """The content of tokenizer.json."""
    return train_tokenizer().to_str()


@pytest.fixture
def make_model(tmp_path: Path, tokenizer_json: str) -> MakeModel:
    """Factory of model folders; `template` None omits the template."""

    def make(template: object = CHATML, files: dict[str, str] | None = None) -> Path:
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": {"content": "</s>", "__type": "AddedToken", "special": True},
            "clean_up_tokenization_spaces": False,
        }
        if template is not None:
            config["chat_template"] = template
        (tmp_path / "tokenizer.json").write_text(tokenizer_json)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        for name, content in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


@pytest.fixture
def load_tokenizer(make_model: MakeModel) -> Callable[..., Tokenizer]:
    """Factory of tokenizers, each loaded from a new model folder."""

    def load(template: object = CHATML, files: dict[str, str] | None = None) -> Tokenizer:
        folder = make_model(template, files)
        return Tokenizer("a-model", read_files(str(folder)))

    return load


@asynccontextmanager
async def service_of(folder: Path, **settings: Any) -> AsyncIterator[TokenizerService]:
    """A service with small limits, without a server."""
    async with application(
        TokenizerSettings(model=str(folder), max_input_characters=2_000_000, **settings)
    ) as service:
        yield service


@pytest.fixture
async def service(make_model: MakeModel) -> AsyncIterator[TokenizerService]:
    """A service with small limits, without a server."""
    folder = make_model(files={"generation_config.json": "{}", "special_tokens_map.json": "{}"})
    async with service_of(folder) as service:
        yield service


@pytest.fixture
async def served(service: TokenizerService) -> AsyncIterator[Served]:
    """The service on a gRPC server."""
    async with serve(*service.servicers) as served:
        yield served


@pytest.fixture
def stub(served: Served) -> tokenizer_pb2_grpc.TokenizerServiceAsyncStub:
    """A client stub of the service."""
    return tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)
