"""The official TypeScript clients against the four processes: typed, in Node and Chromium."""

from __future__ import annotations

import asyncio
import http.server
import json
import shutil
import subprocess
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.browser import browser, needs_chromium
from tests.e2e.support.stack import Stack

SOURCES = Path(__file__).parent / "typescript"

pytestmark = pytest.mark.timeout(600)


def skip(reason: str) -> None:
    """Skips the test with a warning, which appears in the summary of the run."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(f"the TypeScript client is not tested: {reason}", stacklevel=2)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program, in a folder with its npm packages."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        skip("node and npm are missing")
    folder = tmp_path_factory.mktemp("typescript")
    for path in SOURCES.iterdir():
        shutil.copy(path, folder)
    install = [str(npm), "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=400)
    if done.returncode != 0 and any(sign in done.stderr for sign in ("ENOTFOUND", "ECONN")):
        skip("npm's registry cannot be reached")
    assert done.returncode == 0, done.stderr
    compile = [str(folder / "node_modules" / ".bin" / "tsc"), "--project", "."]
    done = subprocess.run(compile, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    return folder / "stream.js"


async def test_the_client_streams(
    stack: Stack,
    program: Path,
    client: httpx.AsyncClient,
    inference: inference_pb2_grpc.InferenceServiceAsyncStub,
) -> None:
    """Text, finish reason, usage and errors match; leaving a stream early aborts it."""
    command = ["node", str(program), f"{stack.url}/v1"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=program.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["text"] == seen["whole"]
    assert seen["reason"] in ("stop", "length")
    assert seen["usage"]["completion_tokens"] == seen["wholeTokens"] > 0
    assert isinstance(seen["completion"], str)
    assert (seen["refusal"], seen["code"]) == (404, "model_not_found")
    assert seen["size"] == 256
    assert seen["response"] == seen["streamed"] == seen["resumed"] != ""
    assert seen["inputs"] == ["message"]
    assert isinstance(seen["parsed"]["warm"], bool)
    assert isinstance(seen["called"]["warm"], bool)
    async with asyncio.timeout(30):
        while (await inference.GetLoad(inference_pb2.GetLoadRequest())).num_requests_running:
            await asyncio.sleep(0.1)


async def test_anthropics_client(instruct_stack: Stack, program: Path) -> None:
    """Messages streamed and not, a tool loop of two steps, counted tokens, and an error."""
    command = ["node", str(program.with_name("messages.js")), instruct_stack.url]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=program.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["streamed"] == seen["whole"]
    assert (seen["events"][0], seen["events"][-1]) == ("message_start", "message_stop")
    assert seen["reasons"][0] == seen["reasons"][1]
    assert seen["reasons"][2] == "tool_use"
    assert seen["input"] == {"city": "Rome"}
    assert seen["lastTokens"] > 0
    for usage in seen["usage"]:
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == seen["counted"]
    assert seen["refused"] == {"status": 404, "type": "not_found_error", "hasId": True}


IN_A_BROWSER = """
const [allowed, refusing, done] = arguments;
const open = (url) => new OpenAI({
  baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, dangerouslyAllowBrowser: true,
});
let OpenAI;
const run = async () => {
  OpenAI = (await import("/index.mjs")).default;
  const client = open(allowed);
  const messages = [{ role: "user", content: "Write." }];
  const ask = { model: "demo", messages, max_tokens: 12, temperature: 0 };
  const { data: whole, response } = await client.chat.completions.create(ask).withResponse();
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  const refused = await client.chat.completions.create({ ...ask, n: 99 }).catch((error) => error);
  const blocked = await open(refusing).models.list().catch((error) => error);
  // Neither an image nor a no-cors fetch has an Origin.
  const search = `${refusing}/api/v1/search?query=AI`;
  await fetch(search, { mode: "no-cors" });
  await new Promise((resolve) => {
    Object.assign(new Image(), { onload: resolve, onerror: resolve, src: search });
  });
  return {
    text, whole: whole.choices[0].message.content,
    requestId: response.headers.get("x-request-id"), id: whole.id,
    status: refused.status, param: refused.param, refusedId: refused.requestID,
    blocked: blocked.constructor.name,
  };
};
run().then(done, (error) => done({ error: String(error) }));
"""
"""Calls the API from a page of another origin, which one of two gateways allows."""


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Serves the files of a folder over HTTP; yields the port."""
    handler = partial(QuietFiles, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Serves files without logging."""

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def num_refused(url: str) -> int:
    """Responses of the gateway with status 403."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    name = "gateway_http_requests_total"
    lines = [line for line in text.splitlines() if line.startswith(name)]
    return sum(int(float(line.split()[-1])) for line in lines if 'status="403"' in line)


@needs_chromium
def test_the_client_works_in_a_browser(stack: Stack, program: Path, tmp_path: Path) -> None:
    """Streamed and not, with readable headers and errors, from an allowed origin only."""
    with served(program.parent / "node_modules" / "openai") as port:
        page = f"http://localhost:{port}"
        before = num_refused(stack.url)
        with (
            stack.another_gateway("--cors-origins", page) as allowed,
            browser(tmp_path) as tab,
        ):
            tab.driver.get(f"{page}/package.json")
            seen = tab.driver.execute_async_script(IN_A_BROWSER, allowed, stack.url)
    assert seen.get("error") is None, seen
    assert seen["text"] == seen["whole"] != ""
    assert seen["id"] == f"chatcmpl-{seen['requestId']}"
    assert (seen["status"], seen["param"]) == (400, "n")
    assert len(seen["refusedId"]) == 32
    assert seen["blocked"] == "APIConnectionError"
    # The preflight of the SDK, the fetch and the image.
    assert num_refused(stack.url) - before == 3
