"""The demo model's tokenizer: byte-level BPE, sentence handles, citations, chat template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 6144
NUM_HANDLES = 128
NUM_CITATIONS = 20

CONTROL_TOKENS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|none|>", "<|pad|>")
BOS, END, USER, ASSISTANT, NONE, PAD = range(len(CONTROL_TOKENS))
FIRST_HANDLE = len(CONTROL_TOKENS)
FIRST_TEXT = FIRST_HANDLE + NUM_HANDLES + 256
"""Ids from here on are merged pieces of text; lower ids are control tokens, handles and bytes."""

# Inserts a handle before each line of the user's message that ends in a citation, and omits system
# messages, which the model was not trained on.
CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- set lines = namespace(number=0) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{{- '<|user|>\n' -}}"
    "{%- for line in message['content'].split('\n') -%}"
    "{%- if line[-1:] == ']' and line[:1] != '[' and ' [' in line -%}"
    "{{- '<|s' ~ (lines.number % 128) ~ '|>' -}}"
    "{%- set lines.number = lines.number + 1 -%}"
    "{%- endif -%}"
    "{{- line ~ '\n' -}}"
    "{%- endfor -%}"
    "{{- '<|end|>' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' ~ message['content'] ~ '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], path: Path) -> Tokenizer:
    """Trains the vocabulary on `texts` and writes tokenizer.json to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    handles = [f"<|s{number}|>" for number in range(NUM_HANDLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - NUM_CITATIONS,
        special_tokens=[*CONTROL_TOKENS, *handles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Not special, because citations are text. Each is one token, including its space.
    citations = [f" [{number}]" for number in range(1, NUM_CITATIONS + 1)]
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in citations])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(path))
    return tokenizer


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL_TOKENS[BOS],
        "eos_token": CONTROL_TOKENS[END],
        "pad_token": CONTROL_TOKENS[PAD],
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def token_ids_config() -> dict[str, int]:
    """The fields of config.json and generation_config.json for control tokens."""
    return {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD}
