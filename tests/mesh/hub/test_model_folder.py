"""Resolving a model to a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.hub.model_folder import ModelNotFoundError, model_folder
from tests.mesh.hub.fake_hub import COMMIT, Hub


def test_a_folder_is_used_directly(tmp_path: Path, hub: Hub) -> None:
    """Nothing is downloaded for a local folder."""
    assert model_folder(str(tmp_path), ["*.json"]) == tmp_path
    assert hub.requested == []


def test_a_folder_has_precedence_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    """`models/demo` is the folder if it exists."""
    (tmp_path / "models" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_folder("models/demo", []) == Path("models/demo")
    assert hub.requested == []


def test_a_hub_id_is_downloaded(hub: Hub) -> None:
    """Only the files that match the patterns."""
    folder = model_folder("org/model", ("*.json",))
    assert folder.name == COMMIT
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_a_gguf_file_on_the_hub_is_downloaded_alone(hub: Hub) -> None:
    """All parts of a split one, in its folder, and no other file of the repository."""
    parts = [f"big/m-{number:05}-of-00002.gguf" for number in (1, 2)]
    hub.files |= dict.fromkeys([*parts, "m.gguf"], b"no GGUF file")
    for file in ("m.gguf", parts[0]):
        with pytest.raises(ModelNotFoundError, match="is not a valid GGUF file"):
            model_folder(f"org/model/{file}", ())
    downloaded = {path.rpartition("/")[2] for _, path, _ in hub.requested if "/resolve/" in path}
    assert downloaded == {"m.gguf", *(Path(part).name for part in parts)}


@pytest.mark.parametrize("model", ["/no/such", "./none", "../none", "~/none", "none", "a/b/c"])
def test_a_name_that_is_neither_is_refused(model: str, hub: Hub) -> None:
    """A mistyped path is not sent to the hub."""
    with pytest.raises(ModelNotFoundError, match="neither a folder, a GGUF file, nor a hub id"):
        model_folder(model, [])
    assert hub.requested == []


def test_a_failed_download_is_one_line(hub: Hub) -> None:
    """The message has the model and the reason."""
    with pytest.raises(ModelNotFoundError) as caught:
        model_folder("org/other", [])
    assert str(caught.value) == (
        f"model 'org/other' is not a folder, and the hub {hub.url} has no model org/other, or it "
        "is private: check the name, and set HF_TOKEN to a token that may read it (it is not set)"
    )
