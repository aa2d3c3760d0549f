"""The text of an answer: reasoning, tool-call parsing, and the assembler of all its parts.

Everything that runs for each token is synchronous. Detokenizer and stop strings are in `mesh.text`,
filters of search summaries in `orchestrator.search`.
"""
