"""What chat templates render, and the adaptation of conversations to it."""
