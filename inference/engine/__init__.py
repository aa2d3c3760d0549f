"""The engine: its interface, its step loop and thread, admission, and the consumers' streams.

Policy is in `inference.scheduler`, tensors in `inference.runner`.
"""
