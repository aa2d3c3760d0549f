"""Which of several equal replicas runs a request: policies, and what they know of prefix caches.

They know addresses, loads and token ids only; health, circuits and models are decided before.
"""
