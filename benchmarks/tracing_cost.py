"""What tracing costs the relay: CPU time per token, with none, without and with an exporter.

    python -m benchmarks.tracing_cost --rounds 8

Three stacks of the four services, with made-up tokens, stand side by side and take turns at the
same load, in an order that changes from round to round, so that whatever else the machine does
hits all three. CPU time is that of the processes, from the kernel; the load's and the
collector's own do not count. A ratio is of two stacks in the same round.

    none       spans taken out of the code (benchmarks.untraced)
    no exporter  as services run by default: spans have ids and are not recorded
    exporter   every request recorded and sent, the SDK's default sampling
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("tokenizer", "inference", "orchestrator", "gateway")
RELAY = ("orchestrator", "gateway")
MODES = ("none", "no exporter", "exporter")
START_SECONDS = 240.0


class Relay:
    """Four processes in one of the modes."""

    def __init__(self, mode: str, folder: Path, pace: float, endpoint: str) -> None:
        self.mode = mode
        self._folder = folder
        ports = iter(_free_ports(4))
        addresses = {name: f"127.0.0.1:{next(ports)}" for name in SERVICES}
        self.url = f"http://{addresses['gateway']}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        hosts = {f"{name.upper()}_HOST": addresses[name] for name in SERVICES if name != "gateway"}
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
            **hosts,
            "TOKENIZER_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_MODEL_NAME": "demo",
            "INFERENCE_FAKE_MODEL": "true",
            "INFERENCE_FAKE_TOKENS_PER_SECOND": str(pace),
        }
        if mode == "exporter":
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        if mode == "none":
            environment["OTEL_SDK_DISABLED"] = "true"
        for name in SERVICES:
            start = ["benchmarks.untraced", name] if mode == "none" else [name]
            listen = ["--listen", addresses[name], "--metrics-listen", "127.0.0.1:0"]
            with (folder / f"{mode}-{name}.log").open("wb") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", *start, *listen],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                )

    def wait_ready(self) -> None:
        """Returns once a token can be produced. RuntimeError with the logs otherwise."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and all(p.poll() is None for p in self.processes.values()):
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        logs = [path.read_text() for path in sorted(self._folder.glob(f"{self.mode}-*"))]
        raise RuntimeError(f"{self.mode} is not ready:\n" + "\n".join(logs))

    def cpu_seconds(self, names: tuple[str, ...]) -> float:
        """What these processes have used so far, all threads."""
        return sum(_cpu_seconds(self.processes[name].pid) for name in names)

    def stop(self) -> None:
        """Ends the processes."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def load(url: str, num_streams: int, num_tokens: int) -> int:
    """Reads so many streams at once to their ends; gives the tokens that came."""
    limits = httpx.Limits(max_connections=num_streams)
    async with httpx.AsyncClient(
        base_url=url, timeout=120, trust_env=False, limits=limits
    ) as client:
        body = {"prompt": "Once upon a time", "max_tokens": num_tokens, "stream": True}

        async def one() -> int:
            async with client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                ended = [chunk async for chunk in response.aiter_bytes()][-1]
                assert ended.endswith(b"[DONE]\n\n"), ended
            return num_tokens

        return sum(await asyncio.gather(*(one() for _ in range(num_streams))))


def measure(relays: list[Relay], options: argparse.Namespace) -> dict[str, list[float]]:
    """Microseconds of CPU per token, by mode, a value a round."""
    found: dict[str, list[float]] = {relay.mode: [] for relay in relays}
    names = SERVICES if options.all else RELAY
    for number in range(-1, options.rounds):  # the first one warms up
        turn = number % len(relays)
        for relay in relays[turn:] + relays[:turn]:
            before = relay.cpu_seconds(names)
            num_tokens = asyncio.run(load(relay.url, options.streams, options.tokens))
            if number >= 0:
                found[relay.mode].append((relay.cpu_seconds(names) - before) / num_tokens * 1e6)
    return found


def report(found: dict[str, list[float]]) -> str:
    """A line a mode: CPU per token, and its ratio to none, round by round."""
    lines = [f"{'':<13}{'µs/token, median':>18}{'added, median':>16}{'quartiles':>20}"]
    for mode, values in found.items():
        pairs = zip(values, found["none"], strict=True)
        added = sorted((value / base - 1) * 100 for value, base in pairs)
        low, middle, high = statistics.quantiles(added, n=4)
        line = f"{mode:<13}{statistics.median(values):>18.1f}"
        if mode != "none":
            line += f"{middle:>15.1f}%{f'{low:.1f}% to {high:.1f}%':>20}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Starts the three stacks, measures, prints."""
    options = _options()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        endpoint = held.enter_context(_collector())
        relays = []
        for mode in MODES:
            relay = Relay(mode, folder, options.pace, endpoint)
            held.callback(relay.stop)
            relays.append(relay)
        for relay in relays:
            relay.wait_ready()
        found = measure(relays, options)
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"{options.streams} streams of {options.tokens} tokens at {options.pace:g} a second, "
        f"{options.rounds} rounds; {os.cpu_count()} cores, load per core {busy:.1f}"
        f"{': busy, read with care' if busy > 1.2 else ''}\n{report(found)}"
    )


@contextmanager
def _collector() -> Iterator[str]:
    """Where spans go: the trace view."""
    port = _free_ports(1)[0]
    listen = ["--listen", "127.0.0.1:0", "--grpc-listen", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "mesh.traceview", *listen]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _cpu_seconds(pid: int) -> float:
    """From /proc: nanoseconds on a CPU, the first number of each thread's schedstat."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.tracing_cost")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pace", type=float, default=100.0, help="tokens per second and stream")
    parser.add_argument("--all", action="store_true", help="count tokenizer and inference too")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    return options


if __name__ == "__main__":
    main()
