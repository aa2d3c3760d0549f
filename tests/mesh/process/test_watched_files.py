"""Detection of replaced files."""

from __future__ import annotations

import os
from pathlib import Path

from mesh.process.watched_files import WatchedFiles


def test_a_change_is_reported_once(tmp_path: Path) -> None:
    """A file that was rewritten or replaced; a missing file is not reported."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    files = WatchedFiles([str(one), str(two)])
    assert not files.changed()
    two.write_text("22")
    assert files.changed()
    assert not files.changed()
    one.unlink()
    assert not files.changed()
    (tmp_path / "new").write_text("1")
    os.replace(tmp_path / "new", one)
    assert files.changed()
    assert not files.changed()
