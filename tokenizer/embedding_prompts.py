"""The prompts of an embedding model, which are put before its texts, such as E5's "query: "."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mesh.errors import invalid
from mesh.process.lifecycle import StartupError
from mesh.protocol.model_kind import InputUse
from tokenizer.config import read_object

PROMPTS_FILE = "config_sentence_transformers.json"

_NAMES: Mapping[InputUse, tuple[str, ...]] = {
    "": (),
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
"""Names of the prompts for each use, as in sentence-transformers."""


class EmbeddingPrompts(NamedTuple):
    """The prompts by name, and the default one."""

    by_name: Mapping[str, str]
    default: str = ""
    """The prompt of texts whose use is not known; empty: none."""

    def choose(self, name: str, use: InputUse) -> str:
        """The prompt of this name; without a name the one for the use, else the default.

        Raises MeshError (INVALID_REQUEST) for a name that the model does not have.
        """
        if name:
            if name not in self.by_name:
                known = ", ".join(sorted(self.by_name)) or "none"
                raise invalid(
                    "prompt_name",
                    f"prompt_name must be one of the model's prompts ({known}), given {name!r:.80}",
                )
            return self.by_name[name]
        for each in _NAMES[use]:
            if each in self.by_name:
                return self.by_name[each]
        return self.default


def read_prompts(contents: Mapping[str, bytes]) -> EmbeddingPrompts:
    """The prompts in a tokenizer's files. Raises StartupError if they are invalid."""
    config = read_object(contents, PROMPTS_FILE)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(each, str) for each in prompts.values()):
        raise StartupError(f"prompts in {PROMPTS_FILE} must be an object of strings")
    default = config.get("default_prompt_name")
    if default is None:
        return EmbeddingPrompts(prompts)
    if default not in prompts:
        raise StartupError(f"default_prompt_name in {PROMPTS_FILE} must be one of prompts")
    return EmbeddingPrompts(prompts, prompts[default])
