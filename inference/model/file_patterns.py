"""The files of a model that inference needs. Does not import torch, which takes seconds."""

from __future__ import annotations

FILE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "*_config.json",
    "modules.json",
    "*_Pooling/config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
"""The files of a hub repository; no code and no pickles."""
