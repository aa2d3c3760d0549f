"""Worker processes that render chat templates with limits on CPU time and memory."""
