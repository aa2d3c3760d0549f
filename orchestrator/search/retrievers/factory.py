"""Opens the retriever that the settings select."""

from __future__ import annotations

from orchestrator.search.retrieval import NoRetriever, Retriever
from orchestrator.search.retrievers.opensearch import OpenSearchRetriever
from orchestrator.search.retrievers.postgres import PostgresRetriever
from orchestrator.search.retrievers.searxng import SearxngRetriever
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from orchestrator.settings import OrchestratorSettings


def open_retriever(settings: OrchestratorSettings) -> Retriever:
    """Opens the retriever without connecting to a server. Blocks. Raises IndexUnusable."""
    seconds = settings.retrieval_timeout_seconds
    match settings.retrieval_kind:
        case "index":
            return IndexRetriever(settings.index)
        case "postgres":
            url = settings.postgres_url.get_secret_value()
            table, language = settings.postgres_table, settings.postgres_language
            return PostgresRetriever(url, table, language, seconds)
        case "opensearch":
            url = settings.opensearch_url.get_secret_value()
            return OpenSearchRetriever(url, settings.opensearch_index, seconds)
        case "searxng":
            return SearxngRetriever(settings.searxng_url.get_secret_value(), seconds)
    return NoRetriever()
