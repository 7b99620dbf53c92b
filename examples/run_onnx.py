"""Scores of pictures and texts with an exported model: numpy, Pillow, tokenizers and onnxruntime, no torch.

jointembed export RUN --out exported --format onnx
python examples/run_onnx.py exported "a dog runs" photo.jpg ...
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def load(folder: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """A branch's session and the description beside it."""
    described = json.loads((folder / f"{name}.onnx.json").read_text(encoding="utf-8"))
    return onnxruntime.InferenceSession(folder / described["file"]), described


def read_pictures(paths: list[str], preprocessing: dict[str, Any]) -> np.ndarray:
    """Pictures as bytes (N, 3, S, S): the steps of the JSON, for the pipelines `resize` and `center`."""
    size, pipeline = preprocessing["size"][0], preprocessing["pipeline"]
    rows = []
    for path in paths:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        kernel = KERNELS[preprocessing["interpolation"]]
        if pipeline["name"] == "resize":
            picture = picture.resize((size, size), kernel)
        else:
            short = round(size * pipeline["resize"])
            scale = short / min(picture.size)
            width, height = (max(short, int(side * scale)) for side in picture.size)
            left, top = round((width - size) / 2), round((height - size) / 2)
            picture = picture.resize((width, height), kernel).crop((left, top, left + size, top + size))
        rows.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(rows)


def read_texts(texts: list[str], folder: Path, preprocessing: dict[str, Any]) -> dict[str, np.ndarray]:
    """Token numbers (N, T), padded on the right, and lengths (N,)."""
    tokenizer = Tokenizer.from_file(str(folder / preprocessing["tokenizer"]))
    longest = preprocessing["max_length"]
    ids = [one.ids for one in tokenizer.encode_batch(texts)]
    ids = [one if len(one) <= longest else [*one[: longest - 1], one[-1]] for one in ids]
    padded = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = one
    return {"ids": padded, "length": np.array([len(one) for one in ids], dtype=np.int64)}


if __name__ == "__main__":
    folder, words, paths = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    image, about_image = load(folder, "image")
    text, about_text = load(folder, "text")
    [pictures] = image.run(["vector"], {"input": read_pictures(paths, about_image["preprocessing"])})
    [query] = text.run(["vector"], read_texts([words], folder, about_text["preprocessing"]))
    for path, score in sorted(zip(paths, (pictures @ query[0]).tolist(), strict=True), key=lambda one: -one[1]):
        print(f"{score:.4f}  {path}")
