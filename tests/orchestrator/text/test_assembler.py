"""The text of a generation and its log probabilities, for any cut into chunks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer

from mesh.protocol.deltas import DeltaLogprob
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from mesh.text.detokenizer import Decoder
from orchestrator.clients.tokenizer import Encoded
from orchestrator.generation import ModelInfo
from orchestrator.text.answer import AnswerParser
from orchestrator.text.assembler import TextAssembler
from orchestrator.text.preparation import PreparedPrompt
from orchestrator.text.reasoning import ReasoningParser
from orchestrator.text.tools.formats import HERMES
from orchestrator.text.tools.tool_calls import ToolCallParser
from tests.orchestrator.tokenizers_made import byte_fallback, byte_level

BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
DECODERS = {id(each): Decoder(each) for each in (BYTE_LEVEL, BYTE_FALLBACK)}
END = GenerationFinish(FinishReason.STOP, Usage(1, 1, 0))
TEXT = "The naïve fox 😀 (日本語) sleeps. x"


class Assembled(NamedTuple):
    """Everything that was sent of one generation."""

    text: str
    logprobs: list[DeltaLogprob]
    num_tokens: int
    stopped: bool


def assemble(
    tokenizer: Tokenizer,
    chunks: Sequence[Sequence[int]],
    sampling: SamplingParams,
    *,
    stop: Sequence[str] = (),
    answer: AnswerParser | None = None,
    eos: int | None = None,
    echo: tuple[list[int], str] | None = None,
) -> Assembled:
    """What is sent for these chunks of ids; log probabilities are minus the ids."""
    ids, text = ([1], None) if echo is None else echo
    prompt = PreparedPrompt(Encoded(ids, DECODERS[id(tokenizer)]), answer, echo=text)
    model = ModelInfo("m", 100, frozenset() if eos is None else frozenset({eos}))
    assembler = TextAssembler(prompt, model, sampling, stop)
    made = Assembled("", [], 0, False)
    for number, token_ids in enumerate(chunks):
        chunk = TokenChunk(
            token_ids,
            [scored(each) for each in token_ids] if sampling.num_logprobs is not None else (),
            [scored(each) for each in ids[1:]] if echo and number == 0 else (),
            END if number == len(chunks) - 1 else None,
        )
        for delta in (*assembler.echo(chunk.prompt_logprobs), *assembler.push(chunk)):
            made = Assembled(
                made.text + delta.text,
                [*made.logprobs, *delta.logprobs],
                made.num_tokens + delta.num_tokens,
                False,
            )
        if bool(assembler.stop_string):
            break
    return made._replace(stopped=bool(assembler.stop_string))


def scored(token_id: int) -> TokenLogprob:
    """Its log probability is minus its id; the token itself is the likeliest."""
    return TokenLogprob(token_id, -token_id, ((token_id, -token_id), (5, -9.0)))


def joined(made: Assembled) -> str:
    return "".join(each.token for each in made.logprobs)


def chunkings(ids: Sequence[int], number: int) -> Iterator[list[list[int]]]:
    """The ids in one chunk, one by one, and in chunks of random sizes, also of none."""
    yield [list(ids)]
    yield [[each] for each in ids] + [[]]
    rng = random.Random(len(ids))
    for _ in range(number):
        places = sorted(rng.choices(range(len(ids) + 1), k=5))
        yield [list(ids[a:b]) for a, b in zip([0, *places], [*places, len(ids)], strict=True)]


WITH = SamplingParams(num_logprobs=1)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
@pytest.mark.parametrize("seed", range(8))
def test_the_tokens_joined_are_the_text(tokenizer: Tokenizer, seed: int) -> None:
    """Of any ids, special and incomplete ones included, however they are cut into chunks."""
    rng = random.Random(seed)
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    if seed:
        ids = ids[: rng.randrange(1, len(ids))]
    if seed > 3:
        ids += rng.choices(range(tokenizer.get_vocab_size()), k=20)
    plain = assemble(tokenizer, [ids], SamplingParams())
    assert plain.text == tokenizer.decode(ids, skip_special_tokens=True)
    for chunks in chunkings(ids, 20):
        made = assemble(tokenizer, chunks, WITH)
        assert made.text == joined(made) == plain.text
        assert [-each.logprob for each in made.logprobs if each.logprob] == [i for i in ids if i]
        assert made.num_tokens == len(ids)
        if seed < 4 and tokenizer is BYTE_LEVEL:
            spelled = b"".join(each.token_bytes for each in made.logprobs)
            assert spelled.decode(errors="replace") == made.text
        for each in made.logprobs:
            assert (each.token, each.token_bytes) == each.top[0][:2]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
def test_the_end_token_has_no_log_probability(tokenizer: Tokenizer) -> None:
    """Also in a message together with others, as speculation sends them, and if it is a word."""
    ids = tokenizer.encode("The dog", add_special_tokens=False).ids
    [word] = tokenizer.encode("x", add_special_tokens=False).ids[-1:]
    for eos in (tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|end|>"), word):
        if eos is None:
            continue
        for chunks in chunkings([*ids, eos], 10):
            made = assemble(tokenizer, chunks, WITH, eos=eos)
            assert made.text == joined(made) == "The dog"
            assert len(made.logprobs) == len(ids)


def test_tokens_without_text_keep_their_log_probabilities() -> None:
    """At the end too: a token that texts omit, and one that ends within a character."""
    end = BYTE_LEVEL.token_to_id("<|user|>")
    half = BYTE_LEVEL.encode("🦔", add_special_tokens=False).ids[:1]
    for ids, text in (([end], ""), ([*half], "�"), ([end, end, *half, end], "�")):
        for chunks in chunkings(ids, 3):
            made = assemble(BYTE_LEVEL, chunks, WITH)
            assert made.text == joined(made) == text
            assert len(made.logprobs) == len(ids)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
@pytest.mark.parametrize("stop", ["fox", "ve f", "😀", "本", ". x", "nowhere", "s"])
def test_a_stop_string_ends_the_tokens_too(tokenizer: Tokenizer, stop: str) -> None:
    """Within a token: it has the part of its text that is sent."""
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids)
    for chunks in chunkings(ids, 20):
        made = assemble(tokenizer, chunks, WITH, stop=[stop])
        assert made.text == joined(made) == decoded.partition(stop)[0]


@pytest.mark.parametrize("num_logprobs", [None, 1])
@pytest.mark.parametrize("stop", [["a"], ["aa"], ["ab", "bb"], ["abaa"]])
def test_min_tokens_holds_off_stop_strings(num_logprobs: int | None, stop: list[str]) -> None:
    """The text ends at the first stop string that a later token completes."""
    text = "abaabbabaab"
    ids = [BYTE_FALLBACK.token_to_id(character) for character in text]
    for min_tokens in range(len(ids) + 2):
        ends = [
            (at + len(each), at)
            for each in stop
            for at in range(len(text))
            if text.startswith(each, at) and at + len(each) > min_tokens
        ]
        expected = text[: min(ends)[1]] if ends else text
        sampling = SamplingParams(num_logprobs=num_logprobs, min_tokens=min_tokens)
        for chunks in chunkings(ids, 6):
            made = assemble(BYTE_FALLBACK, chunks, sampling, stop=stop)
            assert made.text == expected, (min_tokens, chunks)
            assert made.stopped == bool(ends)
            assert num_logprobs is None or joined(made) == expected


THINKING = "<think>\nHm 😀</think>\n\n"
CALL = '<tool_call>{"name": "f", "arguments": {"é": 1}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (THINKING + "Two é.", "Two é."),
        (THINKING + "Let me. \n" + CALL + CALL, "Let me."),
        (THINKING + "日" + CALL + "\nThe 😀 " + CALL + " ", "日\nThe 😀"),
        (CALL, ""),
        ("<tool_call>é</tool_call>", "<tool_call>é</tool_call>"),
    ],
)
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
def test_log_probabilities_are_of_the_content(tokenizer: Tokenizer, text: str, shown: str) -> None:
    """Tokens of reasoning and of tool calls are left out."""

    def answer() -> AnswerParser:
        return AnswerParser(ReasoningParser(begun=False), ToolCallParser(HERMES, ["f"]))

    ids = tokenizer.encode(text, add_special_tokens=False).ids
    for chunks in chunkings(ids, 30):
        made = assemble(tokenizer, chunks, WITH, answer=answer())
        assert made.text == joined(made) == shown


@pytest.mark.parametrize(
    ("tokenizer", "bos"), [(BYTE_LEVEL, "<|user|>"), (BYTE_FALLBACK, "<s>")], ids=["bytes", "sp"]
)
def test_an_echoed_prompt_has_the_text_that_its_tokens_add(
    tokenizer: Tokenizer, bos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BOS that is not in the text adds none of it, so offsets count none.

    In parts of few tokens, which end within characters, it is the same.
    """
    prompt = "the naïve 😀 fox"
    ids = [tokenizer.token_to_id(bos), *tokenizer.encode(prompt, add_special_tokens=False).ids]
    sampling = SamplingParams(num_logprobs=1, num_prompt_logprobs=1)
    made = assemble(tokenizer, [ids[1:3]], sampling, echo=(ids, prompt))
    monkeypatch.setattr("orchestrator.text.assembler.ECHO_TOKENS", 3)
    assert assemble(tokenizer, [ids[1:3]], sampling, echo=(ids, prompt)) == made
    assert joined(made) == made.text
    assert len(made.logprobs) == len(ids) + 2
    assert (made.logprobs[0].token, made.logprobs[0].logprob) == ("", None)
    assert made.logprobs[1].token == "the"[: len(made.logprobs[1].token)]
