"""Searches by gRPC, without the gateway.

    python examples/grpc_search.py "What is a weir?" [HOST:PORT]

Programs inside a cluster can call the orchestrator directly. `Summarize` is the unary form of the
search: results, summary and citations in one response. Only the generated code in `mesh/v1` is
needed; server reflection offers the same to grpcurl.
"""

from __future__ import annotations

import sys

import grpc

from mesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

TIMEOUT_SECONDS = 60.0
"""Deadline of the call; the orchestrator and the engine obey it too."""


def main() -> int:
    """Print the sources, the summary and the usage of one search."""
    if len(sys.argv) not in (2, 3):
        print('usage: python examples/grpc_search.py "QUERY" [HOST:PORT]', file=sys.stderr)
        return 2
    query, address = sys.argv[1], (sys.argv[2:] or ["127.0.0.1:50051"])[0]
    with grpc.insecure_channel(address) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        request = orchestrator_pb2.SummarizeRequest(query=query)
        try:
            answer = stub.Summarize(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    for result in answer.results.results:
        print(f"[{result.position}] {result.title}  {result.url}")
    usage = answer.finish.usage
    print(f"\n{answer.summary}\n")
    print(f"{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} completion tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
