"""Models in the cache: what is downloaded, kept, shared between processes, and used offline."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from mesh.hub.hub_cache import cached_model
from mesh.hub.problems import HubError
from mesh.hub.reference import HubReference
from tests.mesh.hub.fake_hub import COMMIT, OLD_COMMIT, REPOSITORY, WEIGHTS, Hub, Refusal

MODEL = HubReference(REPOSITORY)
PATTERNS = ("config.json", "*.safetensors", "*.jinja")
NEEDED = {"config.json", "model.safetensors", "chat_template.jinja"}

pytestmark = pytest.mark.timeout(60)


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_is_downloaded_into_the_documented_folder_and_kept(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only one copy of the weights; with a progress bar; whole files are not requested again."""
    folder = cached_model(MODEL, PATTERNS)
    assert folder == tmp_path / "home/hub/models--org--model/snapshots" / COMMIT
    assert names_in(folder) == NEEDED
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "100%" in capfd.readouterr().err, "no progress bar"
    hub.requested.clear()
    assert cached_model(MODEL, PATTERNS) == folder
    assert not [path for method, path, _ in hub.requested if method == "GET" and "resolve" in path]


def test_a_broken_connection_is_continued(hub: Hub) -> None:
    """The rest is requested, not the whole file."""
    hub.files["model.safetensors"] = weights = WEIGHTS * 16
    hub.break_after["model.safetensors"] = 11 * 2**20
    folder = cached_model(MODEL, PATTERNS)
    assert (folder / "model.safetensors").read_bytes() == weights
    first, second = hub.ranges("model.safetensors")
    assert (first, second) == (None, f"bytes={constants.DOWNLOAD_CHUNK_SIZE}-")


def test_revisions_are_kept_apart_and_share_equal_files(hub: Hub) -> None:
    """The tag has an older configuration and the same weights."""
    new = cached_model(MODEL, PATTERNS)
    old = cached_model(MODEL._replace(revision="v1"), PATTERNS)
    assert (old.name, new.name) == (OLD_COMMIT, COMMIT)
    assert (old / "config.json").read_bytes() == b'{"old": true}'
    assert len(hub.ranges("model.safetensors")) == 1


def test_a_complete_commit_needs_no_request(hub: Hub) -> None:
    """A commit never changes."""
    wanted = MODEL._replace(revision=COMMIT)
    folder = cached_model(wanted, PATTERNS)
    hub.requested.clear()
    assert cached_model(wanted, PATTERNS) == folder
    assert hub.requested == []


def test_offline_the_cache_is_used_without_requests(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with all files; a missing one is reported with what to do."""
    folder = cached_model(MODEL, PATTERNS)
    hub.requested.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cached_model(MODEL, PATTERNS) == folder
    for wanted in (MODEL._replace(revision="v1"), MODEL._replace(repository="org/other")):
        with pytest.raises(HubError) as caught:
            cached_model(wanted, PATTERNS)
        assert str(caught.value) == (
            f"the cache {tmp_path}/home/hub does not have all files of it, and HF_HUB_OFFLINE "
            "forbids downloads: unset it, or copy the model to a folder and name that"
        )
    with pytest.raises(HubError, match="does not have all files"):
        cached_model(MODEL, ("tokenizer.json",))
    assert hub.requested == []


def test_without_the_hub_a_complete_model_is_served(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning; an incomplete one is not."""
    folder = cached_model(MODEL, PATTERNS)
    hub.refusal = Refusal(503)
    with caplog.at_level(logging.WARNING):
        assert cached_model(MODEL, PATTERNS) == folder
    assert [record.message for record in caplog.records] == [
        "hub not usable, serving the cached model"
    ]
    (folder / "model.safetensors").unlink()
    with pytest.raises(HubError, match="fails with status 503"):
        cached_model(MODEL, PATTERNS)


def test_processes_that_start_together_download_once(
    hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """The second waits for the lock of the first, and finds the files."""
    hub.hold.clear()
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(2) as threads:
        folders = [threads.submit(cached_model, MODEL, PATTERNS) for _ in range(2)]
        while "waiting for another process's download" not in caplog.text:
            assert not any(each.done() for each in folders)
            time.sleep(0.01)
        hub.hold.set()
        assert {each.result(30).name for each in folders} == {COMMIT}
    assert hub.ranges("model.safetensors") == [None]
