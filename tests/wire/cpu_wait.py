"""Time in which threads could run but waited for a CPU, from Linux's scheduler statistics."""

from __future__ import annotations

from pathlib import Path


class CpuWait:
    """The CPU waits of a process; Documentation/scheduler/sched-stats.rst."""

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._tasks = Path(f"/proc/{process_id}/task")

    def read(self) -> dict[int, float]:
        """Seconds of each thread since its start; empty where the kernel does not count them."""
        waits = {}
        for task in self._tasks.iterdir():
            try:
                _, wait, _ = (task / "schedstat").read_bytes().split()
            except (OSError, ValueError):  # the thread has ended, or there are no statistics
                continue
            waits[int(task.name)] = int(wait) / 1e9
        return waits

    def since(self, before: dict[int, float]) -> float:
        """Seconds that the process has waited at most since an earlier `read`.

        Of the threads besides the first one only the longest wait counts: one of them may have held
        the interpreter lock meanwhile.
        """
        waited = {task: wait - before.get(task, 0.0) for task, wait in self.read().items()}
        first = waited.pop(self._process_id, 0.0)
        return first
