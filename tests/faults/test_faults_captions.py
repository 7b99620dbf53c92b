import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import crafted_pictures as crafted
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from jointembed import runs
from jointembed.data.caption_parquet import caption_parquet
from jointembed.data.caption_shards import caption_shards
from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.captions_table import caption_table
from jointembed.data.records import CaptionData
from jointembed.errors import DataError
from jointembed.model import JointEmbedding
from jointembed.recipe import Recipe

JPEG = crafted.good()["rgb.jpg"]


def coco(root: Path, caption: object) -> CaptionData:
    document: dict[str, list[dict[str, object]]] = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 7, "image_id": 1}],
    }
    document["annotations"][0]["caption"] = caption
    (root / "c.json").write_text(json.dumps(document), encoding="utf-8")
    return coco_captions(images=str(root), annotations=str(root / "c.json"))


def of_karpathy(root: Path, caption: object) -> CaptionData:
    image = {"split": "test", "filename": "a.jpg", "sentences": [{"raw": caption, "sentid": 7}]}
    (root / "k.json").write_text(json.dumps({"images": [image]}), encoding="utf-8")
    return karpathy(images=str(root), annotations=str(root / "k.json"), split="test")


def of_json_lines(root: Path, caption: object) -> CaptionData:
    (root / "t.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": caption}), encoding="utf-8")
    return caption_table(images=str(root), table=str(root / "t.jsonl"))


def shard(root: Path, caption: object) -> CaptionData:
    members = {"0.jpg": JPEG, "0.json": json.dumps({"captions": [caption]}).encode()}
    with tarfile.open(root / "s.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return caption_shards(shards=str(root / "s.tar"))


def of_parquet(root: Path, caption: object) -> CaptionData:
    cells = pyarrow.array([caption], pyarrow.string() if caption is None or isinstance(caption, str) else None)
    parquet.write_table(pyarrow.table({"image": [JPEG], "caption": cells}), root / "p.parquet")
    return caption_parquet(files=str(root / "p.parquet"))


READERS: dict[str, Callable[[Path, object], CaptionData]] = {
    one.__name__: one for one in (coco, of_karpathy, of_json_lines, shard, of_parquet)
}
REFUSED = {
    "empty": ("", "empty"),
    "white space": (" \t\n ", "empty"),
    "None": (None, "None|no caption|null"),
    "a number": (7, "int|whole|text|string|caption"),
    "lone surrogate": ("a\ud83d dog", "half of a surrogate pair"),
    "NUL": ("a\0dog", "NUL character"),
}
TAKEN = {
    "emoji": "🐕 runs 👩‍👩‍👧 home",
    "right-to-left": "كلب يجري و כלב רץ",
    "combining": "e\u0301cole \u202eabc",
    "10,000 words": "dog " * 9_999 + "cat",
    "no letter": "...",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    crafted.write(tmp_path / "files", {"a.jpg": JPEG})
    return tmp_path / "files"


@pytest.mark.fault(12, "empty, white space, None, a number, lone surrogate, NUL: refused by name, every reader")
@pytest.mark.parametrize("fault", list(REFUSED))
@pytest.mark.parametrize("reader", list(READERS))
def test_captions_that_are_none_are_refused(reader: str, fault: str, root: Path) -> None:
    caption, words = REFUSED[fault]
    if reader == "of_parquet" and fault == "lone surrogate":
        with pytest.raises(UnicodeEncodeError):  # Arrow cannot even hold it
            of_parquet(root, caption)
        return
    with pytest.raises(DataError, match=words) as found:
        READERS[reader](root, caption)
    assert "\n" not in str(found.value) and str(root) in str(found.value)


@pytest.mark.fault(12, "emoji, right-to-left, combining, 10,000 words: kept letter by letter, every reader")
@pytest.mark.parametrize("kind", list(TAKEN))
@pytest.mark.parametrize("reader", list(READERS))
def test_captions_of_any_letters_are_kept(reader: str, kind: str, root: Path) -> None:
    assert READERS[reader](root, TAKEN[kind]).texts == (TAKEN[kind],)


@pytest.mark.fault(12, "emoji, right-to-left, 10,000 words: trained on and embedded; all of them as queries")
@pytest.mark.parametrize("tokens", ["words", "bpe"])
def test_odd_captions_are_trained_on_and_asked_for(
    tokens: str, tiny_recipe: Callable[..., Recipe], tiny_data: Path, tmp_path: Path
) -> None:
    document = json.loads((tiny_data / "captions.json").read_text())
    for number, caption in enumerate(TAKEN.values()):
        document["annotations"][number]["caption"] = caption
    (tiny_data / "captions.json").write_text(json.dumps(document))
    runs.train(tiny_recipe(f"data.text={{name: {tokens}, threshold: 1, max_length: 16}}"), tmp_path / "run")
    model = JointEmbedding.from_pretrained(tmp_path / "run")
    odd = [*TAKEN.values(), "a\ud83d dog", "a\0dog"]
    rows = np.asarray(model.encode_text(odd))
    assert rows.shape[0] == len(odd) and np.isfinite(rows).all()
    for none in ("", " "):
        with pytest.raises(DataError, match="text 1: expected words"):
            model.encode_text(["a dog", none])
    assert torch.allclose(torch.as_tensor(model.encode_text(odd[0])), torch.as_tensor(rows[0]), atol=1e-5)
