"""A hook of mkdocs: tables of the documentation that are made from the code, so that they cannot fall behind it."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_MARK = re.compile(r"<!-- table: ([a-z ]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page: put the table in the place of its mark; an unknown mark is an error."""
    return _MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def recipes() -> str:
    """The headers of all recipes, folder by folder."""
    parts = []
    for folder in sorted({path.parent for path in (ROOT / "recipes").rglob("*.yaml")}):
        files = sorted(folder.glob("*.yaml"))
        parts.append(f"## `{folder.relative_to(ROOT)}`\n\n| recipe | what | measured |\n|---|---|---|")
        parts += [_recipe(path) for path in files]
        parts.append("")
    return "\n".join(parts)


def _recipe(path: Path) -> str:
    found: dict[str, str] = {"what": ""}
    key = "what"
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        named = re.match(r"(command|hardware|measured):\s*", text)
        if named:
            key, text = named[1], text[named.end() :]
        found[key] = f"{found.get(key, '')} {text}".strip()
    return f"| `{path.stem}` | {_cell(found['what'])} | {_cell(found.get('measured', ''))} |"


def data_cards() -> str:
    """All data cards, one under the other."""
    cards = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data_cards").glob("*.md"))]
    return "\n\n".join(re.sub(r"^(#+) ", r"#\1 ", _outside_code(card), flags=re.MULTILINE) for card in cards)


def _outside_code(card: str) -> str:
    """Indent the comments of code blocks, which are no headings."""
    parts = card.split("```")
    return "```".join(re.sub(r"^#", " #", part, flags=re.MULTILINE) if n % 2 else part for n, part in enumerate(parts))


def commands() -> str:
    """Every command with its arguments and options."""
    import typer

    from jointembed.cli import app

    return "\n".join(_command(typer.main.get_command(app), "jointembed"))


def _command(command: Any, name: str) -> Iterator[str]:
    for one in sorted(getattr(command, "commands", {})):
        yield from _command(command.commands[one], f"{name} {one}")
    if not hasattr(command, "commands"):
        yield f"## `{name}`\n\n{command.help or ''}\n\n| argument | meaning | default |\n|---|---|---|"
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            names = ", ".join(parameter.opts + parameter.secondary_opts) if is_option else parameter.metavar
            names = names or parameter.name.upper()
            default = "" if parameter.default is None or callable(parameter.default) else f"`{parameter.default}`"
            yield f"| `{names}` | {_cell(getattr(parameter, 'help', '') or '')} | {_cell(default)} |"
        yield ""


def names() -> str:
    """The tables from names to constructors, with their arguments."""
    from jointembed.branches import ENCODERS, EXPANDERS
    from jointembed.data import DATASETS, TOKENS, VIEWS
    from jointembed.evaluation import EVALUATORS
    from jointembed.evaluation.corrections import CORRECTIONS
    from jointembed.objectives import OBJECTIVES
    from jointembed.optim import OPTIMIZERS, SCHEDULES

    tables: dict[str, dict[str, Any]] = {
        "Encoders": ENCODERS, "Expanders": EXPANDERS, "Objectives": OBJECTIVES, "Data sets": DATASETS,
        "Views": VIEWS, "Tokens": TOKENS, "Optimizers": OPTIMIZERS, "Schedules": SCHEDULES, "Evaluators": EVALUATORS,
        "Corrections of retrieval": CORRECTIONS,
    }  # fmt: skip
    lines = []
    for title, table in tables.items():
        lines.append(f"## {title}\n\n| name | what | arguments |\n|---|---|---|")
        for name, constructor in table.items():
            what = (inspect.getdoc(constructor) or "").split("\n\n")[0]
            lines.append(f"| `{name}` | {_cell(what)} | {_cell(', '.join(_arguments(constructor)))} |")
        lines.append("")
    return "\n".join(lines)


def _arguments(constructor: Any) -> Iterator[str]:
    for one in inspect.signature(constructor).parameters.values():
        if one.kind is one.KEYWORD_ONLY:
            yield f"`{one.name}`" if one.default is one.empty else f"`{one.name}={one.default!r}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def speed() -> str:
    """What the benchmarks measured, from docs/bench."""
    from jointembed.bench.table import speed_table

    return speed_table(ROOT / "docs" / "bench")


TABLES: dict[str, Callable[[], str]] = {
    "speed": speed, "recipes": recipes, "data cards": data_cards, "commands": commands, "names": names,
}  # fmt: skip
