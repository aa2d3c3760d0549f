"""The four processes under generated conversations, valid and invalid ones."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from random import Random

import httpx
import pytest

from tests.conversations import encoded, random_body
from tests.e2e.support.stack import Stack

NUM_CASES = int(os.environ.get("CONVERSATION_CASES", "80"))
"""`make fuzz-conversations` sets it to 10,000."""

CPU_SECONDS = 2.0
"""Maximum CPU time of one request, in all services together."""

GROWTH_BYTES = 64 << 20
"""Maximum growth of one service and its child processes in the second half of the requests."""


@pytest.mark.timeout(60 + NUM_CASES)
def test_no_conversation_hurts_the_services(instruct_stack: Stack) -> None:
    """No response is 5xx, no request takes more than 2 s of CPU time, and memory does not grow."""
    random = Random(1)
    statuses: Counter[int] = Counter()
    memory: dict[str, int] = {}
    with httpx.Client(base_url=instruct_stack.url, timeout=60, trust_env=False) as client:
        for number in range(NUM_CASES):
            if number == NUM_CASES // 2:
                memory = memory_bytes(instruct_stack)
            content = encoded(random_body(random))
            before = cpu_seconds(instruct_stack)
            response = client.post("/v1/chat/completions", content=content)
            used = cpu_seconds(instruct_stack) - before
            statuses[response.status_code] += 1
            assert response.status_code < 500, (response.text, content[:2000])
            assert "server_error" not in response.text, (response.text, content[:2000])
            assert used < CPU_SECONDS, (used, response.text[:500], content[:2000])
        assert client.get("/readyz").status_code == 200
    assert min(statuses[200], statuses[400]) > NUM_CASES // 10, statuses
    growth = {name: grown - memory[name] for name, grown in memory_bytes(instruct_stack).items()}
    assert max(growth.values()) < GROWTH_BYTES, growth
    print(dict(statuses), growth)


def processes(stack: Stack) -> dict[str, list[int]]:
    """Process ids of each service and its descendants."""
    return {name: descendants(process.pid) for name, process in stack.processes.items()}


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        found = [int(child) for child in children.read_text().split()]
    except OSError:  # ended meanwhile
        return []
    return [pid, *(each for child in found for each in descendants(child))]


def cpu_seconds(stack: Stack) -> float:
    """CPU time of all services so far, that of ended child processes included."""
    ticks = 0
    for pids in processes(stack).values():
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(stack: Stack) -> dict[str, int]:
    """Resident memory of each service with its child processes."""
    return {
        name: sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            for pid in pids
        )
        for name, pids in processes(stack).items()
    }
