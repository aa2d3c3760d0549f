"""Settings: read once from flags and environment variables, validated together.

A service derives its settings from `ServiceSettings`; a field `max_seqs` of a class with the
prefix `INFERENCE_` is the variable `INFERENCE_MAX_SEQS` and the flag `--max-seqs`. Defaults are
defined in the class only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Literal, NoReturn, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from mesh.process.settings_help import describe_flags

STARTUP_FAILURE = 3
"""Exit code of a process that could not start; uvicorn uses the same."""


def _check_address(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:50051 or [::]:50051")
    return value


Address = Annotated[str, AfterValidator(_check_address), "HOST:PORT"]
"""HOST:PORT; with port 0 the system chooses a free port."""


def _check_optional_address(value: str) -> str:
    return value and _check_address(value)


OptionalAddress = Annotated[str, AfterValidator(_check_optional_address), "HOST:PORT"]
"""HOST:PORT, or empty."""


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServiceSettings(BaseSettings):
    """Settings that every service has."""

    model_config = SettingsConfigDict(
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        env_ignore_empty=True,
        validate_default=True,
    )

    listen: Address = Field(
        "127.0.0.1:0", description="Address that the service listens on, HOST:PORT."
    )
    metrics_listen: Address = Field(
        "127.0.0.1:9464", description="Address that /metrics and /livez are served on, HOST:PORT."
    )
    health_listen: OptionalAddress = Field(
        "",
        description="Additional address, HOST:PORT, that serves only gRPC health checks, without "
        "TLS, for probes that cannot use TLS; empty: health is served on the main address only.",
    )
    tls_certificate: str = Field(
        "",
        description="PEM file with this service's certificate and its chain, for TLS between the "
        "services; empty: no TLS.",
    )
    tls_private_key: str = Field(
        "", description="PEM file with the private key of the certificate."
    )
    tls_ca: str = Field(
        "",
        description="PEM file with the CA bundle used to verify the certificates of the other "
        "services; enables TLS for outgoing calls.",
    )
    tls_client_auth: bool = Field(
        True,
        description="If a CA is set, require a client certificate that it signed (mutual TLS).",
    )
    drain_seconds: float = Field(
        30.0,
        ge=0,
        description="Time limit in seconds for running requests to finish after SIGTERM.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Minimum severity of log messages. DEBUG may log prompts."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="Format of log messages. json: one object a line; auto: text on a terminal, "
        "else json.",
    )

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_private_key):
            raise ValueError("TLS_CERTIFICATE and TLS_PRIVATE_KEY must be set together")
        return self


_SERVICE_LINK = re.compile(
    r"(SERVICE_)?PORT|SERVICE_HOST|SERVICE_PORT_\w+|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?"
)
"""Rests of the variables that Kubernetes and Docker set for each Service and link."""

S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S], name: str, argv: Sequence[str] | None = None) -> S:
    """Read `settings` from `argv` and the environment; flags take precedence.

    If values are invalid, print all problems, one a line, and exit with `STARTUP_FAILURE`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    empty = _empty_flags(settings, arguments)
    if empty:
        _fail(name, [f"{flag}: must not be empty" for flag in empty])
    cli: CliSettingsSource[ArgumentParser] = CliSettingsSource(settings, cli_prog_name=name)
    describe_flags(
        cli.root_parser, lambda dest: settings.model_fields.get(_field_of(settings, dest))
    )
    try:
        return settings(_cli_settings_source=cli(args=arguments))  # type: ignore[call-arg]
    except ValidationError as error:
        _fail(name, [_describe(settings, problem) for problem in error.errors()])
    except SettingsError as error:
        _fail(name, [str(error)])


def unknown_variables(settings: type[ServiceSettings]) -> dict[str, str]:
    """Variables of the environment with the service's prefix that no setting has.

    The value is the name of the most similar setting; empty if none is similar. Excluded are the
    service's address, which its callers read, and the variables of Kubernetes Services.
    """
    prefix = settings.model_config.get("env_prefix", "").upper()
    known = {variable_name(settings, field) for field in settings.model_fields}
    given = {name for name in os.environ if name.upper().startswith(prefix)} if prefix else set()
    unknown = {
        name
        for name in given
        if name.upper() not in known
        and name.upper() != f"{prefix}HOST"
        and not _SERVICE_LINK.fullmatch(name.upper().removeprefix(prefix))
    }
    return {name: _most_similar(name.upper(), known) for name in sorted(unknown)}


def _most_similar(name: str, known: Collection[str]) -> str:
    return next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), "")


def _empty_flags(settings: type[ServiceSettings], arguments: Sequence[str]) -> list[str]:
    """Flags given as "" whose default is not empty. An empty variable counts as unset."""
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
        # Omits the value, and pydantic's message, which may quote the value.
        return f"{variable}: is not valid (the value is a secret and not shown)"
    return f"{variable}={problem['input']!r}: {message}"


def _field_of(settings: type[ServiceSettings], name: str) -> str:
    # pydantic names a field with an alias by the alias.
    for field, info in settings.model_fields.items():
        if info.validation_alias == name:
            return field
    return name


def _is_secret(settings: type[ServiceSettings], field: str) -> bool:
    # A misspelt name is not among the fields; its value may be a secret.
    info = settings.model_fields.get(field)
    return info is None or "Secret" in repr(info.annotation)


def variable_name(settings: type[ServiceSettings], field: str) -> str:
    """The environment variable of a field."""
    info = settings.model_fields.get(field)
    alias = info.validation_alias if info is not None else None
    if isinstance(alias, str):
        return alias.upper()
    return f"{settings.model_config.get('env_prefix', '')}{field}".upper()


def _fail(name: str, problems: Sequence[str]) -> NoReturn:
    lines = "\n".join(f"  {problem}" for problem in problems)
    print(f"{name}: cannot start, bad settings:\n{lines}", file=sys.stderr)
    raise SystemExit(STARTUP_FAILURE)
