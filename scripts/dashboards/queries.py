"""PromQL of the dashboards. Every query obeys the variables `$namespace` and `$model`."""

from __future__ import annotations

from dataclasses import dataclass

NAMESPACE = 'namespace=~"$namespace"'
"""`.*`, the value of All, also matches series without a namespace, as in a local run."""

POD = 'pod=~"$pod"'

_MODEL_LABELS = {
    "vllm:": "model_name",
    "inference_": "model_name",
    "gen_ai_": "gen_ai_response_model",
}
"""The label with the model's name, by the beginning of the metric's name. Others have none."""


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL query, and the legend of its series."""

    expression: str
    legend: str = ""
    exemplars: bool = False


def model_label(metric: str) -> str:
    """The label of the model's name; empty if the metric has none."""
    return next((v for start, v in _MODEL_LABELS.items() if metric.startswith(start)), "")


def selected(metric: str, *matchers: str) -> str:
    """The series of a metric that the dashboard's variables select."""
    label = model_label(metric)
    chosen = [NAMESPACE, *([f'{label}=~"$model"'] if label else []), *matchers]
    return f"{metric}{{{','.join(chosen)}}}"


def total(metric: str, by: str = "", *matchers: str) -> str:
    """The sum of a gauge by labels."""
    return f"sum{_by(by)} ({selected(metric, *matchers)})"


def rate(metric: str, by: str = "", *matchers: str, window: str = "$__rate_interval") -> str:
    """A counter's rate, summed by labels."""
    return f"sum{_by(by)} (rate({selected(metric, *matchers)}[{window}]))"


def mean(histogram: str, by: str = "", *matchers: str) -> str:
    """The mean of a histogram's observations."""
    observed = rate(f"{histogram}_sum", by, *matchers)
    return f"{observed}\n/ {rate(f'{histogram}_count', by, *matchers)}"


def quantile(share: float, histogram: str, by: str = "", *matchers: str) -> str:
    """A quantile of a histogram, by labels."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', labels, *matchers)})"


def quantiles(histogram: str, *matchers: str) -> list[Query]:
    """p50, p95 (with exemplars) and p99 of a histogram, for each model if it has the label."""
    label = model_label(histogram)
    return [
        Query(
            quantile(share, histogram, label, *matchers),
            f"p{share * 100:g}{' {{' + label + '}}' if label else ''}",
            exemplars=share == 0.95,
        )
        for share in (0.5, 0.95, 0.99)
    ]


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""
