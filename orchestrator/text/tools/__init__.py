"""Tool calls: the constraint that forces one, and the parsers that read them from text."""
