"""From a recipe to a model, its data, its optimizer and its evaluators."""

import dataclasses
import os
import typing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jointembed.blocks import construct
from jointembed.branches import ENCODERS, EXPANDERS
from jointembed.branches.transformer import TransformersText, TransformersVision, check_config
from jointembed.data import DATASETS, TOKENS, VIEWS
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.samples import CaptionSamples, ImageSamples, PictureView, text_views
from jointembed.data.subsets import share_of
from jointembed.data.token_cache import cached_tokens
from jointembed.data.tokens import Tokens
from jointembed.data.unreadable import readable
from jointembed.errors import DataError, RecipeError
from jointembed.evaluation import EVALUATORS
from jointembed.evaluation.corrections import CORRECTIONS
from jointembed.evaluation.evaluators import LOWER_IS_BETTER
from jointembed.evaluation.protocols import PROTOCOLS
from jointembed.inference.embed import Precision
from jointembed.model import JointEmbedding, from_config
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.contrasted import Contrasted
from jointembed.objectives.members import PerMember
from jointembed.objectives.objective import Objective
from jointembed.objectives.ramped import Ramp, Ramped
from jointembed.objectives.regularized import Regularized
from jointembed.objectives.wrapped import innermost, looks_at_all
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
            encoder=_check_encoder(branch.encoder, f"branches.{name}.encoder"),
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
    _check_accumulation(recipe)
    return dataclasses.replace(recipe, evaluation=_check_evaluation(recipe))


def _check_accumulation(recipe: Recipe) -> None:
    if int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) <= 1:
        return
    reason = "gradients are not summed over batches here"
    if make_objective(recipe).couples_samples:
        reason = "the loss couples the samples of a batch, so the gradients of parts do not add up to its gradient"
    raise RecipeError(f"gradient_accumulation_steps: {reason}; leave it at 1. {MICRO_BATCH}")


def _check_encoder(block: Block, path: str) -> Block:
    block = check_block(block, ENCODERS, path)
    if ENCODERS[block["name"]] in (TransformersText, TransformersVision) and block["config"] is not None:
        check_config(block["config"], f"{path}.config")
    return block


def has_captions(data: DataRecipe) -> bool:
    """Whether the data sets give captions, by the annotation of their constructors; `check` saw that all agree."""
    return _gives_captions(data.train)


def _gives_captions(block: Block) -> bool:
    return typing.get_type_hints(DATASETS[block["name"]]).get("return") is CaptionData


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
    for split in ("validation", "test"):
        block = blocks[split]
        if block is not None and _gives_captions(block) != has_captions(data):
            gives = "no captions" if has_captions(data) else "captions"
            raise RecipeError(f"data.{split}: {block['name']} gives {gives}, unlike data.train")
    for key, given in (("share", data.share is not None), ("texts", data.texts > 1)):
        if given and not has_captions(data):
            raise RecipeError(f"data.{key}: the data set {data.train['name']} has no captions")
    if data.cache_views is not None and not construct(view, VIEWS).random:
        raise RecipeError(f"data.cache_views: data.{kind} is not random; its representations are kept by data.cache")
    if evaluation is None:
        if construct(view, VIEWS).random:
            raise RecipeError(f"data.{kind}_evaluation: missing; data.{kind} is random, evaluation is not")
        evaluation = view
    elif construct(evaluation, VIEWS).random:
        raise RecipeError(f"data.{kind}_evaluation: {evaluation['name']} is random here, evaluation must not be")
    return dataclasses.replace(data, **{f"{kind}_evaluation": evaluation})


def _check_views(recipe: Recipe) -> None:
    texts = text_views(recipe.data.texts) if recipe.data.text else []
    given = [*view_pipeline(recipe.data).views, *texts]
    for view in recipe.views:
        if view not in given:
            raise RecipeError(f"views.{view}: the data gives no such view{nearest(view, given)}")
    for view in texts:
        if view not in recipe.views:
            raise RecipeError(f"views.{view}: missing; the data gives this view (data.texts is {recipe.data.texts})")
    for view, branch in recipe.views.items():  # a mel spectrogram is a picture of one plane
        kind = "text" if view in texts else "audio" if view == "waveform" else "image"
        read = getattr(ENCODERS[recipe.branches[branch].encoder["name"]], "modality", "image")
        if read != kind:
            raise RecipeError(f"views.{view}: the encoder of branch {branch!r} is for {read}, this view is {kind}")
    objective = make_objective(recipe)
    objective.check_views(recipe.views)
    objective.check_branches(recipe.views)
    if looks_at_all(objective):  # at the pictures, each once, by the branch of the first view
        name = type(innermost(objective)).__name__
        if has_captions(recipe.data) and recipe.data.captions == "all":
            raise RecipeError(
                f"data.captions: {name} clusters pictures, and a sample of `all` is a caption; try random"
            )
        if next(iter(recipe.views)) in texts:
            raise RecipeError(f"views: {name} clusters pictures by the first view; name a view of pictures first")


def _check_evaluation(recipe: Recipe) -> EvaluationRecipe:
    options = recipe.evaluation
    captions = has_captions(recipe.data)
    evaluators = options.evaluators
    if evaluators is None:
        evaluators = [{"name": "retrieval"}] if captions else [{"name": "knn"}, {"name": "collapse"}]
    if not evaluators:
        raise RecipeError("evaluation.evaluators: the list is empty; a model must be judged by something")
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
    correct = check_correction(options.correct)
    if correct is not None and not captions:
        raise RecipeError(f"evaluation.correct: {correct['name']} corrects retrieval, and the data has no captions")
    numbers = [name for one in evaluators for name in construct(one, EVALUATORS).numbers]
    select = options.select or numbers[0]
    if select in LOWER_IS_BETTER:
        raise RecipeError(f"evaluation.select: the lower {select} the better, and the model with the highest is kept")
    if select not in numbers:
        raise RecipeError(f"evaluation.select: no number {select!r}{nearest(select, numbers)}")
    embedding = options.embedding or ("z" if captions else "h")
    expanders = (recipe.branches[recipe.views[view]].expander for view in views)
    if select.startswith("z_") and (embedding == "z" or not any(map(_has_parameters, expanders))):
        raise RecipeError(
            f"evaluation.select: {select} is not measured here: it is of embeddings beside the representations, where "
            "evaluation.embedding is h and an expander of evaluation.views has parameters"
        )
    return dataclasses.replace(
        options,
        evaluators=evaluators,
        embedding=embedding,
        views=None if captions else views,
        select=select,
        correct=correct,
    )


def _has_parameters(expander: Block) -> bool:
    with torch.device("meta"):  # of any width of its input; on it they take no memory
        return any(True for _ in construct(expander, EXPANDERS, 1).parameters())


def check_correction(given: str | Block | None) -> Block | None:
    """The block of a correction that is given by name or block; None for `none`. Raises RecipeError."""
    block = {"name": given} if isinstance(given, str) else given
    if block is None or block.get("name") == "none":
        return None
    return check_block(block, CORRECTIONS, "evaluation.correct")


def _optional(block: Block | None, table: dict[str, Any], path: str) -> Block | None:
    return None if block is None else check_block(block, table, path)


# -- recipe -> parts ------------------------------------------------------------------------------------------------


def dataset(recipe: Recipe, split: str, *, whole: bool = False) -> Data:
    """One split's pictures, with captions or labels.

    Training data are without the pictures that cannot be read where `data.skip_unreadable` allows it; those of other
    splits never are: a number of fewer pictures would be another number.

    Args:
        recipe: from `check`.
        split: `train`, `validation` or `test`.
        whole: with the unreadable pictures all the same, and with all that `data.share` leaves out.

    Raises:
        RecipeError: no such split, or the recipe names no such data.
        DataError: what the data set refuses; more unreadable pictures than the recipe allows.
    """
    if split not in SPLITS:
        raise RecipeError(f"data.{split}: no such split{nearest(split, SPLITS)}")
    block = getattr(recipe.data, split)
    if block is None:
        raise RecipeError(f"data.{split}: the recipe names no {split} data")
    data = construct(expand_variables(block, f"data.{split}"), DATASETS)
    if split != "train" or whole:
        return data
    if recipe.data.skip_unreadable:
        data = readable(data, recipe.data.skip_unreadable, workers=recipe.loader.workers, folder=cache_folder())
    if recipe.data.share is not None and isinstance(data, CaptionData):
        data = share_of(data, **dataclasses.asdict(recipe.data.share))
    return data


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
    return construct(expand_variables(recipe.data.text, "data.text"), TOKENS, train.texts, path="data.text")


def make_samples(
    recipe: Recipe, train: Data, tokens: Tokens | None, cached: Tensor | None = None, cached_text: Tensor | None = None
) -> Any:
    """Training samples of a data set, `cached` representations in place of its pictures and `cached_text` of texts."""
    view = view_pipeline(recipe.data)
    if isinstance(train, ImageData):
        return ImageSamples(train, view, recipe.seed)
    assert tokens is not None  # captions have them
    ids = cached_tokens(tokens, train.texts, train.fingerprint, cache_folder())
    captions, texts = recipe.data.captions, recipe.data.texts
    return CaptionSamples(
        train, view, tokens, captions, recipe.seed, cached=cached, cached_text=cached_text, ids=ids, texts=texts
    )


def make_objective(recipe: Recipe) -> Objective:
    """The objective, one for each member of the branches; without what `attach` makes.

    Raises:
        RecipeError: branches of unequally many members.
    """
    counts = {name: branch.members for name, branch in recipe.branches.items()}
    members = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise RecipeError(f"branches: all need equally many members, each is compared with its kin, found {found}")
    if members == 1:
        return _objective(recipe)
    shared = [view for view, branch in recipe.views.items() if recipe.branches[branch].train != "all"]
    return PerMember(lambda: _objective(recipe), members, shared=shared)


def _objective(recipe: Recipe) -> Objective:
    """With ramps and added terms where the recipe says so."""
    objective: Objective = construct(recipe.objective, OBJECTIVES, path="objective")
    if recipe.ramp:
        ramps = {name: Ramp(**dataclasses.asdict(ramp)) for name, ramp in recipe.ramp.items()}
        objective = Ramped(objective, ramps)
    if recipe.contrast is not None:
        objective = Contrasted(objective, **dataclasses.asdict(recipe.contrast))
    if recipe.regularize is not None:
        objective = Regularized(objective, **dataclasses.asdict(recipe.regularize))
    return objective


def model_config(recipe: Recipe, max_length: int | None) -> dict[str, Any]:
    """What rebuilds the model without the recipe: the content of `config.json`."""
    branches = expand_variables(
        {
            name: {"encoder": branch.encoder, "expander": branch.expander, "train": branch.train}
            | ({"members": branch.members} if branch.members > 1 else {})
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
        RecipeError: a branch that is not there, of another shape, or with words of another tokenizer.
    """
    other = JointEmbedding.from_pretrained(source)
    for name, branch in model.branches.items():
        if name not in other.branches:
            raise RecipeError(f"init_from: {source} has no branch {name!r}{nearest(name, other.branches)}")
        if getattr(branch.encoder, "modality", "image") == "text" and _vocabulary(model) != _vocabulary(other):
            raise RecipeError(f"init_from: {source}, branch {name!r}: its token numbers are those of another tokenizer")
        part = "" if any(True for _ in branch.get_submodule("expander").parameters()) else "encoder"
        try:
            branch.get_submodule(part).load_state_dict(other.branches[name].get_submodule(part).state_dict())
        except RuntimeError as error:
            raise RecipeError(f"init_from: {source}, branch {name!r}: {' '.join(str(error).split())[:400]}") from None


def _vocabulary(model: JointEmbedding) -> str | None:
    return None if model.tokens is None else model.tokens.tokenizer.to_str()


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
    """Where representations, tokens and lists are kept, made here: `JOINTEMBED_CACHE`, else `~/.cache/jointembed`.

    Raises:
        DataError: there is no home folder, or the folder cannot be made.
    """
    hint = "set JOINTEMBED_CACHE to a folder that can be written to"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "jointembed"
    except RuntimeError:
        folder = Path()
    folder = Path(os.environ["JOINTEMBED_CACHE"]) if "JOINTEMBED_CACHE" in os.environ else folder
    if folder == Path():
        raise DataError(f"no home folder to keep a cache in; {hint}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: the cache cannot be made ({error.strerror}); {hint}") from None
    return folder


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
    return construct(recipe.optimizer, OPTIMIZERS, groups, path="optimizer")


def make_evaluators(recipe: Recipe) -> list[Any]:
    """The evaluators of data without captions, made with their arguments."""
    return [construct(one, EVALUATORS) for one in recipe.evaluation.evaluators or []]
