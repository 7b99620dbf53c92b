"""Recipes: YAML files that say everything about a run, checked before any work.

The blocks with a `name` (encoder, objective, data set, ...) carry the keyword-only arguments of that name's
constructor: its signature is their schema. `jointembed.build` owns the tables from names to constructors.
"""

import dataclasses
import difflib
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from jointembed.errors import RecipeError

Block = dict[str, Any]
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
STRICT_KEYS = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT_KEYS)
class BranchRecipe:
    """One branch: an encoder, an expander, and how they are trained."""

    encoder: Block
    expander: Block = field(default_factory=lambda: {"name": "mlp", "widths": []})
    train: Literal["all", "none"] | list[str] = "all"  # of the encoder: all, none, or these parameter prefixes
    lr_scale: Positive = 1.0  # of the encoder, against the schedule's rate
    members: Count = 1  # independent copies side by side, an ensemble (frozen, or in part: of its expander alone)


@dataclass(frozen=True, config=STRICT_KEYS)
class ShareRecipe:
    """A seeded part of the captioned training data; see `data.subsets.share_of`."""

    pictures: Share = 1.0  # of the pictures, each with all its captions
    captions: Share = 1.0  # of the captions of each picture, at least one
    seed: int = 0


@dataclass(frozen=True, config=STRICT_KEYS)
class DataRecipe:
    """Data sets, and how a sample becomes the tensors of its views."""

    train: Block
    validation: Block | None = None
    test: Block | None = None
    share: ShareRecipe | None = None  # of the training data that is trained on; all of it by default
    captions: Literal["random", "all"] = "random"  # an epoch is each picture once, or each caption once
    texts: Count = 1  # different captions of the picture in a sample: views text, text2, text3 ...
    image: Block | None = None  # view pipeline of training
    image_evaluation: Block | None = None  # of evaluation; by default that of training, if it is not random
    audio: Block | None = None  # in place of image, for sound
    audio_evaluation: Block | None = None
    text: Block | None = None  # tokens
    cache: bool = True  # keep the representations of a frozen encoder whose view is not random
    cache_views: Count | None = None  # of a random view: keep those of so many drawn views of each picture
    skip_unreadable: Annotated[float, Field(ge=0, lt=1)] = 0.0  # greatest share of training pictures left out


@dataclass(frozen=True, config=STRICT_KEYS)
class LoaderRecipe:
    """Batches, counted over all ranks."""

    batch: Count = 256
    workers: Annotated[int, Field(ge=0)] = 0
    drop_last: bool = True
    timeout: Seconds = 600.0  # that a batch may take the workers; 0 is no limit


@dataclass(frozen=True, config=STRICT_KEYS)
class TrainingRecipe:
    """The loop."""

    epochs: Positive = 10
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    clip: Positive | None = None  # gradient norm of the global batch
    micro_batch: Count | None = None  # samples a pass holds in memory, per rank; the mathematics is the whole batch's
    log_every: Count = 10  # steps
    health_every: Count = 50  # steps
    save_every: Positive = 1.0  # epochs
    keep: Count = 2  # checkpoints
    skip_nonfinite: Annotated[int, Field(ge=0)] = 0  # steps that may be left out because a value is not a number
    rank_timeout: Positive = 1800.0  # seconds that a rank waits for the others
    trackers: list[str] = field(default_factory=list)
    batch_norm: Literal["global", "local"] = "global"  # statistics over the rows of all ranks, or of each
    compile: bool = False  # the branches by torch.compile
    probe: bool = False  # an online linear probe on `h`; the labels teach it alone


@dataclass(frozen=True, config=STRICT_KEYS)
class RegularizeRecipe:
    """VICReg's variance and covariance terms on the embeddings, on top of any objective."""

    variance: Annotated[float, Field(ge=0)] = 1.0
    covariance: Annotated[float, Field(ge=0)] = 0.01
    gamma: Positive = 1.0
    eps: Positive = 1e-4


@dataclass(frozen=True, config=STRICT_KEYS)
class ContrastRecipe:
    """InfoNCE of the same embeddings, on top of any objective; see `objectives.contrasted`."""

    weight: Annotated[float, Field(ge=0)] = 0.1
    temperature: Positive = 0.07
    pairs: list[list[str]] | None = None  # of views; all by default


@dataclass(frozen=True, config=STRICT_KEYS)
class RampRecipe:
    """The factor of a coefficient over the run: `start` up to `begin`, 1 from `end` on, shares of the run."""

    start: Annotated[float, Field(ge=0)] = 0.0
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    end: Share = 0.5


@dataclass(frozen=True, config=STRICT_KEYS)
class ParametersRecipe:
    """How parameters share the learning rate and the weight decay; see `optim.groups`."""

    decay_all: bool = False  # biases and norms decay, and are adapted by LARS, as weights are
    vector_scale: Positive = 1.0  # of the learning rate of biases and norms
    constant: list[str] | None = None  # module paths off the schedule; by default the objective's own (SimSiam)


@dataclass(frozen=True, config=STRICT_KEYS)
class EvaluationRecipe:
    """How a model is judged during training and after it."""

    every: Positive = 1.0  # epochs
    evaluators: list[Block] | None = (
        None  # by default retrieval where there is text, else knn (for labels) and collapse
    )
    embedding: Literal["h", "z"] | None = None  # by default z for retrieval, h for pictures alone
    views: list[str] | None = None  # of pictures alone: views whose vectors are joined; by default the first
    centre: bool = False  # subtract the mean of training embeddings, one a branch, before the cosine
    correct: str | Block | None = None  # whiten, csls, inverted_softmax, mean_removal, euclidean; or none
    protocol: str = "full"  # of retrieval
    select: str | None = None  # the validation number whose highest value picks the model that is kept
    batch: Count = 256


@dataclass(frozen=True, config=STRICT_KEYS)
class Recipe:
    """Everything about a run."""

    name: str
    views: dict[str, str]
    branches: dict[str, BranchRecipe]
    objective: Block
    data: DataRecipe
    optimizer: Block
    schedule: Block
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    regularize: RegularizeRecipe | None = None  # variance and covariance terms on top of the objective
    contrast: ContrastRecipe | None = None  # a contrastive term on top of the objective
    ramp: dict[str, RampRecipe] = field(default_factory=dict)  # coefficients of the objective that move over the run
    init_from: str | None = None  # a run or model folder whose branches this run starts from
    loader: LoaderRecipe = field(default_factory=LoaderRecipe)
    parameters: ParametersRecipe = field(default_factory=ParametersRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: `1e-4` is a number, `no` and `010` are words, a key given twice is an error."""


class _Dumper(yaml.SafeDumper):
    """Puts in quotes each word that YAML 1.1 or `_Loader` would take for something else."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"^(?:true|false)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9]\d*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$", "-+.0123456789"),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern, re.IGNORECASE), list(_first))


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise RecipeError(f"line {key_node.start_mark.line + 1}: key {key!r} is not a word; put it in quotes")
        if key in keys:
            raise RecipeError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
        keys.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML strictly; `source` names it in errors. Raises RecipeError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def load_recipe(path: Path | str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `a.b=c` overrides, whose values are YAML.

    Raises:
        RecipeError: with the file and the dotted path of the key at fault.
    """
    return recipe_from_tree(read_tree(Path(path), overrides), str(path))


def read_tree(path: Path, overrides: typing.Sequence[str]) -> dict[str, Any]:
    """The keys of a recipe's file with `a.b=c` overrides, not checked yet. Raises RecipeError naming the file."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error})") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, not a {type(tree).__name__}")
    for override in overrides:
        set_key(tree, override)
    return tree


def recipe_from_tree(tree: Mapping[str, Any], source: str) -> Recipe:
    """Check a parsed tree. Raises RecipeError naming `source`, the dotted path and the nearest valid key."""
    try:
        recipe = TypeAdapter(Recipe).validate_python(tree)
    except pydantic.ValidationError as error:
        raise RecipeError(f"{source}: {first_problem(error, Recipe, tree)}") from None
    check_numbers(tree, dataclasses.asdict(recipe), source=f"{source}: ")
    for view, branch in recipe.views.items():
        if branch not in recipe.branches:
            raise RecipeError(f"{source}: views.{view}: no branch {branch!r}{nearest(branch, recipe.branches)}")
    unused = sorted(set(recipe.branches) - set(recipe.views.values()))
    if unused:
        raise RecipeError(f"{source}: branches.{unused[0]}: no view uses this branch")
    return recipe


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain mappings and lists, as YAML gives them back; every default filled in."""
    tree: dict[str, Any] = _plain(dataclasses.asdict(recipe))
    return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return yaml.dump(recipe_tree(recipe), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def set_key(tree: dict[str, Any], override: str) -> None:
    """Set one key of a parsed recipe, in place: `a.b=c`, whose value is YAML. Raises RecipeError naming it."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{override!r}: an override looks like training.epochs=5")
    value = parse_yaml(text, path)
    node = tree
    for depth, key in enumerate(keys[:-1], 1):
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{override!r}: {'.'.join(keys[:depth])} is a value, it has no keys")
        node = child
    node[keys[-1]] = value


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` or the list of valid names, to end an error message with."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(names) or 'none'}"


def check_numbers(given: Any, checked: Any, path: str = "", *, source: str = "") -> None:
    """Refuse true and false where a number belongs, which pydantic takes for 1 and 0.

    Args:
        given: what stands in the recipe.
        checked: the same after validation; a mapping may have more keys, a value another type.
        path: dotted path of the value.
        source: what the message begins with.

    Raises:
        RecipeError: naming the key.
    """
    below: list[tuple[Any, Any, Any]] = []
    if isinstance(given, Mapping) and isinstance(checked, Mapping):
        below = [(key, value, checked.get(key)) for key, value in given.items()]
    elif isinstance(given, list | tuple) and isinstance(checked, list | tuple):
        below = [(number, *pair) for number, pair in enumerate(zip(given, checked, strict=False))]
    elif isinstance(given, bool) and isinstance(checked, int | float) and not isinstance(checked, bool):
        raise RecipeError(f"{source}{path}: a number expected, found {str(given).lower()}")
    for key, value, one in below:
        check_numbers(value, one, f"{path}.{key}" if path else str(key), source=source)


def first_problem(error: pydantic.ValidationError, root: Any, tree: Any) -> str:
    """One line for the first thing wrong, unknown keys before all else: they are the cause of most others."""
    problems = sorted(error.errors(), key=lambda e: e["type"] not in ("extra_forbidden", "unexpected_keyword_argument"))
    problem = problems[0]
    location = _shorten(problem["loc"], tree)
    path = ".".join(str(part) for part in location) or "recipe"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        names = _keys_at(root, location[:-1])
        return f"{path}: unknown key{nearest(str(location[-1]), names)}"
    if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing"
    found = problem["input"]
    return f"{path}: {problem['msg']}, found {found!r} ({type(found).__name__})"


def _shorten(location: tuple[Any, ...], tree: Any) -> tuple[Any, ...]:
    """Drop what pydantic adds for union members, so that the path is one that stands in the file."""
    kept: list[Any] = []
    for position, part in enumerate(location):
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        elif not (position == len(location) - 1 and isinstance(tree, Mapping)):
            continue
        kept.append(part)
    return tuple(kept)


def _keys_at(root: Any, location: tuple[Any, ...]) -> list[str]:
    kind = root
    for part in location:
        kind = typing.get_type_hints(kind).get(str(part)) if dataclasses.is_dataclass(kind) else _held(kind)
        kind = _held(kind) if typing.get_origin(kind) is types.UnionType else kind
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _held(kind: Any) -> Any:
    """What a mapping holds, or an optional value."""
    return next((one for one in reversed(typing.get_args(kind)) if one is not types.NoneType), None)


def check_block(block: Mapping[str, Any], table: Mapping[str, Callable[..., Any]], path: str) -> Block:
    """Check a named block against its constructor's keyword-only parameters and fill in the defaults.

    Args:
        block: `{name: ..., argument: ...}`.
        table: the room's one table from names to constructors.
        path: dotted path of the block in the recipe, for the message.

    Returns:
        The block with every argument coerced to its annotated type.

    Raises:
        RecipeError: unknown name or argument, wrong type, missing argument.
    """
    if "name" not in block:
        raise RecipeError(f"{path}.name: missing; valid: {', '.join(sorted(table))}")
    name = block["name"]
    if not isinstance(name, str) or name not in table:
        raise RecipeError(f"{path}.name: no {name!r} here{nearest(str(name), table)}")
    constructor = table[name]
    hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    arguments = {key: value for key, value in block.items() if key != "name"}
    for key in arguments:
        if key not in parameters:
            raise RecipeError(f"{path}.{key}: {name} has no such argument{nearest(key, parameters)}")
    checked: Block = {"name": name}
    for key, parameter in parameters.items():
        if key not in arguments:
            if parameter.default is inspect.Parameter.empty:
                raise RecipeError(f"{path}.{key}: missing; {name} needs it")
            checked[key] = parameter.default
            continue
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(arguments[key])
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            found = arguments[key]
            raise RecipeError(f"{path}.{key}: {problem['msg']}, found {found!r} ({type(found).__name__})") from None
        check_numbers(arguments[key], checked[key], f"{path}.{key}")
    return checked


def check_schedule(block: Block, table: Mapping[str, Callable[..., float]]) -> Block:
    """A schedule's block checked as any other, and asked once: what does not go together is refused before any work."""
    checked = check_block(block, table, "schedule")
    table[checked["name"]](0, 1, 1, 1.0, **{key: value for key, value in checked.items() if key != "name"})
    return checked


def expand_variables(value: Any, path: str) -> Any:
    """Replace `${NAME}` in every string by the environment variable. Raises RecipeError where it is unset."""
    if isinstance(value, str):

        def substitute(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                raise RecipeError(f"{path}: environment variable {match[1]} is not set (needed by {value!r})")
            return os.environ[match[1]]

        return re.sub(r"\$\{(\w+)\}", substitute, value)
    if isinstance(value, Mapping):
        return {key: expand_variables(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, f"{path}.{number}") for number, item in enumerate(value)]
    return value
