"""Inference replicas: discovery, health, choice, circuit breaking, failover."""
