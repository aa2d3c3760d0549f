"""llama.cpp with weights of a GGUF type; the streams are sequences of one batch."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file

from benchmarks.contenders.measure import Load, load_from_arguments, report

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(folder: Path, target: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Writes the model as GGUF. q and k are not permuted, because only the speed is measured."""
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(str(target), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, values in _tensors(folder):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in float32 by GGUF names, of a folder with safetensors or a GGUF file."""
    for path in folder.glob("*.gguf"):
        for tensor in gguf.GGUFReader(path).tensors:
            yield tensor.name, dequantize(tensor.data, tensor.tensor_type)
        return
    for name, tensor in load_file(folder / "model.safetensors").items():
        yield _gguf_name(name), tensor.to(torch.float32).numpy()


def gguf_file(folder: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """The folder's own file if most of it is of that type; else one that is made on first use."""
    for path in folder.glob("*.gguf"):
        kinds = Counter(tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors)
        if kinds.most_common(1)[0][0] == kind:
            return path.resolve()
    made = folder.with_name(f"{folder.name}-{kind.name}.gguf")
    if not made.is_file():
        convert(folder, made, kind)
    return made


def _gguf_name(name: str) -> str:
    name = name.removeprefix("model.").removesuffix(".weight")
    if name == "embed_tokens":
        return "token_embd.weight"
    if name == "norm":
        return "output_norm.weight"
    if name == "lm_head":
        return "output.weight"
    _, number, part = name.split(".", 2)
    return f"blk.{number}.{_NAMES[part]}.weight"


def decode(context: Any, entries: list[tuple[int, int, int, bool]]) -> None:
    """Computes a batch of (token, position, sequence id, whether to compute logits)."""
    batch = llama_cpp.llama_batch_init(len(entries), 0, 1)
    batch.n_tokens = len(entries)
    for place, (token, position, sequence, wanted) in enumerate(entries):
        batch.token[place] = token
        batch.pos[place] = position
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = sequence
        batch.logits[place] = wanted
    result = llama_cpp.llama_decode(context, batch)
    llama_cpp.llama_batch_free(batch)
    if result:
        raise RuntimeError(f"llama_decode returned {result}")


def greedy(context: Any, place: int, vocab_size: int) -> int:
    """The token with the largest logit."""
    logits = llama_cpp.llama_get_logits_ith(context, place)
    array = np.ctypeslib.as_array(
        ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (vocab_size,)
    )
    return int(array.argmax())


def run(context: Any, load: Load, num_tokens: int, vocab_size: int) -> tuple[float, float]:
    """Runs all streams; returns the seconds of prefill and of decode."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    began = time.monotonic()
    tokens = []
    for sequence, prompt in enumerate(load.prompts(vocab_size)):
        last = len(prompt) - 1
        decode(context, [(token, i, sequence, i == last) for i, token in enumerate(prompt)])
        tokens.append(greedy(context, last, vocab_size))
    prefilled = time.monotonic()
    for number in range(num_tokens - 1):
        position = load.prompt_length + number
        decode(context, [(token, position, s, True) for s, token in enumerate(tokens)])
        tokens = [greedy(context, place, vocab_size) for place in range(len(tokens))]
    return prefilled - began, time.monotonic() - prefilled


def main() -> None:
    """The last argument is the type of the weights. Converts the model on first use."""
    kind = gguf.GGMLQuantizationType[sys.argv.pop()]
    load = load_from_arguments()
    path = gguf_file(load.folder, kind)
    vocab_size = json.loads((load.folder / "config.json").read_text())["vocab_size"]
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        str(path).encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = load.num_streams * (load.prompt_length + load.output_length)
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = load.num_streams
    params.n_threads = params.n_threads_batch = load.num_threads
    context = llama_cpp.llama_init_from_model(model, params)
    run(context, load, 4, vocab_size)
    report(load, *run(context, load, load.output_length, vocab_size))


if __name__ == "__main__":
    main()
