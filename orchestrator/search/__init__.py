"""Search: retrieve passages, select them, build the prompt, filter and ground the summary.

Building the index file belongs to `orchestrator.index`; generating text does not belong here.
"""
