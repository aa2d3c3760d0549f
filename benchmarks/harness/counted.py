"""Processes whose instructions callgrind counts; needs valgrind.

CPU time on a shared machine varies by more than most changes save; instructions repeat to 0.3 %.
Callgrind counts them in user space, at about a fiftieth of the speed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.processes import Processes
from benchmarks.harness.stack import RELAY


class CountedProcesses(Processes):
    """Processes of which gateway and orchestrator run in callgrind."""

    def __init__(self, folder: Path) -> None:
        """Their output and callgrind's counts are written to `folder`."""
        super().__init__(folder / "log")
        self._folder = folder

    def _wrapped(self, name: str, command: Sequence[str]) -> Sequence[str]:
        if name not in RELAY:
            return command
        out = f"--callgrind-out-file={self._folder / name}.counts"
        # Valgrind runs one thread at a time: gRPC's, which answer pings, must get their turn.
        flags = ("--tool=callgrind", "--quiet", "--instr-atstart=no", "--fair-sched=yes", out)
        return ["valgrind", *flags, *command]

    def start_counting(self) -> None:
        """Counts from now on; before, the processes run five times faster."""
        for name in RELAY:
            pid = str(self._processes[name].pid)
            subprocess.run(
                ["callgrind_control", "--instr=on", pid], check=True, capture_output=True
            )

    def instructions(self, name: str) -> int:
        """Instructions of the process since the last call."""
        pid = str(self._processes[name].pid)
        before = set(self._counts(name))
        subprocess.run(["callgrind_control", "--dump", pid], check=True, capture_output=True)
        [counts] = set(self._counts(name)) - before
        found = re.search(r"^(?:totals|summary): (\d+)$", counts.read_text(), re.MULTILINE)
        assert found is not None, f"no total in {counts}"
        return int(found.group(1))

    def _counts(self, name: str) -> list[Path]:
        return list(self._folder.glob(f"{name}.counts.*"))
