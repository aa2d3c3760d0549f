"""The tokenizer service: renders chat templates, encodes, decodes, hands out its own files.

It knows one model's text format; it knows nothing of the model's weights or of who asks.
"""
