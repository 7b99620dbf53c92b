"""Retrieval written again from the definitions: plain Python, one query at a time, exact fractions."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

Row = Sequence[float]


def score(a: Row, b: Row) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def compare(scores: Sequence[float], positives: set[int]) -> tuple[int, int, int]:
    """Negatives above the best positive, negatives level with it, positives level with it (itself included)."""
    best = max(scores[j] for j in positives)
    above = sum(1 for j, s in enumerate(scores) if j not in positives and s > best)
    tied = sum(1 for j, s in enumerate(scores) if j not in positives and s == best)
    return above, tied, sum(1 for j in positives if scores[j] == best)


def no_positive_among(draws: int, negatives: int, positives: int) -> Fraction:
    """Probability that `draws` without replacement from the tied answers are all negatives."""
    chance = Fraction(1)
    for drawn in range(draws):
        if drawn >= negatives:
            return Fraction(0)
        chance *= Fraction(negatives - drawn, negatives + positives - drawn)
    return chance


def hit(above: int, tied: int, tied_positives: int, k: int) -> Fraction:
    """Probability that one of the first k answers is a positive, ties in random order."""
    return Fraction(0) if k <= above else 1 - no_positive_among(k - above, tied, tied_positives)


def rank(above: int, tied: int, tied_positives: int) -> Fraction:
    """Expected 1-based rank of the first positive: the sum over m of P(it comes after m answers)."""
    return above + sum((no_positive_among(m, tied, tied_positives) for m in range(tied + 1)), Fraction(0))


def hit_by_enumeration(above: int, tied: int, tied_positives: int, k: int) -> Fraction:
    """The same as `hit`, from every placement of the tied positives."""
    places = list(combinations(range(above, above + tied + tied_positives), tied_positives))
    return Fraction(sum(1 for chosen in places if min(chosen) < k), len(places))


def rank_by_enumeration(above: int, tied: int, tied_positives: int) -> Fraction:
    places = list(combinations(range(above, above + tied + tied_positives), tied_positives))
    return Fraction(sum(min(chosen) + 1 for chosen in places), len(places))


def queries(
    image: Sequence[Row], text: Sequence[Row], pairs: set[tuple[int, int]]
) -> dict[str, list[tuple[int, int, int] | None]]:
    """For each query of both directions what `compare` says, or None where it has no positive."""
    i2t = []
    for i, one in enumerate(image):
        positives = {t for j, t in pairs if j == i}
        i2t.append(compare([score(one, other) for other in text], positives) if positives else None)
    t2i = []
    for t, one in enumerate(text):
        positives = {j for j, u in pairs if u == t}
        t2i.append(compare([score(other, one) for other in image], positives) if positives else None)
    return {"i2t": i2t, "t2i": t2i}


def metrics(
    image: Sequence[Row], text: Sequence[Row], pairs: set[tuple[int, int]], k: Sequence[int]
) -> dict[str, float]:
    """The numbers that papers print."""
    found: dict[str, Fraction] = {}
    tied = 0
    by_direction = queries(image, text, pairs)
    for name, compared in by_direction.items():
        judged = [one for one in compared if one is not None]
        tied += sum(1 for one in judged if one[1])
        for top in k:
            found[f"{name}_R@{top}"] = 100 * sum((hit(*one, top) for one in judged), Fraction(0)) / len(judged)
    found["rsum"] = sum(found.values(), Fraction(0))
    for name, compared in by_direction.items():
        ranks = sorted(rank(*one) for one in compared if one is not None)
        middle = (ranks[(len(ranks) - 1) // 2] + ranks[len(ranks) // 2]) / 2
        found[f"{name}_medr"] = Fraction(middle.numerator // middle.denominator)
        found[f"{name}_meanr"] = sum(ranks, Fraction(0)) / len(ranks)
    sizes = {"tied_queries": tied, "n_images": len(image), "n_texts": len(text)}
    return {name: float(value) for name, value in found.items()} | {name: float(n) for name, n in sizes.items()}


def precision_at_r(scores: Sequence[float], positives: set[int]) -> tuple[float, float]:
    """mAP@R and R-precision of one query whose scores are all different."""
    r = len(positives)
    order = sorted(range(len(scores)), key=lambda j: -scores[j])
    relevant = [j in positives for j in order[:r]]
    average = sum(sum(relevant[: n + 1]) / (n + 1) for n in range(r) if relevant[n]) / r
    return average, sum(relevant) / r
