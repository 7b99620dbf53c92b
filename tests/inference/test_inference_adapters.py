import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_runs import write_pictures
from exported_models import load, save_model

from jointembed.errors import JointEmbedError
from jointembed.evaluation.retrieval import retrieval_metrics
from jointembed.inference.adapters import SentenceEncoder
from jointembed.model import JointEmbedding

CAPTIONS = ["a dog", "two dogs run", "a red ball", "a wide beach of white sand", "one cat", "ball and dog", "white cat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> JointEmbedding:
    image = {"name": "torchvision", "model": "resnet18", "widen": 0.125}
    folder = tmp_path_factory.mktemp("adapter") / "model"
    return load(save_model(folder, {"image": image, "text": {"name": "gru", "embedding": 6, "hidden": 10}}))


def test_the_evaluator_of_sentence_transformers_gives_our_numbers(model: JointEmbedding, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="the extra interop is not installed")
    theirs: Any = importlib.import_module("sentence_transformers.sentence_transformer.evaluation")
    pictures = sorted(write_pictures(tmp_path / "pictures", 7).rglob("[0-9]*.png"))
    image = np.asarray(model.encode_image(pictures))
    text = np.asarray(model.encode_text(CAPTIONS))
    ours = retrieval_metrics(image, text, np.arange(7), k=(1, 3, 5))
    assert ours["tied_queries"] == 0 and 0 < ours["t2i_R@3"] < 100
    texts = {f"t{number}": one for number, one in enumerate(CAPTIONS)}
    shown = {f"i{number}": str(one) for number, one in enumerate(pictures)}
    for query, document, queries, corpus, name in (
        ("text", "image", texts, shown, "t2i"), ("image", "text", shown, texts, "i2t"),
    ):  # fmt: skip
        relevant = {one: {other} for one, other in zip(queries, corpus, strict=True)}
        evaluator = theirs.InformationRetrievalEvaluator(queries, corpus, relevant, accuracy_at_k=[1, 3, 5], name=name)
        encoder = SentenceEncoder(model, query=query, document=document)
        found = evaluator(encoder)
        for k in (1, 3, 5):
            assert 100 * found[f"{name}_cosine_accuracy@{k}"] == pytest.approx(ours[f"{name}_R@{k}"])
        assert encoder.model_card_data.metrics == found


def test_options_have_the_names_of_sentence_transformers(model: JointEmbedding) -> None:
    encoder = SentenceEncoder(model)
    rows = encoder.encode_query(
        ["a dog"], prompt=None, batch_size=1, normalize_embeddings=False, show_progress_bar=False
    )
    assert np.array_equal(rows, model.encode_text(["a dog"], normalize=False))
    with pytest.raises(TypeError, match="truncate_dim: a joint embedding has no such option"):
        encoder.encode_query(["a dog"], truncate_dim=3)
    with pytest.raises(JointEmbedError, match="no view 'sound'"):
        SentenceEncoder(model, document="sound")
