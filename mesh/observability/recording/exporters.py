"""The exporters of spans that the standard variables select.

OpenTelemetry specification, "SDK environment variables" and "OTLP exporter". Endpoint, headers,
compression, certificates and time limit are read by the exporters themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

import grpc
from opentelemetry.sdk.trace.export import SpanExporter

EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
COMPRESSION_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION")
"""The first that is set applies."""

_OTLP = "otlp"
_NONE = "none"
_ENTRY_POINT_OF = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_GROUP = "opentelemetry_traces_exporter"


def exporter_names(environment: Mapping[str, str]) -> Sequence[str]:
    """The values of `OTEL_TRACES_EXPORTER`, such as `otlp`, `console`; empty: no exporter.

    If the variable is not set, `otlp` applies where an endpoint is set.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    given = environment.get(EXPORTER_VARIABLE, "").strip().lower()
    if not given:
        return (_OTLP,) if any(map(environment.get, ENDPOINT_VARIABLES)) else ()
    names = [name.strip() for name in given.split(",")]
    return [name for name in names if name and name != _NONE]


def span_exporters(environment: Mapping[str, str]) -> list[SpanExporter]:
    """Create the exporters of `exporter_names`. Raises ValueError that names the variable."""
    return [_create(name, environment) for name in exporter_names(environment)]


def _create(name: str, environment: Mapping[str, str]) -> SpanExporter:
    entry_point = _otlp_entry_point(environment) if name == _OTLP else name
    # Imported by name only if it is selected: OTLP over gRPC takes 100 ms, over HTTP more.
    found = list(entry_points(group=_GROUP, name=entry_point))
    if not found:
        raise ValueError(
            f"{EXPORTER_VARIABLE} must name installed exporters (otlp, console, none), given {name}"
        )
    arguments: dict[str, object] = {}
    if entry_point == _ENTRY_POINT_OF["grpc"] and _compression(environment) == _NONE:
        # The specification has this value, the exporter refuses it in the variable.
        arguments["compression"] = grpc.Compression.NoCompression
    try:
        exporter = found[0].load()(**arguments)
    except Exception as error:  # for an invalid variable of the exporter, which it names
        raise ValueError(f"cannot export spans: {error}") from error
    if not isinstance(exporter, SpanExporter):
        raise ValueError(f"{EXPORTER_VARIABLE}={name} is not an exporter of spans")
    return exporter


def _otlp_entry_point(environment: Mapping[str, str]) -> str:
    variable, protocol = _first(environment, PROTOCOL_VARIABLES)
    if not protocol:
        return _ENTRY_POINT_OF["grpc"]
    if protocol not in _ENTRY_POINT_OF:
        supported = " or ".join(_ENTRY_POINT_OF)
        raise ValueError(f"{variable} must be {supported}, given {protocol}")
    return _ENTRY_POINT_OF[protocol]


def _compression(environment: Mapping[str, str]) -> str:
    return _first(environment, COMPRESSION_VARIABLES)[1]


def _first(environment: Mapping[str, str], variables: Sequence[str]) -> tuple[str, str]:
    """The first variable that is set, and its value in lower case; empty texts if none is."""
    for variable in variables:
        value = environment.get(variable, "").strip().lower()
        if value:
            return variable, value
    return "", ""
