"""What tests of the native decoder need."""

from __future__ import annotations

import pytest

from inference.native import library


def needs_native_decoder() -> None:
    """Skips the test, and says so, where the CPU cannot run it."""
    try:
        library.load()
    except library.Unavailable as reason:
        pytest.skip(f"NO NATIVE DECODER: {reason}")
