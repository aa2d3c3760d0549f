"""Opens the retriever that the settings select."""

from __future__ import annotations

from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.routing.replicas import Replicas
from orchestrator.search.embedders import Embedder, EngineEmbedder, HttpEmbedder
from orchestrator.search.retrieval import NoRetriever, Retriever
from orchestrator.search.retrievers.hybrid import HybridRetriever, VectorStore
from orchestrator.search.retrievers.opensearch import OpenSearchRetriever
from orchestrator.search.retrievers.postgres import PostgresRetriever
from orchestrator.search.retrievers.reranking import RerankingRetriever
from orchestrator.search.retrievers.searxng import SearxngRetriever
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from orchestrator.settings import OrchestratorSettings


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
        )
    if settings.rerank_url:
        retriever = RerankingRetriever(
            retriever,
            settings.rerank_url,
            settings.rerank_model,
            settings.rerank_api_key.get_secret_value(),
            settings.rerank_timeout_seconds,
        )
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
