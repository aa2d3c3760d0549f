"""The services behind the orchestrator. Generated types occur here and in service.py only."""
