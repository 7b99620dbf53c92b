"""A data set and a recipe that train in seconds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ["red", "green", "blue", "dark", "light", "square", "noise", "photo"]


def write_captions(root: Path, pictures: int = 12, captions: int = 2, size: int = 24) -> Path:
    """A small COCO captions data set of noise pictures."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(pictures):
        name = f"{number:03d}.jpg"
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
        images.append({"id": number, "file_name": name})
        for k in range(captions):
            words = " ".join(rng.choice(WORDS, size=int(rng.integers(2, 6))))
            annotations.append({"id": number * 10 + k + 1, "image_id": number, "caption": f"a {words}"})
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return root


TINY = """
name: tiny
views: {image: image, text: text}
branches:
  image:
    encoder: {name: torchvision, model: mobilenet_v3_small}
    expander: {name: mlp, widths: [16, 16]}
    train: none
  text:
    encoder: {name: gru, embedding: 8, hidden: 12}
    expander: {name: mlp, widths: [16, 16]}
objective: {name: vicreg}
data:
  train: {name: coco_captions, images: ROOT/images, annotations: ROOT/captions.json}
  validation: {name: coco_captions, images: ROOT/images, annotations: ROOT/captions.json}
  test: {name: coco_captions, images: ROOT/images, annotations: ROOT/captions.json}
  captions: all
  image: {name: resize, size: 32}
  text: {name: words, threshold: 1, max_length: 16}
loader: {batch: 6}
optimizer: {name: adam, lr: 1e-3}
schedule: {name: cosine, warmup_steps: 2}
training: {epochs: 2, precision: fp32, log_every: 1, health_every: 2}
evaluation: {every: 1, centre: true}
"""
