"""Small untrained models of any two encoders, saved, for the tests of export."""

from pathlib import Path
from typing import Any

import torch

from jointembed.data.tokens import Tokens, words
from jointembed.model import JointEmbedding, from_config

TEXTS = ["a dog", "two dogs run on a wide beach of white sand", "cat", "a red ball , a blue ball and one more ball"]
RESIZE = {"name": "resize", "size": 32, "interpolation": "bilinear"}
RESNET = {"name": "torchvision", "model": "resnet18", "widen": 0.125}
VIT = {"name": "torchvision", "model": "vit_tiny_16", "image_size": 32}
GRU = {"name": "gru", "embedding": 6, "hidden": 10}
EXPANDER = {"name": "mlp", "widths": [24, 16]}


def tokens() -> Tokens:
    return words(TEXTS, threshold=1, max_length=12)


def save_model(folder: Path, branches: dict[str, dict[str, Any]], **config: Any) -> Path:
    """One view a branch of the same name; centres and batch norm statistics are random."""
    torch.manual_seed(0)
    content: dict[str, Any] = {
        "name": "tiny",
        "views": {name: name for name in branches},
        "branches": {name: {"encoder": encoder, "expander": EXPANDER} for name, encoder in branches.items()},
        "image": RESIZE,
        "max_length": 12,
        "embedding": "z",
    }
    model = from_config(content | config, tokens()).eval()
    for name, buffer in model.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 1.5)
        elif "running_mean" in name or "centre" in name:
            buffer.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> JointEmbedding:
    return JointEmbedding.from_pretrained(folder)
