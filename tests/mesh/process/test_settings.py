"""Settings: precedence of flags, variables and defaults; all problems in one message."""

from __future__ import annotations

import re
from typing import Literal

import pytest
from pydantic import Field, SecretStr, TypeAdapter, ValidationError
from pydantic_settings import SettingsConfigDict

from gateway.settings import GatewaySettings
from inference.settings import InferenceSettings
from mesh.process.settings import (
    STARTUP_FAILURE,
    ServiceSettings,
    load,
    unknown_variables,
    variable_name,
)
from orchestrator.settings import OrchestratorSettings
from tokenizer.settings import TokenizerSettings


class BakerySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="BAKERY_")

    num_ovens: int = Field(2, ge=1, description="Ovens that are lit.")
    flour: str = Field(description="Which flour.")
    upstream: str = Field("mill:1", validation_alias="MILL_HOST", description="Address of it.")
    fresh: bool = Field(False, description="Only fresh ones.")
    sign: str = Field("", description="What the sign says; empty: no sign.")
    oven: Literal["gas", "wood"] = Field("wood", description="Which oven.")
    sieve: Literal["", "fine", "coarse"] = Field("", description="Which sieve.")
    recipe: SecretStr | None = Field(None, min_length=20, description="How it is made.")


def all_settings() -> list[type[ServiceSettings]]:
    """The settings of the four services."""
    return [GatewaySettings, OrchestratorSettings, TokenizerSettings, InferenceSettings]


@pytest.fixture(autouse=True)
def flour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKERY_FLOUR", "rye")


def test_flags_override_variables_and_variables_override_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each value comes from the first of the three sources that has one."""
    monkeypatch.setenv("BAKERY_NUM_OVENS", "3")
    monkeypatch.setenv("BAKERY_DRAIN_SECONDS", "7")
    settings = load(BakerySettings, "bakery", ["--num-ovens", "4", "--fresh"])
    assert settings.num_ovens == 4
    assert settings.drain_seconds == 7
    assert settings.flour == "rye"
    assert settings.fresh is True
    assert settings.listen == "127.0.0.1:0"


def test_an_alias_is_the_variables_whole_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A field with an alias is read from that variable, without the prefix."""
    monkeypatch.setenv("MILL_HOST", "other:2")
    assert load(BakerySettings, "bakery", []).upstream == "other:2"
    assert variable_name(BakerySettings, "upstream") == "MILL_HOST"
    assert variable_name(BakerySettings, "num_ovens") == "BAKERY_NUM_OVENS"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart may render an empty value for a default."""
    monkeypatch.setenv("BAKERY_NUM_OVENS", "")
    assert load(BakerySettings, "bakery", []).num_ovens == 2


def test_all_problems_are_in_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every invalid variable has a line with its value and the expectation; the exit code is 3."""
    monkeypatch.delenv("BAKERY_FLOUR")
    monkeypatch.setenv("BAKERY_NUM_OVENS", "0")
    monkeypatch.setenv("BAKERY_LISTEN", "localhost")
    monkeypatch.setenv("BAKERY_LOG_LEVEL", "LOUD")
    with pytest.raises(SystemExit) as caught:
        load(BakerySettings, "bakery", [])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == STARTUP_FAILURE == 3
    assert lines[0] == "bakery: cannot start, bad settings:"
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == [
        "BAKERY_FLOUR",
        "BAKERY_LISTEN='localhost'",
        "BAKERY_LOG_LEVEL='LOUD'",
        "BAKERY_NUM_OVENS='0'",
    ]
    assert "  BAKERY_FLOUR: must be set" in lines


def test_a_bad_alias_is_named_as_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the variable that must be changed."""

    class Strict(BakerySettings):
        upstream: str = Field("mill:1", validation_alias="MILL_HOST", max_length=6)

    monkeypatch.setenv("MILL_HOST", "much too long")
    with pytest.raises(SystemExit):
        load(Strict, "bakery", [])
    assert "  MILL_HOST='much too long': " in capsys.readouterr().err


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "[::]:50051", "host.svc:0"])
def test_addresses_are_host_and_port(address: str) -> None:
    """IPv4, IPv6 in brackets and names are accepted."""
    assert load(BakerySettings, "bakery", ["--listen", address]).listen == address


@pytest.mark.parametrize("address", ["50051", ":50051", "host:", "host:http", "host:70000"])
def test_invalid_addresses_are_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message shows an example of an address."""
    with pytest.raises(SystemExit):
        load(BakerySettings, "bakery", ["--listen", address])
    assert "must be HOST:PORT, such as 127.0.0.1:50051" in capsys.readouterr().err


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """--help is generated from the fields; the exit code is 0."""
    with pytest.raises(SystemExit) as caught:
        load(BakerySettings, "bakery", ["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.startswith("usage: bakery")
    for text_part in ("--num-ovens", "--drain-seconds", "Ovens that are lit.", "default: 2"):
        assert text_part in text


def test_help_shows_types_and_defaults_as_they_are_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No names of Python types, no empty default, no secret; booleans as a variable takes them."""
    with pytest.raises(SystemExit):
        load(BakerySettings, "bakery", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for flag in (
        "--num-ovens INTEGER Ovens that are lit. (default: 2)",
        "--flour TEXT Which flour. (required)",
        "--sign TEXT What the sign says; empty: no sign. --",
        "--recipe TEXT How it is made.",
        "--fresh, --no-fresh Only fresh ones. (default: false)",
        "--oven {gas,wood} Which oven. (default: wood)",
        "--sieve {fine,coarse} Which sieve. --",
        "(default: 127.0.0.1:0) --metrics-listen HOST:PORT",
        "--drain-seconds FLOAT",
        "(default: 30)",
    ):
        assert flag in text, flag
    for wrong in ("SecretStr", "str ", "(default: )", "None", "True", "False", "***"):
        assert wrong not in text, wrong


@pytest.mark.parametrize("settings", all_settings(), ids=lambda each: each.__name__)
def test_the_help_of_every_service_names_no_python_type(
    settings: type[ServiceSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every choice that it shows is a value that the variable accepts."""
    with pytest.raises(SystemExit):
        load(settings, "service", ["--help"])
    text = capsys.readouterr().out
    assert not re.search(r"SecretStr|\bstr\b|\bint\b|\bfloat\b|\bVALUE\b|default:\s+\)|\{,", text)
    for flag, choices in re.findall(r"--([a-z-]+) \{([^}]+)\}", text):
        field = flag.replace("-", "_")
        for choice in choices.split(","):
            annotation = settings.model_fields[field].annotation
            assert TypeAdapter(annotation).validate_python(choice) == choice


def test_unknown_variables_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the most similar setting; callers' addresses and Kubernetes' variables are not meant."""
    for name in (
        "BAKERY_NUM_OVEN",
        "BAKERY_XYZZY",
        "BAKERY_DRAIN_SECONDS",
        "bakery_sign",
        "BAKERY_HOST",
        "BAKERY_PORT",
        "BAKERY_SERVICE_HOST",
        "BAKERY_SERVICE_PORT_HTTP",
        "BAKERY_PORT_8080_TCP_ADDR",
        "OTHER_THING",
        "MILL_HOST",
    ):
        monkeypatch.setenv(name, "1")
    assert unknown_variables(BakerySettings) == {
        "BAKERY_NUM_OVEN": "BAKERY_NUM_OVENS",
        "BAKERY_XYZZY": "",
    }


def test_settings_are_frozen() -> None:
    """Assigning to a field raises."""
    settings = load(BakerySettings, "bakery", [])
    with pytest.raises(ValidationError):
        settings.num_ovens = 5  # type: ignore[misc]


@pytest.mark.parametrize("where", ["variable", "flag"])
def test_a_bad_secret_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """The message names the variable, without its value."""
    if where == "variable":
        monkeypatch.setenv("BAKERY_RECIPE", "hunter2")
    with pytest.raises(SystemExit) as caught:
        load(BakerySettings, "bakery", ["--recipe", "hunter2"] if where == "flag" else [])
    assert caught.value.code == STARTUP_FAILURE
    message = capsys.readouterr().err
    assert "BAKERY_RECIPE: is not valid" in message
    assert "hunter2" not in message


def test_an_empty_flag_is_not_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """`--flour ""` is an error, not the default; unlike an empty variable."""
    assert load(BakerySettings, "bakery", ["--sign", ""]).sign == ""
    for flag in (["--flour", ""], ["--flour="], ["--num-ovens", ""]):
        with pytest.raises(SystemExit) as caught:
            load(BakerySettings, "bakery", flag)
        assert caught.value.code == STARTUP_FAILURE
        assert "must not be empty" in capsys.readouterr().err
