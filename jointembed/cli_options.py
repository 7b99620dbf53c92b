"""Options that were typed and would change nothing are refused: a number is of what was asked for."""

from collections.abc import Collection

import typer


def refuse(context: typer.Context, options: Collection[str], why: str) -> None:
    """Refuse these options of a command, by the names of their parameters.

    Raises:
        BadParameter: naming the first of them that was typed, with `why` behind it.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in options and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]} {why}")
