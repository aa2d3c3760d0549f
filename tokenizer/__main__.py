"""`python -m tokenizer`: the tokenizer service."""

from __future__ import annotations

from mesh.process.lifecycle import run
from mesh.process.settings import load
from tokenizer.application import application
from tokenizer.settings import TokenizerSettings


def main() -> None:
    """Reads the settings and serves until SIGTERM or SIGINT."""
    settings = load(TokenizerSettings, "tokenizer")
    run("tokenizer", settings, lambda: application(settings))


if __name__ == "__main__":
    main()
