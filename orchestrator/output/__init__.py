"""What a chat model's text holds: thinking, an answer, calls; and how to force calls."""
