"""A model in the clothes that other libraries' evaluators expect. None of those libraries is imported here."""

from typing import Any

import numpy as np
from torch import Tensor

from jointembed.model import JointEmbedding


class SentenceEncoder:
    """What the `InformationRetrievalEvaluator` of sentence-transformers asks of a model.

    Queries are of one view, documents of another.

    Args:
        model: any.
        query: view of the queries.
        document: view of the documents.

    Attributes:
        similarity_fn_name: `cosine`.
        model_card_data: takes the evaluator's numbers; `metrics` has the last ones.
    """

    similarity_fn_name = "cosine"

    def __init__(self, model: JointEmbedding, *, query: str = "text", document: str = "image") -> None:
        """Raises JointEmbedError for a view that the model does not have."""
        for view in (query, document):
            model.branch(view)
        self.model, self.query, self.document = model, query, document
        self.model_card_data = _Numbers()

    def encode_query(self, inputs: Any, **options: Any) -> np.ndarray | Tensor:
        """Rows of the query view; `options` as sentence-transformers calls them. See `JointEmbedding.encode`."""
        return self.model.encode(inputs, self.query, **_ours(options))

    def encode_document(self, inputs: Any, **options: Any) -> np.ndarray | Tensor:
        """Rows of the document view, likewise."""
        return self.model.encode(inputs, self.document, **_ours(options))

    def similarity(self, a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
        """Cosines (N, M)."""
        return self.model.similarity(a, b)


class _Numbers:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, float], *_: Any, **__: Any) -> None:
        """Keep the evaluator's numbers."""
        self.metrics = dict(metrics)


_NAMES = {
    "batch_size": "batch_size",
    "convert_to_numpy": "convert_to_numpy",
    "convert_to_tensor": "convert_to_tensor",
    "device": "device",
    "normalize_embeddings": "normalize",
    "show_progress_bar": "show_progress",
}


def _ours(options: dict[str, Any]) -> dict[str, Any]:
    """Our names for these options; those that are None, as prompts are by default, say nothing. Raises TypeError."""
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(given.keys() - _NAMES.keys())
    if unknown:
        raise TypeError(f"{unknown[0]}: a joint embedding has no such option; there are {', '.join(_NAMES)}")
    return {_NAMES[name]: value for name, value in given.items()}
