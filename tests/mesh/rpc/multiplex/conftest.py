"""A server with both kinds of services, and a client whose multiplexed stream is open."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh.rpc.server import Servicer
from mesh.v1 import inference_pb2_grpc, tokenizer_pb2_grpc
from tests.helpers import serve
from tests.mesh.rpc.multiplex.counting import INFERENCE, CountingInference, Running, opened
from tests.mesh.rpc.test_server import SERVICE as TOKENIZER
from tests.mesh.rpc.test_server import FakeTokenizer


@pytest.fixture
async def running(no_tasks_left: None) -> AsyncIterator[Running]:
    inference, tokenizer = CountingInference(), FakeTokenizer()
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    servicers = (
        Servicer(INFERENCE, inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference),
        Servicer(TOKENIZER, register, tokenizer),
    )
    async with serve(*servicers) as served:
        await opened(served.channel)
        yield Running(served, inference, tokenizer, served.channel)
