"""Clients of the tokenizer service. Inference engines are in `orchestrator.routing`."""
