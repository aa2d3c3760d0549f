"""Retrievers, one search backend a module, and the factory that opens the configured one."""
