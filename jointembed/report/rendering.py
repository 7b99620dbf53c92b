"""Pages from the templates of this folder, every text in them escaped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jointembed.inference.files import publish


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page that a template makes of its content."""
    environment = Environment(
        loader=PackageLoader("jointembed.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["svg"] = lambda curve: Markup(curve.svg)  # ours, with its texts escaped by matplotlib
    return environment.get_template(template).render(content)


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page, whole or not at all, in place of an older one."""
    page = render(template, content)
    # words may hold a lone surrogate
    publish(path, lambda aside: aside.write_text(page, encoding="utf-8", errors="xmlcharrefreplace"))


def format_number(value: float) -> str:
    """A number for reading: thousands apart, four digits at most where it is not whole."""
    if isinstance(value, int) or (abs(value) < 1e15 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
