"""Corrections of retrieval scores, from what a recipe or the command line says."""

from jointembed.blocks import construct
from jointembed.errors import RecipeError
from jointembed.evaluation.corrections import CORRECTIONS, Correction
from jointembed.recipe import Block, parse_yaml


def correction_of(text: str | None) -> str | Block | None:
    """What `--correct` says: a name, or a block as YAML. Raises RecipeError where it is neither."""
    value = None if text is None else parse_yaml(text, "--correct")
    if value is not None and not isinstance(value, str | dict):
        raise RecipeError(f"--correct: a name or a block expected, found {text!r}")
    return value


def make_correction(block: Block | None) -> Correction | None:
    """The correction of a checked block, before it is fitted."""
    return None if block is None else construct(block, CORRECTIONS)
