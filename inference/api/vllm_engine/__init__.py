"""`vllm.grpc.engine.VllmEngine` over Weir's engine, for the routers that speak it.

The generated types come from the package smg-grpc-proto. What callers need in order to send token
ids is here as well: the tokenizer's files, stop strings, and the changes of the prefix cache.
"""
