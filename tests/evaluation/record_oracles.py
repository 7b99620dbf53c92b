"""Record what `eccv_caption` and `clip_benchmark` say of made-up embeddings, in oracles.json.

    pip install torch numpy tqdm ujson
    pip install --no-deps eccv-caption==0.1.0 clip-benchmark==1.6.2
    python tests/evaluation/record_oracles.py

Both break ties by sorting and multiply on their own, so the seed is one for which no hit at any K depends on the last
bits of a score: no count of better negatives passes a K if every negative is moved by 5e-7 up or down.
"""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

K = (1, 5, 10)
MARGIN = 5e-7


def made_up(seed: int, owner: np.ndarray, noise: float, dimension: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows in float32: images, and texts that resemble the image `owner` (T,) says."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((int(owner.max()) + 1, dimension))
    text = image[owner] + noise * rng.standard_normal((len(owner), dimension))
    return unit(image), unit(text)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ragged_owner() -> np.ndarray:
    """1,000 pictures with four to seven captions each."""
    return np.repeat(np.arange(1000), np.random.default_rng(0).integers(4, 8, 1000))


def steady(scores: np.ndarray, positives: list[np.ndarray]) -> bool:
    """Whether every hit stays as it is if all negatives move by MARGIN; scores (Q, C)."""
    for row, mine in zip(scores, positives, strict=True):
        if len(mine):
            best = row[mine].max()
            others = np.delete(row, mine)
            above, near = np.sum(others > best + MARGIN), np.sum(others > best - MARGIN)
            if any((above < k) != (near < k) for k in K):
                return False
    return True


def lists(owner: np.ndarray) -> list[np.ndarray]:
    return np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])


def record_clip_benchmark(seed: int) -> dict[str, Any]:
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    owner = ragged_owner()
    image, text = (torch.from_numpy(rows) for rows in made_up(seed, owner, noise=1.6))
    scores = (image @ text.T).numpy()
    if not (steady(scores, lists(owner)) and steady(scores.T, [np.array([one]) for one in owner])):
        raise ValueError(f"seed {seed} leaves hits to the last bits")

    class Model:
        encode_image = staticmethod(lambda rows: rows)
        encode_text = staticmethod(lambda numbers: text[numbers])

    def batches() -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
        for first in range(0, len(image), 50):
            yield (
                image[first : first + 50],
                [[str(t) for t in np.flatnonzero(owner == i)] for i in range(first, first + 50)],
            )

    class Loader:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, list[list[str]]]]:
            return batches()

    numbers: Callable[[list[str]], torch.Tensor] = lambda texts: torch.tensor([int(one) for one in texts])  # noqa: E731
    found = evaluate(Model(), Loader(), numbers, "cpu", amp=False, recall_k_list=list(K))
    metrics = {f"i2t_R@{k}": 100 * found[f"text_retrieval_recall@{k}"] for k in K}
    metrics |= {f"t2i_R@{k}": 100 * found[f"image_retrieval_recall@{k}"] for k in K}
    return {"version": version("clip-benchmark"), "seed": seed, "noise": 1.6, "metrics": metrics}


def record_eccv_caption(seed: int) -> dict[str, Any]:
    from eccv_caption import Metrics

    oracle = Metrics()
    captions = np.asarray(oracle.coco_ids)
    pictures = np.array([oracle.coco_gts["t2i"][int(one)][0] for one in captions[::5]])
    owner = np.repeat(np.arange(5000), 5)
    image, text = made_up(seed, owner, noise=1.2)
    scores = image @ text.T
    check_steady(scores, oracle, pictures, captions)
    retrieved = {
        "i2t": {int(one): captions[np.argsort(-row, kind="stable")] for one, row in zip(pictures, scores, strict=True)},
        "t2i": {
            int(one): pictures[np.argsort(-row, kind="stable")]
            for one, row in zip(captions, np.ascontiguousarray(scores.T), strict=True)
        },
    }
    found: dict[str, dict[str, float]] = {"coco_5k": {}, "coco_1k_5fold": {}, "cxc": {}, "eccv": {}}
    for k in K:
        for name, recalls in (
            ("coco_5k", oracle.coco_5k_recalls),
            ("coco_1k_5fold", oracle.coco_1k_recalls),
            ("cxc", oracle.cxc_recalls),
        ):
            result = recalls(retrieved, "all", K=k)
            found[name] |= {f"{direction}_R@{k}": 100 * float(result[direction]) for direction in ("i2t", "t2i")}
    names = {"eccv_r1": "R@1", "eccv_map_at_r": "mAP@R", "eccv_rprecision": "R-precision"}
    for key, by_direction in oracle.eccv_metrics(retrieved, "all").items():
        found["eccv"] |= {f"{way}_{names[key]}": 100 * float(value) for way, value in by_direction.items()}
    return {"version": version("eccv-caption"), "seed": seed, "noise": 1.2, "metrics": found}


def check_steady(scores: np.ndarray, oracle: Any, pictures: np.ndarray, captions: np.ndarray) -> None:
    row = {int(one): i for i, one in enumerate(pictures)}
    column = {int(one): t for t, one in enumerate(captions)}
    ways = [(slice(0, 5000), slice(0, 25000), truth) for truth in (oracle.coco_gts, oracle.cxc_gts, oracle.eccv_gts)]
    ways += [(slice(f * 1000, f * 1000 + 1000), slice(f * 5000, f * 5000 + 5000), oracle.coco_gts) for f in range(5)]
    for rows, columns, truth in ways:
        top, left = rows.start, columns.start
        texts = [
            np.array([column[c] - left for c in truth["i2t"].get(int(one), []) if c in column], dtype=int)
            for one in pictures[rows]
        ]
        images = [
            np.array([row[p] - top for p in truth["t2i"].get(int(one), [])], dtype=int) for one in captions[columns]
        ]
        part = scores[rows, columns]
        if not (steady(part, texts) and steady(np.ascontiguousarray(part.T), images)):
            raise ValueError("this seed leaves hits to the last bits")


def first_steady(record: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    for seed in range(100):
        try:
            return record(seed)
        except ValueError as error:
            print(f"seed {seed}: {error}")
    raise SystemExit("no seed is steady")


if __name__ == "__main__":
    oracles = {"clip_benchmark": first_steady(record_clip_benchmark), "eccv_caption": first_steady(record_eccv_caption)}
    Path(__file__).with_name("oracles.json").write_text(json.dumps(oracles, indent=1) + "\n", encoding="utf-8")
