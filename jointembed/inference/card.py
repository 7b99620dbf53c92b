"""The model card that is saved with a model: recipe, data, measured numbers, intended use and limits."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from jointembed.environment import shortened

# what is said of a data set whose name stands in its block of the recipe; the first that fits is taken
DATA_CARDS = {
    "emoji": ("emoji", "Fluent Emoji (MIT), Noto Emoji (Apache-2.0), words after Unicode CLDR (Unicode License v3)"),
    "flickr30k": ("flickr30k", "non-commercial research and education; the photographs belong to their authors"),
    "flickr8k": ("flickr8k", "non-commercial research and education; the photographs belong to their authors"),
    "coco_mini": ("coco_mini", "annotations CC BY 4.0; the photographs are under the licences of their authors"),
    "coco": ("coco_captions", "annotations CC BY 4.0; the photographs are under the licences of their authors"),
    "esc50": ("esc50", "Creative Commons Attribution-NonCommercial"),
}
# by which else a data set is known than a reader or a folder of its name: files that are published with it
_FILES = {
    "flickr30k": (r"dataset_flickr30k\.json",),
    "flickr8k": (r"dataset_flickr8k\.json", r"flickr8k\.token\.txt", r"flicker8k_dataset"),
    "coco": (r"dataset_coco\.json", r"captions_(train|val)20(14|17)\.json"),
    "esc50": ("esc-50", "esc-50-master"),
}


def model_card(name: str, description: str, recipe: str, run: Path) -> str:
    """Markdown of a model card.

    Args:
        name: of the model.
        description: a sentence.
        recipe: the resolved recipe as YAML text.
        run: run folder; every evaluation in it is printed.
    """
    tree: dict[str, Any] = yaml.safe_load(recipe)
    data = tree.get("data") or {}
    texts, sounds = bool(data.get("text")), bool(data.get("audio"))
    view = data.get("audio_evaluation") or data.get("image_evaluation") or data.get("image") or {}
    selects = (tree.get("evaluation") or {}).get("select") if data.get("validation") else None
    loader = PackageLoader("jointembed.inference")
    template = Environment(loader=loader, autoescape=False, keep_trailing_newline=True).get_template("card.md.j2")
    return template.render(
        name=name,
        description=description,
        recipe=shortened(recipe),
        run=run.as_posix(),
        tags=["joint-embedding", *(["image-text-retrieval"] if texts else [])],
        texts=texts,
        sounds=sounds,
        view=next(iter(tree.get("views") or {"image": ""})),
        measured=[_entry(path) for path in sorted(run.glob("evaluation/*/metrics.json"))],
        interval=_interval,
        chance=_chance,
        seed=tree.get("seed", 0),
        selects=selects,
        data=[(split, *_block(data[split])) for split in ("train", "validation", "test") if data.get(split)],
        size=None if sounds else view.get("size"),
        longest=(data.get("text") or {}).get("max_length"),
    )


def _entry(path: Path) -> dict[str, Any]:
    entry = json.loads(path.read_text(encoding="utf-8"))
    return entry | {key: shortened(str(entry[key])) for key in ("command", "data") if key in entry}


def _block(block: Mapping[str, Any]) -> tuple[str, str]:
    """A data set's block in words, and the terms of the data set it names."""
    given = ", ".join(f"{key} {value}" for key, value in block.items() if key != "name" and value is not None)
    words = shortened(f"`{block['name']}` ({given})" if given else f"`{block['name']}`").replace("|", "\\|")
    parts = {part for value in block.values() for part in re.split(r"[/\\]", str(value).lower())}
    for name, (card, terms) in DATA_CARDS.items():
        if any(re.fullmatch(pattern, part) for pattern in (name, *_FILES.get(name, ())) for part in parts):
            return words, f"{terms}; see `data_cards/{card}.md`"
    return words, "not known to this card"


def _interval(entry: Mapping[str, Any], number: str) -> str:
    low_high = entry.get("intervals", {}).get(number)
    return f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""


def _chance(entry: Mapping[str, Any], number: str) -> str:
    value = entry.get("chance", {}).get(number)
    return "" if value is None else f"{value:.2f}"
