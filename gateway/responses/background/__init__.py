"""The event streams of responses in the background: recorded by the run, read at any gateway."""
