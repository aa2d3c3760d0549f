"""The key file and the command that creates a key."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.keys.key_file import (
    Key,
    KeyFileError,
    Limits,
    entry,
    find_key,
    hash_key,
    main,
    new_key,
    read_keys,
)

HASH = "0" * 64


def test_a_key_is_found_by_its_hash() -> None:
    """The matching one of several keys is found; other keys are not."""
    keys = [Key(name=name, sha256=hash_key(f"key-{name}")) for name in ("a", "b", "c")]
    assert find_key(keys, "key-b") is keys[1]
    for wrong in ("", "key-", "key-d", keys[1].sha256.hex(), "key-b ", "\udcff"):
        assert find_key(keys, wrong) is None


def test_keys_are_random_and_long() -> None:
    """A key has 256 random bits, so that an unsalted SHA-256 is sufficient."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("weir_") and len(key) == 5 + 43 for key in made)


def test_the_file_has_names_hashes_and_limits(tmp_path: Path) -> None:
    """Entries are read as they were written; limits are optional."""
    path = tmp_path / "keys.toml"
    limits = Limits(requests_per_second=0.5, tokens_per_minute=60_000, max_concurrent=8)
    path.write_text(entry("alice", "one", limits) + entry("bob-2", "two"))
    assert read_keys(str(path)) == (
        Key(name="alice", sha256=hash_key("one"), limits=limits),
        Key(name="bob-2", sha256=hash_key("two")),
    )
    assert '"one"' not in path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "not TOML"),
        ('a = "weir_secret"', "each entry must be a table"),
        ('["a b"]\nsha256 = "x"', "named with letters"),
        ("[a]", r"\[a\] sha256 must be 64"),
        ('[a]\nsha256 = "weir_secret"', r"\[a\] sha256 must be 64"),
        (f'[a]\nsha256 = "{"g" * 64}"', "must be hexadecimal"),
        (f'[a]\nsha256 = "{HASH}"\n[b]\nsha256 = "{HASH}"', "the same sha256"),
        (f'[a]\nsha256 = "{HASH}"\nrps = 1', "unknown fields: rps"),
        (f'[a]\nsha256 = "{HASH}"\nrequests_per_second = 0', "above 0"),
        (f'[a]\nsha256 = "{HASH}"\ntokens_per_minute = true', "above 0"),
        (f'[a]\nsha256 = "{HASH}"\nmax_concurrent = 1.5', "whole number"),
    ],
)
def test_a_bad_file_is_rejected_without_quoting_it(tmp_path: Path, text: str, message: str) -> None:
    """The error names entry and field but not the value, which may be a key by mistake."""
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeyFileError, match=message) as caught:
        read_keys(str(path))
    assert "weir_secret" not in str(caught.value)


def test_the_command_creates_a_key_and_stores_its_hash(tmp_path: Path) -> None:
    """The key is printed to stdout only; the file holds its hash and has mode 0600."""
    path = tmp_path / "keys.toml"
    command = [sys.executable, "-m", "gateway.keys", "new"]
    for name in ("alice", "bob"):
        arguments = [name, "--file", str(path), "--max-concurrent", "3"]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=True, timeout=50
        )
        key = done.stdout.strip()
        found = find_key(read_keys(str(path)), key)
        assert found is not None
        assert (found.name, found.limits.max_concurrent) == (name, 3)
        assert key not in path.read_text() + done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_file_the_command_prints_the_entry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The entry goes to stderr, for example to be put into a Kubernetes Secret."""
    assert main(["new", "carol"]) == 0
    shown = capsys.readouterr()
    assert entry("carol", shown.out.strip()) in shown.err


@pytest.mark.parametrize("arguments", [["a b"], ["a", "--max-concurrent", "0"], ["a"]])
def test_the_command_rejects_an_invalid_entry(tmp_path: Path, arguments: list[str]) -> None:
    """An invalid name, an invalid limit or an existing name leaves the file unchanged."""
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", "one"))
    with pytest.raises(SystemExit):
        main(["new", *arguments, "--file", str(path)])
    assert path.read_text() == entry("a", "one")
