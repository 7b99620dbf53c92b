"""What only opened data sets tell: whether their labels agree, and whether the recipe's evaluators can judge them."""

import itertools
from collections.abc import Mapping

from jointembed.build import Data, make_evaluators
from jointembed.data.records import ImageData
from jointembed.errors import RecipeError
from jointembed.evaluation.evaluators import KNN
from jointembed.recipe import Recipe


def check_classes(data: Mapping[str, Data]) -> None:
    """Refuse splits in which a label means another class than in the training data.

    Args:
        data: by split, `train` among them; those without labels go with any.

    Raises:
        RecipeError: naming both data sets and the first class that differs.
    """
    train = data["train"]
    for split, one in data.items():
        names = [part.classes for part in (train, one) if isinstance(part, ImageData) and part.classes is not None]
        if len(names) == 2 and names[0] != names[1]:
            number = next(n for n, (a, b) in enumerate(itertools.zip_longest(*names)) if a != b)
            known, found = (repr(some[number]) if number < len(some) else "missing" for some in names)
            raise RecipeError(
                f"data.{split}: class {number} is {found} in {one.name} and {known} in {train.name} (data.train); "
                "labels can be compared only where all classes are the same"
            )


def check_evaluators(recipe: Recipe, data: Mapping[str, Data]) -> None:
    """Refuse evaluators that the data cannot be judged by, before anything is trained.

    Args:
        recipe: with its evaluators.
        data: by split, `train` among them.

    Raises:
        RecipeError: naming the evaluator and the data set without labels, or with fewer pictures than neighbours.
    """
    for evaluator in make_evaluators(recipe):
        name = type(evaluator).__name__.lower()
        for split, one in data.items():
            if isinstance(one, ImageData) and getattr(evaluator, "needs_train", False) and one.labels is None:
                raise RecipeError(
                    f"evaluation.evaluators: {name} needs labels, and {one.name} (data.{split}) has none; "
                    "give the others alone, as in evaluation.evaluators=[{name: collapse}]"
                )
        known = len(data["train"].pictures)
        if isinstance(evaluator, KNN) and max(evaluator.k, default=0) > known:
            raise RecipeError(
                f"evaluation.evaluators: knn of {max(evaluator.k)} neighbours, and data.train has {known} pictures; "
                "give k, as in {name: knn, k: [20]}"
            )
