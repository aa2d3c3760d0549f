"""The settings of the orchestrator."""

from __future__ import annotations

import pytest

from mesh.process.settings import load
from orchestrator.settings import OrchestratorSettings
from orchestrator.text.format_choice import FormatChoices
from orchestrator.text.tools.formats import HERMES, QWEN3_CODER, THINK
from orchestrator.text.tools.tool_format import AnswerFormat


def read(*arguments: str) -> OrchestratorSettings:
    """The settings of a process started with these arguments."""
    return load(OrchestratorSettings, "orchestrator", arguments)


def test_defaults_match_the_other_services() -> None:
    """The addresses are the other services' defaults; there is no index."""
    settings = read()
    assert settings.listen == "127.0.0.1:50051"
    assert settings.tokenizer_targets == {"": "127.0.0.1:50052"}
    assert settings.inference_targets == ("127.0.0.1:50053",)
    assert settings.index == ""


def test_variables_have_the_services_prefix_except_for_the_upstreams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Upstream variables have the same name in all services."""
    monkeypatch.setenv("ORCHESTRATOR_MAX_CONCURRENT_REQUESTS", "7")
    monkeypatch.setenv("ORCHESTRATOR_INDEX", "/data/index")
    monkeypatch.setenv("TOKENIZER_HOST", "tok")
    monkeypatch.setenv("ORCHESTRATOR_TOKENIZER_HOST", "ignored")
    monkeypatch.setenv("INFERENCE_HOST", " a , b:7,, [::1] ")
    settings = read()
    assert settings.max_concurrent_requests == 7
    assert settings.index == "/data/index"
    assert settings.tokenizer_targets == {"": "tok:50052"}
    assert settings.inference_targets == ("a:50053", "b:7", "[::1]:50053")


def test_flags_override_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in all services."""
    monkeypatch.setenv("ORCHESTRATOR_RETRIEVAL_TIMEOUT_SECONDS", "1")
    monkeypatch.setenv("TOKENIZER_HOST", "tok")
    settings = read("--retrieval-timeout-seconds", "3", "--tokenizer-host", "other:1")
    assert settings.retrieval_timeout_seconds == 3
    assert settings.tokenizer_targets == {"": "other:1"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ORCHESTRATOR_MAX_CONCURRENT_REQUESTS", "0"),
        ("ORCHESTRATOR_RETRIEVAL_TIMEOUT_SECONDS", "0"),
        ("ORCHESTRATOR_DNS_REFRESH_SECONDS", "-1"),
        ("ORCHESTRATOR_LISTEN", "nowhere"),
    ],
)
def test_an_invalid_value_is_reported_by_its_variable(
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process does not start."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match="3"):
        read()
    assert f"{variable}='{value}'" in capsys.readouterr().err


def test_models_may_have_separate_tokenizers() -> None:
    """MODEL=HOST:PORT for one model, a plain address for all others."""
    settings = read("--tokenizer-host", "tok, Qwen/Qwen3-0.6B=a:7 ,b=[::1]")
    targets = {"": "tok:50052", "Qwen/Qwen3-0.6B": "a:7", "b": "[::1]:50052"}
    assert settings.tokenizer_targets == targets


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, "none"),
        ({"INDEX": "/i"}, "index"),
        ({"INDEX": "/i", "RETRIEVAL": "none"}, "none"),
        ({"RETRIEVAL": "postgres", "POSTGRES_URL": "postgresql://h/d"}, "postgres"),
        ({"RETRIEVAL": "opensearch", "OPENSEARCH_URL": "https://h:9200"}, "opensearch"),
        ({"RETRIEVAL": "searxng", "SEARXNG_URL": "http://h"}, "searxng"),
    ],
)
def test_search_backend(
    variables: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The named backend, or the index if there is one."""
    for name, value in variables.items():
        monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)
    assert read().retrieval_kind == kind


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RETRIEVAL": "index"}, "needs ORCHESTRATOR_INDEX"),
        ({"RETRIEVAL": "postgres"}, "needs ORCHESTRATOR_POSTGRES_URL"),
        ({"RETRIEVAL": "searxng", "SEARXNG_URL": "h:s3cret"}, "must begin with http://"),
        ({"RETRIEVAL": "bing"}, "ORCHESTRATOR_RETRIEVAL"),
        ({"POSTGRES_TABLE": "a;b"}, "ORCHESTRATOR_POSTGRES_TABLE"),
    ],
)
def test_an_incomplete_search_backend_is_refused_at_start(
    variables: dict[str, str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error names the variable, and contains no password."""
    for name, value in variables.items():
        monkeypatch.setenv(f"ORCHESTRATOR_{name}", value)
    with pytest.raises(SystemExit, match="3"):
        read()
    printed = capsys.readouterr().err
    assert named in printed
    assert "s3cret" not in printed


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("tool-parser", "qwen3-coder,b/m=none,c=auto", "a=unknown"),
        ("reasoning-parser", "think,b/m=none", "Think"),
    ],
)
def test_parsers_are_names_in_the_registry(
    capsys: pytest.CaptureFixture[str], name: str, good: str, bad: str
) -> None:
    """One for all models, or one for each."""
    settings = read(f"--{name}", good)
    choices = FormatChoices(settings.tool_parser, settings.reasoning_parser)
    detected = AnswerFormat(HERMES, THINK)
    formats = [choices.of(model).of(detected) for model in ("a", "b/m", "c")]
    if name == "tool-parser":
        assert [format.tools for format in formats] == [QWEN3_CODER, None, HERMES]
        assert {format.reasoning for format in formats} == {THINK}
    else:
        assert [format.reasoning for format in formats] == [THINK, None, THINK]
    with pytest.raises(SystemExit):
        read(f"--{name}", bad)
    assert f"given {bad.rpartition('=')[2]!r}" in capsys.readouterr().err
