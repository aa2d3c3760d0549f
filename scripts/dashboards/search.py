"""The dashboard "Weir search": latency and outcomes of searches, retrieval and encoding."""

from __future__ import annotations

from scripts.dashboards.panels import Item, Json, build, row, selection, timeseries
from scripts.dashboards.queries import Query, quantile, quantiles, rate

_RETRIEVAL = "orchestrator_retrieval_seconds"
_METHOD = 'method=~"Summarize.*"'
_SEARCH = 'gen_ai_operation_name="search"'


def search() -> Json:
    """For operating the search index and tuning the answers."""
    return build(
        "weir-search",
        "Weir search",
        "Searches, retrieval of documents, and encoding of prompts.",
        selection(),
        [*_searches(), *_retrieval(), *_prompts()],
    )


def _searches() -> list[Item]:
    return [
        row("Searches"),
        timeseries(
            "Searches",
            "Ended searches by outcome. Of all models: the metric has no model.",
            "reqps",
            Query(rate("orchestrator_requests_total", "outcome", _METHOD), "{{outcome}}"),
        ),
        timeseries(
            "Time to first token",
            "From the arrival of a search at the gateway to the first text of its summary.",
            "s",
            *quantiles("gen_ai_server_time_to_first_token_seconds", _SEARCH),
            limit=2.5,
        ),
        timeseries(
            "Duration",
            "From the arrival of a search at the gateway to the end of its response.",
            "s",
            *quantiles("gen_ai_server_request_duration_seconds", _SEARCH),
        ),
    ]


def _retrieval() -> list[Item]:
    by_outcome = rate(f"{_RETRIEVAL}_count", "provider, outcome")
    all_outcomes = rate(f"{_RETRIEVAL}_count", "provider")
    return [
        row("Retrieval"),
        timeseries(
            "Outcomes",
            "Share of the retrievals that found documents or none, failed, or exceeded their time "
            "limit. After a failure the answer says that the documents could not be searched.",
            "percentunit",
            Query(
                f"{by_outcome}\n/ on (provider) group_left () {all_outcomes}",
                "{{provider}}: {{outcome}}",
            ),
        ),
        timeseries(
            "Duration",
            "Duration of the retrieval of documents.",
            "s",
            *quantiles(_RETRIEVAL),
            limit=1,
        ),
        timeseries(
            "Duration by provider, p95",
            "Duration of the retrieval of documents.",
            "s",
            Query(quantile(0.95, _RETRIEVAL, "provider"), "{{provider}}"),
            limit=1,
        ),
    ]


def _prompts() -> list[Item]:
    return [
        row("Prompts"),
        timeseries(
            "Encoding, p95",
            "Rendering and encoding one input in the tokenizer, the wait for a thread included. "
            "Of all requests.",
            "s",
            Query(quantile(0.95, "tokenizer_encode_seconds", "input"), "{{input}}"),
        ),
        timeseries(
            "Tokens of a search, p95",
            "Tokens of the prompt with its passages (input), and of the summary (output).",
            "short",
            Query(
                quantile(
                    0.95,
                    "gen_ai_client_token_usage",
                    "gen_ai_response_model, gen_ai_token_type",
                    _SEARCH,
                ),
                "{{gen_ai_token_type}}, {{gen_ai_response_model}}",
            ),
        ),
        timeseries(
            "Tokens encoded and decoded",
            "Work of the tokenizer, of all requests.",
            "short",
            Query(rate("tokenizer_tokens_total", "operation"), "{{operation}}"),
        ),
    ]
