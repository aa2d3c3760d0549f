"""The dashboard "Weir engine": load, latency, steps, and lost sequences of the engines."""

from __future__ import annotations

from scripts.dashboards.panels import (
    SELECTED,
    Json,
    Query,
    dashboard,
    data_source,
    heatmap,
    quantile,
    quantiles,
    rate,
    row,
    timeseries,
    values_of,
)

_MODEL = 'model_name=~"$model"'


def engine() -> Json:
    """For sizing and tuning the engines."""
    return dashboard(
        "weir-engine",
        "Weir engine",
        "Batches, steps, KV cache, and outcomes of sequences.",
        [
            data_source("prometheus", "prometheus"),
            values_of("namespace", "namespace", "mesh_build_info"),
            values_of("model", "model_name", "vllm:num_requests_running"),
        ],
        [*_load(), *_throughput(), *_latency(), *_steps(), *_lost()],
    )


def _gauge(metric: str) -> str:
    return f"{metric}{{{SELECTED},{_MODEL}}}"


def _load() -> list[Json]:
    usage = _gauge("vllm:kv_cache_usage_perc")
    return [
        row("Load"),
        timeseries(
            "Sequences",
            "short",
            Query(f"sum by (model_name) ({_gauge('vllm:num_requests_running')})", "running"),
            Query(f"sum by (model_name) ({_gauge('vllm:num_requests_waiting')})", "waiting"),
        ),
        timeseries(
            "KV cache in use", "percentunit", Query(usage, "{{model_name}} {{pod}}{{instance}}")
        ),
        timeseries(
            "Prefix cache hits",
            "percentunit",
            Query(
                f"{rate('vllm:prefix_cache_hits_total', 'model_name', _MODEL)}\n"
                f"/ {rate('vllm:prefix_cache_queries_total', 'model_name', _MODEL)}",
                "{{model_name}}",
            ),
        ),
    ]


def _throughput() -> list[Json]:
    return [
        timeseries(
            "Tokens per second",
            "short",
            Query(rate("vllm:prompt_tokens_total", "model_name", _MODEL), "prompts"),
            Query(rate("vllm:generation_tokens_total", "model_name", _MODEL), "generated"),
        ),
        timeseries(
            "Finished sequences",
            "reqps",
            Query(
                rate("vllm:request_success_total", "finished_reason", _MODEL), "{{finished_reason}}"
            ),
        ),
        timeseries(
            "Preemptions",
            "ops",
            Query(rate("vllm:num_preemptions_total", "model_name", _MODEL), "{{model_name}}"),
        ),
    ]


def _latency() -> list[Json]:
    return [
        row("Latency of a sequence"),
        timeseries("Queue", "s", *quantiles("vllm:request_queue_time_seconds", _MODEL)),
        timeseries("Prefill", "s", *quantiles("vllm:request_prefill_time_seconds", _MODEL)),
        timeseries("Decode", "s", *quantiles("vllm:request_decode_time_seconds", _MODEL)),
        timeseries(
            "Time to first token", "s", *quantiles("vllm:time_to_first_token_seconds", _MODEL)
        ),
        timeseries(
            "Inter-token latency", "s", *quantiles("vllm:inter_token_latency_seconds", _MODEL)
        ),
        timeseries(
            "Time per output token",
            "s",
            *quantiles("vllm:request_time_per_output_token_seconds", _MODEL),
        ),
        timeseries("End to end", "s", *quantiles("vllm:e2e_request_latency_seconds", _MODEL)),
        heatmap("Inter-token latency, distribution", "vllm:inter_token_latency_seconds", w=16),
    ]


def _steps() -> list[Json]:
    tokens, steps = "vllm:iteration_tokens_total", "inference_step_seconds"
    return [
        row("Steps"),
        timeseries("Step duration", "s", *quantiles(steps, _MODEL)),
        timeseries(
            "Steps per second",
            "ops",
            Query(rate(f"{steps}_count", "model_name", _MODEL), "{{model_name}}"),
        ),
        timeseries("Tokens per step", "short", *quantiles(tokens, _MODEL)),
        timeseries("Prompt length", "short", *quantiles("vllm:request_prompt_tokens", _MODEL)),
        timeseries(
            "Completion length", "short", *quantiles("vllm:request_generation_tokens", _MODEL)
        ),
        timeseries(
            "Engines by KV cache size",
            "short",
            Query(
                "sum by (model_name, block_size, num_gpu_blocks) "
                f"({_gauge('vllm:cache_config_info')})",
                "{{num_gpu_blocks}} blocks of {{block_size}}",
            ),
        ),
    ]


def _lost() -> list[Json]:
    return [
        row("Cancellation and failover"),
        timeseries(
            "Cancellation to release of blocks",
            "s",
            *quantiles("inference_cancel_to_slot_free_seconds", _MODEL),
        ),
        timeseries(
            "Failovers",
            "ops",
            Query(rate("orchestrator_failovers_total", "namespace"), "failovers"),
            Query(rate("orchestrator_replayed_tokens_total", "namespace"), "replayed tokens"),
        ),
        timeseries(
            "Event loop lag, p99",
            "s",
            Query(
                quantile(0.99, "mesh_event_loop_lag_seconds", "", 'component="inference"'), "p99"
            ),
        ),
    ]
