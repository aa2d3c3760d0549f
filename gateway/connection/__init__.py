"""One HTTP connection: limits and timers of each part of a message, refusals, and its end."""
