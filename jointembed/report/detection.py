"""The report of a detection run: numbers, pictures with boxes and masks drawn in, curves; one self-contained page."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from jointembed.data.detection import DetectionData
from jointembed.data.masks import decode_masks
from jointembed.data.pictures import inside
from jointembed.errors import CheckpointError
from jointembed.evaluation.detection_voc import IGNORED, RIGHT, judge
from jointembed.inference.detect import Detections
from jointembed.inference.files import publish_json
from jointembed.report import curves
from jointembed.report.html import tiles_of
from jointembed.report.read import read_evaluations, read_json, read_recipe
from jointembed.report.rendering import format_number, write_page

PICTURES = 12
LONGER_SIDE = 480  # px of a drawn picture
THRESHOLD = 0.5  # scores from here on are drawn
AT_LEAST = 3  # detections drawn all the same where none reaches the threshold
COLOURS = {"right": (20, 160, 90), "wrong": (214, 70, 30), "ignored": (110, 116, 128)}
RULES = {
    "bbox": "COCO, boxes",
    "segm": "COCO, masks",
    "voc": "VOC, area rule",
    "voc07": "VOC 2007, eleven points",
}
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Entry = dict[str, Any]


def write_drawings(
    folder: Path, data: DetectionData, found: list[Detections], *, count: int = PICTURES, seed: int = 0
) -> Path:
    """Write `drawings.json` and `drawings/*` for pictures drawn by a seed among those that have objects.

    Args:
        folder: evaluation folder, made where missing.
        data: pictures and objects.
        found: one entry a picture.
        count: how many pictures.
        seed: which ones.

    Returns:
        Path of drawings.json.
    """
    numbers = [number for number, one in enumerate(data.objects) if len(one)]
    chosen = sorted(np.random.default_rng(seed).permutation(numbers)[:count].tolist())
    target = folder / "drawings"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("[0-9]*.*"):
        old.unlink()
    entries = [_draw(target, data, number, found[number]) for number in chosen]
    path = folder / "drawings.json"
    publish_json(path, {"seed": seed, "threshold": THRESHOLD, "pictures": entries})
    return path


def _draw(folder: Path, data: DetectionData, number: int, one: Detections) -> Entry:
    picture = data.open(number)
    scale = min(1.0, LONGER_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture.resize(size, Image.Resampling.LANCZOS).save(folder / f"{number:06d}.jpg", quality=85)
    verdicts = judge(data, number, one)
    above = int((one.scores >= THRESHOLD).sum())
    rows = np.argsort(-one.scores, kind="stable")[: above or AT_LEAST].tolist()
    words = ["right" if verdicts[row] == RIGHT else "ignored" if verdicts[row] == IGNORED else "wrong" for row in rows]
    entry: Entry = {
        "name": data.pictures.names[number],
        "picture": f"drawings/{number:06d}.jpg",
        "masks": None,
        "width": size[0],
        "height": size[1],
        "weak": above == 0 and bool(rows),
        "truth": [
            {
                "box": (box * scale).round(1).tolist(),
                "category": data.categories[label - 1],
                "ignored": bool(crowd or difficult),
            }
            for box, label, crowd, difficult in zip(*_truth(data, number), strict=True)
        ],
        "found": [
            {
                "box": (one.xyxy[row] * scale).round(1).tolist(),
                "category": data.categories[one.labels[row] - 1],
                "score": float(one.scores[row]),
                "verdict": word,
            }
            for row, word in zip(rows, words, strict=True)
        ],
    }
    if one.masks is not None and rows:
        masks = decode_masks([one.masks[row] for row in rows], picture.width, picture.height)
        _overlay(masks, words).resize(size, Image.Resampling.NEAREST).save(folder / f"{number:06d}.png", optimize=True)
        entry["masks"] = f"drawings/{number:06d}.png"
    return entry


def _truth(data: DetectionData, number: int) -> tuple[np.ndarray, ...]:
    one = data.objects[number]
    return one.xyxy, one.labels, one.crowd, one.difficult


def _overlay(masks: np.ndarray, words: list[str]) -> Image.Image:
    """Masks (n, H, W) as one transparent picture, the best on top."""
    pixels = np.zeros((*masks.shape[1:], 4), dtype=np.uint8)
    for mask, word in reversed(list(zip(masks, words, strict=True))):
        pixels[mask > 0] = (*COLOURS[word], 110)
    return Image.fromarray(pixels)


# -- the page -------------------------------------------------------------------------------------------------------


def write_detection_report(run: Path) -> Path:
    """Write `report.html` into the run folder of a detector; a part that is missing is said in a sentence.

    The page holds its styles, drawings and pictures itself, runs no script, and the same run gives the same bytes.

    Raises:
        CheckpointError: where the folder does not exist, or one of its files is broken, by its name.
        RecipeError: where recipe.yaml is not valid YAML.
    """
    path = run / "report.html"
    write_page(path, "detection.html.j2", _content(run))
    return path


def _content(run: Path) -> dict[str, Any]:
    recipe = read_recipe(run)
    metrics = curves.read_metrics(run / "metrics.jsonl")
    environment = read_json(run / "environment.json") if (run / "environment.json").exists() else None
    return {
        "name": (recipe or {}).get("name") or run.resolve().name,
        "description": (recipe or {}).get("description") or "",
        "detector": ((recipe or {}).get("detector") or {}).get("name"),
        "start": _start(recipe or {}),
        "recipe": None if recipe is None else yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True),
        "tiles": tiles_of(metrics.lines),
        "broken": metrics.broken,
        "loss_curves": curves.loss_curves(metrics.lines),
        "validation_curves": _validation_curves(metrics.lines),
        "evaluations": [_evaluation(one.folder, one.document) for one in read_evaluations(run)],
        "environment": environment,
        "columns": COLUMNS,
        "colours": {word: "#{:02x}{:02x}{:02x}".format(*colour) for word, colour in COLOURS.items()},
    }


def _start(recipe: Mapping[str, Any]) -> str | None:
    """What the detector started from, in words."""
    if recipe.get("init_from"):
        return f"encoder of {recipe['init_from']}"
    encoder = recipe.get("encoder") or {}
    model = encoder.get("model") or encoder.get("name")
    return None if model is None else f"{model}, {encoder.get('weights') or 'random weights'}"


def _validation_curves(lines: list[dict[str, Any]]) -> list[curves.Curve]:
    validation = curves.of_kind(lines, "validation")
    names = {name for line in validation for name in line if name.partition("_")[0] in RULES}
    plots = [
        (f"{words}: validation", f"validation-{rule}", sorted(name for name in names if name.startswith(f"{rule}_")))
        for rule, words in RULES.items()
    ]
    return curves._curves(validation, plots, label=lambda name: name.partition("_")[2])


def _evaluation(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    numbers = document["metrics"]
    rules = [
        (words, {name: numbers.get(f"{rule}_{name}") for name in COLUMNS})
        for rule, words in RULES.items()
        if any(f"{rule}_{name}" in numbers for name in COLUMNS)
    ]
    categories: dict[str, dict[str, float]] = {}
    for name, one in (document.get("per_category") or {}).items():
        for category, value in one.items():
            categories.setdefault(category, {})[name] = value
    drawings = read_json(folder / "drawings.json") if (folder / "drawings.json").exists() else None
    return {
        "title": " · ".join(str(document[key]) for key in ("data", "split") if document.get(key)) or folder.name,
        "about": [
            (words, format_number(document[key]))
            for key, words in (("n_images", "pictures"), ("n_objects", "objects"), ("n_detections", "detections"))
            if curves.is_number(document.get(key))
        ],
        "date": str(document.get("date") or "").replace("T", " ").replace("+00:00", " UTC"),
        "command": document.get("command"),
        "rules": rules,
        "categories": categories,
        "category_rules": list(document.get("per_category") or {}),
        "threshold": (drawings or {}).get("threshold"),
        "pictures": None if drawings is None else [_shown(folder, entry) for entry in drawings["pictures"]],
    }


def _shown(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One picture with its files as data addresses, and its detections, the worst first so that the best lie on top."""
    found = sorted(entry["found"], key=lambda one: one["score"])
    return {
        **entry,
        "found": found,
        "source": _address(folder, entry["picture"], "jpeg"),
        "mask_source": None if entry["masks"] is None else _address(folder, entry["masks"], "png"),
        "alt": f"{entry['name']}: {len(entry['truth'])} annotated objects, {len(found)} detections drawn",
    }


def _address(folder: Path, name: str, kind: str) -> str:
    path = inside(folder, name)
    if not path.is_file():
        raise CheckpointError(f"{path}: named in drawings.json, but not there")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
