"""The dashboard "Weir engine": load, latency, steps, and lost sequences of the engines."""

from __future__ import annotations

from scripts.dashboards.panels import Item, Json, build, heatmap, row, selection, timeseries
from scripts.dashboards.queries import Query, quantile, quantiles, rate, total

_NAMED = "{{model_name}}"


def engine() -> Json:
    """For sizing and tuning the engines."""
    return build(
        "weir-engine",
        "Weir engine",
        "Batches, steps, KV cache, and outcomes of sequences.",
        selection(),
        [*_load(), *_throughput(), *_latency(), *_steps(), *_lost()],
    )


def _load() -> list[Item]:
    usage = total("vllm:kv_cache_usage_perc", "model_name, pod, instance")
    hits = rate("vllm:prefix_cache_hits_total", "model_name")
    return [
        row("Load"),
        timeseries(
            "Sequences",
            "Sequences that run in the batch, and that wait for a place in it.",
            "short",
            Query(total("vllm:num_requests_running", "model_name"), f"running, {_NAMED}"),
            Query(total("vllm:num_requests_waiting", "model_name"), f"waiting, {_NAMED}"),
        ),
        timeseries(
            "KV cache in use",
            "Share of the blocks that sequences hold, of each engine. Sequences are preempted when "
            "it is full.",
            "percentunit",
            Query(usage, f"{_NAMED}, {{{{pod}}}} {{{{instance}}}}"),
            limit=0.9,
        ),
        timeseries(
            "Prefix cache hits",
            "Share of the prompts' tokens that were in the prefix cache.",
            "percentunit",
            Query(f"{hits}\n/ {rate('vllm:prefix_cache_queries_total', 'model_name')}", _NAMED),
        ),
    ]


def _throughput() -> list[Item]:
    return [
        timeseries(
            "Tokens per second",
            "Tokens of finished prompts, generated tokens, and tokens of inputs to embed.",
            "short",
            Query(rate("vllm:prompt_tokens_total", "model_name"), f"prompts, {_NAMED}"),
            Query(rate("vllm:generation_tokens_total", "model_name"), f"generated, {_NAMED}"),
            Query(rate("inference_embedding_tokens_total", "model_name"), f"embedded, {_NAMED}"),
        ),
        timeseries(
            "Finished sequences",
            "By finish reason. abort: the client left, or a stop string ended the text; error: "
            "the engine failed.",
            "reqps",
            Query(
                rate("vllm:request_success_total", "model_name, finished_reason"),
                f"{{{{finished_reason}}}}, {_NAMED}",
            ),
        ),
        timeseries(
            "Preemptions",
            "Sequences that lost their KV cache blocks to an older one, and are computed again.",
            "ops",
            Query(rate("vllm:num_preemptions_total", "model_name"), _NAMED),
        ),
    ]


def _latency() -> list[Item]:
    parts = (
        ("Queue", "request_queue_time", "From arrival in the engine to the first step."),
        ("Prefill", "request_prefill_time", "From the first step to the first token."),
        ("Decode", "request_decode_time", "From the first token to the last."),
        ("Time to first token", "time_to_first_token", "From arrival to the first token."),
        ("Inter-token latency", "inter_token_latency", "Time between two tokens."),
        (
            "Time per output token",
            "request_time_per_output_token",
            "Mean of a sequence after its first token.",
        ),
        ("End to end", "e2e_request_latency", "From arrival in the engine to the finish."),
    )
    limits = {"Time to first token": 2.5, "Inter-token latency": 0.2}
    return [
        row("Latency of a sequence"),
        *(
            timeseries(
                title, text, "s", *quantiles(f"vllm:{name}_seconds"), limit=limits.get(title)
            )
            for title, name, text in parts
        ),
        heatmap(
            "Inter-token latency, distribution",
            "Number of tokens by the time since the one before. A dot is one token of a traced "
            "request; click it to open the trace.",
            "vllm:inter_token_latency_seconds",
            w=16,
        ),
    ]


def _steps() -> list[Item]:
    steps = "inference_step_seconds"
    return [
        row("Steps"),
        timeseries(
            "Step duration",
            "Forward pass and sampling of one step; every running sequence waits for it.",
            "s",
            *quantiles(steps),
        ),
        timeseries(
            "Steps per second",
            "Steps that the engine ran.",
            "ops",
            Query(rate(f"{steps}_count", "model_name"), _NAMED),
        ),
        timeseries(
            "Tokens per step",
            "Tokens of prompts and completions in a step: the size of the batch.",
            "short",
            *quantiles("vllm:iteration_tokens_total"),
        ),
        timeseries(
            "Prompt length",
            "Tokens of the prompt of a finished sequence.",
            "short",
            *quantiles("vllm:request_prompt_tokens"),
        ),
        timeseries(
            "Completion length",
            "Generated tokens of a finished sequence.",
            "short",
            *quantiles("vllm:request_generation_tokens"),
        ),
        timeseries(
            "Engines by KV cache size",
            "Number of engines with the same KV cache.",
            "short",
            Query(
                total("vllm:cache_config_info", "model_name, block_size, num_gpu_blocks"),
                f"{_NAMED}: {{{{num_gpu_blocks}}}} blocks of {{{{block_size}}}}",
            ),
        ),
    ]


def _lost() -> list[Item]:
    lag = quantile(0.99, "mesh_event_loop_lag_seconds", "pod, instance", 'component="inference"')
    return [
        row("Cancellation and failover"),
        timeseries(
            "Cancellation to release of blocks",
            "From the arrival of a cancellation until the sequence's KV cache blocks are free.",
            "s",
            *quantiles("inference_cancel_to_slot_free_seconds"),
            limit=1,
        ),
        timeseries(
            "Failovers",
            "Requests that another replica continued, and the tokens that it got to begin with. "
            "Of all models: the metrics have no model.",
            "ops",
            Query(rate("orchestrator_failovers_total", "namespace"), "failovers, {{namespace}}"),
            Query(
                rate("orchestrator_replayed_tokens_total", "namespace"),
                "replayed tokens, {{namespace}}",
            ),
        ),
        timeseries(
            "Event loop lag, p99",
            "Delay of a timer in each engine's process. All its streams are delayed as long.",
            "s",
            Query(lag, "{{pod}} {{instance}}"),
            limit=0.25,
        ),
    ]
