"""Builds the service from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from mesh.process.lifecycle import StartupError
from mesh.rpc.tls import TlsFiles
from orchestrator.admission.admission import Admission
from orchestrator.admission.request_table import RequestTable
from orchestrator.clients.tokenizers import open_tokenizers
from orchestrator.observability import metrics
from orchestrator.pipeline import Pipeline
from orchestrator.readiness import Readiness
from orchestrator.routing.policies.factory import make_policy
from orchestrator.routing.replicas import Replicas
from orchestrator.routing.waking import WakingSettings
from orchestrator.search.retrieval import Retriever
from orchestrator.search.retrievers.factory import add_models, open_retriever
from orchestrator.search.retrievers.index_file import IndexUnusable
from orchestrator.search.search import Search
from orchestrator.service import OrchestratorService
from orchestrator.settings import OrchestratorSettings
from orchestrator.text.format_choice import FormatChoices


@asynccontextmanager
async def application(settings: OrchestratorSettings) -> AsyncIterator[OrchestratorService]:
    """Opens the index and the channels and yields the service. Raises StartupError."""
    metrics.NUM_REQUESTS_LIMIT.set(settings.max_concurrent_requests)
    retriever = _open_retriever(settings)
    tls = TlsFiles.of(settings)
    requests = RequestTable()
    try:
        async with AsyncExitStack() as stack:
            tokenizers = await stack.enter_async_context(
                open_tokenizers(
                    settings.tokenizer_targets,
                    tls,
                    settings.dns_refresh_seconds,
                    settings.hold_seconds,
                )
            )
            replicas = Replicas(
                settings.inference_targets,
                settings.dns_refresh_seconds,
                tls,
                tokenizers.vocabulary_of,
                settings.hold_seconds,
                policy=make_policy(settings.routing_policy, settings.prefix_index_blocks),
                follows_caches=settings.follow_kv_events,
                named=settings.model_targets,
                waking=WakingSettings(
                    settings.wake_hold_seconds,
                    settings.wake_max_held,
                    settings.wake_expected_seconds,
                ),
            )
            await stack.enter_async_context(replicas.running())
            metrics.NUM_REQUESTS_HELD.set_function(lambda: replicas.waking.num_held)
            for model in settings.model_targets:
                # From zero: Prometheus sees no increase in the first value of a series.
                metrics.MODEL_REQUESTS.labels(model)
                metrics.NUM_MODEL_REQUESTS.labels(model)
            retriever = add_models(settings, retriever, tokenizers, replicas)
            formats = FormatChoices(settings.tool_parser, settings.reasoning_parser)
            timeout = settings.retrieval_timeout_seconds
            pipeline = Pipeline(
                admission=Admission(
                    settings.max_concurrent_requests, settings.max_outstanding_tokens
                ),
                requests=requests,
                tokenizers=tokenizers,
                replicas=replicas,
                search=Search(retriever, tokenizers, timeout, formats),
                request_timeout_seconds=settings.request_timeout_seconds,
                max_summary_characters=settings.max_summary_characters,
                search_model=settings.search_model,
                formats=formats,
                rewrite_timeout_seconds=settings.rewrite_timeout_seconds,
            )
            readiness = Readiness(tokenizers, replicas)
            yield OrchestratorService(
                pipeline,
                requests,
                replicas,
                readiness,
                lambda: [*tokenizers.channels(), *replicas.channels()],
                settings.grounded,
            )
    finally:
        await retriever.close()


def _open_retriever(settings: OrchestratorSettings) -> Retriever:
    try:
        return open_retriever(settings)
    except IndexUnusable as error:
        raise StartupError(f"ORCHESTRATOR_INDEX: {error}") from error
