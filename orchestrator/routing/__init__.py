"""Inference replicas: discovery, health, choice, circuit breaking, failover.

Only token ids pass here; turning them into text is `orchestrator.text`.
"""
