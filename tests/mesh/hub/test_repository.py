"""Names on the hub, and the files of a repository that a service needs."""

from __future__ import annotations

import pytest

from mesh.hub.problems import HubError
from mesh.hub.reference import HubReference, hub_reference
from mesh.hub.repository import needed_files

MODEL = HubReference("org/model")
PATTERNS = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.jinja")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("org/model", HubReference("org/model")),
        ("org/model@v1.0", HubReference("org/model", "v1.0")),
        ("org/model@refs/pr/3", HubReference("org/model", "refs/pr/3")),
        ("org/model@feature/x", HubReference("org/model", "feature/x")),
        ("org/model/m.gguf", HubReference("org/model", "main", "m.gguf")),
        ("org/model@v1/big/m.gguf", HubReference("org/model", "v1", "big/m.gguf")),
        ("org/model@refs/pr/3/m.gguf", HubReference("org/model", "refs/pr/3", "m.gguf")),
    ],
)
def test_a_name_has_a_revision_and_a_file(given: str, expected: HubReference) -> None:
    """As in the hub's URIs; it is written as it was read."""
    assert hub_reference(given) == expected
    assert str(expected) == given


@pytest.mark.parametrize(
    "given", ["/no/such", "./none", "../none", "~/none", "none", "a/b/c", "a/b@", "a/b@v/c/d.txt/"]
)
def test_paths_and_incomplete_names_are_none_of_the_hub(given: str) -> None:
    """A mistyped path is not sent to the hub."""
    reference = hub_reference(given)
    assert reference is None or "/" in reference.revision


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (["config.json", "model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (["model.safetensors", "consolidated.safetensors"], "model.safetensors"),
        (["model.safetensors", "unet/model.safetensors"], "model.safetensors"),
        (["original/model.safetensors", "weights.safetensors"], "weights.safetensors"),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00001.safetensors",
                "model.safetensors",
                "model.fp16-00001.safetensors",
            ],
            "model-00001-of-00001.safetensors",
        ),
    ],
)
def test_the_weights_are_downloaded_once(names: list[str], needed: str) -> None:
    """No further copies, in another layout, type or folder."""
    found = needed_files(MODEL, names, PATTERNS)
    assert [name for name in found if name.endswith(".safetensors")] == [needed]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["config.json", "pytorch_model.bin"],
            "org/model has weights as pickles only (pytorch_model.bin), which can run code when "
            "they are loaded: convert them to safetensors; "
            "https://huggingface.co/spaces/safetensors/convert opens a pull request with them, to "
            "be named as org/model@refs/pr/NUMBER",
        ),
        (
            ["config.json", "tf_model.h5", "flax_model.msgpack"],
            "org/model has weights in formats that are not served (tf_model.h5, "
            "flax_model.msgpack): convert them to safetensors; "
            "https://huggingface.co/spaces/safetensors/convert opens a pull request with them, to "
            "be named as org/model@refs/pr/NUMBER",
        ),
        (
            [f"m.Q{bits}.gguf" for bits in range(2, 8)],
            "org/model has GGUF files: name one of them, such as org/model/m.Q2.gguf (m.Q2.gguf, "
            "m.Q3.gguf, m.Q4.gguf, m.Q5.gguf and 2 more)",
        ),
        (
            ["config.json"],
            "org/model has no *.safetensors or *.gguf file: choose a model with weights",
        ),
    ],
)
def test_formats_that_are_not_served_are_refused_by_name(names: list[str], message: str) -> None:
    """With what to do instead."""
    with pytest.raises(HubError) as caught:
        needed_files(MODEL, names, PATTERNS)
    assert str(caught.value) == message


def test_a_missing_gguf_file_is_refused_with_the_others() -> None:
    """The user sees the right name."""
    wanted = HubReference("org/model", "v1", "m.Q4.gguf")
    with pytest.raises(HubError) as caught:
        needed_files(wanted, ["m.Q4_K_M.gguf", "README.md"], ["m.Q4.gguf"])
    assert str(caught.value) == (
        "org/model@v1 has no file m.Q4.gguf: name one of its GGUF files (m.Q4_K_M.gguf)"
    )
