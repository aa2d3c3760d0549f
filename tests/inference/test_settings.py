"""Settings of the inference service, and the served model name."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.model.loading import EngineOptions
from inference.runner.invariance import Invariance
from inference.settings import InferenceSettings
from mesh.process.settings import load


def read(*arguments: str) -> InferenceSettings:
    """The settings of a process that is started with these arguments."""
    return load(InferenceSettings, "inference", arguments)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((), "demo"),
        (("--model", "org/model"), "org/model"),
        (("--model", "org/model@v1"), "org/model"),
        (("--model", "/data/models/tiny"), "tiny"),
        (("--model", "./tiny/"), "tiny"),
        (("--model", "~/models/tiny"), "tiny"),
        (("--model", "org/model", "--model-name", "chat"), "chat"),
        (("--model", "models/small.Q4_K.gguf"), "small.Q4_K"),
        (("--model", "org/model/small.gguf"), "small"),
    ],
)
def test_the_served_name_is_the_setting_or_the_folder_or_the_hub_id(
    arguments: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id includes its owner; of a folder only the last part is used."""
    (tmp_path / "models" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert read(*arguments).served_name == name


def test_variables_have_the_prefix_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is INFERENCE_ and the field's name; a flag takes precedence."""
    monkeypatch.setenv("INFERENCE_MAX_NUM_SEQS", "7")
    monkeypatch.setenv("INFERENCE_BLOCK_SIZE", "32")
    settings = read("--block-size", "8")
    assert (settings.max_num_seqs, settings.block_size) == (7, 8)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--device", "tpu"), "device"),
        (("--dtype", "int2"), "dtype"),
        (("--max-num-seqs", "0"), "max_num_seqs"),
        (("--max-num-batched-tokens", "15"), "max_num_batched_tokens"),
    ],
)
def test_an_invalid_value_is_refused_with_its_variable(
    arguments: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process exits before it loads a model, and names the setting."""
    with pytest.raises(SystemExit):
        read(*arguments)
    said = capsys.readouterr().err.lower()
    assert f"inference_{name}" in said


def test_engine_options_have_the_defaults_of_the_settings() -> None:
    """An engine built without the service's settings speculates as the service does."""
    settings = InferenceSettings.model_construct(model_name="m")
    options = EngineOptions.defaults(Path("folder"), "m")
    assert options == EngineOptions.from_settings(settings, Path("folder"))
    assert (options.name, options.folder) == ("m", Path("folder"))
    assert options.num_speculative_tokens == 8
    assert options.batch_invariance is Invariance.SEEDED
