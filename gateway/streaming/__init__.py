"""Server-sent events: framing, writing, resumption, cancellation on disconnect."""
