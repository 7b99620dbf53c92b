"""Recipe and model -> cached representations of frozen encoders."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from jointembed import distributed
from jointembed.build import Data, cache_folder, view_pipeline
from jointembed.data.records import CaptionData, stamps_of
from jointembed.errors import RecipeError
from jointembed.inference.frozen import cached_rows, drawn_image_rows, frozen_image_rows, frozen_text_rows
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe

_LOOKED_AT = 16  # pictures of a data set


def some_pixels(data: CaptionData) -> str:
    """SHA-256 of some evenly spaced pictures, decoded: names and sizes alone may be those of other pictures."""
    digest = hashlib.sha256()
    count = len(data.pictures)
    for number in np.linspace(0, count - 1, min(count, _LOOKED_AT)).round().astype(int).tolist():
        digest.update(np.ascontiguousarray(data.pictures.open(number)).tobytes())
    return digest.hexdigest()


def key_of_pictures(data: CaptionData) -> dict[str, str]:
    """What tells these pictures from others, as part of a key; every rank calls it together.

    Names and sizes may be those of other pictures: a change of one shows in the time of its file, and a change of all
    in the pixels of some, even where a copy has set the times back. A copy with times of its own is computed anew.
    """
    stamps = hashlib.sha256(np.asarray(stamps_of(data.pictures), dtype="<i8").tobytes()).hexdigest()
    # the main rank's: on another machine's copy of the data the times are others, and the key must be one
    return {"data": data.fingerprint, "pixels": some_pixels(data), "files": distributed.broadcast_object(stamps)}


class FrozenRows:
    """Cached representations of the splits: of pictures where their encoder is frozen, of captions where theirs is."""

    def __init__(self, recipe: Recipe, model: JointEmbedding) -> None:
        """Decide whether there is anything to cache. Raises RecipeError for kept views that cannot be kept."""
        self.recipe, self.model = recipe, model
        view = view_pipeline(recipe.data)
        frozen = self._frozen("image")
        self.drawn = recipe.data.cache_views if view.random else None  # views of each picture that are kept
        if self.drawn is not None and (not frozen or view.views != ("image",)):
            raise RecipeError("data.cache_views: needs data.cache, a frozen branch image, and a pipeline of one view")
        self.active = frozen and (not view.random or self.drawn is not None)

    def _frozen(self, view: str) -> bool:
        return self.recipe.data.cache and view in self.model.views and self.model.branch(view).frozen

    def __call__(self, data: Data) -> Tensor | None:
        """Representations (I, R) of the view of evaluation, or None where pictures go through the encoder each time."""
        return self._fixed(data, evaluation=True)

    def _fixed(self, data: Data, *, evaluation: bool) -> Tensor | None:
        if not self.active or not isinstance(data, CaptionData):
            return None
        view = self.recipe.data.image_evaluation if evaluation else self.recipe.data.image
        inputs = {"view": view, **key_of_pictures(data)}
        compute = frozen_image_rows(
            self.model,
            view_pipeline(self.recipe.data, evaluation=evaluation),
            data,
            batch=self.recipe.evaluation.batch,
            workers=self.recipe.loader.workers,
        )
        return self._cached("image", inputs, compute)

    def _cached(self, view: str, inputs: dict[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        block = self.recipe.branches[self.recipe.views[view]].encoder  # pooling and the like are in no weights
        return cached_rows(self.model.branch(view).encoder, inputs | {"encoder": block}, compute, cache_folder())

    def rows(self, data: Data) -> dict[str, Tensor | None]:
        """Both sides, as the functions that embed captioned data take them: `cached` and `cached_text`."""
        return {"cached": self(data), "cached_text": self.texts(data)}

    def texts(self, data: Data) -> Tensor | None:
        """Representations (T, R) of all captions, or None where they go through the encoder each time."""
        tokens = self.model.tokens
        if tokens is None or not isinstance(data, CaptionData) or not self._frozen("text"):
            return None
        inputs = {
            "tokens": tokens.tokenizer.to_str(), "max_length": tokens.max_length, "data": data.fingerprint,
        }  # fmt: skip
        compute = frozen_text_rows(self.model, data, batch=self.recipe.evaluation.batch)
        return self._cached("text", inputs, compute)

    def of_training(self, data: Data, rows: Tensor | None) -> Tensor | None:
        """What training samples take: rows of its fixed view, or those of all kept random views, (I, V, R).

        `rows` are those of evaluation, which are taken where training has the same view.
        """
        recipe = self.recipe
        if self.drawn is None or not isinstance(data, CaptionData):
            same = recipe.data.image == recipe.data.image_evaluation
            return rows if same else self._fixed(data, evaluation=False)
        inputs = {"view": recipe.data.image, **key_of_pictures(data), "drawn": self.drawn, "seed": recipe.seed}
        compute = drawn_image_rows(
            self.model,
            view_pipeline(recipe.data),
            data,
            views=self.drawn,
            seed=recipe.seed,
            batch=recipe.evaluation.batch,
            workers=recipe.loader.workers,
        )
        return self._cached("image", inputs, compute)
