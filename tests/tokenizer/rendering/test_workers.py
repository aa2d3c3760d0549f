"""The processes that render templates: killed, replaced, ended with the service."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.process.lifecycle import StartupError
from mesh.protocol.chat import ChatPrompt, chat_to_proto
from tests.tokenizer.prompts import chat
from tokenizer.chat.prompt_format import PromptFormat
from tokenizer.rendering.requests import RenderLimits
from tokenizer.rendering.workers import RenderWorkers

LIMITS = RenderLimits(cpu_seconds=2.0, memory_bytes=64 << 20, max_characters=10_000)
ECHO = "{{ messages[0].content }}"


def never() -> bool:
    return False


def start(template: str, limits: RenderLimits = LIMITS) -> RenderWorkers:
    format = PromptFormat(
        templates={"default": template},
        variables={},
        special_tokens=["<s>"],
        ordinary_tokens=[],
    )
    return RenderWorkers(format, limits)


@pytest.fixture(scope="module")
def workers() -> Iterator[RenderWorkers]:
    started = start(ECHO)
    yield started
    started.close()


def user(content: str) -> bytes:
    return serialized(chat([{"role": "user", "content": content}]))


def serialized(prompt: ChatPrompt) -> bytes:
    return chat_to_proto(prompt).SerializeToString()


def pids(workers: RenderWorkers) -> set[int]:
    return {worker.pid for worker in workers._idle}


def test_a_worker_serves_many_requests(workers: RenderWorkers) -> None:
    """Segments of the rendering arrive as they were written, control tokens apart."""
    for _ in range(3):
        prompt = workers.render(user("Grüezi <s> 🌊"), never)
        assert [(each.text, each.is_literal) for each in prompt.segments] == [
            ("Grüezi ", False),
            ("<s>", True),
            (" 🌊", False),
        ]
    assert workers.num_idle == 1


def test_a_worker_that_was_killed_while_idle_is_replaced(workers: RenderWorkers) -> None:
    """The next request succeeds."""
    workers.render(user("Hi"), never)
    before = pids(workers)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
    assert workers.render(user("Hi"), never).segments[0].text == "Hi"
    assert not before & pids(workers)


def test_workers_end_with_their_supervisor_which_is_replaced(workers: RenderWorkers) -> None:
    """The next request succeeds, and no process is left."""
    workers.render(user("Hi"), never)
    [pid] = pids(workers)
    supervisor = workers._supervisor._process
    supervisor.kill()
    supervisor.wait()
    wait_for_end(pid)
    assert workers.render(user("Hi"), never).segments[0].text == "Hi"


def test_a_replaced_supervisor_s_worker_is_not_ended_by_the_next_one(
    workers: RenderWorkers,
) -> None:
    """A rendering that ends after its supervisor was replaced leaves the new processes alone."""
    lost = workers._take()
    workers._supervisor._process.kill()
    wait_for_end(lost.pid)
    workers.render(user("Hi"), never)
    [idle] = workers._idle
    replacement = workers._supervisor
    assert workers._end(lost) == signal.SIGKILL
    assert workers._take() == idle
    forked = workers._take()
    assert workers._supervisor is replacement
    for worker in (idle, forked):  # a worker may see the end of its socket before it is killed
        assert workers._end(worker) in (0, signal.SIGKILL)


def test_closing_ends_all_processes() -> None:
    """Also a worker that renders for ever, as after a crash of the service."""
    started = start(ECHO)
    started.render(user("Hi"), never)
    [pid] = pids(started)
    started.close()
    wait_for_end(pid)
    assert started._supervisor._process.returncode is not None


def wait_for_end(pid: int) -> None:
    """Waits until the process has ended; it may remain a zombie of the container's init."""
    deadline = time.monotonic() + 5
    stat = Path(f"/proc/{pid}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "still runs"
        time.sleep(0.01)


def test_a_template_that_crashes_its_process_is_an_invalid_request(
    workers: RenderWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that is not ours is the template's doing, unless an operator sent SIGKILL."""
    take: Callable[[], object] = workers._take
    for number, kind in (
        (signal.SIGSEGV, ErrorKind.INVALID_REQUEST),
        (signal.SIGKILL, ErrorKind.UNAVAILABLE),
    ):

        def take_and_kill(number: int = number) -> object:
            worker = take()
            os.kill(worker.pid, number)  # type: ignore[attr-defined]
            return worker

        monkeypatch.setattr(workers, "_take", take_and_kill)
        with pytest.raises(MeshError) as caught:
            workers.render(user("Hi"), never)
        assert caught.value.kind is kind
    monkeypatch.undo()
    assert workers.render(user("Hi"), never).segments[0].text == "Hi"


def test_a_stopped_worker_is_killed_when_its_client_cancels(
    workers: RenderWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that uses no CPU time is ended as well."""
    workers.render(user("Hi"), never)
    [pid] = pids(workers)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(MeshError) as caught:
        workers.render(user("Hi"), lambda: time.monotonic() > started + 0.1)
    assert caught.value.kind is ErrorKind.CANCELLED
    wait_for_end(pid)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
    ],
)
def test_a_template_that_always_exceeds_its_limits_does_not_block_the_start(template: str) -> None:
    """The service starts, unless the template cannot even be compiled, and refuses requests."""
    limits = RenderLimits(cpu_seconds=0.1, memory_bytes=64 << 20, max_characters=1000)
    try:
        started = start(template, limits)
    except StartupError as error:
        assert "cannot be compiled within the limits" in str(error)  # noqa: PT017 (either is right)
        return
    with pytest.raises(MeshError, match="messages must render within"):
        started.render(user("Hi"), never)
    started.close()


def test_a_bad_template_fails_the_start() -> None:
    """The reason is in the error."""
    with pytest.raises(StartupError, match="chat template 'default' is invalid: "):
        start("{% if %}")
