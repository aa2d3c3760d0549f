"""LiteLLM's proxy (https://pypi.org/project/litellm/) in front of an OpenAI-compatible server.

`make litellm` installs it into a separate environment, because its dependencies are not Weir's.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import httpx

from benchmarks.harness.processes import ROOT, Processes, free_port

DEFAULT_EXECUTABLE = ROOT / ".venv-litellm" / "bin" / "litellm"
READY_SECONDS = 120.0

_CONFIGURATION = """\
model_list:
  - model_name: demo
    litellm_params: {{model: text-completion-openai/demo, api_base: {url}/v1, api_key: none}}
litellm_settings: {{drop_params: false, telemetry: false}}
"""


class LiteLlmProxy:
    """A proxy with one worker process; it ends with `processes`."""

    def __init__(
        self,
        processes: Processes,
        name: str,
        upstream: str,
        *,
        executable: Path = DEFAULT_EXECUTABLE,
    ) -> None:
        """`upstream` is the URL of the server. Raises FileNotFoundError without the program."""
        if not executable.is_file():
            raise FileNotFoundError(f"{executable} is missing; `make litellm` installs the proxy")
        self._processes = processes
        self._name = name
        self._folder = tempfile.TemporaryDirectory()
        configuration = Path(self._folder.name) / "litellm.yaml"
        configuration.write_text(_CONFIGURATION.format(url=upstream))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        listen = ("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
        environment = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            # It listens on loopback only, without keys.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        }
        processes.start(
            name, [str(executable), *listen, "--config", str(configuration)], environment
        )
        processes.wait_port(name, port)

    def wait_ready(self) -> None:
        """Waits until a completion is relayed. Raises RuntimeError."""
        body = {"model": "demo", "prompt": "one", "max_tokens": 1}
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            url = f"{self.url}/v1/completions"
            if httpx.post(url, json=body, timeout=20, trust_env=False).is_success:
                return
            time.sleep(0.2)
        raise RuntimeError(f"LiteLLM does not answer after {READY_SECONDS:.0f} seconds")

    def cpu_seconds(self) -> float:
        """CPU time of the proxy so far."""
        return self._processes.cpu_seconds(self._name)

    def memory_bytes(self) -> int:
        """Resident memory of the proxy."""
        return self._processes.memory_bytes(self._name)
