"""An OTLP collector, traced processes, and trees of spans. No tests."""
