"""The gateway's settings, from environment variables and flags."""

from __future__ import annotations

import pytest

from gateway.settings import GatewaySettings
from mesh.process.settings import STARTUP_FAILURE, load


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("llm", "llm:50051"),
        ("llm:1234", "llm:1234"),
        ("10.0.0.1", "10.0.0.1:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:99", "[::1]:99"),
        ("10.0.0.1, 10.0.0.2:7", "10.0.0.1:50051,10.0.0.2:7"),
        ("one, two:7", "one:50051,two:7"),
    ],
)
def test_the_orchestrator_has_a_default_port(
    monkeypatch: pytest.MonkeyPatch, host: str, target: str
) -> None:
    """ORCHESTRATOR_HOST has no GATEWAY_ prefix; its port defaults to 50051."""
    monkeypatch.setenv("ORCHESTRATOR_HOST", host)
    assert load(GatewaySettings, "gateway", []).orchestrator_target == target


def test_flags_override_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other variables have the GATEWAY_ prefix; a flag overrides its variable."""
    monkeypatch.setenv("GATEWAY_MAX_BODY_BYTES", "5")
    monkeypatch.setenv("GATEWAY_KEEP_ALIVE_SECONDS", "2")
    monkeypatch.setenv("GATEWAY_API_KEYS", " a ,, b ")
    settings = load(GatewaySettings, "gateway", ["--keep-alive-seconds", "3"])
    assert settings.max_body_bytes == 5
    assert settings.keep_alive_seconds == 3
    assert settings.api_key_list == ("a", "b")
    assert "a ,, b" not in repr(settings)


@pytest.mark.parametrize("url", ["javascript:{trace_id}", "https://x/"])
def test_an_invalid_trace_url_is_a_startup_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """The template must be an http(s) URL with {trace_id}; the error names the variable."""
    monkeypatch.setenv("GATEWAY_TRACE_URL_TEMPLATE", url)
    with pytest.raises(SystemExit) as caught:
        load(GatewaySettings, "gateway", [])
    assert caught.value.code == STARTUP_FAILURE
    assert "GATEWAY_TRACE_URL_TEMPLATE" in capsys.readouterr().err
