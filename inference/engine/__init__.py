"""The engine: its loop, its thread, the streams of its consumers."""
