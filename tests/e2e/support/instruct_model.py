"""A small random model with the files of an instruct model: control tokens, a tool template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from tests.tokenizer.conftest import train_tokenizer

TEMPLATE = """{%- if tools %}
    {{- '<|im_start|>system\\nAnswer with <tool_call>, tools: ' }}
    {{- (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

CONTEXT = 2048


def make_instruct_model(folder: Path, hidden_size: int = 64) -> Path:
    """Writes weights, tokenizer and chat template into `folder`; the result is deterministic.

    vLLM needs heads of 32 dimensions or more, so a `hidden_size` of at least 128.
    """
    tokenizer = train_tokenizer()
    eos = tokenizer.token_to_id("<|im_end|>")
    torch.manual_seed(4)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden_size,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
