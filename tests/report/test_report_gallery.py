import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import ODD_CAPTIONS, embeddings
from torch.nn import functional

from jointembed.errors import EvaluationError
from jointembed.evaluation.corrections import CSLS
from jointembed.evaluation.protocols import matches
from jointembed.evaluation.retrieval import retrieval_ranks
from jointembed.report.gallery import Scoring, write_gallery


def queries_of(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    return json.loads(write_gallery(folder, **(embeddings() | changes)).read_text())["queries"]


def test_answers_scores_and_ranks_are_those_of_a_full_sort(tmp_path: Path) -> None:
    given = embeddings()
    image, text = (functional.normalize(given[view].double(), dim=1) for view in ("image", "text"))
    queries = queries_of(tmp_path)
    assert [query["direction"] for query in queries] == ["i2t"] * 6 + ["t2i"] * 6
    for query in queries[:6]:
        number = given["image_names"].index(query["query"]["name"])
        scores = image[number] @ text.T
        order = scores.argsort(descending=True).tolist()
        assert [answer["text"] for answer in query["answers"]] == [given["texts"][i] for i in order[:5]]
        assert [answer["score"] for answer in query["answers"]] == pytest.approx(scores[order[:5]].tolist(), abs=1e-6)
        assert [answer["correct"] for answer in query["answers"]] == [i // 2 == number for i in order[:5]]
        assert query["rank"] == 1 + min(order.index(2 * number), order.index(2 * number + 1))
        assert query["query"]["text"] == given["texts"][2 * number]
    by_names = {query["query"]["text"]: query for query in queries[6:]}
    for number, caption in enumerate(given["texts"]):
        if caption.startswith("shape") and caption in by_names:
            order = (text[number] @ image.T).argsort(descending=True).tolist()
            answers = by_names[caption]["answers"]
            assert [answer["name"] for answer in answers] == [f"shape_{i}.png" for i in order[:5]]
            assert by_names[caption]["rank"] == 1 + order.index(number // 2)


def test_right_and_wrong_are_mixed(tmp_path: Path) -> None:
    queries = queries_of(tmp_path)
    for direction in ("i2t", "t2i"):
        right = [query["answers"][0]["correct"] for query in queries if query["direction"] == direction]
        assert sorted(right) == [False] * 3 + [True] * 3
        assert all((q["rank"] == 1) == q["answers"][0]["correct"] for q in queries)


def test_one_kind_fills_up_for_the_other(tmp_path: Path) -> None:
    given = embeddings()
    perfect = given["image"].repeat_interleave(2, 0)
    assert all(query["answers"][0]["correct"] for query in queries_of(tmp_path, text=perfect))
    few = queries_of(tmp_path, queries=100)
    assert len(few) == 20 + 40 and not all(query["answers"][0]["correct"] for query in few)


def test_seed_decides(tmp_path: Path) -> None:
    first = queries_of(tmp_path / "a")
    assert queries_of(tmp_path / "b") == first and queries_of(tmp_path / "c", seed=9) != first
    assert len(queries_of(tmp_path / "d", queries=3)) == 3


def test_odd_captions_survive(tmp_path: Path) -> None:
    (tmp_path / "gallery.json.part").write_text("of another process")
    queries = queries_of(tmp_path, queries=100)
    assert set(ODD_CAPTIONS) <= {query["query"]["text"] for query in queries}
    assert [path.name for path in tmp_path.glob("*.part")] == ["gallery.json.part"]


def test_thumbs_are_small_jpegs_and_old_ones_go(tmp_path: Path) -> None:
    first = queries_of(tmp_path, queries=100)
    named = {a["thumb"] for q in first for a in [q["query"], *q["answers"]] if "thumb" in a}
    assert named == {f"thumbs/{path.name}" for path in (tmp_path / "thumbs").iterdir()} and len(named) == 20
    with Image.open(tmp_path / "thumbs/000003.jpg") as thumb:
        assert (thumb.format, thumb.mode, thumb.size) == ("JPEG", "RGB", (128, 96))
    (tmp_path / "thumbs" / "mine.jpg").write_bytes(b"kept")
    second = queries_of(tmp_path, queries=2)
    named = {a["thumb"] for q in second for a in [q["query"], *q["answers"]] if "thumb" in a}
    assert named | {"thumbs/mine.jpg"} == {f"thumbs/{path.name}" for path in (tmp_path / "thumbs").iterdir()}
    assert len(named) < 20


def test_ties_give_the_expected_rank(tmp_path: Path) -> None:
    queries = queries_of(tmp_path, image=torch.ones(20, 4), text=torch.ones(40, 4))
    # i2t: 2 positives among 40 equal scores; t2i: 1 among 20.
    ranks = {(query["direction"], query["rank"]) for query in queries}
    assert ranks == {("i2t", 1 + 38 / 3), ("t2i", 1 + 19 / 2)}


def test_many_to_many_truth_and_items_without_partner(tmp_path: Path) -> None:
    pairs = torch.tensor([[0, 0], [1, 0], [0, 0], [1, 3]])  # text 0 shows two pictures; a pair may stand twice
    queries = queries_of(tmp_path, positives=pairs, queries=100)
    assert sorted(query["query"].get("name", "") for query in queries) == ["", "", "shape_0.png", "shape_1.png"]
    both = next(q for q in queries if q["direction"] == "t2i" and q["query"]["text"] == ODD_CAPTIONS[0])
    assert {a["name"] for a in both["answers"] if a["correct"]} <= {"shape_0.png", "shape_1.png"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": torch.ones(40, 5)}, r"\(20, 6\) and \(40, 5\)"),
        ({"texts": ["one"]}, "40 text embeddings with 1 texts"),
        ({"positives": torch.tensor([[0, 0], [20, 1]])}, r"row 1 is \(20, 1\)"),
        ({"positives": torch.tensor([0, 1])}, r"shape \(2,\); expected \(P, 2\)"),
        (
            {"image": torch.cat([torch.ones(7, 6), torch.full((13, 6), torch.nan)])},
            "image embedding row 7 is not finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        write_gallery(tmp_path, **(embeddings() | changes))


def test_a_corrected_gallery_is_of_the_corrected_scores(tmp_path: Path) -> None:
    given = embeddings()
    owner = np.arange(20).repeat(2)
    scored = CSLS(k=3)(given["image"], given["text"])
    found = retrieval_ranks(scored.image, scored.text, matches(np.arange(20), owner), normalize=False)
    scoring = Scoring(False, "cosines corrected by csls", ranks=(found.i2t.rank, found.t2i.rank))
    changes = {"image": scored.image, "text": scored.text, "scoring": scoring, "queries": 100}
    queries = queries_of(tmp_path, **changes)
    scores = scored.image @ scored.text.T
    for query in (one for one in queries if one["direction"] == "i2t"):
        number = given["image_names"].index(query["query"]["name"])
        best = scores[number].sort(descending=True)
        assert [answer["score"] for answer in query["answers"]] == pytest.approx(best.values[:5].tolist(), abs=1e-5)
        assert query["rank"] == found.i2t.rank[number]
    computed = queries_of(tmp_path, **changes | {"scoring": Scoring(False)})
    assert [one["rank"] for one in computed] == [one["rank"] for one in queries]
    assert [one["rank"] for one in queries] != [one["rank"] for one in queries_of(tmp_path, queries=100)]
    assert json.loads((tmp_path / "gallery.json").read_text())["scores"] == "cosines"


def test_folds_meet_only_their_own(tmp_path: Path) -> None:
    of_image, of_text = np.arange(20) // 10, np.arange(40) // 20
    of_text[:3] = -1  # captions that nobody asks: both of picture 0, one of picture 1
    queries = queries_of(tmp_path, scoring=Scoring(folds=(of_image, of_text)), queries=100)
    names = [one["query"]["name"] for one in queries if one["direction"] == "i2t"]
    assert sorted(names) == sorted(f"shape_{number}.png" for number in range(1, 20))
    for query in queries:
        if query["direction"] == "i2t":
            assert len(query["answers"]) == 5 and query["rank"] <= 20
    few = Scoring(folds=(np.zeros(20), np.where(np.arange(40) < 2, 0, -1)))
    queries = queries_of(tmp_path, scoring=few, queries=100)
    assert [len(one["answers"]) for one in queries] == [2, 5, 5]
    with pytest.raises(EvaluationError, match="folds of 20 and 39 rows"):
        queries_of(tmp_path, scoring=Scoring(folds=(of_image, of_text[1:])))
