"""What is measured of a run after its training, and of files of embeddings."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from jointembed.build import (
    SPLITS,
    caption_data,
    check,
    check_correction,
    dataset,
    precision_of,
)
from jointembed.build_corrections import make_correction
from jointembed.build_frozen import FrozenRows
from jointembed.build_splits import check_classes
from jointembed.data.records import CaptionData, ImageData
from jointembed.errors import EvaluationError, RecipeError, WeightsError
from jointembed.evaluation.collapse import diagnostics
from jointembed.evaluation.corrections import Correction, Scored
from jointembed.evaluation.files import ground_truth, load_ranks, read_embeddings, save_ranks
from jointembed.evaluation.intervals import intervals, paired_difference
from jointembed.evaluation.protocols import PROTOCOLS, Protocol, Retrieval, first_captions, judged
from jointembed.evaluation.retrieval import RetrievalRanks, retrieval_ranks, summarize
from jointembed.evaluation.rows import Matrix
from jointembed.inference.card import model_card
from jointembed.inference.embed import (
    RetrievalEmbeddings,
    embed_captions,
    embed_sample,
)
from jointembed.inference.files import publish_json
from jointembed.model import JointEmbedding
from jointembed.objectives.supervised import Supervised
from jointembed.recipe import Block, Recipe, dump_recipe, load_recipe, nearest
from jointembed.report.gallery import Scoring
from jointembed.runs import CLASSIFIER, fitted_correction, judge_features
from jointembed.training.folder import command, save_evaluation


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a run left behind: its folder, its record (metrics.json), and what searched one another."""

    folder: Path
    record: dict[str, Any]
    data: CaptionData
    image: torch.Tensor  # (I, E) rows as they were scored, corrected ones where the evaluation was corrected
    text: torch.Tensor  # (T, E) likewise, zeros for a caption that the protocol leaves out
    scoring: Scoring


def run_recipe(run: Path, test: Block | None = None) -> Recipe:
    """The resolved recipe of a run folder, `test` as its test data if given. Raises RecipeError where there is none."""
    if not (run / "recipe.yaml").is_file():
        raise RecipeError(f"{run}: no recipe.yaml there; not a run folder")
    recipe = load_recipe(run / "recipe.yaml")
    if test is None:
        return check(recipe)
    with _called_data():
        return check(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, test=test)))


@contextmanager
def _called_data(asked: bool = True) -> Iterator[None]:
    """Errors name `--data` where they would name the recipe's test data, in whose place it stands."""
    try:
        yield
    except RecipeError as error:
        if not asked:
            raise
        raise RecipeError(str(error).replace("data.test", "--data", 1)) from None


def run_model(run: Path) -> JointEmbedding:
    """The model that a run published, on the accelerator if there is one."""
    return JointEmbedding.from_pretrained(run / "model", device="cuda" if torch.cuda.is_available() else "cpu")


def evaluate_features(run: Path, split: str, other: Block | None = None) -> dict[str, Any]:
    """Judge the representations of a run without captions on one split; written to `RUN/evaluation/SPLIT-features`.

    Args:
        run: run folder.
        split: train, validation or test.
        other: other data in place of a split, with the classes of the training data; see `evaluate_run`.
    """
    recipe = run_recipe(run, other)
    split = split if other is None else "test"
    if split not in SPLITS:
        raise RecipeError(f"--split: no {split!r}{nearest(split, SPLITS)}")
    model = run_model(run)
    if recipe.objective["name"] == "supervised":
        model.objective = _classifier_of(run).to(model.device)
    with _called_data(other is not None):
        train, test = dataset(recipe, "train"), dataset(recipe, split)
    assert isinstance(train, ImageData) and isinstance(test, ImageData)  # check() saw to it
    check_classes({"train": train, split: test})
    numbers = judge_features(recipe, model, train, test, precision_of(recipe, model.device))
    record = {
        "split": split if other is None else None,
        "embedding": recipe.evaluation.embedding,
        "data": test.name,
        "fingerprint": test.fingerprint,
        "metrics": numbers,
        "n_images": len(test.pictures),
    }
    place = split if other is None else other_name(test.name)
    return save_evaluation(run / "evaluation" / f"{place}-features", record)


def _classifier_of(run: Path) -> Supervised:
    """The classifier that a supervised run published. Raises WeightsError naming the file."""
    path = run / "model" / CLASSIFIER
    try:
        weights = load_file(path)
        classes, width = weights["weight"].shape
        objective = Supervised(classes=classes)
        objective.classifier = nn.Linear(width, classes)
        objective.classifier.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: the classifier cannot be read ({' '.join(str(error).split())[:300]})") from None
    return objective


def evaluate_run(
    run: Path,
    split: str,
    protocol: str | None = None,
    *,
    correct: str | Block | None = None,
    other: Block | None = None,
) -> Evaluated:
    """Embed one split with the run's model and measure retrieval; written to `RUN/evaluation/SPLIT-PROTOCOL`.

    Args:
        run: run folder.
        split: train, validation or test.
        protocol: that of the recipe if not given.
        correct: a correction by name or block in place of the recipe's, or `none`. A corrected evaluation has a folder
            of its own, and its protocol is called by both names wherever it is shown; see `correction_name`.
        other: other data in place of a split, a block as in a recipe; written to `RUN/evaluation/on-NAME-PROTOCOL`
            after the data's name.

    Raises:
        RecipeError: a split, protocol, correction or data set that is not there.
    """
    recipe = run_recipe(run, other)
    split = split if other is None else "test"
    correction = check_correction(recipe.evaluation.correct if correct is None else correct)
    if split not in SPLITS:
        raise RecipeError(f"--split: no {split!r}{nearest(split, SPLITS)}")
    protocol = protocol or recipe.evaluation.protocol
    _check_protocol(protocol)
    model = run_model(run)
    with _called_data(other is not None):
        data = caption_data(recipe, split)
    precision = precision_of(recipe, model.device)
    frozen = FrozenRows(recipe, model)
    shared: dict[str, Any] = {
        "batch": recipe.evaluation.batch, "precision": precision, "workers": recipe.loader.workers,
    }  # fmt: skip
    embeddings = embed_captions(model, data, **shared | frozen.rows(data))

    def sample() -> RetrievalEmbeddings:
        train = caption_data(recipe, "train")
        return embed_sample(model, train, seed=recipe.seed, **shared | frozen.rows(train))

    scored = _Scorer(fitted_correction(correction, sample))
    found = PROTOCOLS[protocol](
        embeddings.image, embeddings.text, data.item, data.text_item, picture_ids=data.picture_ids, correct=scored,
    )  # fmt: skip
    name = correction_name(correction)
    place = split if other is None else other_name(data.name)
    folder = run / "evaluation" / "-".join(filter(None, (place, protocol, name)))
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "split": split if other is None else None,
        "protocol": ", ".join(filter(None, (protocol, name))),
        "correct": correction,
        "embedding": recipe.evaluation.embedding,
        "centre": recipe.evaluation.centre,
        "data": data.name,
        "fingerprint": data.fingerprint,
        **measured(found),
    }
    diagnosis = diagnostics({"image": embeddings.image, "text": embeddings.text}, positives=data.positives)
    save_ranks(folder / "ranks.npz", found.ranks)
    publish_json(folder / "collapse.json", diagnosis)
    publish_json(folder / "metrics.json", record)  # last, and whole: where it is, the evaluation is finished
    card = model_card(recipe.name, recipe.description, dump_recipe(recipe), run)
    (run / "model" / "README.md").write_text(card, encoding="utf-8")
    return _evaluated(folder, record, data, PROTOCOLS[protocol], scored, found.ranks)


class _Scorer:
    """The correction of an evaluation, or none; keeps the rows that it gave for each fold."""

    def __init__(self, correction: Correction | None) -> None:
        self.correction = correction
        self.folds: list[Scored] = []

    def __call__(self, image: Matrix, text: Matrix) -> Scored:
        one = Scored(image, text, True) if self.correction is None else self.correction(image, text)
        self.folds.append(one)
        return one


def _evaluated(
    folder: Path, record: dict[str, Any], data: CaptionData, protocol: Protocol, scorer: _Scorer, ranks: RetrievalRanks
) -> Evaluated:
    """Rows, folds and ranks at the places that pictures and captions have in the data."""
    parts, captions = scorer.folds, _captions_asked(protocol, data)
    image = torch.cat([torch.as_tensor(one.image) for one in parts])
    some = torch.cat([torch.as_tensor(one.text) for one in parts])
    text = some.new_zeros(len(data.text_item), some.shape[1])
    text[torch.from_numpy(captions).to(text.device)] = some
    fold = np.full(len(data.text_item), -1)
    fold[captions] = ranks.t2i.fold
    rank = np.full(len(data.text_item), np.nan)
    rank[captions] = ranks.t2i.rank
    words = score_words(record["correct"]) + (", each query among its fold" if len(parts) > 1 else "")
    scoring = Scoring(parts[0].normalize, words, (ranks.i2t.fold, fold), (ranks.i2t.rank, rank))
    return Evaluated(folder, record, data, image, text, scoring)


def _captions_asked(protocol: Protocol, data: CaptionData) -> np.ndarray:
    """Rows of the captions in the order of a protocol's ranks: those it keeps, fold by fold."""
    rows = np.arange(len(data.text_item))
    if protocol.captions is not None:
        rows = first_captions(data.text_item, protocol.captions)
    if protocol.folds == 1:
        return rows
    return np.concatenate([rows[np.isin(data.text_item[rows], one)] for one in np.split(data.item, protocol.folds)])


def score_words(correction: Block | None) -> str:
    """What the scores of an evaluation with a checked correction are, for who reads them."""
    if correction is None:
        return "cosines"
    if correction["name"] == "euclidean":
        return "squared distances, negated"
    return f"cosines corrected by {correction_name(correction)}"


def other_name(data: str) -> str:
    """What folders call the evaluation of other data than a split, after the name of the data."""
    return f"on-{quote(data, safe=' ')}"


def correction_name(correction: Block | None) -> str:
    """What folders and protocols call a checked correction: its name, and its arguments that are not the defaults."""
    if correction is None:
        return ""
    usual = check_correction(correction["name"]) or {}
    changed = sorted(key for key, value in correction.items() if value != usual[key])
    return "-".join([correction["name"], *(f"{key}-{quote(str(correction[key]), safe='')}" for key in changed)])


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise RecipeError(f"--protocol: no {protocol!r}; there are {', '.join(PROTOCOLS)}")


def measured(found: Retrieval) -> dict[str, Any]:
    """Numbers, 95% intervals over pictures, and the chance level, with the command and the date."""
    return {
        "metrics": found.metrics,
        "intervals": {name: list(pair) for name, pair in intervals(found.ranks).items()},
        "chance": found.chance,
        "n_images": int(found.metrics["n_images"]),
        "n_texts": int(found.metrics["n_texts"]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def compare_runs(run: Path, other: Path, evaluation: str) -> list[str]:
    """One line a number: run minus other on the same queries, with the paired 95% interval."""
    paths = [one / "evaluation" / evaluation / "ranks.npz" for one in (run, other)]
    for path in paths:
        if not path.is_file():
            raise EvaluationError(f"{path}: no such evaluation; run `jointembed evaluate {path.parents[2]}` first")
    data = [json.loads((path.parent / "metrics.json").read_text(encoding="utf-8")) for path in paths]
    if len({one["fingerprint"] for one in data}) > 1:
        named = " and ".join(f"{one['data']} ({one['fingerprint'][:12]})" for one in data)
        raise EvaluationError(f"{run} and {other}: {evaluation} is of different data, {named}; nothing can be paired")
    differences = paired_difference(*(load_ranks(path) for path in paths))
    return [
        f"{name}: {one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}] against {other}"
        for name, one in differences.items()
        if "R@" in name or name == "rsum"
    ]


def evaluate_file(
    path: Path, protocol: str, truth: Path | None = None, *, correct: str | Block | None = None
) -> dict[str, Any]:
    """Measure embeddings made anywhere; `truth` judges them by a published ground truth of the COCO 5K test."""
    file = read_embeddings(path)
    correction = check_correction(correct)
    if correction is not None and (truth is not None or file.image_of_text is None):
        raise EvaluationError(f"{path}: a correction needs image_of_text in the file, and no other ground truth")
    if truth is not None:
        if file.image_ids is None or file.text_ids is None:
            raise EvaluationError(f"{path}: a published ground truth needs image_ids and text_ids in the file")
        found = judged(file.image, file.text, ground_truth(truth, file.image_ids, file.text_ids))
        protocol = truth.name
    elif file.image_of_text is not None:
        _check_protocol(protocol)
        ids = None if file.image_ids is None else file.image_ids.tolist()
        found = PROTOCOLS[protocol](
            file.image, file.text, np.arange(len(file.image)), file.image_of_text, picture_ids=ids,
            correct=make_correction(correction),
        )  # fmt: skip
        protocol = ", ".join(filter(None, (protocol, correction_name(correction))))
    else:
        if protocol != "full":
            raise RecipeError(f"--protocol: {protocol} needs image_of_text in the file; positives allow only 'full'")
        ranks = retrieval_ranks(file.image, file.text, file.positives)
        found = Retrieval(summarize(ranks), ranks)
    return {"split": path.name, "protocol": protocol, "data": str(path), **measured(found)}
