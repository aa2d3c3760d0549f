"""MeshError, its two tables, and its mapping to gRPC metadata and back."""

from __future__ import annotations

import base64
from types import MappingProxyType
from urllib.parse import quote

import grpc
import grpc.aio
import pytest

from mesh.errors import (
    GRPC_STATUS,
    HTTP_ERROR,
    INTERNAL_MESSAGE,
    KIND_METADATA,
    MAX_MESSAGE_BYTES,
    MAX_PARAM_BYTES,
    ErrorKind,
    MeshError,
    from_rpc_error,
    invalid,
    status_of,
)


def rpc_error(
    code: grpc.StatusCode, details: str = "", trailing: tuple[tuple[str, str | bytes], ...] = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


@pytest.mark.parametrize("table", [GRPC_STATUS, HTTP_ERROR])
def test_both_tables_cover_every_kind(table: MappingProxyType[ErrorKind, object]) -> None:
    """Each kind has a status, and each entry is a kind."""
    assert set(table) == set(ErrorKind)


def test_http_statuses_are_errors() -> None:
    """Each kind is a 4xx or 5xx; only server failures such as INTERNAL are 5xx."""
    statuses = {kind: error.status for kind, error in HTTP_ERROR.items()}
    server = {kind for kind, status in statuses.items() if status >= 500}
    assert min(statuses.values()) >= 400
    assert server == {
        ErrorKind.UNAVAILABLE,
        ErrorKind.DEADLINE,
        ErrorKind.UNIMPLEMENTED,
        ErrorKind.INTERNAL,
    }


@pytest.mark.parametrize("param", ["max_tokens", "tools[0].größe", "a\nb", None])
@pytest.mark.parametrize("kind", list(ErrorKind))
def test_an_error_survives_the_round_trip(kind: ErrorKind, param: str | None) -> None:
    """Kind, message, field and delay are preserved."""
    sent = MeshError(kind, "größer: 5", param=param, retry_after=1.25)
    received = from_rpc_error(rpc_error(*status_of(sent)))
    assert vars(received) == {**vars(sent), "is_reported": True}


def test_unset_fields_stay_unset() -> None:
    """Field and delay are None."""
    received = from_rpc_error(rpc_error(*status_of(MeshError(ErrorKind.OVERLOADED, "full"))))
    assert received.param is None
    assert received.retry_after is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, ErrorKind.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, ErrorKind.DEADLINE),
        (grpc.StatusCode.CANCELLED, ErrorKind.CANCELLED),
        (grpc.StatusCode.UNIMPLEMENTED, ErrorKind.UNIMPLEMENTED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorKind.INVALID_REQUEST),
        (grpc.StatusCode.UNKNOWN, ErrorKind.INTERNAL),
        (grpc.StatusCode.DATA_LOSS, ErrorKind.INTERNAL),
    ],
)
def test_grpcs_own_statuses_get_the_nearest_kind(code: grpc.StatusCode, kind: ErrorKind) -> None:
    """Without the kind in the metadata the code decides; there is always a message."""
    error = from_rpc_error(rpc_error(code))
    assert error.kind is kind
    assert error.message


def test_details_of_an_unmapped_exception_are_replaced() -> None:
    """UNKNOWN has the text of an exception, which may contain secrets."""
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNKNOWN, "password is hunter2"))
    assert error.message == INTERNAL_MESSAGE


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_grpcs_own_messages_are_replaced(
    code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    """They contain addresses: they are logged, and the client gets a general message."""
    caplog.set_level("INFO", "mesh.errors")
    said = "failed to connect to all addresses; last error: ipv4:10.1.2.3:50053: refused"
    error = from_rpc_error(rpc_error(code, said))
    assert "10.1.2.3" not in error.message
    assert error.message
    assert [record.__dict__["error"] for record in caplog.records] == [said]


def test_messages_of_services_are_kept() -> None:
    """The message of a service's error reaches the caller unchanged."""
    sent = MeshError(ErrorKind.UNAVAILABLE, "no engine is ready for model 'demo'")
    assert from_rpc_error(rpc_error(*status_of(sent))).message == sent.message


def test_a_kind_of_a_newer_version_falls_back_to_the_code() -> None:
    """An unknown kind in the metadata is ignored."""
    trailing: tuple[tuple[str, str | bytes], ...] = ((KIND_METADATA, "brand_new"),)
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "x", trailing))
    assert error.kind is ErrorKind.UNAVAILABLE


def test_invalid_names_the_field() -> None:
    """`invalid` creates INVALID_REQUEST with the field."""
    error = invalid("top_p", "top_p must be in (0, 1], given 2")
    assert (error.kind, error.param) == (ErrorKind.INVALID_REQUEST, "top_p")
    assert repr(error) == "MeshError(invalid_request: top_p must be in (0, 1], given 2)"


def test_messages_that_may_quote_a_request_are_not_logged() -> None:
    """A message about an invalid field contains the given value; the log has only its name."""
    assert invalid("query", "query must be short, given 'my secret'").for_the_log == (
        "query is not valid"
    )
    wrong = MeshError(ErrorKind.INVALID_REQUEST, "no JSON: my secret")
    assert wrong.for_the_log == "the request is not valid"
    assert MeshError(ErrorKind.UNAVAILABLE, "no engine").for_the_log == "no engine"


@pytest.mark.parametrize("character", ["x", "é", "漢", "\N{GRINNING FACE}", "\ud800"])
def test_long_texts_are_truncated(character: str) -> None:
    """Whatever they quote, the metadata of the status stays below gRPC's 8 KiB."""
    error = MeshError(
        ErrorKind.INVALID_REQUEST, character * 30_000, param="y" * 9999, retry_after=1
    )
    assert error.message.endswith("...")
    assert str(error) == error.message
    assert len(error.message.encode("utf-8", "replace")) <= MAX_MESSAGE_BYTES
    assert error.param is not None
    assert error.param.endswith("y...")
    assert len(error.param) == MAX_PARAM_BYTES
    status = status_of(error)
    encoded = len(quote(status.details)) + sum(
        len(base64.b64encode(value)) if isinstance(value, bytes) else len(value)
        for _, value in status.trailing_metadata
    )
    assert encoded < 8192 - 512


def test_short_texts_are_kept() -> None:
    """Up to the limit nothing is changed."""
    for message in ("", "é", "x" * MAX_MESSAGE_BYTES, "é" * (MAX_MESSAGE_BYTES // 2)):
        assert MeshError(ErrorKind.INTERNAL, message).message == message


def test_details_that_cannot_be_read_are_ignored() -> None:
    """An engine or a proxy of another kind may send any bytes; the status still counts."""
    trailing = (("grpc-status-details-bin", b"\xff\xff"),)
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "x", trailing))
    assert (error.kind, error.retry_after) == (ErrorKind.UNAVAILABLE, None)
