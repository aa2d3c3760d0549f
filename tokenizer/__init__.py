"""The tokenizer service: renders chat templates, encodes, decodes, and serves its files.

It handles one model's text format. It does not load the model's weights.
"""
