"""Opens the retriever that the settings select."""

from __future__ import annotations

from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.routing.replicas import Replicas
from orchestrator.search.embedders import Embedder, EngineEmbedder, HttpEmbedder
from orchestrator.search.rerankers import EngineReranker, HttpReranker, Reranker
from orchestrator.search.retrieval import NoRetriever, Retriever
from orchestrator.search.retrievers.hybrid import HybridRetriever, VectorStore
from orchestrator.search.retrievers.opensearch import OpenSearchRetriever
from orchestrator.search.retrievers.postgres import PostgresRetriever
from orchestrator.search.retrievers.reranking import RerankingRetriever
from orchestrator.search.retrievers.searxng import SearxngRetriever
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from orchestrator.settings import OrchestratorSettings

TEXT_SHARE = 0.9
"""Share of the time of a search that its search by words has, beside one by vectors."""


def open_retriever(settings: OrchestratorSettings) -> VectorStore | Retriever:
    """Opens the retriever without connecting to a server. Blocks. Raises IndexUnusable."""
    seconds = settings.retrieval_timeout_seconds
    match settings.retrieval_kind:
        case "index":
            return IndexRetriever(settings.index)
        case "postgres":
            url = settings.postgres_url.get_secret_value()
            table, language = settings.postgres_table, settings.postgres_language
            embedding = settings.postgres_embedding
            return PostgresRetriever(url, table, language, seconds, embedding)
        case "opensearch":
            url = settings.opensearch_url.get_secret_value()
            index, embedding = settings.opensearch_index, settings.opensearch_embedding
            return OpenSearchRetriever(url, index, seconds, embedding)
        case "searxng":
            return SearxngRetriever(settings.searxng_url.get_secret_value(), seconds)
    return NoRetriever()


def add_models(
    settings: OrchestratorSettings,
    retriever: VectorStore | Retriever,
    tokenizers: Tokenizers,
    replicas: Replicas,
) -> Retriever:
    """Adds the search by vectors and the reranker that the settings select to `retriever`."""
    if settings.embedding_model and isinstance(retriever, VectorStore):
        embedder = _embedder(settings, tokenizers, replicas)
        retriever = HybridRetriever(
            retriever,
            embedder,
            settings.embedding_timeout_seconds,
            settings.embedding_query_prefix,
            # Less than the whole search has, so that its vectors are not lost with a late one.
            TEXT_SHARE * settings.retrieval_timeout_seconds,
        )
    if settings.rerank_model:
        reranker = _reranker(settings, tokenizers, replicas)
        retriever = RerankingRetriever(retriever, reranker, settings.rerank_timeout_seconds)
    return retriever


def _embedder(
    settings: OrchestratorSettings, tokenizers: Tokenizers, replicas: Replicas
) -> Embedder:
    if not settings.embedding_url:
        return EngineEmbedder(settings.embedding_model, tokenizers, replicas)
    return HttpEmbedder(
        settings.embedding_url,
        settings.embedding_model,
        settings.embedding_api_key.get_secret_value(),
        settings.embedding_timeout_seconds,
    )


def _reranker(
    settings: OrchestratorSettings, tokenizers: Tokenizers, replicas: Replicas
) -> Reranker:
    if not settings.rerank_url:
        return EngineReranker(settings.rerank_model, tokenizers, replicas)
    return HttpReranker(
        settings.rerank_url,
        settings.rerank_model,
        settings.rerank_api_key.get_secret_value(),
        settings.rerank_timeout_seconds,
    )
