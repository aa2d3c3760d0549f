"""Runs the checks against a server and prints a table; exit code 1 if a check fails."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import httpx

from tests.conformance.checks import CHECKS, Check
from tests.conformance.client import Server, Skipped

CHECK_TIMEOUT_SECONDS = 120.0


class Result(NamedTuple):
    """The result of one check."""

    name: str
    outcome: str
    """ok, FAILED or skipped."""
    seconds: float
    detail: str


async def run_check(check: Check, server: Server) -> Result:
    """Runs one check with a timeout of `CHECK_TIMEOUT_SECONDS`."""
    started = time.monotonic()
    outcome, detail = "ok", ""
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check(server)
    except Skipped as reason:
        outcome, detail = "skipped", str(reason)
    except (AssertionError, httpx.HTTPError, LookupError, ValueError, TypeError) as error:
        outcome, detail = "FAILED", f"{type(error).__name__}: {error}"
    except TimeoutError:
        outcome, detail = "FAILED", f"took longer than {CHECK_TIMEOUT_SECONDS:g} s"
    sentence = (check.__doc__ or check.__name__).strip()
    return Result(sentence, outcome, time.monotonic() - started, detail.split("\n")[0][:200])


async def run(
    base_url: str,
    model: str,
    api_key: str = "",
    timeout: float = 60,
    checks: Sequence[Check] = CHECKS,
) -> list[Result]:
    """Runs checks in sequence; an empty `model` selects the first listed one."""
    server = Server(base_url, model, api_key, timeout)
    try:
        if not model:
            server.model = (await server.get("/v1/models")).json()["data"][0]["id"]
        return [await run_check(check, server) for check in checks]
    finally:
        await server.close()


def table(results: Sequence[Result]) -> str:
    """The results as a table, one per line."""
    width = max(len(result.name) for result in results)
    lines = [f"{'check':{width}}  outcome  seconds", "-" * (width + 18)]
    for result in results:
        line = f"{result.name:{width}}  {result.outcome:7}  {result.seconds:7.2f}"
        lines.append(f"{line}  {result.detail}".rstrip())
    counts = [f"{sum(r.outcome == o for r in results)} {o}" for o in ("ok", "skipped", "FAILED")]
    return "\n".join([*lines, "", ", ".join(counts)])


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument(
        "--base-url", required=True, help="URL of the server, such as http://127.0.0.1:8080"
    )
    parser.add_argument(
        "--model", default="", help="model to request; default: the first that the server lists"
    )
    parser.add_argument("--api-key", default="", help="API key, sent as a bearer token")
    parser.add_argument("--timeout", type=float, default=60, help="timeout of a request in seconds")
    arguments = parser.parse_args()
    results = asyncio.run(
        run(arguments.base_url, arguments.model, arguments.api_key, arguments.timeout)
    )
    print(table(results))
    return int(any(result.outcome == "FAILED" for result in results))


if __name__ == "__main__":
    sys.exit(main())
