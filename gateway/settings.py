"""Settings of the gateway."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import Address, OptionalAddress, ServiceSettings, is_loopback
from mesh.rpc.targets import with_default_port

ORCHESTRATOR_PORT = 50051
PEERS_PORT = 50054
INTERNAL_HOSTS = "internal"
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
MEMORY_STORE = "memory"
SQLITE_STORE = "sqlite:"
POSTGRES_STORE = ("postgresql://", "postgres://")
TRACE_ID_PLACEHOLDER = "{trace_id}"


def _check_trace_url(value: str) -> str:
    usable = value.startswith(("http://", "https://")) and TRACE_ID_PLACEHOLDER in value
    if value and not usable:
        raise ValueError(f"must be an http or https URL that contains {TRACE_ID_PLACEHOLDER}")
    return value


def _check_store(value: SecretStr) -> SecretStr:
    given = value.get_secret_value()
    has_path = given.startswith(SQLITE_STORE) and given != SQLITE_STORE
    if not (given == MEMORY_STORE or has_path or given.startswith(POSTGRES_STORE)):
        raise ValueError("must be memory, sqlite:PATH or postgresql://USER:PASSWORD@HOST/NAME")
    return value


class GatewaySettings(ServiceSettings):
    """Variables `GATEWAY_…` and flags of the same names; `ORCHESTRATOR_HOST` has no prefix."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_")

    listen: Address = Field("127.0.0.1:8080", description="Address of the HTTP server, HOST:PORT.")
    metrics_listen: OptionalAddress = Field(
        "",
        description="Address, HOST:PORT, of a second server with /metrics and /livez, for "
        "scrapers that must not reach --listen. Empty: none.",
    )
    orchestrator_host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="orchestrator_host",
        description="Address of the orchestrator, HOST or HOST:PORT (default port 50051). "
        "Requests are spread over all addresses that the name resolves to; separate several names "
        "or addresses by commas.",
    )
    dns_refresh_seconds: float = Field(
        5.0,
        gt=0,
        description="Interval between DNS lookups of the orchestrators while all known ones are "
        "ready; after a loss they are looked up every half second.",
    )
    hold_seconds: float = Field(
        10.0,
        ge=0,
        le=60,
        description="Seconds after the loss of the last ready orchestrator in which requests wait "
        "for the next one; later ones are refused with 503 at once. 0: always refused at once.",
    )
    peers_listen: OptionalAddress = Field(
        "",
        description="Address, HOST:PORT, of the gRPC server that other gateways call. Empty: none.",
    )
    peers_host: str = Field(
        "",
        description="Name of all gateways, HOST or HOST:PORT (default port 50054), this one "
        "included; separate several by commas. They apply the limits of API keys together, and "
        "read each other's resumable streams. Empty: this gateway works alone.",
    )
    request_timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="Deadline of a request in seconds, propagated to all services. Raise it for "
        "long answers of slow models.",
    )
    first_token_timeout_seconds: float = Field(
        0.0,
        ge=0,
        description="Longest time to the first token in seconds, propagated to all services; 0: "
        "only the request's deadline applies.",
    )
    idle_timeout_seconds: float = Field(
        0.0,
        ge=0,
        description="Longest time between two tokens in seconds, propagated to all services; 0: "
        "only the request's deadline applies.",
    )
    keep_alive_seconds: float = Field(
        15.0,
        gt=0,
        description="Seconds without an event after which a stream sends an SSE "
        "comment. Keep it below the idle timeout of proxies between client and gateway.",
    )
    resume_seconds: float = Field(
        5.0,
        ge=0,
        description="Seconds that a resumable search continues after its client disconnected; 0 "
        "disables resumption.",
    )
    response_store: Annotated[SecretStr, AfterValidator(_check_store)] = Field(
        SecretStr(MEMORY_STORE),
        description="Where responses of /v1/responses are stored: memory (default), lost at a "
        "restart; sqlite:PATH, a file that gateways on one machine share; or "
        "postgresql://USER:PASSWORD@HOST/NAME, which all gateways share.",
    )
    response_store_seconds: float = Field(
        86400.0,
        gt=0,
        le=366 * 86400,
        description="Seconds for which a response is stored.",
    )
    response_store_mib_per_key: int = Field(
        32,
        ge=1,
        le=1024 * 1024,
        description="Most MiB of stored responses for each API key, or in all without keys; "
        "beyond it the oldest are removed. In memory all keys together have four times as much.",
    )
    allow_runtime_lora: bool = Field(
        False,
        description="Serve POST /v1/load_lora_adapter and /v1/unload_lora_adapter. Each key may "
        "then load adapters from the engines' folders and the hub; the engines must allow it too "
        "(INFERENCE_ALLOW_RUNTIME_LORA).",
    )
    max_body_bytes: int = Field(
        1024 * 1024,
        ge=1,
        description="Largest request body in bytes. Raise it for long conversations or prompts.",
    )
    slow_first_token_seconds: float = Field(
        5.0,
        gt=0,
        description="Seconds without a token after which a request is slow: its trace is exported "
        "although it was not sampled.",
    )
    slow_request_seconds: float = Field(
        60.0,
        gt=0,
        description="Seconds after which a whole request is slow: its trace is exported.",
    )
    trace_url_template: Annotated[str, AfterValidator(_check_trace_url)] = Field(
        "",
        description="URL of a trace in your trace viewer, with the placeholder {trace_id}; the "
        "search page links to it. Empty: no link.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="API keys that clients may send as bearer tokens, separated by commas; "
        "empty: no authentication. Prefer a key file, which holds hashes, limits and names.",
    )
    api_keys_file: str = Field(
        "",
        description="Path of a TOML file with API keys, made by `python -m gateway.keys new "
        "NAME`; reloaded when it is replaced. Empty: none.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Allow serving without keys on an address that is not loopback. Set it only "
        "if a proxy or network policy restricts access.",
    )

    http_tls_certificate: str = Field(
        "",
        description="Path of the HTTP server's certificate with its chain, PEM; empty: plain HTTP.",
    )
    http_tls_private_key: str = Field("", description="Path of the certificate's private key, PEM.")
    http_tls_client_ca: str = Field(
        "",
        description="Path of the CA bundle used to verify client certificates, PEM (enables "
        "mutual TLS); empty: clients need no certificate.",
    )
    allowed_hosts: str = Field(
        "",
        description="Accepted values of the Host header, separated by commas; *.example.org "
        "accepts all subdomains, internal all IP addresses, names of one label, *.local, "
        "*.internal and *.svc, and * all hosts. Empty: localhost on a loopback address, internal "
        "without API keys, any host with them. Protects against DNS rebinding.",
    )
    cors_origins: str = Field(
        "",
        description="Origins whose pages may call the API from a browser (CORS), such as "
        "https://app.example.org, separated by commas; * allows all. Empty: none.",
    )

    instance_id: str = Field(
        "",
        pattern="^[A-Za-z0-9._-]{0,64}$",
        description="Name of this process, which /livez and /readyz return as the header "
        "x-instance-id; empty: none. Set it to recognise which gateway answers at an address, as "
        "`make run-local` does.",
    )

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        if bool(self.http_tls_certificate) != bool(self.http_tls_private_key):
            raise ValueError("HTTP_TLS_CERTIFICATE and HTTP_TLS_PRIVATE_KEY must be set together")
        if not (self.has_keys or self.allow_anonymous or is_loopback(self.listen)):
            raise ValueError(
                f"GATEWAY_LISTEN={self.listen} can be reached from outside: set "
                "GATEWAY_API_KEYS_FILE, or GATEWAY_ALLOW_ANONYMOUS=true if a proxy authenticates "
                "clients"
            )
        return self

    @property
    def orchestrator_target(self) -> str:
        """Addresses of the orchestrators, each HOST:PORT, separated by commas."""
        hosts = _split(self.orchestrator_host)
        return ",".join(with_default_port(host, ORCHESTRATOR_PORT) for host in hosts)

    @property
    def peers_target(self) -> str:
        """Addresses of all gateways, each HOST:PORT, separated by commas; empty: none."""
        return ",".join(with_default_port(host, PEERS_PORT) for host in _split(self.peers_host))

    @property
    def api_key_list(self) -> tuple[str, ...]:
        """The keys, stripped of white space."""
        return _split(self.api_keys.get_secret_value())

    @property
    def response_store_bytes(self) -> int:
        """Most bytes of stored responses for each API key."""
        return self.response_store_mib_per_key * 1024 * 1024

    @property
    def has_keys(self) -> bool:
        """Whether clients need an API key."""
        return bool(self.api_keys_file or self.api_key_list)

    @property
    def allowed_host_list(self) -> tuple[str, ...]:
        """Accepted host names, lower case and without port, as in `AllowedHosts`."""
        if self.allowed_hosts:
            return _split(self.allowed_hosts.lower())
        if is_loopback(self.listen):
            return LOOPBACK_HOSTS
        # A page that uses DNS rebinding has no key.
        return () if self.has_keys else (INTERNAL_HOSTS,)

    @property
    def origin_list(self) -> tuple[str, ...]:
        """Accepted origins, lower case."""
        return tuple(origin.rstrip("/") for origin in _split(self.cors_origins.lower()))


def _split(value: str) -> tuple[str, ...]:
    parts = (part.strip() for part in value.split(","))
    return tuple(part for part in parts if part)
