"""Small tokenizers of each kind, and chat templates in the style of model families."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on. user model assistant",
    "Übergrößenträger naïve café — “quoted” … 日本語のテキスト system developer final analysis",
    "def f(x):\n    return x + 1\n\tprint(f(41))  # 😀 commentary functions",
]
_SPACE = "\u2581"

GEMMA_2 = """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role not in ('user', 'assistant') %}
        {{- raise_exception('This model takes no messages of role ' + m.role) }}
    {%- endif %}
    {%- if (m.role == 'user') != (loop.index0 is even) %}
        {{- raise_exception('User and assistant must take turns') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}
    {{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

GEMMA_3 = """{{ bos_token }}
{%- set start = namespace(text='') %}
{%- if messages[0].role == 'system' %}
    {%- set start.text = messages[0].content + '\n\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
    {{- (start.text if loop.first else '') + (m.content | trim) + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI_3 = """{%- for m in messages %}
    {{- '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

PHI_4 = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

PHI_4_MINI = """{%- for m in messages %}
    {{- '<|' + m.role + '|>' + m.content }}
    {%- if loop.first and tools %}{{ '<|tool|>' + tools | tojson + '<|/tool|>' }}{% endif %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

OLMO_2 = """{{ bos_token }}
{%- for m in messages %}
    {{- '<|' + m.role + '|>\n' + m.content + (eos_token if m.role == 'assistant' else '') + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

GRANITE = """{%- macro turn(role, text) %}
    {{- '<|start_of_role|>' + role + '<|end_of_role|>' + text + '<|end_of_text|>\n' }}
{%- endmacro %}
{%- if tools %}{{ turn('tools', tools | tojson(indent=4)) }}{% endif %}
{%- for m in messages %}
    {%- if m.tool_calls %}
        {{- turn('assistant', '<|tool_call|>' + m.tool_calls | map(attribute='function') | list
            | tojson) }}
    {%- elif m.role == 'tool' %}{{ turn('tool_response', m.content) }}
    {%- else %}{{ turn(m.role, m.content) }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""

GLM_4 = """[gMASK]<sop>
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

QWEN_MOE = """{%- if tools %}
    {{- '<|im_start|>system\n<tools>' + tools | tojson + '</tools><|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' + m.content }}
    {%- for call in m.tool_calls or [] %}
        {{- '<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

MIXTRAL = """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant speak') }}{% endif %}
{%- endfor %}"""

TEKKEN = """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
    {%- elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}
    {%- else %}{{ m.content + eos_token }}{% endif %}
{%- endfor %}"""

GPT_OSS = """{%- macro turn(role, text, channel='') %}
    {{- '<|start|>' + role + ('<|channel|>' + channel if channel else '') }}
    {{- '<|message|>' + text + '<|end|>' }}
{%- endmacro %}
{{- turn('system', 'Reasoning: ' + (reasoning_effort or 'medium')) }}
{%- if tools or messages[0].role in ('system', 'developer') %}
    {{- '<|start|>developer<|message|>' }}
    {%- if messages[0].role in ('system', 'developer') %}{{ messages[0].content }}{% endif %}
    {%- for tool in tools or [] %}{{ '\ntype ' + tool.function.name + ' = () => any;' }}{% endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ turn('user', m.content) }}
    {%- elif m.role == 'tool' %}{{ turn('functions.f to=assistant', m.content, 'commentary') }}
    {%- elif m.role == 'assistant' %}
        {%- if 'thinking' in m %}{{ turn('assistant', m.thinking, 'analysis') }}{% endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '<|start|>assistant to=functions.' + call.function.name }}
            {{- '<|channel|>commentary json<|message|>' }}
            {{- call.function.arguments | tojson + '<|call|>' }}
        {%- endfor %}
        {%- if m.content %}{{ turn('assistant', m.content, 'final') }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""


class Family(NamedTuple):
    """A tokenizer and a template, as a model's folder has them."""

    make: Callable[[tuple[str, ...]], Tokenizer]
    special: tuple[str, ...]
    template: str
    bos: str = ""
    eos: str = ""
    added: tuple[str, ...] = ()
    """Tokens that the tokenizer adds before a text."""
    takes_system: bool = True
    renders_tools: bool = False

    def save(self, folder: Path) -> Path:
        """Writes the files of the model."""
        tokenizer = self.make(self.special)
        if self.added:
            ids = [(token, tokenizer.token_to_id(token)) for token in self.added]
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[*self.added, "$A"], special_tokens=ids
            )
        tokenizer.save(str(folder / "tokenizer.json"))
        named = {"bos_token": self.bos, "eos_token": self.eos}
        config: Mapping[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{name: token for name, token in named.items() if token},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(self.template)
        return folder


def _pieces() -> list[str]:
    """The vocabulary of SentencePiece's tokenizers: bytes, characters and some words."""
    words = [_SPACE + word for word in ("the", "dog", "quick", "model", "fox")]
    characters = sorted({*map(chr, range(33, 127)), _SPACE, "\n", *"Üßäéï日本"})
    return [*(f"<0x{byte:02X}>" for byte in range(256)), *characters, *words]


def _merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    words = [piece for piece in vocabulary if piece.startswith(_SPACE) and len(piece) > 1]
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(1, len(word)):
            if word[: end + 1] in vocabulary:
                merges.append((word[:end], word[end]))
    return merges


def sentencepiece_bpe(special: Sequence[str], *, prefix: bool, strips_right: bool) -> Tokenizer:
    """BPE with byte fallback, as of Llama 2, Phi-3 and Mixtral (`prefix`) and Gemma."""
    vocabulary: dict[str, int] = {}
    for piece in ["<unk>", *special, *_pieces()]:
        vocabulary.setdefault(piece, len(vocabulary))
    for word in [piece for piece in vocabulary if piece.startswith(_SPACE)]:
        for end in range(2, len(word)):
            vocabulary.setdefault(word[:end], len(vocabulary))
    model = models.BPE(
        vocab=vocabulary,
        merges=_merges(vocabulary),
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1, right=0)] if prefix else steps
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(token, rstrip=strips_right, normalized=False, special=True)
            for token in special
        ]
    )
    return tokenizer


def unigram(special: Sequence[str]) -> Tokenizer:
    """SentencePiece's Unigram with byte fallback."""
    pieces = ["<unk>", *special, *_pieces()]
    scores = [(piece, 0.0 if len(piece) < 2 else -1.0 - 1.0 / len(piece)) for piece in pieces]
    tokenizer = Tokenizer(
        models.Unigram([(piece, score - 5.0) for piece, score in scores], 0, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return str(tokenizer.to_str())


def tiktoken(special: Sequence[str]) -> Tokenizer:
    """A byte-level BPE that splits as tiktoken's do; the special tokens have the last ids."""
    tokenizer = Tokenizer.from_str(_trained())
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def gemma(special: Sequence[str]) -> Tokenizer:
    return sentencepiece_bpe(special, prefix=False, strips_right=False)


def llama_2(special: Sequence[str]) -> Tokenizer:
    return sentencepiece_bpe(special, prefix=True, strips_right=False)


def phi_3(special: Sequence[str]) -> Tokenizer:
    return sentencepiece_bpe(special, prefix=True, strips_right=True)


_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_GPT_OSS_TOKENS = (
    *("<|startoftext|>", "<|return|>", "<|end|>", "<|call|>"),
    *("<|start|>", "<|message|>", "<|channel|>", "<|constrain|>"),
)

FAMILIES: Mapping[str, Family] = {
    "gemma2": Family(
        gemma, _GEMMA_TOKENS, GEMMA_2, "<bos>", "<eos>", ("<bos>",), takes_system=False
    ),
    "gemma3": Family(gemma, _GEMMA_TOKENS, GEMMA_3, "<bos>", "<eos>", ("<bos>",)),
    "unigram": Family(unigram, _GEMMA_TOKENS, GEMMA_3, "<bos>", "<eos>", ("<bos>",)),
    "phi3": Family(
        phi_3,
        ("<s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|system|>", "<|user|>"),
        PHI_3,
        "<s>",
        "<|endoftext|>",
    ),
    "phi4": Family(tiktoken, (*_CHATML_TOKENS, "<|im_sep|>"), PHI_4, "<|endoftext|>", "<|im_end|>"),
    "phi4-mini": Family(
        tiktoken,
        (
            *("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
            *("<|tool|>", "<|/tool|>"),
        ),
        PHI_4_MINI,
        "<|endoftext|>",
        "<|endoftext|>",
        renders_tools=True,
    ),
    "olmo2": Family(tiktoken, ("<|endoftext|>",), OLMO_2, "<|endoftext|>", "<|endoftext|>"),
    "granite": Family(
        tiktoken,
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        GRANITE,
        "<|end_of_text|>",
        "<|end_of_text|>",
        renders_tools=True,
    ),
    "glm4": Family(
        tiktoken,
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        GLM_4,
        eos="<|endoftext|>",
        added=("[gMASK]", "<sop>"),
    ),
    "qwen-moe": Family(tiktoken, _CHATML_TOKENS, QWEN_MOE, eos="<|im_end|>", renders_tools=True),
    "mixtral": Family(
        llama_2, ("<s>", "</s>"), MIXTRAL, "<s>", "</s>", ("<s>",), takes_system=False
    ),
    "tekken": Family(
        tiktoken,
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        TEKKEN,
        "<s>",
        "</s>",
        ("<s>",),
    ),
    "gpt-oss": Family(
        tiktoken, _GPT_OSS_TOKENS, GPT_OSS, "<|startoftext|>", "<|return|>", renders_tools=True
    ),
}
