"""Vectors and scores equal transformers', for every family, pooling and mix of lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference.encoder.batch import EncoderInput
from inference.encoder.engine import LoadedEncoder
from inference.encoder.loading import load_encoder
from inference.encoder.model import EncoderModel
from inference.encoder.native_encoder import NativeEncoder
from inference.settings import InferenceSettings
from mesh.protocol.model_kind import ModelKind
from tests.inference.encoder.encoders import (
    CROSS_ENCODERS,
    EMBEDDINGS,
    random_texts,
    reference_score,
    reference_vector,
    save,
    write_modules,
)

LENGTHS = (5, 1, 33, 5, 17, 128, 2, 5)


def load(folder: Path, **fields: Any) -> LoadedEncoder:
    """An encoder with a folder's model, on one thread of the CPU."""
    settings = {"device": "cpu", "threads": 1, "model_name": "encoder", **fields}
    return load_encoder(InferenceSettings.model_construct(**settings), folder)


def model_of(loaded: LoadedEncoder) -> EncoderModel:
    """The model that the queue computes with."""
    model = loaded.queue._model
    assert isinstance(model, EncoderModel)
    return model


def vectors(model: EncoderModel, texts: list[list[int]]) -> torch.Tensor:
    """[num_texts, hidden_size] of one batch."""
    return torch.from_numpy(model.compute([EncoderInput(text, len(text)) for text in texts]))


KERNELS = ("torch", "native")


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", EMBEDDINGS)
def test_vectors_equal_transformers(family: str, kernels: str, tmp_path: Path) -> None:
    """In float32 no value differs by more than 1e-5, whatever the lengths in the batch."""
    reference = save(EMBEDDINGS[family], tmp_path)
    texts = random_texts(*LENGTHS)
    loaded = load(tmp_path, kernels=kernels)
    found = vectors(model_of(loaded), texts)
    expected = torch.stack([reference_vector(reference, text) for text in texts])
    assert (found - expected).abs().max() <= 1e-5
    assert loaded.info.kind is ModelKind.EMBEDDING
    assert (loaded.info.embedding_length, loaded.info.dtype) == (64, "float32")


def test_a_text_that_overflows_leaves_nothing_for_the_next_batch(tmp_path: Path) -> None:
    """The buffers of keys and values are used again, also after values that are not finite."""
    reference = save(EMBEDDINGS["bert"], tmp_path)
    model = model_of(load(tmp_path, kernels="native"))
    encoder = model.encoder
    assert isinstance(encoder, NativeEncoder)
    [text] = random_texts(9)
    words = encoder._embeddings.words
    before = words[5].clone()
    words[5] = torch.nan
    assert vectors(model, [[5] * 30, [5] * 30]).isnan().all()
    words[5] = before
    expected = reference_vector(reference, text)
    assert (vectors(model, [text])[0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_the_files_choose_pooling_and_normalisation(
    pooling: str, normalizes: bool, tmp_path: Path
) -> None:
    """modules.json and 1_Pooling/config.json, as sentence-transformers writes them."""
    reference = save(EMBEDDINGS["bert"], tmp_path)
    write_modules(tmp_path, pooling, normalizes=normalizes)
    texts = random_texts(7, 3)
    found = vectors(model_of(load(tmp_path, kernels="torch")), texts)
    expected = torch.stack(
        [reference_vector(reference, text, pooling, normalizes=normalizes) for text in texts]
    )
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", CROSS_ENCODERS)
def test_scores_equal_transformers(family: str, kernels: str, tmp_path: Path) -> None:
    """Pairs with token types; mapped to 0 to 1 by default."""
    reference = save(CROSS_ENCODERS[family], tmp_path)
    texts = random_texts(*LENGTHS)
    firsts = [max(1, len(text) // 3) for text in texts]
    loaded = load(tmp_path, kernels=kernels)
    rows = model_of(loaded).compute(
        [EncoderInput(*each) for each in zip(texts, firsts, strict=True)]
    )
    logits = [reference_score(reference, *each) for each in zip(texts, firsts, strict=True)]
    assert rows.shape == (len(texts), 1)
    assert torch.from_numpy(rows[:, 0]).allclose(torch.tensor(logits).sigmoid(), atol=1e-5)
    assert loaded.info.kind is ModelKind.SCORE


@pytest.mark.parametrize(
    "fields",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_a_cross_encoder_may_give_plain_logits(fields: dict[str, Any], tmp_path: Path) -> None:
    """As the ms-marco models, whose config.json names the identity."""
    reference = save(CROSS_ENCODERS["bert"], tmp_path, **fields)
    [text] = random_texts(20)
    found = model_of(load(tmp_path, kernels="torch")).compute([EncoderInput(text, 8)])
    assert found[0, 0] == pytest.approx(reference_score(reference, text, 8), abs=1e-4)


@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [("bfloat16", "torch"), ("bfloat16", "native"), ("int8", "torch"), ("int8", "native")],
)
def test_smaller_types_keep_the_direction(dtype: str, kernels: str, tmp_path: Path) -> None:
    """Cosine of at least 0.99 with float32."""
    reference = save(EMBEDDINGS["bert"], tmp_path)
    texts = random_texts(*LENGTHS)
    found = vectors(model_of(load(tmp_path, kernels=kernels, dtype=dtype)), texts)
    expected = torch.stack([reference_vector(reference, text) for text in texts])
    assert torch.cosine_similarity(found, expected).min() > 0.99
