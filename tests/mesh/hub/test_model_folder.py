"""Resolving a model to a folder, without contacting the hub."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from mesh.hub.model_folder import ModelNotFoundError, model_folder


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Records the requested downloads."""
    requested: list[tuple[str, list[str]]] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        requested.append((repo_id, allow_patterns))
        return "/cache/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requested


def test_a_folder_is_used_directly(tmp_path: Path, hub: list[object]) -> None:
    """Nothing is downloaded for a local folder."""
    assert model_folder(str(tmp_path), ["*.json"]) == tmp_path
    assert hub == []


def test_a_folder_has_precedence_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[object]
) -> None:
    """`models/demo` is the folder if it exists."""
    (tmp_path / "models" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_folder("models/demo", []) == Path("models/demo")
    assert hub == []


def test_a_hub_id_is_downloaded(hub: list[object]) -> None:
    """Only the files that match the patterns."""
    assert model_folder("Qwen/Qwen3-0.6B", ("*.json",)) == Path("/cache/snapshot")
    assert hub == [("Qwen/Qwen3-0.6B", ["*.json"])]


def test_a_gguf_file_on_the_hub_is_downloaded_alone(hub: list[object]) -> None:
    """All parts of a split one, and no other file of the repository."""
    with pytest.raises(ModelNotFoundError, match=r"m\.gguf is not in the repository"):
        model_folder("owner/name/m.gguf", ())
    with pytest.raises(ModelNotFoundError):
        model_folder("owner/name/m-00001-of-00002.gguf", ())
    assert hub == [("owner/name", ["m.gguf"]), ("owner/name", ["m-*-of-*.gguf"])]


@pytest.mark.parametrize("model", ["/no/such", "./none", "../none", "~/none", "none", "a/b/c"])
def test_a_name_that_is_neither_is_refused(model: str, hub: list[object]) -> None:
    """A mistyped path is not sent to the hub."""
    with pytest.raises(ModelNotFoundError, match="neither a folder, a GGUF file, nor a hub id"):
        model_folder(model, [])
    assert hub == []


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("offline\nmore lines"), OSError("offline")]
)
def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The message has the first line of the reason."""

    def fail(repo_id: str, **_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError) as caught:
        model_folder("a/b", [])
    assert str(caught.value) == (
        "model 'a/b' is not a folder and could not be downloaded from the hub: offline"
    )
