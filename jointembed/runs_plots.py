"""Plots of a run: its model embeds a part of one split, and `jointembed.report.plots` draws it."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jointembed.build import SPLITS, dataset, precision_of, view_pipeline
from jointembed.build_frozen import FrozenRows
from jointembed.data.records import CaptionData, ImageData
from jointembed.data.subsets import PicturePart
from jointembed.errors import RecipeError
from jointembed.inference.embed import CaptionSample, embed_captions, embed_pictures
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe, nearest
from jointembed.report.curves import read_metrics
from jointembed.report.plots import (
    Sample,
    check_pairs,
    check_rows,
    draw_curves,
    draw_map,
    draw_similarity,
    draw_spectrum,
    pairs_of_classes,
)
from jointembed.runs_evaluate import run_model, run_recipe

MOST = 1000  # pictures that are embedded for the plots


@dataclass
class Plotted:
    """Files that were written, and what could not be drawn, with the reason."""

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def plot_run(run: Path, out: Path, *, split: str | None = None, tsne: bool = False) -> Plotted:
    """Draw curves, spectrum, similarities and map of a run into a folder.

    Args:
        run: run folder with a model.
        out: made here.
        split: validation if the recipe has it, else train.
        tsne: t-SNE instead of PCA for the map.

    Raises:
        RecipeError: no such split.
    """
    recipe = run_recipe(run)
    split = split or ("validation" if recipe.data.validation is not None else "train")
    if split not in SPLITS:
        raise RecipeError(f"--split: no {split!r}{nearest(split, SPLITS)}")
    out.mkdir(parents=True, exist_ok=True)
    done = Plotted()
    if draw_curves(read_metrics(run / "metrics.jsonl").lines, out / "curves.png"):
        done.files.append(out / "curves.png")
    else:
        done.skipped["curves.png"] = "metrics.jsonl has no numbers"
    sample = _sample(recipe, run, split)
    problem = check_rows(sample.vectors)
    if problem:
        return Plotted(done.files, done.skipped | dict.fromkeys(("spectrum.png", "similarity.png", "map.png"), problem))
    draw_spectrum(sample.vectors, out / "spectrum.png")
    draw_map(sample, out / "map.png", tsne=tsne)
    done.files += [out / "spectrum.png", out / "map.png"]
    problem = check_pairs(sample)
    if problem:
        done.skipped["similarity.png"] = problem
    else:
        draw_similarity(sample, out / "similarity.png")
        done.files.append(out / "similarity.png")
    return done


def _sample(recipe: Recipe, run: Path, split: str) -> Sample:
    model, data = run_model(run), dataset(recipe, split)
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.pictures))[:MOST])
    if isinstance(data, CaptionData):
        return _caption_sample(recipe, model, data, chosen)
    return _image_sample(recipe, model, data, chosen)


def _caption_sample(recipe: Recipe, model: JointEmbedding, data: CaptionData, chosen: np.ndarray) -> Sample:
    texts = np.flatnonzero(np.isin(data.text_item, data.item[chosen]))
    cached = FrozenRows(recipe, model)(data)
    found = embed_captions(
        model,
        CaptionSample(data, chosen.tolist(), texts.tolist()),
        batch=recipe.evaluation.batch,
        precision=precision_of(recipe, model.device),
        workers=recipe.loader.workers,
        cached=None if cached is None else cached[chosen],
    )
    same = data.item[chosen][:, None] == data.text_item[texts][None, :]
    return Sample(
        {"image": found.image, "text": found.text},
        np.argwhere(same),
        "a picture and its caption",
        open_picture=lambda row: data.pictures.open(int(chosen[row])),
        texts=[data.texts[number] for number in texts],
    )


def _image_sample(recipe: Recipe, model: JointEmbedding, data: ImageData, chosen: np.ndarray) -> Sample:
    views = (recipe.evaluation.views or [next(iter(recipe.views))])[:2]
    views = views if len({model.width(view) for view in views}) == 1 else views[:1]
    pictures = PicturePart(data.pictures, chosen.tolist())
    pipeline = view_pipeline(recipe.data, evaluation=True)
    rows = embed_pictures(
        model,
        pictures,
        pipeline,
        views,
        batch=recipe.evaluation.batch,
        precision=precision_of(recipe, model.device),
        workers=recipe.loader.workers,
    )
    vectors = dict(zip(views, rows.split(model.width(views[0]), dim=1), strict=True))
    label = None if data.labels is None else data.labels[chosen]
    if len(views) == 2:
        matched, matching = np.stack([np.arange(len(chosen))] * 2, axis=1), "two views of one sample"
    else:
        matched = np.zeros((0, 2), dtype=np.int64) if label is None else pairs_of_classes(label)
        matching = "of one class"
    is_picture = recipe.data.audio is None
    return Sample(
        vectors, matched, matching, label=label, classes=data.classes,
        open_picture=pictures.open if is_picture else None,
    )  # fmt: skip
