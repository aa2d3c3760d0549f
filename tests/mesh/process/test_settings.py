"""Settings: precedence of flags, variables and defaults; all problems in one message."""

from __future__ import annotations

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import STARTUP_FAILURE, ServiceSettings, load, variable_name


class BakerySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="BAKERY_")

    num_ovens: int = Field(2, ge=1, description="Ovens that are lit.")
    flour: str = Field(description="Which flour.")
    upstream: str = Field("mill:1", validation_alias="MILL_HOST", description="Address of it.")
    fresh: bool = Field(False, description="Only fresh ones.")
    sign: str = Field("", description="What the sign says; empty: no sign.")
    recipe: SecretStr | None = Field(None, min_length=20, description="How it is made.")


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
