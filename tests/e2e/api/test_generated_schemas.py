"""The four processes under generated JSON schemas."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.e2e.support.schemas import generated_schema
from tests.e2e.support.stack import Stack

NUM_SCHEMAS = int(os.environ.get("SCHEMA_CASES") or 30)
"""`make schemas` sets it to 10,000."""

MAX_SECONDS = 2.0
"""Most CPU time of the inference service for one schema."""

MAX_GROWTH = 128 * 2**20
"""Most memory that the inference service gains in the second half of the schemas; its cache of
compiled constraints is full by then."""


def cpu_seconds(process_id: int) -> float:
    """CPU time of a process, of its live children, and of all that these have waited for."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    seconds = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{process_id}/task").iterdir():
        children = (task / "children").read_text().split()
        seconds += sum(cpu_seconds(int(child)) for child in children)
    return seconds


def resident_bytes(process_id: int) -> int:
    """Memory of a process."""
    pages = Path(f"/proc/{process_id}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(120 + NUM_SCHEMAS)
def test_no_schema_is_a_server_error_slow_or_kept(instruct_stack: Stack) -> None:
    """Each is followed or refused with its field; time and memory are bounded."""
    engine = instruct_stack.processes["inference"].pid
    rng = random.Random(NUM_SCHEMAS)
    counts: Counter[int] = Counter()
    slowest, half = 0.0, 0
    with httpx.Client(base_url=instruct_stack.url, timeout=60, trust_env=False) as client:
        for number in range(NUM_SCHEMAS):
            if number == NUM_SCHEMAS // 2:
                half = resident_bytes(engine)
            schema = generated_schema(rng)
            json_schema = {"name": "generated", "schema": schema}
            began = cpu_seconds(engine)
            response = client.post(
                "/v1/chat/completions",
                json={
                    "model": "",
                    "messages": [{"role": "user", "content": "Hi"}],
                    "max_tokens": 12,
                    "seed": number,
                    "response_format": {"type": "json_schema", "json_schema": json_schema},
                },
            )
            spent = cpu_seconds(engine) - began
            slowest = max(slowest, spent)
            counts[response.status_code] += 1
            shown = json.dumps(schema)[:2000]
            assert response.status_code in (200, 400), (number, response.text, shown)
            if response.status_code == 400:
                assert response.json()["error"]["param"], (response.text, shown)
            assert spent <= MAX_SECONDS, (number, spent, response.text[:500], shown)
        assert client.get("/readyz").status_code == 200
    growth = resident_bytes(engine) - half
    print(counts, f"slowest {slowest:.2f} s of CPU, {growth >> 20} MiB more in the second half")
    assert counts[200] > NUM_SCHEMAS / 4
    assert growth < MAX_GROWTH
    assert "replica lost" not in instruct_stack.log("orchestrator").read_text()
