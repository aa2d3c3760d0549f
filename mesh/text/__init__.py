"""Token ids to text: the incremental detokenizer and the search for stop strings.

Tool calls, reasoning and the assembly of answers are the orchestrator's (`orchestrator.text`).
"""
