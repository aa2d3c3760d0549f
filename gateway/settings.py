"""What the gateway can be told."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import Address, OptionalAddress, ServiceSettings, is_loopback
from mesh.rpc.targets import balanced_target, with_default_port

ORCHESTRATOR_PORT = 50051
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
TRACE_ID_PLACEHOLDER = "{trace_id}"


def _check_trace_url(value: str) -> str:
    usable = value.startswith(("http://", "https://")) and TRACE_ID_PLACEHOLDER in value
    if value and not usable:
        raise ValueError(f"must be an http or https URL that contains {TRACE_ID_PLACEHOLDER}")
    return value


class GatewaySettings(ServiceSettings):
    """Variables `GATEWAY_…` and flags of the same names; `ORCHESTRATOR_HOST` has no prefix."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    listen: Address = Field("127.0.0.1:8080", description="Address to serve on, HOST:PORT.")
    metrics_listen: OptionalAddress = Field(
        "",
        description="Address of a second /metrics and /livez, HOST:PORT, beside those of --listen; "
        "empty: none.",
    )
    orchestrator_host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="orchestrator_host",
        description="The orchestrator, HOST or HOST:PORT (default port 50051); all addresses of "
        "a name are used, as are several IPv4 addresses separated by commas.",
    )
    request_timeout_seconds: float = Field(
        300.0, gt=0, description="Deadline of a request, carried to every service behind."
    )
    first_token_timeout_seconds: float = Field(
        0.0,
        ge=0,
        description="Most time until the first token, carried down; 0: no limit but the deadline.",
    )
    idle_timeout_seconds: float = Field(
        0.0,
        ge=0,
        description="Most time between two tokens, carried down; 0: no limit but the deadline.",
    )
    keep_alive_seconds: float = Field(
        15.0, gt=0, description="Silence after which a stream carries a comment line, in seconds."
    )
    resume_seconds: float = Field(
        5.0,
        ge=0,
        description="How long a resumable search goes on without its client; 0: not at all.",
    )
    max_body_bytes: int = Field(1024 * 1024, ge=1, description="Largest request body, in bytes.")
    trace_url_template: Annotated[str, AfterValidator(_check_trace_url)] = Field(
        "",
        description="URL of a trace, with {trace_id} in it, for the search page; empty: no link.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that clients may send as bearer tokens, several separated by commas; "
        "empty: no key is asked for. A key file is better: it holds hashes, limits, names.",
    )
    api_keys_file: str = Field(
        "",
        description="Key file, TOML, made by `python -m gateway.keys new NAME`; read again when "
        "it is replaced.",
    )
    allow_anonymous: bool = Field(
        False, description="Serve without keys on an address that is not loopback."
    )

    http_tls_certificate: str = Field(
        "", description="Certificate for clients, PEM with its chain; empty: plain HTTP."
    )
    http_tls_private_key: str = Field("", description="Its private key, PEM.")
    http_tls_client_ca: str = Field(
        "", description="CA that clients must have a certificate of, PEM; empty: none is asked for."
    )
    allowed_hosts: str = Field(
        "",
        description="Names that clients may call this server by (header Host), several separated "
        "by commas, *.example.org for all below; empty: any, but on loopback only localhost.",
    )
    cors_origins: str = Field(
        "",
        description="Origins whose pages may use the API from a browser, such as "
        "https://app.example.org, several separated by commas, * for all; empty: none.",
    )

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        if bool(self.http_tls_certificate) != bool(self.http_tls_private_key):
            raise ValueError("HTTP_TLS_CERTIFICATE and HTTP_TLS_PRIVATE_KEY must be set together")
        secured = self.api_keys_file or self.api_key_list
        if not (secured or self.allow_anonymous or is_loopback(self.listen)):
            raise ValueError(
                f"GATEWAY_LISTEN={self.listen} can be reached from outside: set "
                "GATEWAY_API_KEYS_FILE, or GATEWAY_ALLOW_ANONYMOUS=true where something else "
                "asks who is there"
            )
        return self

    @property
    def orchestrator_target(self) -> str:
        """The orchestrator, as a gRPC target; several addresses are replicas."""
        return balanced_target(
            [with_default_port(host, ORCHESTRATOR_PORT) for host in _split(self.orchestrator_host)]
        )

    @property
    def api_key_list(self) -> tuple[str, ...]:
        """The keys, white space around them removed."""
        return _split(self.api_keys.get_secret_value())

    @property
    def allowed_host_list(self) -> tuple[str, ...]:
        """Names in `Host`, lower case and without port; empty: any."""
        if self.allowed_hosts:
            return _split(self.allowed_hosts.lower())
        return LOOPBACK_HOSTS if is_loopback(self.listen) else ()

    @property
    def origin_list(self) -> tuple[str, ...]:
        """Origins of pages, lower case."""
        return tuple(origin.rstrip("/") for origin in _split(self.cors_origins.lower()))


def _split(value: str) -> tuple[str, ...]:
    parts = (part.strip() for part in value.split(","))
    return tuple(part for part in parts if part)
