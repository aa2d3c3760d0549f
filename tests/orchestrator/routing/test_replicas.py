"""Choice of a replica."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import MeshError
from mesh.rpc.targets import with_default_port
from orchestrator.generation import ModelInfo
from orchestrator.routing.agreement import can_replace
from orchestrator.routing.circuit import Circuit, SlowStart
from orchestrator.routing.first_tokens import FirstTokens
from orchestrator.routing.policies.prefix import Prefix
from orchestrator.routing.policies.prefix_index import block_hashes
from orchestrator.routing.replicas import Lease, Member, Replicas
from orchestrator.settings import OrchestratorSettings

MODEL = ModelInfo("m", 100)


class FakeReplica:
    """The attributes that `pick` uses."""

    def __init__(self, address: str, model: str = "m") -> None:
        self.address = address
        self.model = ModelInfo(model, 100)
        self.outstanding_tokens = 0
        self.ready = True
        self.retired = False
        self.circuit = Circuit()
        self.slow_start = SlowStart()
        self.first_tokens = FirstTokens()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return (self.model,)

    def serves(self, model: ModelInfo) -> bool:
        return can_replace(self.model, model)


def replicas(*members: FakeReplica) -> Replicas:
    """A `Replicas` with these members."""
    made = Replicas([], 5)
    for member in members:
        made._members[member.address] = Member(member, None)  # type: ignore[arg-type]
    return made


def test_a_prompt_prefers_the_same_engine_until_it_is_busier() -> None:
    """Affinity holds while the extra load is at most the prompt's length."""
    members = [FakeReplica(f"10.0.0.{number}:1") for number in range(4)]
    chosen: Any = replicas(*members).pick(MODEL, [1, 2, 3])
    assert all(replicas(*members).pick(MODEL, [1, 2, 3]) is chosen for _ in range(5))
    chosen.outstanding_tokens = 3
    assert replicas(*members).pick(MODEL, [1, 2, 3]) is chosen
    chosen.outstanding_tokens = 4
    assert replicas(*members).pick(MODEL, [1, 2, 3]) is not chosen


def test_prompts_are_spread_over_engines() -> None:
    """Prompts that start differently prefer different engines."""
    members = [FakeReplica(f"10.0.0.{number}:1") for number in range(4)]
    picked = {replicas(*members).pick(MODEL, [number]).address for number in range(100)}
    assert len(picked) == 4


def test_only_ready_engines_of_the_model_are_chosen() -> None:
    """Excluded and lost engines, and those of other models, are not chosen."""
    one, two, other = FakeReplica("a:1"), FakeReplica("b:1"), FakeReplica("c:1", "other")
    two.ready = False
    made = replicas(one, two, other)
    assert made.pick(MODEL, [1]) is one  # type: ignore[comparison-overlap]
    with pytest.raises(MeshError, match="no engine is ready for model 'm'"):
        made.pick(MODEL, [1], excluded={one})  # type: ignore[arg-type]
    assert set(made.models) == {"m", "other"}


def test_a_lease_counts_tokens() -> None:
    """They are outstanding only inside the block."""
    one = FakeReplica("a:1")
    with Lease(one, 30):  # type: ignore[arg-type]
        assert one.outstanding_tokens == 30
    assert one.outstanding_tokens == 0


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("inference", "inference:9"),
        ("inference:50053", "inference:50053"),
        ("10.0.0.1", "10.0.0.1:9"),
        ("[::1]", "[::1]:9"),
        ("[::1]:5", "[::1]:5"),
    ],
)
def test_a_host_may_include_a_port(host: str, target: str) -> None:
    """The default port is added if there is none."""
    assert with_default_port(host, 9) == target


def test_upstreams_are_read_from_plain_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """TOKENIZER_HOST and INFERENCE_HOST have no prefix."""
    monkeypatch.setenv("TOKENIZER_HOST", "tok")
    monkeypatch.setenv("INFERENCE_HOST", "a, b:7")
    settings = OrchestratorSettings()
    assert settings.tokenizer_targets == {"": "tok:50052"}
    assert settings.inference_targets == ("a:50053", "b:7")


def test_a_lost_engine_is_forgotten_and_answers_are_known() -> None:
    """The policy knows completions, and nothing of an engine that is not ready."""
    one, two = FakeReplica("a:1"), FakeReplica("b:1")
    policy = Prefix()
    made = replicas(one, two)
    made._policy = policy
    prompt, completion = [5] * 100, [6] * 100
    home: Any = made.pick(MODEL, prompt)
    made.computed(home, MODEL, prompt, completion)
    known = block_hashes(prompt + completion)
    assert policy.index.num_cached(home.address, known) == len(known)
    made.pick(MODEL, [7] * 100, caches=False)
    assert policy.index.num_blocks == len(known)
    home.ready = False
    made._notify()
    assert policy.index.num_blocks == 0
