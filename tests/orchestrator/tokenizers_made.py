"""Small tokenizers of the two common kinds: byte-level and byte fallback."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "Übergrößenträger naïve café — “quoted” … 日本語のテキスト 한국어 中文",
    "def f(x):\n    return x + 1\n\tprint(f(41))  # 😀 🏳️‍🌈 👩‍👩‍👧",
]


@lru_cache(maxsize=1)
def byte_level() -> Tokenizer:
    """A byte-level tokenizer as of GPT-2, with special and with ordinary added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(" [1]"), AddedToken("é!")])
    return tokenizer


@lru_cache(maxsize=1)
def byte_fallback() -> Tokenizer:
    """A tokenizer as of Llama 2: spaces as U+2581, bytes as <0xNN>, no leading space."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in "\u2581abcdefghijklmnopqrstuvwxyzT,.":
        vocab[char] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer
