"""A checked block of a recipe -> what it names."""

from collections.abc import Mapping
from typing import Any

from jointembed.errors import RecipeError


def construct(block: Mapping[str, Any], table: Mapping[str, Any], *given: Any, path: str | None = None) -> Any:
    """What a checked block names, made with its arguments.

    Args:
        block: `{name: ..., argument: ...}`.
        table: from names to constructors.
        given: what the constructor takes besides, by position.
        path: dotted path of the block, where its arguments go on to a library that may refuse them.

    Raises:
        RecipeError: what such a library refuses, in its words.
    """
    refused = () if path is None else (ValueError, AssertionError, ArithmeticError, RuntimeError)
    try:
        return table[block["name"]](*given, **{key: value for key, value in block.items() if key != "name"})
    except refused as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())[:400] or type(error).__name__}") from error
