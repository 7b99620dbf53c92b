"""From a recipe to a model, its data, its optimizer and its evaluators."""

import dataclasses
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointembed.branches import ENCODERS, EXPANDERS
from jointembed.data import DATASETS, TOKENS, VIEWS
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.samples import CaptionSamples, ImageSamples, PictureView
from jointembed.data.token_cache import cached_tokens
from jointembed.data.tokens import Tokens
from jointembed.errors import RecipeError
from jointembed.evaluation import EVALUATORS
from jointembed.evaluation.protocols import PROTOCOLS
from jointembed.inference.embed import Precision, cached_rows, frozen_image_rows
from jointembed.model import JointEmbedding, from_config
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.objective import Objective
from jointembed.objectives.regularized import Regularized
from jointembed.optim import OPTIMIZERS, SCHEDULES
from jointembed.optim.groups import parameter_groups
from jointembed.recipe import (
    Block,
    DataRecipe,
    EvaluationRecipe,
    Recipe,
    check_block,
    check_schedule,
    expand_variables,
    nearest,
)
from jointembed.training.log import check_trackers

SPLITS = ("train", "validation", "test")
Data = CaptionData | ImageData
MICRO_BATCH = "training.micro_batch splits a batch exactly: the loss is the whole batch's, memory that of a part"


# -- recipe -> checked recipe ---------------------------------------------------------------------------------------


def check(recipe: Recipe) -> Recipe:
    """The recipe with every named block checked against its constructor and its defaults filled in.

    Raises:
        RecipeError: with the dotted path.
    """
    branches = {
        name: dataclasses.replace(
            branch,
            encoder=check_block(branch.encoder, ENCODERS, f"branches.{name}.encoder"),
            expander=check_block(branch.expander, EXPANDERS, f"branches.{name}.expander"),
        )
        for name, branch in recipe.branches.items()
    }
    recipe = dataclasses.replace(
        recipe,
        branches=branches,
        data=_check_data(recipe.data),
        objective=check_block(recipe.objective, OBJECTIVES, "objective"),
        optimizer=check_block(recipe.optimizer, OPTIMIZERS, "optimizer"),
        schedule=check_schedule(recipe.schedule, SCHEDULES),
    )
    _check_views(recipe)
    check_trackers(recipe.training.trackers)
    if int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) > 1:
        raise RecipeError(
            "gradient_accumulation_steps: the loss couples the samples of a batch, so the gradients of parts do not "
            f"add up to its gradient; leave it at 1. {MICRO_BATCH}"
        )
    return dataclasses.replace(recipe, evaluation=_check_evaluation(recipe))


def has_captions(data: DataRecipe) -> bool:
    """Whether the training data set gives captions, by the annotation of its constructor."""
    return typing.get_type_hints(DATASETS[data.train["name"]])["return"] is CaptionData


def _check_data(data: DataRecipe) -> DataRecipe:
    blocks: dict[str, Any] = {
        split: _optional(getattr(data, split), DATASETS, f"data.{split}") for split in ("train", "validation", "test")
    }
    pipelines = ("image", "image_evaluation", "audio", "audio_evaluation")
    blocks |= {name: _optional(getattr(data, name), VIEWS, f"data.{name}") for name in pipelines}
    data = dataclasses.replace(data, **blocks, text=_optional(data.text, TOKENS, "data.text"))
    if data.image is not None and data.audio is not None:
        raise RecipeError("data.audio: data.image is given too; a data set holds pictures or sound")
    kind = "image" if data.audio is None else "audio"
    view, evaluation = getattr(data, kind), getattr(data, f"{kind}_evaluation")
    if view is None:
        raise RecipeError("data.image: missing; pictures need a view pipeline")
    if has_captions(data) and data.text is None:
        raise RecipeError("data.text: missing; captions need tokens")
    if not has_captions(data) and data.text is not None:
        raise RecipeError(f"data.text: the data set {data.train['name']} has no captions")
    if evaluation is None:
        if construct(view, VIEWS).random:
            raise RecipeError(f"data.{kind}_evaluation: missing; data.{kind} is random, evaluation is not")
        evaluation = view
    return dataclasses.replace(data, **{f"{kind}_evaluation": evaluation})


def _check_views(recipe: Recipe) -> None:
    given = [*view_pipeline(recipe.data).views, *(["text"] if recipe.data.text else [])]
    for view in recipe.views:
        if view not in given:
            raise RecipeError(f"views.{view}: the data gives no such view{nearest(view, given)}")
    objective = make_objective(recipe)
    objective.check_views(recipe.views)
    objective.check_branches(recipe.views)


def _check_evaluation(recipe: Recipe) -> EvaluationRecipe:
    options = recipe.evaluation
    captions = has_captions(recipe.data)
    evaluators = options.evaluators
    if evaluators is None:
        evaluators = [{"name": "retrieval"}] if captions else [{"name": "knn"}, {"name": "collapse"}]
    evaluators = [
        check_block(one, EVALUATORS, f"evaluation.evaluators.{number}") for number, one in enumerate(evaluators)
    ]
    for number, one in enumerate(evaluators):
        if captions != (one["name"] == "retrieval"):
            has = "captions" if captions else "no captions"
            raise RecipeError(f"evaluation.evaluators.{number}: {one['name']} does not fit data with {has}")
    if options.protocol not in PROTOCOLS:
        raise RecipeError(f"evaluation.protocol: no {options.protocol!r}{nearest(options.protocol, PROTOCOLS)}")
    views = options.views or [next(iter(recipe.views))]
    for view in views:
        if view not in recipe.views:
            raise RecipeError(f"evaluation.views: no view {view!r}{nearest(view, recipe.views)}")
    numbers = [name for one in evaluators for name in construct(one, EVALUATORS).numbers]
    return dataclasses.replace(
        options,
        evaluators=evaluators,
        embedding=options.embedding or ("z" if captions else "h"),
        views=None if captions else views,
        select=options.select or numbers[0],
    )


def _optional(block: Block | None, table: dict[str, Any], path: str) -> Block | None:
    return None if block is None else check_block(block, table, path)


def construct(block: Block, table: Mapping[str, Any], *given: Any) -> Any:
    """What a checked block names, made with its arguments."""
    return table[block["name"]](*given, **{key: value for key, value in block.items() if key != "name"})


# -- recipe -> parts ------------------------------------------------------------------------------------------------


def dataset(recipe: Recipe, split: str) -> Data:
    """One split's pictures, with captions or labels. Raises RecipeError where the recipe names none."""
    block = getattr(recipe.data, split)
    if block is None:
        raise RecipeError(f"data.{split}: the recipe names no {split} data")
    return construct(expand_variables(block, f"data.{split}"), DATASETS)


def caption_data(recipe: Recipe, split: str) -> CaptionData:
    """One split of data with captions. Raises RecipeError where it has none."""
    data = dataset(recipe, split)
    if not isinstance(data, CaptionData):
        raise RecipeError(f"data.{split}: {data.name} has no captions; retrieval cannot be measured")
    return data


def view_pipeline(data: DataRecipe, *, evaluation: bool = False) -> PictureView:
    """The pipeline of pictures, or of sound, in training or in evaluation."""
    kind = "image" if data.audio is None else "audio"
    block = getattr(data, f"{kind}_evaluation" if evaluation else kind)
    assert block is not None  # check() saw to it
    return construct(block, VIEWS)


def tokens_of(recipe: Recipe, train: Data) -> Tokens | None:
    """The tokenizer, its vocabulary from the training captions; None for data without captions."""
    if recipe.data.text is None or not isinstance(train, CaptionData):
        return None
    return construct(expand_variables(recipe.data.text, "data.text"), TOKENS, train.texts)


def make_samples(recipe: Recipe, train: Data, tokens: Tokens | None, cached: Tensor | None = None) -> Any:
    """Training samples of a data set, `cached` representations in place of its pictures."""
    view = view_pipeline(recipe.data)
    if isinstance(train, ImageData):
        return ImageSamples(train, view, recipe.seed)
    assert tokens is not None  # captions have them
    ids = cached_tokens(tokens, train.texts, train.fingerprint, cache_folder())
    return CaptionSamples(train, view, tokens, recipe.data.captions, recipe.seed, cached=cached, ids=ids)


def make_objective(recipe: Recipe) -> Objective:
    """The objective, regularised where the recipe says so; without what `attach` makes."""
    objective = construct(recipe.objective, OBJECTIVES)
    if recipe.regularize is None:
        return objective
    return Regularized(objective, **dataclasses.asdict(recipe.regularize))


def model_config(recipe: Recipe, max_length: int | None) -> dict[str, Any]:
    """What rebuilds the model without the recipe: the content of `config.json`."""
    branches = expand_variables(
        {
            name: {"encoder": branch.encoder, "expander": branch.expander, "train": branch.train}
            for name, branch in recipe.branches.items()
        },
        "branches",
    )
    return {
        "name": recipe.name,
        "views": recipe.views,
        "branches": branches,
        "image": recipe.data.image_evaluation if recipe.data.audio is None else recipe.data.audio_evaluation,
        "max_length": max_length,
        "embedding": recipe.evaluation.embedding,
    }


def make_model(
    recipe: Recipe, tokens: Tokens | None, *, pretrained: bool = True, samples: int | None = None
) -> JointEmbedding:
    """The model with its objective.

    Args:
        recipe: from `check`.
        tokens: None without text.
        pretrained: load the weights that the encoders name.
        samples: of the training set; where given, the objective's own parts and the EMA targets are made too.
    """
    config = model_config(recipe, None if tokens is None else tokens.max_length)
    model = from_config(config, tokens, make_objective(recipe), pretrained=pretrained)
    if has_captions(recipe.data):
        _check_widths(recipe, model)
    if samples is not None:
        if recipe.init_from is not None:
            initialise(model, expand_variables(recipe.init_from, "init_from"))
        model.attach(samples)
    return model


def initialise(model: JointEmbedding, source: str) -> None:
    """Copy the branches of a trained model; an expander that the recipe leaves out (`widths: []`) is not copied.

    Raises:
        RecipeError: a branch that is not there, or of another shape.
    """
    other = JointEmbedding.from_pretrained(source)
    for name, branch in model.branches.items():
        if name not in other.branches:
            raise RecipeError(f"init_from: {source} has no branch {name!r}{nearest(name, other.branches)}")
        part = "" if any(True for _ in branch.get_submodule("expander").parameters()) else "encoder"
        try:
            branch.get_submodule(part).load_state_dict(other.branches[name].get_submodule(part).state_dict())
        except RuntimeError as error:
            raise RecipeError(f"init_from: {source}, branch {name!r}: {' '.join(str(error).split())[:400]}") from None


def _check_widths(recipe: Recipe, model: JointEmbedding) -> None:
    kind = recipe.evaluation.embedding
    widths = {view: model.width(view) for view in recipe.views}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{view} {width}" for view, width in widths.items())
        raise RecipeError(f"evaluation.embedding: {kind!r} has unequal widths ({found}); views cannot be compared")


def precision_of(recipe: Recipe, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware computes it."""
    if recipe.training.precision != "auto":
        return recipe.training.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def cache_folder() -> Path:
    """Where representations of frozen encoders are kept: `JOINTEMBED_CACHE`, else `~/.cache/jointembed`."""
    if "JOINTEMBED_CACHE" in os.environ:
        return Path(os.environ["JOINTEMBED_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "jointembed"


class FrozenRows:
    """Cached image representations of the splits, where the recipe's image encoder is frozen and its view fixed."""

    def __init__(self, recipe: Recipe, model: JointEmbedding) -> None:
        """Decide whether there is anything to cache."""
        self.recipe, self.model = recipe, model
        view = view_pipeline(recipe.data)
        branch = model.branch("image") if "image" in model.views else None
        self.active = bool(recipe.data.cache and branch is not None and branch.frozen and not view.random)

    def __call__(self, data: Data) -> Tensor | None:
        """Representations (I, R), or None where pictures go through the encoder each time."""
        if not self.active or not isinstance(data, CaptionData):
            return None
        inputs = {"view": self.recipe.data.image_evaluation, "data": data.fingerprint}
        compute = frozen_image_rows(
            self.model,
            view_pipeline(self.recipe.data, evaluation=True),
            data,
            batch=self.recipe.evaluation.batch,
            workers=self.recipe.loader.workers,
        )
        return cached_rows(self.model.branch("image").encoder, inputs, compute, cache_folder())


def optimizer_of(recipe: Recipe, model: JointEmbedding) -> torch.optim.Optimizer:
    """The optimizer over parameter groups with their own weight decay and learning-rate scale."""
    scale = {
        f"branches.{name}.encoder": branch.lr_scale for name, branch in recipe.branches.items() if branch.lr_scale != 1
    }
    options = recipe.parameters
    own = model.objective.constant_lr if model.objective is not None else ()
    groups = parameter_groups(
        model,
        weight_decay=recipe.optimizer.get("weight_decay", 0.0),
        scale=scale,
        decay_all=options.decay_all,
        vector_scale=options.vector_scale,
        constant=[f"objective.{path}" for path in own] if options.constant is None else options.constant,
    )
    return construct(recipe.optimizer, OPTIMIZERS, groups)


def make_evaluators(recipe: Recipe) -> list[Any]:
    """The evaluators of data without captions, made with their arguments."""
    return [construct(one, EVALUATORS) for one in recipe.evaluation.evaluators or []]
