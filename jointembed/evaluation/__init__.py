"""Honest numbers: embeddings in, named floats out; evaluators by the name that a recipe gives them."""

from jointembed.evaluation.evaluators import KNN, Classifier, Collapse, Linear, Logistic, Retrieval

EVALUATORS = {
    "retrieval": Retrieval,
    "knn": KNN,
    "linear": Linear,
    "logistic": Logistic,
    "classifier": Classifier,
    "collapse": Collapse,
}
