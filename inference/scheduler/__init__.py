"""Which sequences a step runs, and the KV-cache blocks that they hold. Imports no torch."""
