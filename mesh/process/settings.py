"""Settings, read once from flags and the environment, checked all together.

A service derives its settings from `ServiceSettings`; a field `max_seqs` of a class with the
prefix `INFERENCE_` is the variable `INFERENCE_MAX_SEQS` and the flag `--max-seqs`. A default
stands in the class and nowhere else.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

STARTUP_FAILURE = 3
"""Exit code of a process that could not start, as uvicorn has it."""


def _check_address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051 or [::]:50051")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
"""HOST:PORT; port 0 takes a free one."""


def _check_optional_address(value: str) -> str:
    return value and _check_address(value)


OptionalAddress = Annotated[str, AfterValidator(_check_optional_address)]
"""HOST:PORT, or empty."""


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServiceSettings(BaseSettings):
    """What every service can be told."""

    model_config = SettingsConfigDict(
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        env_ignore_empty=True,
        validate_default=True,
    )

    listen: Address = Field("127.0.0.1:0", description="Address to serve on, HOST:PORT.")
    metrics_listen: Address = Field(
        "127.0.0.1:9464", description="Address of /metrics and /livez, HOST:PORT."
    )
    health_listen: OptionalAddress = Field(
        "",
        description="Address where health alone is told, HOST:PORT, without TLS, for probes that "
        "speak none; empty: only where the service is.",
    )
    tls_certificate: str = Field(
        "", description="Certificate for the other services, PEM with its chain; empty: no TLS."
    )
    tls_private_key: str = Field("", description="Its private key, PEM.")
    tls_ca: str = Field(
        "",
        description="CA that the other services' certificates must be of, PEM; with it calls go "
        "out over TLS.",
    )
    tls_client_auth: bool = Field(
        True, description="With a CA: take calls only from services with a certificate of it."
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="On SIGTERM, how long running streams may go on, in seconds."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severity that is logged. DEBUG may show prompts."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, else JSON, one object a line."
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_private_key):
            raise ValueError("TLS_CERTIFICATE and TLS_PRIVATE_KEY must be set together")
        return self


S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S], name: str, argv: Sequence[str] | None = None) -> S:
    """Reads `settings` from `argv` and the environment, flags first.

    On bad values prints all of them, one a line, and exits with `STARTUP_FAILURE`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    empty = _empty_flags(settings, arguments)
    if empty:
        _fail(name, [f"{flag}: must not be empty" for flag in empty])
    cli: CliSettingsSource[S] = CliSettingsSource(
        settings, cli_prog_name=name, cli_parse_args=arguments
    )
    try:
        return settings(_cli_settings_source=cli)  # type: ignore[call-arg]
    except ValidationError as error:
        _fail(name, [_describe(settings, problem) for problem in error.errors()])
    except SettingsError as error:
        _fail(name, [str(error)])


def _empty_flags(settings: type[ServiceSettings], arguments: Sequence[str]) -> list[str]:
    """Flags given as "" whose default is not that; an empty variable is only an unset one."""
    given = {a.removesuffix("=") for a in arguments if a.startswith("--") and a.endswith("=")}
    given |= {flag for flag, value in pairwise(arguments) if flag.startswith("--") and not value}
    return [
        flag
        for field, info in settings.model_fields.items()
        if (flag := f"--{field.replace('_', '-')}") in given
        and info.default not in ("", SecretStr(""))
    ]


def _describe(settings: type[ServiceSettings], problem: object) -> str:
    assert isinstance(problem, dict)
    field = _field_of(settings, str(problem["loc"][0])) if problem["loc"] else ""
    variable = variable_name(settings, field) if field else "settings"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{variable}: must be set"
    if not field:
        return f"{variable}: {message}"
    if _is_secret(settings, field):
        # Neither the value nor pydantic's words, which may quote it.
        return f"{variable}: is not valid (the value is a secret and not shown)"
    return f"{variable}={problem['input']!r}: {message}"


def _field_of(settings: type[ServiceSettings], name: str) -> str:
    # pydantic names a field that has an alias by the alias.
    for field, info in settings.model_fields.items():
        if info.validation_alias == name:
            return field
    return name


def _is_secret(settings: type[ServiceSettings], field: str) -> bool:
    # A misspelt name is not among the fields; its value may be anything, a secret as well.
    info = settings.model_fields.get(field)
    return info is None or "Secret" in repr(info.annotation)


def variable_name(settings: type[ServiceSettings], field: str) -> str:
    """The environment variable that a field is read from."""
    info = settings.model_fields.get(field)
    alias = info.validation_alias if info is not None else None
    if isinstance(alias, str):
        return alias.upper()
    return f"{settings.model_config.get('env_prefix', '')}{field}".upper()


def _fail(name: str, problems: Sequence[str]) -> NoReturn:
    lines = "\n".join(f"  {problem}" for problem in problems)
    print(f"{name}: cannot start, bad settings:\n{lines}", file=sys.stderr)
    raise SystemExit(STARTUP_FAILURE)
