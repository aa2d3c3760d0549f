"""The dashboard "Weir pods": CPU, memory, versions and restarts of the processes."""

from __future__ import annotations

from scripts.dashboards.panels import (
    Item,
    Json,
    Panel,
    build,
    row,
    selection,
    stat,
    table,
    timeseries,
    values_of,
)
from scripts.dashboards.queries import POD, Query, quantile, rate, selected, total

_NAMED = "{{job}} {{pod}}"
_RPC = "mesh_rpc_server_duration_seconds"
_ALL = "Of all models: the metric has no model."


def pods() -> Json:
    """For an incident that may be one process's."""
    return build(
        "weir-pods",
        "Weir pods",
        "CPU, memory, versions and restarts of the services' processes, together and by pod.",
        [*selection(), values_of("pod", "pod", 'mesh_build_info{namespace=~"$namespace"}')],
        [
            *_processes(),
            row("Pod $pod", repeat="pod", panels=_one_pod()),
        ],
    )


def _processes() -> list[Item]:
    restarts = f"sum by (job, pod) (changes({selected('process_start_time_seconds', POD)}[1h]))"
    return [
        row("Processes"),
        timeseries(
            "CPU",
            f"Cores that each process uses. An orchestrator or a gateway uses at most one. {_ALL}",
            "short",
            Query(rate("process_cpu_seconds_total", "job, pod", POD), _NAMED),
        ),
        timeseries(
            "Memory",
            f"Resident memory of each process; of engines on a CPU with weights and KV cache. "
            f"{_ALL}",
            "bytes",
            Query(total("process_resident_memory_bytes", "job, pod", POD), _NAMED),
        ),
        timeseries(
            "Restarts in the last hour",
            f"Starts of a process within its pod. {_ALL}",
            "short",
            Query(restarts, _NAMED),
            limit=1,
        ),
        table(
            "Versions",
            "Number of processes by service, version and Python version; during a rollout there "
            "are two versions.",
            Query(total("mesh_build_info", "component, version, python_version", POD)),
        ),
        timeseries(
            "Open file descriptors",
            f"Share of the limit; each connection is one. {_ALL}",
            "percentunit",
            Query(
                f"{total('process_open_fds', 'job, pod', POD)}\n"
                f"/ {total('process_max_fds', 'job, pod', POD)}",
                _NAMED,
            ),
            limit=0.8,
        ),
        timeseries(
            "Time since the start",
            f"Of each process. {_ALL}",
            "s",
            Query(
                f"time() - max by (job, pod) ({selected('process_start_time_seconds', POD)})",
                _NAMED,
            ),
        ),
    ]


def _one_pod() -> list[Panel]:
    return [
        stat(
            "CPU",
            "Cores that the process uses.",
            "short",
            Query(rate("process_cpu_seconds_total", "", POD)),
            w=6,
        ),
        stat(
            "Memory",
            "Resident memory of the process.",
            "bytes",
            Query(total("process_resident_memory_bytes", "", POD)),
            w=6,
        ),
        stat(
            "Event loop lag, p99",
            "Delay of a timer. Every stream of the process is delayed as long.",
            "s",
            Query(quantile(0.99, "mesh_event_loop_lag_seconds", "", POD)),
            limit=0.25,
            w=6,
        ),
        stat(
            "Running RPCs",
            "Calls that the process serves; a gateway serves none.",
            "short",
            Query(total("mesh_rpc_server_active", "", POD)),
            w=6,
        ),
        timeseries(
            "Ended RPCs",
            "By method and status.",
            "reqps",
            Query(rate(f"{_RPC}_count", "rpc_method, code", POD), "{{rpc_method}}, {{code}}"),
            w=12,
        ),
        timeseries(
            "Duration of RPCs, p95",
            "From arrival to the end, streams included.",
            "s",
            Query(quantile(0.95, _RPC, "rpc_method", POD), "{{rpc_method}}"),
            w=12,
        ),
    ]
