"""A small, realistic run folder made of shapes, for the tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from jointembed.report.gallery import write_gallery

DIRECTIONS = {"i2t": (22.5, 50.0, 62.5), "t2i": (15.0, 42.5, 56.0)}
ATTACK = "<script>alert(1)</script>"
ODD_CAPTIONS = (
    ATTACK,
    "كلب يركض على الشاطئ",
    "a 🐕‍🦺 & a \"quoted\" 'dog'",
    "two\nlines",
    "half of an emoji \ud83d",
    "{{ name }}",
)
RECIPE: dict[str, Any] = {
    "name": "shapes_vicreg",
    "description": "Shapes & their names.",
    "views": {"image": "image", "text": "text"},
    "branches": {
        "image": {
            "encoder": {"name": "torchvision", "model": "mobilenet_v2", "weights": "IMAGENET1K_V1"},
            "expander": {"name": "mlp", "widths": [64, 64]},
            "train": "none",
        },
        "text": {"encoder": {"name": "gru", "hidden": 32}, "expander": {"name": "mlp", "widths": [64, 64]}},
    },
    "objective": {"name": "vicreg", "invariance": 15.0, "variance": 25.0, "covariance": 1.0},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "schedule": {"name": "cosine", "warmup_steps": 10},
    "loader": {"batch": 32},
    "training": {"epochs": 4, "precision": "fp32"},
    "evaluation": {"embedding": "z", "centre": True},
    "seed": 3,
}
ENVIRONMENT = {
    "date": "2025-01-02T03:04:05+00:00",
    "command": "jointembed train shapes.yaml --out runs/shapes",
    "torch": "2.15.0",
    "cores": 2,
    "accelerators": [],
    "packages": {"numpy": "2.1"},
}


def metrics_lines(steps: int = 40, epochs: int = 4) -> list[dict[str, Any]]:
    """The log of a run: train lines every step, health every tenth, validation once an epoch."""
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        place = {"step": step, "epoch": step * epochs / steps, "seconds": 9.5 * step}
        terms = {name: 1 + math.exp(-step / k) for name, k in (("invariance", 9), ("variance", 5), ("covariance", 20))}
        rest = {"lr": 1e-3 * (1 - step / steps), "gradient_norm": 2.5, "samples_per_second": 800.0 + step}
        lines.append({"kind": "train", **place, "loss": sum(terms.values()), **terms, **rest})
        if step % 10 == 0:
            health = {f"{v}/{k}": x for v in ("image", "text") for k, x in (("std", 0.9), ("covariance", 0.1))}
            lines.append({"kind": "health", **place, **health, "image/rankme": 12.0 + step, "text/rankme": 10.0 + step})
            learnt = 1 - math.exp(-step / 10)
            recall = {
                f"{d}_R@{k}": v * learnt for d, vs in DIRECTIONS.items() for k, v in zip((1, 5, 10), vs, strict=True)
            }
            lines.append({"kind": "validation", **place, **recall, "rsum": sum(recall.values())})
    return lines


def open_shape(number: int) -> Image.Image:
    picture = Image.new("RGB", (160, 120), (20 * number % 256, 200 - 9 * number, 90))
    ImageDraw.Draw(picture).ellipse((20, 10, 20 + 5 * number + 10, 100), fill="white")
    return picture


def embeddings(pictures: int = 20, captions: int = 2) -> dict[str, Any]:
    """Arguments of `write_gallery`: clusters that are found about half of the time, with odd captions among them."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(pictures, 6, generator=generator)
    text = image.repeat_interleave(captions, 0) + torch.randn(pictures * captions, 6, generator=generator)
    texts = [ODD_CAPTIONS[i % 7] if i % 7 < 6 else f"shape number {i}" for i in range(len(text))]
    owner = torch.arange(pictures).repeat_interleave(captions)
    return {
        "image": image,
        "text": text,
        "image_names": [f"shape_{i}.png" for i in range(pictures)],
        "texts": texts,
        "positives": torch.stack([owner, torch.arange(len(text))], 1),
        "open_picture": open_shape,
    }


def write_evaluation(folder: Path) -> None:
    values = {f"{d}_R@{k}": v for d, vs in DIRECTIONS.items() for k, v in zip((1, 5, 10), vs, strict=True)}
    ranks = {"i2t_medr": 5.0, "t2i_medr": 8.0, "i2t_meanr": 9.25, "t2i_meanr": 11.5, "tied_queries": 3.0}
    document = {
        "split": "test",
        "protocol": "full",
        "embedding": "z",
        "centre": True,
        "metrics": values | {"rsum": sum(values.values())} | ranks | {"n_images": 20.0, "n_texts": 40.0},
        "intervals": {name: [value - 2.25, value + 2.75] for name, value in values.items()},
        "chance": dict.fromkeys(values, 5.125),
        "data": "shapes",
        "fingerprint": "00",
        "n_images": 20,
        "n_texts": 40,
        "date": "2025-01-02T04:00:00+00:00",
        "command": "jointembed evaluate runs/shapes --split test",
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(document))
    view = {"std_mean": 0.12, "std_min": 0.1, "covariance": 0.06, "rankme": 30.5, "dimension": 64}
    spectrum = [10 * 0.9**i for i in range(63)] + [0.0]
    collapse = {v: view | {"spectrum": spectrum} for v in ("image", "text")} | {"alignment": 0.8, "gap": 0.1}
    (folder / "collapse.json").write_text(json.dumps(collapse))
    write_gallery(folder, **embeddings())
