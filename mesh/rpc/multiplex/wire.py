"""What both ends of a multiplexed stream agree on, besides the protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mesh.v1 import multiplex_pb2

SERVICE = multiplex_pb2.DESCRIPTOR.services_by_name["MultiplexService"].full_name
PATH = f"/{SERVICE}/Multiplex"

FIRST_PATHS = frozenset(
    {
        "/mesh.v1.InferenceService/Generate",
        "/mesh.v1.OrchestratorService/Generate",
        "/mesh.v1.OrchestratorService/SummarizeStream",
        "/mesh.v1.TokenizerService/Encode",
    }
)
"""The calls of servers that name none when they accept a stream. These servers know no others, so
the set does not change."""

MULTIPLEXED_PATHS = FIRST_PATHS | frozenset[str]()
"""Frequent calls with one request. Further ones are added to the second set."""

WINDOW_BYTES = 64 * 1024
"""Credit of a call at its beginning: what a call sends ahead of its reader, as in HTTP/2."""

MESSAGE_COST_BYTES = 512
"""Credit that a message costs besides its bytes, about what it takes in memory."""

MAX_PART_BYTES = 32 * 1024
"""Longer responses are sent in parts, so that other calls' messages are sent between them."""

MAX_OVERDRAFT_BYTES = MAX_PART_BYTES + MESSAGE_COST_BYTES
"""What a call may have sent beyond its credit: the message that used up the last of it."""

MAX_BATCH_BYTES = 256 * 1024
"""A batch of this size takes no further messages until it is sent."""

BATCH_SECONDS = 0.001
"""Least time between two messages of a stream in one direction; what calls send meanwhile is in the
next one. A message after a longer pause is sent at once."""

MAX_REQUEST_BYTES = 64 * 1024
"""Calls with longer requests are made as plain ones."""

MetadataItem = tuple[str, str | bytes]


def metadata_to_proto(
    metadata: Iterable[MetadataItem],
) -> Iterator[multiplex_pb2.Metadatum]:
    """Convert to protobuf."""
    for key, value in metadata:
        encoded = value if isinstance(value, bytes) else value.encode()
        yield multiplex_pb2.Metadatum(key=key, value=encoded)


def metadata_from_proto(
    metadata: Iterable[multiplex_pb2.Metadatum],
) -> tuple[MetadataItem, ...]:
    """Convert from protobuf: as in gRPC, only keys that end in -bin have bytes."""
    return tuple(
        # Bytes that are no text are replaced: they must not end the calls of others.
        (each.key, each.value if each.key.endswith("-bin") else each.value.decode(errors="replace"))
        for each in metadata
    )
