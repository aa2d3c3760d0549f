"""The demo model in the repository."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference.model.loading import EngineOptions, load_engine
from mesh.protocol.summary import Grounded
from models.demo.evaluate import answer_all
from models.demo.examples import Format
from models.demo.grounding_figures import grounding_of
from models.demo.network import Network, Shape
from models.demo.pairs import Pair, Passage
from models.demo.rule import key_words
from models.demo.vocabulary import ASSISTANT, CHAT_TEMPLATE, VOCAB_SIZE
from orchestrator.search.prompt import NOTHING_FOUND, search_messages
from orchestrator.search.prompt import Passage as PromptPassage

FOLDER = Path(__file__).parents[2] / "models" / "demo"
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

PAIR = Pair(
    "how do lighthouses warn ships",
    [
        Passage("Bread", ["Bread is made of flour and water.", "The dough rests overnight."]),
        Passage(
            "Lighthouses",
            [
                "A lighthouse stands on the coast.",
                "Lighthouses warn ships of rocks with a bright light.",
                "Its keeper lives beside it.",
            ],
        ),
    ],
)


def messages_of(pair: Pair) -> list[dict[str, str]]:
    """The chat messages that the orchestrator would send."""
    passages = [PromptPassage(p.title, " ".join(p.sentences)) for p in pair.passages]
    return [message._asdict() for message in search_messages(pair.question, passages)]


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The tokenizer and its chat template, loaded with transformers."""
    return transformers.AutoTokenizer.from_pretrained(FOLDER)


@settings(deadline=None, max_examples=200)
@given(text=st.text())
def test_the_tokenizer_is_lossless(text: str) -> None:
    """Decoding returns any Unicode text unchanged, including spelled-out control tokens."""
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_the_template_renders_the_training_format(
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> None:
    """The token ids of a rendered prompt equal those of a training example."""
    format = Format(TOKENIZER)
    row = format.search(
        format.encode(f" {PAIR.question}"),
        frozenset(key_words(PAIR.question)),
        [[format.sentence(s) for s in p.sentences] for p in PAIR.passages],
        [format.encode(f" {p.title}") for p in PAIR.passages],
        first_handle=0,
    )
    rendered = tokenizer.apply_chat_template(
        messages_of(PAIR), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert row.ids[: row.ids.index(ASSISTANT) + 1] == rendered
    answer = TOKENIZER.decode(row.ids[len(rendered) :])
    assert answer == "Lighthouses warn ships of rocks with a bright light. [2]" or (
        answer.startswith("Lighthouses warn ships of rocks with a bright light. [2] ")
    )


def test_the_files_match_the_training_code() -> None:
    """The chat template is that of the code, and the weights have at most 20 MiB."""
    config = json.loads((FOLDER / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE
    assert (FOLDER / "model.safetensors").stat().st_size <= 20 * 1024 * 1024


def test_the_network_exports_to_llama(tmp_path: Path) -> None:
    """transformers computes the same logits from the exported weights."""
    from models.demo.train import export

    torch.manual_seed(0)
    network = Network(Shape(vocab_size=VOCAB_SIZE, num_hidden_layers=2))
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16().float())
    export(network, tmp_path)
    llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.tensor([[random.Random(0).randrange(VOCAB_SIZE) for _ in range(40)]])
    with torch.inference_mode():
        expected = llama(ids).logits
        logits = network.logits(network.hidden(ids)[-1])
    assert (logits - expected).abs().max() < 1e-3
    again = Network(Shape(vocab_size=VOCAB_SIZE, num_hidden_layers=2))
    again.load_llama_state(network.llama_state())
    assert all(
        torch.equal(one, two)
        for one, two in zip(network.parameters(), again.parameters(), strict=True)
    )


def test_the_model_quotes_the_answering_sentence(
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> None:
    """On unseen passages: whole sentences with the right citation, or that nothing was found."""
    options = EngineOptions.defaults(FOLDER, "demo")
    engine = load_engine(
        replace(options, kv_cache_tokens=4096, threads=1, num_speculative_tokens=0)
    )
    nothing = Pair("how do volcanoes erupt", PAIR.passages[:1])
    empty = Pair("lighthouses", [])
    answers = answer_all(engine, tokenizer, [PAIR, nothing, empty])
    assert "Lighthouses warn ships of rocks with a bright light. [2]" in answers[0]
    assert re.fullmatch(r"(.+?[.!?] \[\d\] ?)+", answers[0])
    assert answers[2] == NOTHING_FOUND
    bound = answer_all(engine, tokenizer, [PAIR, nothing, empty], Grounded.QUOTE)
    assert bound[0].startswith("Lighthouses warn ships of rocks with a bright light. [2]")
    assert bound[1:] == [NOTHING_FOUND, NOTHING_FOUND]
    rows = [grounding_of(pair, text) for pair, text in zip([PAIR, nothing], bound, strict=False)]
    assert rows[0].sentences == rows[0].quoted == rows[0].supported >= 1
    assert [row.answered for row in rows] == [True, False]
