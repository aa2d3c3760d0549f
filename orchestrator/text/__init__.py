"""Token ids to text: detokenization, stop strings, reasoning and tool-call parsing.

Everything that runs for each token is synchronous. Filters of search summaries are in
`orchestrator.search`.
"""
