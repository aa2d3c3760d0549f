"""What tests of native code need."""

from __future__ import annotations

import pytest

from inference.native import library


def needs_native_library() -> None:
    """Skips the test, and says so, where the CPU cannot run it."""
    try:
        library.load()
    except library.Unavailable as reason:
        pytest.skip(f"NOTHING NATIVE IS TESTED: {reason}")
