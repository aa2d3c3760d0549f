"""`python -m tokenizer`: the tokenizer service."""

from __future__ import annotations

from mesh.rpc.polling import silence_core, use_epoll1_engine


def main() -> None:
    """Read the settings and serve until SIGTERM or SIGINT."""
    use_epoll1_engine()
    silence_core()
    # Imported here: gRPC's core reads its configuration when it is imported.
    from mesh.process.lifecycle import run
    from mesh.process.settings import load
    from tokenizer.application import application
    from tokenizer.settings import TokenizerSettings

    settings = load(TokenizerSettings, "tokenizer")
    run("tokenizer", settings, lambda: application(settings))


if __name__ == "__main__":
    main()
