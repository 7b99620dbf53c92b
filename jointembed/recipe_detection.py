"""Recipes of detection runs: as strict as those of `recipe`, with the keys that a detector needs."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from jointembed.errors import RecipeError
from jointembed.recipe import STRICT_KEYS, Block, Count, Positive, Seconds, check_numbers, first_problem, read_tree

Steps = Annotated[int, Field(ge=0)]  # 0: only at the end
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT_KEYS)
class DetectionDataRecipe:
    """Data sets, and the size at which the network sees their pictures."""

    train: Block
    validation: Block | None = None
    test: Block | None = None
    sizes: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [800])  # shorter side, one drawn
    size: Count = 800  # shorter side in evaluation, px
    max_size: Count = 1333  # longer side, px
    flip: Share = 0.5  # probability of mirroring left and right


@dataclass(frozen=True, config=STRICT_KEYS)
class DetectionLoaderRecipe:
    """Batches, counted over all ranks."""

    batch: Count = 16
    workers: Steps = 0
    timeout: Seconds = 600.0  # that a batch may take the workers; 0 is no limit


@dataclass(frozen=True, config=STRICT_KEYS)
class DetectionTrainingRecipe:
    """The loop, counted in steps."""

    steps: Count
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    clip: Positive | None = None
    log_every: Steps = 20
    validate_every: Steps = 0
    save_every: Steps = 0
    keep: Count = 2
    skip_nonfinite: Steps = 0  # steps that may be left out because a value is not a number
    rank_timeout: Positive = 1800.0  # seconds that a rank waits for the others
    trackers: list[str] = field(default_factory=list)


@dataclass(frozen=True, config=STRICT_KEYS)
class DetectionEvaluationRecipe:
    """The rules of scoring."""

    rules: Annotated[list[Literal["coco", "voc"]], Field(min_length=1)] = field(default_factory=lambda: ["coco"])
    select: str | None = None  # the number whose highest value picks the model; bbox_AP, or voc_AP50 without coco
    batch: Count = 4


@dataclass(frozen=True, config=STRICT_KEYS)
class DetectionRecipe:
    """Everything about a detection run; it starts from `encoder` or, with `init_from`, from a trained one."""

    name: str
    detector: Block
    data: DetectionDataRecipe
    optimizer: Block
    schedule: Block
    training: DetectionTrainingRecipe
    description: str = ""
    seed: int = 0
    encoder: Block | None = None
    init_from: str | None = None  # a run or model folder whose encoder of `view` this run starts from
    view: str = "image"
    loader: DetectionLoaderRecipe = field(default_factory=DetectionLoaderRecipe)
    evaluation: DetectionEvaluationRecipe = field(default_factory=DetectionEvaluationRecipe)


def load_detection_recipe(path: Path | str, overrides: typing.Sequence[str] = ()) -> DetectionRecipe:
    """Read a recipe and apply `a.b=c` overrides, whose values are YAML.

    Raises:
        RecipeError: with the file and the dotted path of the key at fault.
    """
    return detection_recipe_from_tree(read_tree(Path(path), overrides), str(path))


def detection_recipe_from_tree(tree: Mapping[str, Any], source: str) -> DetectionRecipe:
    """Check a parsed tree. Raises RecipeError naming `source`, the dotted path and the nearest valid key."""
    try:
        recipe = TypeAdapter(DetectionRecipe).validate_python(tree)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{source}: {first_problem(error, DetectionRecipe, tree)}") from None
    check_numbers(tree, dataclasses.asdict(recipe), source=f"{source}: ")
    if (recipe.encoder is None) == (recipe.init_from is None):
        raise RecipeError(f"{source}: encoder: give either it or init_from, what the detector starts from")
    return recipe
