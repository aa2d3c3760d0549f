"""Which replica each policy chooses, and the bounds of the index of prefixes."""

from __future__ import annotations

import random

import pytest

from orchestrator.routing.policies.cache_mirror import CacheMirror
from orchestrator.routing.policies.factory import PolicyName, make_policy
from orchestrator.routing.policies.prefix import LOAD_WEIGHT, Prefix
from orchestrator.routing.policies.prefix_index import (
    BLOCK_TOKENS,
    MAX_PROMPT_BLOCKS,
    PrefixIndex,
    block_hashes,
)
from orchestrator.routing.policies.simple import Affinity, LeastOutstanding, RoundRobin

IDLE = {"a": 0.0, "b": 0.0, "c": 0.0}
TEMPLATE = list(range(10 * BLOCK_TOKENS))


def prompt_of(number: int, num_blocks: int = 4) -> list[int]:
    """The template, and tokens that only this prompt has."""
    return TEMPLATE + [1000 * (number + 1) + place for place in range(num_blocks * BLOCK_TOKENS)]


def test_prompts_of_one_template_go_where_their_own_blocks_are() -> None:
    """The first 64 tokens are those of the template, so affinity sends all to one replica."""
    policy, loads = Prefix(), dict(IDLE)
    first = {}
    for number in range(9):
        first[number] = policy.choose(loads, prompt_of(number))
        loads[first[number]] += 20_000.0  # busy, so that the next one goes elsewhere
    assert set(first.values()) == set(IDLE)
    for number in range(9):
        later = [*prompt_of(number), *range(500, 600)]
        assert policy.choose(IDLE, later) == first[number]
    assert len({Affinity().choose(IDLE, prompt_of(number)) for number in range(9)}) == 1


def test_cached_blocks_count_against_outstanding_work() -> None:
    """A cached token is worth `1 / LOAD_WEIGHT` outstanding ones, and no more."""
    policy = Prefix()
    prompt = prompt_of(0)
    home = policy.choose(IDLE, prompt)
    worth = len(prompt) / LOAD_WEIGHT
    assert policy.choose({**IDLE, home: worth - 1}, prompt) == home
    assert policy.choose({**IDLE, home: worth + 1}, prompt) != home


def test_a_conversation_stays_with_its_answers() -> None:
    """The blocks of a completion are known after it, so the longer match wins."""
    policy = Prefix()
    prompt, answer = prompt_of(0), list(range(7000, 7000 + 2 * BLOCK_TOKENS))
    policy.index.add("a", block_hashes(prompt))
    policy.index.add("b", block_hashes(prompt))
    policy.computed("b", prompt + answer)
    assert policy.choose(IDLE, [*prompt, *answer, 1, 2, 3]) == "b"
    policy.forget("b")
    assert policy.index.num_cached("b", block_hashes(prompt)) == 0
    assert policy.choose(IDLE, [*prompt, *answer, 1, 2, 3]) == "a"


def test_without_cached_blocks_all_orchestrators_choose_alike() -> None:
    """Short and unknown prompts are chosen by affinity, which needs no shared state."""
    for number in range(20):
        prompt = [number] * 40
        assert Prefix().choose(IDLE, prompt) == Affinity().choose(IDLE, prompt)
    assert {Prefix().choose(IDLE, [number]) for number in range(100)} == set(IDLE)


def test_the_other_policies() -> None:
    """In turn; fewest outstanding tokens; and every name makes a policy."""
    turn = RoundRobin()
    assert [turn.choose(IDLE, []) for _ in range(4)] == ["a", "b", "c", "a"]
    assert turn.choose({"a": 0.0, "c": 0.0}, []) == "c"
    assert LeastOutstanding().choose({"a": 3.0, "b": 2.0, "c": 9.0}, [1]) == "b"
    for name in PolicyName:
        assert make_policy(name, 1024).choose(IDLE, [1]) in IDLE


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_the_index_is_bounded_and_forgets_ends_first(num_replicas: int) -> None:
    """At most `max_blocks` over all replicas; of the oldest prompt the beginning stays longest."""
    index = PrefixIndex(max_blocks=30)
    addresses = [str(number) for number in range(num_replicas)]
    rng = random.Random(1)
    for _ in range(50):
        for address in addresses:
            index.add(address, [rng.getrandbits(60) for _ in range(7)])
    assert index.num_blocks <= 30
    hashes = list(range(1, 8))
    index.add("0", hashes)
    assert index.num_cached("0", hashes) == 7
    index.add("0", [rng.getrandbits(60) for _ in range(30 // num_replicas - 4)])
    assert index.num_cached("0", hashes) == 4
    index.remove("0", 4)
    assert index.num_cached("0", hashes) == 3


def test_hashes_are_of_full_blocks_and_all_tokens_before() -> None:
    """A change in the first token changes every name; very long prompts are cut."""
    one, other = [1] * 100, [2] + [1] * 99
    assert len(block_hashes(one)) == 100 // BLOCK_TOKENS
    assert not set(block_hashes(one)) & set(block_hashes(other))
    assert block_hashes(one) == block_hashes(one + [7] * 5)[: len(block_hashes(one))]
    assert len(block_hashes([1] * (BLOCK_TOKENS * (MAX_PROMPT_BLOCKS + 5)))) == MAX_PROMPT_BLOCKS


def num_moved(*, follows: bool) -> int:
    """How many turns of conversations with one template leave the engine that has them cached.

    Two orchestrators are asked in turn. `follows`: the engines' reports reach both.
    """
    orchestrators = (Prefix(), Prefix())
    mirrors = {each: [policy.mirror(each) for policy in orchestrators] for each in IDLE}
    rng = random.Random(1)
    homes: dict[int, str] = {}
    moved = 0
    for turn in range(4):
        for number in range(12):
            prompt = prompt_of(number, 2 * turn + 2)
            # The first turns are spread by load; in any order of the replicas.
            loads = {
                each: rng.uniform(0, 9000) if turn == 0 else 0.0 for each in rng.sample("abc", 3)
            }
            chosen = orchestrators[(turn + number) % 2].choose(loads, prompt)
            moved += homes.setdefault(number, chosen) != chosen
            homes[number] = chosen
            for mirror in mirrors[chosen] if follows else ():
                store(mirror, prompt)
    return moved


def test_orchestrators_that_follow_the_engines_agree() -> None:
    """Both know where a conversation is cached, whichever of them sent it there."""
    assert num_moved(follows=True) == 0
    assert num_moved(follows=False) > 0


def store(mirror: CacheMirror, prompt: list[int]) -> None:
    """What an engine with blocks of 16 tokens reports for a prompt."""
    parent: int | None = None
    for end in range(16, len(prompt) + 1, 16):
        block = hash(tuple(prompt[:end]))
        mirror.stored(block, parent, tuple(prompt[end - 16 : end]))
        parent = block
