"""Pictures of a run, as PNG: curves, spectrum, similarity of pairs, and a map of the embeddings."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from jointembed.objectives.statistics import singular_values
from jointembed.report.curves import Line, is_number, of_kind

# Okabe and Ito's colours, which colour-blind readers tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5a5a5a", "#000000", "#8a6d00", "#7a3d9a")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS),
}
_THUMB = 64  # pixels of the longer side
_THUMBS, _LABELS = 90, 14  # at most so many pictures, and texts, on the map
_THUMB_ROOM, _LABEL_ROOM = (0.04, 0.05), (0.19, 0.03)  # of the map's width and height, that one takes
_UNMATCHED = 400_000  # unmatched pairs at most that are drawn


@dataclass(frozen=True)
class Sample:
    """What the plots show of a data set: the vectors of one or two views, and what belongs together.

    Attributes:
        vectors: view -> (N, D), not normalised; pairs are rows of the first and of the last view.
        matched: (P, 2) pairs that belong together.
        matching: in words, what a matched pair is.
        label: (N,) class of the first view's rows, or None.
        classes: names of the classes, or None.
        open_picture: gives the picture of a row of the first view; None where rows are no pictures.
        texts: of the rows of the last view; None where they are no texts.
    """

    vectors: Mapping[str, Tensor]
    matched: np.ndarray
    matching: str
    label: np.ndarray | None = None
    classes: Sequence[str] | None = None
    open_picture: Callable[[int], Image.Image] | None = None
    texts: Sequence[str] | None = None

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last view; the same where there is one."""
        names = list(self.vectors)
        return names[0], names[-1]


class _Panel(NamedTuple):
    title: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]  # label -> x, y


# -- curves ---------------------------------------------------------------------------------------------------------


def draw_curves(lines: Sequence[Line], path: Path) -> bool:
    """Every number of metrics.jsonl over the epochs, a panel a group; False where there is nothing to draw."""
    panels = _panels(lines)
    if not panels:
        return False
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figure_of(path, (4.4 * columns, 3.0 * rows)) as figure:
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(rows, columns, number)
            for label, (x, y) in panel.series.items():
                axes.plot(x, y, label=label, linewidth=1.5, marker="o" if len(x) <= 12 else "", markersize=3)
            values = np.concatenate([y for _, y in panel.series.values()])
            if values.min() > 0 and values.max() > 50 * values.min():
                _logarithmic(axes)
            axes.set_title(panel.title)
            axes.set_xlabel("epoch")
            if len(panel.series) > 1:
                axes.legend(fontsize=7.5, frameon=True, framealpha=0.75, edgecolor="none")
    return True


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(which="minor", labelleft=False)


def _panels(lines: Sequence[Line]) -> list[_Panel]:
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for kind in ("train", "validation", "health"):
        chosen = of_kind(lines, kind)
        names = dict.fromkeys(n for line in chosen for n, v in line.items() if is_number(v))
        for name in names:
            group = _group(kind, name)
            points = [(line.get("epoch", line["step"]), line[name]) for line in chosen if is_number(line.get(name))]
            x, y = np.array([one for one in points if np.isfinite(one[1])], dtype=float).reshape(-1, 2).T
            if group and len(x):
                found.setdefault(group[0], {})[group[1]] = (x, y)
    return [_Panel(title, series) for title, series in found.items()]


def _group(kind: str, name: str) -> tuple[str, str] | None:
    """Panel and label of a number; None for what is no result."""
    if name in ("step", "epoch", "seconds", "n_images", "n_texts", "tied_queries"):
        return None
    if kind == "health":
        view, _, statistic = name.rpartition("/")
        return f"health: {statistic}", view.removeprefix("health/") or statistic
    if kind == "train":
        apart = {"loss": "loss", "gradient_norm": "gradient norm", "samples_per_second": "samples a second"}
        return ("learning rate", name) if name.split("/")[0] == "lr" else (apart.get(name, "terms of the loss"), name)
    direction, _, number = name.partition("_")
    if direction in ("i2t", "t2i"):
        how = "recall in %" if number.startswith("R@") else "rank"
        return f"validation: {how}, {direction}", number
    return "validation: accuracy in %" if "_top" in name else f"validation: {name}", name


# -- spectrum -------------------------------------------------------------------------------------------------------


def draw_spectrum(vectors: Mapping[str, Tensor], path: Path) -> None:
    """Standard deviations of each view's vectors along their principal axes, relative to the largest."""
    with figure_of(path, (6.4, 4.2)) as figure:
        axes = figure.add_subplot()
        for view, rows in vectors.items():
            values = singular_values(rows.float() - rows.float().mean(0)).numpy()
            values = values[: len(rows) - 1]  # centred rows span one axis fewer than they are
            seen = values > values.max() * 1e-7
            label = f"{view}: {len(rows):,} rows of width {rows.shape[1]:,}"
            axes.plot(np.arange(1, len(values) + 1)[seen], values[seen] / values.max(), label=label)
        _logarithmic(axes)
        axes.set_xlabel("principal axis")
        axes.set_ylabel("standard deviation, relative to the largest")
        axes.set_title("Spectrum of the embeddings")
        axes.legend()


# -- similarity -----------------------------------------------------------------------------------------------------


def draw_similarity(sample: Sample, path: Path, *, seed: int = 0) -> None:
    """Cosines of matched pairs and of all others, and how often a matched one is the higher of the two.

    There must be pairs of both kinds; `check_pairs` says so.
    """
    from sklearn.metrics import roc_auc_score

    matched, unmatched = similarities(sample, seed=seed)
    above = roc_auc_score(np.r_[np.ones(len(matched)), np.zeros(len(unmatched))], np.r_[matched, unmatched])
    low, high = min(matched.min(), unmatched.min()), max(matched.max(), unmatched.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 81).tolist()
    with figure_of(path, (6.4, 4.2)) as figure:
        axes = figure.add_subplot()
        for values, name, colour in ((unmatched, "unmatched", COLOURS[6]), (matched, sample.matching, COLOURS[0])):
            label = f"{name}: {len(values):,} pairs, mean {values.mean():.3f}"
            axes.hist(values, bins=bins, density=True, alpha=0.45, color=colour, label=label)
            axes.axvline(values.mean(), color=colour, linewidth=1.4)
        axes.set_xlabel(f"cosine of {' and '.join(dict.fromkeys(sample.ends))}")
        axes.set_ylabel("density")
        axes.set_title(f"A matched pair scores above an unmatched one in {100 * above:.1f}%", pad=40)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, borderaxespad=0.2)


def similarities(sample: Sample, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the matched pairs, and of the others (a seeded part of them where they are many)."""
    first, last = (functional.normalize(sample.vectors[view].float(), dim=1) for view in sample.ends)
    scores = (first @ last.T).numpy()
    belongs = np.zeros(scores.shape, dtype=bool)
    belongs[sample.matched[:, 0], sample.matched[:, 1]] = True
    others = ~belongs
    if sample.ends[0] == sample.ends[1]:  # a row is no pair with itself, and a pair counts once
        others &= np.tri(len(scores), k=-1, dtype=bool)
    unmatched = scores[others]
    if len(unmatched) > _UNMATCHED:
        unmatched = np.random.default_rng(seed).choice(unmatched, _UNMATCHED, replace=False)
    return scores[sample.matched[:, 0], sample.matched[:, 1]], unmatched


# -- map ------------------------------------------------------------------------------------------------------------


def draw_map(sample: Sample, path: Path, *, tsne: bool = False, seed: int = 0) -> None:
    """All rows of both views in two dimensions, with thumbnails, a few texts, and lines between matched pairs."""
    views = list(dict.fromkeys(sample.ends))
    places, how = _two_dimensions([sample.vectors[view] for view in views], tsne, seed)
    with figure_of(path, (12.0, 9.0)) as figure:
        axes = figure.add_subplot()
        axes.set(xticks=[], yticks=[], title=how)
        axes.spines[:].set_visible(False)
        for number, (view, one) in enumerate(zip(views, places, strict=True)):
            colour = COLOURS[number]
            if sample.label is not None and len(one) == len(sample.label):
                _draw_classes(axes, one, sample, marker="os"[number], prefix=f"{view}: " if len(views) == 2 else "")
            else:
                size, opacity = (12, 0.6) if len(one) <= 1500 else (6, 0.3)
                marks: dict[str, Any] = {"s": size, "color": colour, "marker": "os"[number], "alpha": opacity}
                axes.scatter(one[:, 0], one[:, 1], linewidths=0, label=view, **marks)
        shown = _spread(places[0], _THUMBS, seed, _THUMB_ROOM) if sample.open_picture else []
        if len(views) == 2:
            _draw_pairs(axes, places, sample, shown)
        for row in shown:
            _draw_thumb(axes, places[0][row], sample, row)
        if sample.texts is not None:
            _draw_texts(axes, places[-1], sample.texts, seed)
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=2, fontsize=8)
        for handle in filter(None, legend.legend_handles):
            handle.set_alpha(1)


def _two_dimensions(vectors: Sequence[Tensor], tsne: bool, seed: int) -> tuple[list[np.ndarray], str]:
    """Coordinates (N, 2) of each view's rows, 0 .. 1, and a title that says how they were made."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.concatenate([functional.normalize(one.float(), dim=1).numpy() for one in vectors])
    if tsne:
        few = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
        flat = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=seed).fit_transform(few)
        how = "t-SNE: near rows are alike, distances between groups mean nothing"
    else:
        pca = PCA(2, random_state=seed)
        flat = pca.fit_transform(rows)
        how = f"PCA: these two axes hold {100 * pca.explained_variance_ratio_.sum():.1f}% of the variance"
    flat = (flat - flat.min(0)) / np.maximum(np.ptp(flat, axis=0), 1e-12)
    ends = np.cumsum([len(one) for one in vectors])[:-1]
    return np.split(flat, ends), how


def _draw_classes(axes: Axes, places: np.ndarray, sample: Sample, *, marker: str, prefix: str) -> None:
    assert sample.label is not None
    for number in np.unique(sample.label):
        name = sample.classes[number] if sample.classes is not None else str(number)
        colour = COLOURS[number % len(COLOURS)]
        x, y = places[sample.label == number].T
        axes.scatter(x, y, s=12, color=colour, marker=marker, alpha=0.7, linewidths=0, label=f"{prefix}{name}")


def _spread(places: np.ndarray, most: int, seed: int, room: tuple[float, float]) -> list[int]:
    """Rows in seeded order, none of which would cover one that was taken before."""
    taken: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(places)):
        if len(taken) < most and bool((np.abs(places[row] - places[taken]) > room).any(axis=1).all()):
            taken.append(int(row))
    return taken


def _draw_pairs(axes: Axes, places: Sequence[np.ndarray], sample: Sample, rows: Sequence[int]) -> None:
    first_match = dict(reversed(sample.matched.tolist()))
    for row in rows or range(min(_THUMBS, len(places[0]))):
        if row in first_match:
            ends = np.stack([places[0][row], places[-1][first_match[row]]])
            axes.plot(*ends.T, color="#00000038", linewidth=0.7, zorder=1)


def _draw_thumb(axes: Axes, place: np.ndarray, sample: Sample, row: int) -> None:
    assert sample.open_picture is not None
    picture = ImageOps.contain(sample.open_picture(row), (_THUMB, _THUMB))
    edge = COLOURS[0] if sample.label is None else COLOURS[int(sample.label[row]) % len(COLOURS)]
    frame = {"edgecolor": edge, "linewidth": 0.8}
    axes.add_artist(AnnotationBbox(OffsetImage(np.asarray(picture), zoom=0.45), tuple(place), pad=0.1, bboxprops=frame))


def _draw_texts(axes: Axes, places: np.ndarray, texts: Sequence[str], seed: int) -> None:
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    drawable = [row for row, text in enumerate(texts) if all(ord(letter) in known for letter in text)]
    for chosen in _spread(places[drawable], _LABELS, seed, _LABEL_ROOM) if drawable else []:
        text = " ".join(texts[drawable[chosen]].split())
        text = text if len(text) <= 34 else f"{text[:33]}…"
        box = {"boxstyle": "round,pad=0.15", "facecolor": "#ffffffd8", "edgecolor": COLOURS[1], "linewidth": 0.6}
        x, y = places[drawable[chosen]]
        axes.text(x, y, text, fontsize=7, ha="center", va="center", bbox=box, zorder=6)


@contextlib.contextmanager
def figure_of(path: Path, inches: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is written to `path` when its block ends."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=150, metadata={"Software": None})


def pairs_of_classes(label: np.ndarray) -> np.ndarray:
    """Rows of the same class, each pair once: (P, 2)."""
    same = (label[:, None] == label[None, :]) & np.tri(len(label), k=-1, dtype=bool)
    return np.argwhere(same)


def check_pairs(sample: Sample) -> str | None:
    """Why similarities of matched and other pairs cannot be compared, or None."""
    if not len(sample.matched):
        return "one view and no two pictures of one class: no pair is known to match"
    first, last = (len(sample.vectors[view]) for view in sample.ends)
    pairs = first * (first - 1) // 2 if sample.ends[0] == sample.ends[1] else first * last
    if len(sample.matched) == pairs:
        return "all are of one class: every pair matches, and there is no other to compare with"
    return None


def check_rows(vectors: Mapping[str, Tensor]) -> str | None:
    """Why nothing can be drawn of these vectors, or None."""
    for view, rows in vectors.items():
        if len(rows) < 4:
            return f"{len(rows)} rows of {view}; plots of embeddings need at least 4"
        if not bool(torch.isfinite(rows).all()):
            return f"the vectors of {view} have values that are not finite"
        if bool((rows == rows[0]).all()):  # less their mean, equal rows are not always zero
            return f"all vectors of {view} are equal: the model has collapsed"
    return None
