"""A worker process: renders conversations until the service or a limit ends it.

The kernel enforces the limits, because a template can keep Python from running any check:
a CPU timer whose signal (SIGPROF) ends the process, and the size of the address space, beyond
which allocations fail.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import socket
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

from mesh.protocol.chat import chat_from_bytes
from tokenizer.adaptation.capabilities import Capabilities
from tokenizer.chat.conversation import ArgumentsForm
from tokenizer.chat.errors import RenderError
from tokenizer.rendering.frames import Frame, Kind, receive_frame, send_frame
from tokenizer.rendering.prompt_renderer import PromptRenderer, TemplateCapabilities
from tokenizer.rendering.requests import RenderLimits, RenderRequest

MAX_REQUEST_BYTES = 1 << 30

_PR_SET_PDEATHSIG: Final = 1


def serve(renderer: PromptRenderer, limits: RenderLimits, peer: socket.socket) -> None:
    """Answers requests until the service closes the socket. Runs in its own process."""
    limit_memory(limits.memory_bytes)
    end_with_parent()
    while True:
        try:
            request = receive_frame(peer, MAX_REQUEST_BYTES)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        reply = _reply(renderer, limits, request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send_frame(peer, reply)


def limit_memory(num_bytes: int) -> None:
    """Limits the address space of this process to `num_bytes` more than now. Linux only."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def end_with_parent() -> None:
    """Makes Linux kill this process when its parent ends; elsewhere it ends with its socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reply(renderer: PromptRenderer, limits: RenderLimits, request: Frame) -> Frame:
    try:
        if request.kind is Kind.FIND_CAPABILITIES:
            return Frame(Kind.RESULT, _dump(renderer.find_capabilities()))
        capabilities, chat = RenderRequest.read(request)
        prompt = renderer.render(
            chat_from_bytes(chat), _capabilities(capabilities), limits.max_characters
        )
        return Frame(Kind.RESULT, prompt.to_bytes())
    except RenderError as error:
        refusal = (error.param, error.message)
    except UnicodeEncodeError:
        refusal = ("messages", "messages and tools must not contain a lone surrogate")
    except MemoryError:
        mib = limits.memory_bytes >> 20
        refusal = ("messages", f"messages must render within {mib} MiB of memory, given more")
    return Frame(Kind.REFUSAL, json.dumps(refusal).encode())


def _dump(capabilities: TemplateCapabilities) -> bytes:
    return json.dumps({name: each._asdict() for name, each in capabilities.items()}).encode()


@lru_cache(maxsize=1)
def _capabilities(serialized: bytes) -> TemplateCapabilities:
    """The capabilities in a request: the same in all of them."""
    return {
        name: Capabilities(**{**fields, "arguments": ArgumentsForm(fields["arguments"])})
        for name, fields in json.loads(serialized).items()
    }
