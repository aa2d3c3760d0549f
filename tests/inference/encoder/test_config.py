"""The configuration of an encoder: limits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.encoder.config import is_encoder, load_config
from inference.engine.errors import ModelLoadError
from inference.settings import InferenceSettings
from tests.inference.encoder.encoders import EMBEDDINGS, save, write_modules
from tests.inference.encoder.test_parity import load

BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
}
SCORES = {**BERT, "architectures": ["BertForSequenceClassification"]}


def folder_of(tmp_path: Path, config: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "expected"), [("BertModel", True), ("LlamaForCausalLM", False)]
)
def test_encoders_are_recognised(architecture: str, expected: bool, tmp_path: Path) -> None:
    """By the architecture in config.json; a folder without one is no encoder."""
    assert not is_encoder(tmp_path)
    assert is_encoder(folder_of(tmp_path, {"architectures": [architecture]})) is expected


def test_the_context_is_what_the_files_recommend(tmp_path: Path) -> None:
    """max_seq_length of sentence-transformers; RoBERTa's positions begin after the padding id."""
    folder = folder_of(tmp_path, BERT)
    assert load_config(folder).max_tokens == 130
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert load_config(folder).max_tokens == 32
    roberta = {**BERT, "architectures": ["RobertaModel"], "pad_token_id": 1}
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": null}')
    assert load_config(folder_of(tmp_path, roberta)).max_tokens == 128


def test_the_setting_may_raise_the_context(tmp_path: Path) -> None:
    """INFERENCE_MAX_CONTEXT up to the table of positions."""
    save(EMBEDDINGS["bert"], tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert load(tmp_path).info.max_context == 32
    assert load(tmp_path, max_context=100).info.max_context == 100
    with pytest.raises(ModelLoadError, match=r"at most the model's 130 positions. Given: 131"):
        load(tmp_path, max_context=131)


def test_the_type_of_the_weights_is_checked(tmp_path: Path) -> None:
    """fp8 is for generation models."""
    save(EMBEDDINGS["bert"], tmp_path)
    with pytest.raises(ModelLoadError, match=r"INFERENCE_DTYPE must be one of .* Given: fp8"):
        load(tmp_path, dtype="fp8")
    assert InferenceSettings.model_fields["dtype"].default == "auto"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**BERT, "hidden_act": "silu"}, "hidden_act must be one of gelu,"),
        ({**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type must be"),
        ({**BERT, "is_decoder": True}, "is_decoder must be false"),
        ({**BERT, "num_attention_heads": 5}, "hidden_size must be a multiple of"),
        ({**BERT, "hidden_size": 0}, "hidden_size"),
        ({**SCORES, "id2label": {"0": "a", "1": "b"}}, r"1 label \(id2label\). Given: 2"),
        (SCORES, "1 label"),
        (
            {**SCORES, "num_labels": 1, "sentence_transformers": {"activation_fn": "my.Softmax"}},
            "must be Identity or Sigmoid. Given: 'my.Softmax'",
        ),
    ],
)
def test_what_is_not_computed_is_refused(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """The message names the file and the field."""
    with pytest.raises(ModelLoadError, match=words):
        load_config(folder_of(tmp_path, config))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"modules.json": [{"type": "st.models.Dense", "path": "2_Dense"}]}, "Given: Dense"),
        ({"modules.json": [{"type": "st.models.Transformer", "path": "0_T"}]}, "folder itself"),
        ({"modules.json": {}}, "not a JSON list"),
        ({"modules.json": [{"type": "m.Pooling", "path": "../x"}]}, "path must be a folder's name"),
        ({"1_Pooling/config.json": {"pooling_mode_lasttoken": True}}, "one of cls, mean, max"),
        (
            {
                "1_Pooling/config.json": {
                    "pooling_mode_cls_token": True,
                    "pooling_mode_max_tokens": True,
                }
            },
            "Given: cls\\+max",
        ),
        ({"1_Pooling/config.json": {"include_prompt": False}}, "include_prompt must be true"),
    ],
)
def test_modules_that_are_not_computed_are_refused(
    files: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Before any weight is read."""
    folder = folder_of(tmp_path, BERT)
    write_modules(folder, "mean")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=words):
        load_config(folder)
