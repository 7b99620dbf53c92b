"""Readers given anything at all: what they do not take they refuse by an error of jointembed's own."""

import io
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crafted_pictures as crafted
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import TINY, write_captions

from jointembed import build
from jointembed.data.caption_shards import caption_shards
from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.detection_coco import coco_detection
from jointembed.data.image_shards import image_shards
from jointembed.data.pictures import open_picture
from jointembed.data.tokens import Tokens, bpe, pad, words
from jointembed.errors import JointEmbedError
from jointembed.evaluation.detection import read_detections
from jointembed.recipe import load_recipe

CASES = [200, pytest.param(5000, marks=pytest.mark.slow)]
fuzz = pytest.mark.parametrize("cases", CASES)
said = "no exception but jointembed.errors: 200 cases, 5,000 by command"


def run(
    cases: int, strategy: st.SearchStrategy[Any], read: Callable[[Any], object], *, refused: bool = True
) -> Counter[str]:
    """Read as many cases, and count what was taken and what refused; anything else raised is a failure.

    Both must occur, or nothing was tried; `refused` is false for what can be made again and is never refused.
    """
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=cases <= 200,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Any) -> None:
        try:
            read(case)
            outcomes["taken"] += 1
        except JointEmbedError as error:
            assert str(error) and "\n" not in str(error)
            outcomes["refused"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of damaged pictures
        one()
    assert outcomes["taken"] > 0 and outcomes["refused"] > 0 or not refused, outcomes
    assert outcomes.total() >= cases, outcomes
    print(dict(outcomes))
    return outcomes


def changed(originals: list[bytes], most: int = 12) -> st.SearchStrategy[bytes]:
    """One of the files with bytes changed, put in or taken out, or cut short."""
    changes = st.lists(
        st.tuples(st.sampled_from("=+-"), st.integers(0, 2**20), st.integers(0, 255)), min_size=0, max_size=most
    )

    def apply(original: bytes, steps: list[tuple[str, int, int]], cut: int | None) -> bytes:
        content = bytearray(original)
        for kind, place, value in steps:
            place %= len(content) + (kind == "+") or 1
            if kind == "=" and content:
                content[place] = value
            elif kind == "+":
                content.insert(place, value)
            elif content:
                del content[place]
        return bytes(content if cut is None else content[: cut % (len(content) + 1)])

    return st.builds(apply, st.sampled_from(originals), changes, st.none() | st.none() | st.integers(0, 2**20))


odd: st.SearchStrategy[object] = st.sampled_from(
    [None, True, -1, 0, 1, 7, 2**70, 1e308, -0.5, "", "a.jpg", "../a.jpg", "\ud800", "\0", "x" * 300]
)
values = st.recursive(
    odd | st.text(max_size=4) | st.builds(list) | st.builds(dict),  # new ones: the changes below are made in place
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one, max_size=2),
)


def paths_of(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, one in branches:
        found += paths_of(one, (*at, key))
    return found


def replaced(tree: Any) -> st.SearchStrategy[Any]:
    """The document with values replaced or taken out."""
    everywhere = paths_of(tree)

    def apply(changes: list[tuple[tuple[Any, ...], bool, Any]]) -> Any:
        copy = json.loads(json.dumps(tree))
        for path, out, value in changes:
            node = copy
            try:
                for key in path[:-1]:
                    node = node[key]
                if out:
                    del node[path[-1]]
                else:
                    node[path[-1]] = value
            except (KeyError, IndexError, TypeError):  # an earlier change took it away
                continue
        return copy

    return st.lists(st.tuples(st.sampled_from(everywhere), st.booleans(), values), max_size=3).map(apply)


BOX = {"category_id": 1, "bbox": [1, 1, 9, 9], "area": 81}
CROWD = {"size": [32, 32], "counts": [0, 1024]}
COCO = {
    "images": [
        {"id": number, "file_name": name, "width": 32, "height": 32} for number, name in ((1, "a.jpg"), (2, "b.jpg"))
    ],
    "annotations": [
        {"id": 7, "image_id": 1, "caption": "a dog", **BOX, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"id": 8, "image_id": 2, "caption": "a cat", **BOX, "iscrowd": 1, "segmentation": CROWD},
    ],
    "categories": [{"id": 1, "name": "x"}],
}
KARPATHY = {
    "images": [
        {
            "split": "test",
            "filename": "a.jpg",
            "filepath": "",
            "cocoid": 1,
            "sentences": [{"raw": "a dog", "sentid": 7}],
        },
        {"split": "val", "filename": "b.jpg", "cocoid": 2, "sentences": [{"raw": "a cat", "sentid": 8}]},
    ]
}
FOUND = [
    {
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 1, 9, 9],
        "score": 0.5,
        "segmentation": {"size": [32, 32], "counts": "0P1"},
    }
]


def as_files(tree: Any) -> st.SearchStrategy[bytes]:
    """The document changed in its values, and changed in its bytes."""
    text = json.dumps(tree).encode()
    return replaced(tree).map(lambda one: json.dumps(one).encode()) | changed([text], most=3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    crafted.write(tmp_path, {"a.jpg": crafted.good()["rgb.jpg"], "b.jpg": crafted.good()["rgb.jpg"]})
    return tmp_path


@pytest.mark.fault(22, f"COCO captions JSON: {said}")
@fuzz
def test_coco_captions(cases: int, root: Path) -> None:
    def read(content: bytes) -> object:
        (root / "c.json").write_bytes(content)
        return coco_captions(images=str(root), annotations=str(root / "c.json"), skip_uncaptioned=True)

    run(cases, as_files(COCO), read)


@pytest.mark.fault(22, f"COCO detection JSON with masks: {said}")
@fuzz
def test_coco_detection(cases: int, root: Path) -> None:
    def read(content: bytes) -> object:
        (root / "d.json").write_bytes(content)
        data = coco_detection(images=str(root), annotations=str(root / "d.json"), masks=True)
        return [data.target(number, masks=True) for number in range(len(data))]

    run(cases, as_files(COCO), read)


@pytest.mark.fault(22, f"detection results JSON: {said}")
@fuzz
def test_detection_results(cases: int, root: Path) -> None:
    (root / "d.json").write_text(json.dumps(COCO))
    data = coco_detection(images=str(root), annotations=str(root / "d.json"))

    def read(content: bytes) -> object:
        (root / "r.json").write_bytes(content)
        return read_detections(root / "r.json", data)

    without = [{key: value for key, value in FOUND[0].items() if key != "segmentation"}]
    run(cases, as_files(FOUND) | as_files(without), read)


@pytest.mark.fault(22, f"Karpathy JSON: {said}")
@fuzz
def test_karpathy(cases: int, root: Path) -> None:
    def read(content: bytes) -> object:
        (root / "k.json").write_bytes(content)
        return karpathy(images=str(root), annotations=str(root / "k.json"), split="test")

    run(cases, as_files(KARPATHY), read)


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.fault(22, f"tar shards, with captions and with labels: {said}")
@fuzz
def test_shards(cases: int, root: Path) -> None:
    picture = crafted.encoded(crafted.noise(4))
    captions = tar_of(
        {"0.png": picture, "0.json": b'{"captions": ["a dog"]}', "1.png": picture, "1.json": b'{"captions": "b"}'}
    )
    labels = tar_of({"0.png": picture, "0.cls": b"0", "1.png": picture, "1.cls": b"1"})

    def read(content: bytes) -> object:
        (root / "s.tar").write_bytes(content)
        (root / "s.tar.json.index.json").unlink(missing_ok=True)
        data: Any
        if b".cls" in content:
            data = image_shards(path=str(root / "s.tar"))
        else:
            data = caption_shards(shards=str(root / "s.tar"))
        return [data.pictures.open(number) for number in range(len(data.pictures))]

    run(cases, changed([captions, labels], most=2), read)


@pytest.mark.fault(22, f"a stored index of a shard: {said}")
@fuzz
def test_index_of_a_shard(cases: int, root: Path) -> None:
    picture = crafted.encoded(crafted.noise(4))
    (root / "s.tar").write_bytes(tar_of({"0.png": picture, "0.json": b'{"captions": ["a dog"]}'}))
    caption_shards(shards=str(root / "s.tar"))
    stored = root / "s.tar.json.index.json"
    tree = json.loads(stored.read_text())

    def read(content: bytes) -> object:
        stored.write_bytes(content)
        data = caption_shards(shards=str(root / "s.tar"))
        return [data.pictures.open(number) for number in range(len(data.pictures))]

    run(cases, as_files(tree), read, refused=False)


@pytest.mark.fault(22, f"image decoding: {said}")
@fuzz
def test_pictures(cases: int) -> None:
    originals = [*crafted.good().values(), *(one for name, one in crafted.bad().items() if name != "bomb.png")]
    originals += [crafted.encoded(crafted.noise(8), kind) for kind in ("BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000")]

    def read(content: bytes) -> object:
        picture = open_picture(content, max_pixels=10**6)
        assert picture.mode == "RGB"
        return picture

    run(cases, changed(originals) | st.binary(max_size=64), read)


@pytest.mark.fault(22, f"tokenisation, words and byte pairs, of any text: {said}")
@fuzz
def test_tokenisation(cases: int) -> None:
    text = st.text(alphabet=st.characters(codec=None), max_size=30) | st.sampled_from(
        ["", " ", "\ud83d", "\0", "dog " * 300]
    )

    def read(case: tuple[list[str], list[str], int]) -> object:
        texts, asked, length = case
        for make in (words, bpe):
            tokens = make(texts, threshold=1, max_length=length)
            ids = tokens.encode(asked)
            assert all(0 < len(one) <= length for one in ids)
            assert all(0 <= number < tokens.vocabulary for one in ids for number in one)
            assert not ids or pad(ids)["ids"].shape[0] == len(asked)
        return None

    run(cases, st.tuples(st.lists(text, max_size=3), st.lists(text, max_size=3), st.integers(-1, 12)), read)


@pytest.mark.fault(22, f"a stored tokenizer: {said}")
@fuzz
def test_stored_tokenizer(cases: int, tmp_path: Path) -> None:
    words(["a dog", "a cat"], threshold=1).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    tree = json.loads(path.read_text())

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return Tokens.load(tmp_path, 8).encode(["a dog"])

    run(cases, as_files(tree), read)


@pytest.mark.fault(22, f"recipe, from the file to the checked recipe: {said}")
@fuzz
def test_recipe(cases: int, tmp_path: Path) -> None:
    import yaml

    text = TINY.replace("ROOT", str(write_captions(tmp_path / "data", pictures=2)))
    path = tmp_path / "r.yaml"

    def read(content: bytes) -> object:
        path.write_bytes(content)
        return build.check(load_recipe(path))

    def dumped(tree: Any) -> bytes:
        return json.dumps(tree).encode()  # JSON is YAML, and says what it means

    tree = yaml.safe_load(text)
    run(cases, replaced(tree).map(dumped) | changed([text.encode()], most=4), read)
