"""Server-sent events: framing, writing, resumption, and what happens when a client disconnects."""
