"""Tar and parquet as training data, the script that makes shards, and tokens kept on disk."""

import importlib.util
import io
import json
import os
import pickle
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from ranks import run_ranks
from tiny_runs import write_captions

from jointembed import distributed
from jointembed.data.caption_parquet import caption_parquet
from jointembed.data.caption_shards import caption_shards
from jointembed.data.captions_coco import coco_captions
from jointembed.data.loader import BatchPlan, Loader
from jointembed.data.order import epoch_order
from jointembed.data.pictures import PictureFolder
from jointembed.data.records import CaptionData
from jointembed.data.samples import CaptionSamples
from jointembed.data.token_cache import TokenLists, cached_tokens, tokenise
from jointembed.data.tokens import words
from jointembed.data.unreadable import unreadable
from jointembed.data.views import VIEWS
from jointembed.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_shards", ROOT / "scripts" / "make_shards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_shards"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> CaptionData:
    root = write_captions(tmp_path / "source", pictures=23, captions=2, size=12)
    return coco_captions(images=str(root / "images"), annotations=str(root / "captions.json"))


def by_file(data: CaptionData) -> dict[str, tuple[str, ...]]:
    return dict(zip(data.picture_ids, data.captions, strict=True))


def jpeg(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, *captions: str) -> dict[str, bytes]:
    return {f"{key}.jpg": jpeg(), f"{key}.json": json.dumps({"captions": captions}).encode()}


# -- the script -----------------------------------------------------------------------------------------------------


def test_shards_hold_every_picture_with_its_captions(script: ModuleType, source: CaptionData, tmp_path: Path) -> None:
    script.make_shards(source, tmp_path / "out", size=5, seed=0)
    data = caption_shards(shards=str(tmp_path / "out"))
    assert data.pictures.layout.sizes == (5, 5, 5, 5, 3)  # type: ignore[attr-defined]
    assert sorted(data.captions) == sorted(source.captions) and data.captions != source.captions
    for number, captions in enumerate(data.captions):
        other = source.captions.index(captions)
        assert np.array_equal(np.asarray(data.pictures.open(number)), np.asarray(source.pictures.open(other)))
    script.verify(tmp_path / "out")


def test_interrupted_and_resumed_by_shard_gives_the_same_bytes(
    script: ModuleType, source: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = script.make_shards(source, tmp_path / "whole", size=4, seed=1)
    members, calls = script._members, iter(range(1000))

    def stopping(*arguments: object, **options: object) -> object:
        if next(calls) == 10:
            raise KeyboardInterrupt
        return members(*arguments, **options)

    monkeypatch.setattr(script, "_members", stopping)
    with pytest.raises(KeyboardInterrupt):
        script.make_shards(source, tmp_path / "half", size=4, seed=1)
    with pytest.raises(DataError, match="unfinished"):
        caption_shards(shards=str(tmp_path / "half"))
    first = (tmp_path / "half" / "00000.tar").stat().st_mtime_ns
    script.make_shards(source, tmp_path / "half", size=4, seed=1)
    assert (tmp_path / "half" / "00000.tar").stat().st_mtime_ns == first
    assert [path.read_bytes() for path in whole] == [(tmp_path / "half" / path.name).read_bytes() for path in whole]
    assert not list((tmp_path / "half").glob(".*"))


def test_the_script_refuses_what_does_not_fit(script: ModuleType, source: CaptionData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shard = script.make_shards(source, out, size=10, seed=0)[1]
    with pytest.raises(DataError, match="size is 10, now 5"):
        script.make_shards(source, out, size=5, seed=0)
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"00001\.tar: altered"):
        script.verify(out)
    shard.write_bytes(content[:-512])
    with pytest.raises(DataError, match=r"00001\.tar: .* bytes, shards.json says"):
        caption_shards(shards=str(out))
    shard.unlink()
    with pytest.raises(DataError, match=r"00001\.tar: no such shard"):
        caption_shards(shards=str(out))
    (tmp_path / "source" / "images" / "003.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"003\.jpg"):
        script.make_shards(source, tmp_path / "other", size=10, seed=0)


def test_a_picture_that_shards_would_not_give_back_is_not_packed(script: ModuleType, tmp_path: Path) -> None:
    for name in ("a.jpg", ".b.PNG", "c.jfif"):
        (tmp_path / name).write_bytes(jpeg())
    table = tmp_path / "t.csv"
    table.write_text("image,caption\na.jpg,one\n.b.PNG,two\n")
    script.table(tmp_path, table, tmp_path / "out")
    assert sorted(caption_shards(shards=str(tmp_path / "out")).captions) == [("one",), ("two",)]
    table.write_text("image,caption\na.jpg,one\nc.jfif,two\n")
    with pytest.raises(DataError, match=r"c\.jfif: shards hold pictures called \.jpg, "):
        script.table(tmp_path, table, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_kill_after_the_first_rename_does_not_end_the_packing(
    script: ModuleType, source: CaptionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = script.make_shards(source, tmp_path / "whole", size=8, seed=1)
    write = script._write_shard

    def killed(*arguments: object, **options: object) -> str:
        write(*arguments, **options)
        raise KeyboardInterrupt

    out = tmp_path / "half"
    monkeypatch.setattr(script, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        script.make_shards(source, out, size=8, seed=1)
    assert (out / "00000.tar").is_file()
    with pytest.raises(DataError, match="unfinished"):
        caption_shards(shards=str(out))
    monkeypatch.setattr(script, "_write_shard", write)
    with pytest.raises(DataError, match="size is 8, now 5"):
        script.make_shards(source, out, size=5, seed=1)
    script.make_shards(source, out, size=8, seed=1)
    assert [path.read_bytes() for path in whole] == [(out / path.name).read_bytes() for path in whole]


def test_a_folder_that_holds_no_shard_yet_may_be_of_another_size(
    script: ModuleType, source: CaptionData, tmp_path: Path
) -> None:
    picture = tmp_path / "source" / "images" / "003.jpg"
    content = picture.read_bytes()
    picture.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"003\.jpg"):
        script.make_shards(source, tmp_path / "out", size=23, seed=0)
    picture.write_bytes(content)
    assert len(script.make_shards(source, tmp_path / "out", size=12, seed=0)) == 2


def test_a_folder_with_captions_beside_its_pictures(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("a/one", "two"):
        (tmp_path / "in" / f"{name}.jpg").write_bytes(jpeg())
        (tmp_path / "in" / f"{name}.txt").write_text(f"first of {name}\n\nsecond\n")
    data = script.read_folder(tmp_path / "in")
    assert by_file(data) == {name: (f"first of {name[:-4]}", "second") for name in ("a/one.jpg", "two.jpg")}
    (tmp_path / "in" / "two.txt").unlink()
    with pytest.raises(DataError, match=r"two\.txt"):
        script.read_folder(tmp_path / "in")


# -- tar ------------------------------------------------------------------------------------------------------------


def test_captions_as_text_lines_ranges_of_names_and_uncommon_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-08.tar", {"x/a.b.png": jpeg(), "x/a.txt": b"only one\n", "x/a.cls": b"3"})
    write_tar(tmp_path / "s-09.tar", {"b.txt": "ein Häuschen\n\nzwei\n".encode(), "b.jpg": jpeg()})
    write_tar(tmp_path / "s-10.tar", sample("c", "not read"))
    with pytest.raises(DataError, match=r"s-08\.tar: no member 'x/a\.json'"):
        caption_shards(shards=str(tmp_path / "s-{08..09}.tar"))
    data = caption_shards(shards=str(tmp_path / "s-{08..09}.tar"), captions="txt")
    assert data.captions == (("only one",), ("ein Häuschen", "zwei"))
    assert list(data.pictures.names) == ["s-08.tar/x/a.b.png", "s-09.tar/b.jpg"]
    with pytest.raises(DataError, match=r"s-11\.tar: no such shard"):
        caption_shards(shards=str(tmp_path / "s-{08..11}.tar"), captions="txt")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.json": b'{"captions": "x"}'}, "'a' has 0 pictures"),
        ({"a.jpg": jpeg(), "a.png": jpeg(), "a.json": b"{}"}, "'a' has 2 pictures"),
        ({"a.jpg": jpeg()}, "no member 'a.json'"),
        ({"a.jpg": jpeg(), "a.json": b'{"caption": "x"}'}, "a.json: has no 'captions'; its keys are 'caption'"),
        ({"a.jpg": jpeg(), "a.json": b'{"captions": []}'}, "a.json: has no caption"),
        ({"a.jpg": jpeg(), "a.json": b'{"captions": [" "]}'}, "a.json: the caption is empty"),
        ({"a.jpg": jpeg(), "a.json": b"{broken"}, "a.json: broken JSON"),
        ({"a.jpg": jpeg(), "a.json": b'{"captions": "\xff"}'}, "a.json: not UTF-8"),
        ({**sample("a", "x"), **sample("b", "y"), "a.txt": b"z"}, "the key 'a' is there twice"),
        ({}, "no sample in it"),
    ],
)
def test_bad_samples_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    path = write_tar(tmp_path / "bad.tar", members)
    with pytest.raises(DataError, match="bad.tar") as error:
        caption_shards(shards=str(path))
    assert message in str(error.value)


def test_a_shard_is_indexed_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["jointembed.data.caption_shards"]  # the function has its name in the package
    counted: list[str] = []
    make = module._make_index

    def counting(path: Path, *arguments: str) -> object:
        counted.append(path.name)
        return make(path, *arguments)

    monkeypatch.setattr(module, "_make_index", counting)
    path = write_tar(tmp_path / "a.tar", sample("a", "one"))
    for _ in range(2):
        assert caption_shards(shards=str(path)).captions == (("one",),)
    assert counted == ["a.tar"]
    write_tar(path, sample("a", "two"))  # as many bytes as before
    os.utime(path, ns=(1, 1))
    assert caption_shards(shards=str(path)).captions == (("two",),)
    stored = tmp_path / "a.tar.json.index.json"
    stored.write_text(stored.read_text()[:-9])
    assert caption_shards(shards=str(path)).captions == (("two",),)
    assert len(counted) == 3
    assert caption_shards(shards=str(path), caption_key="captions").captions == (("two",),)
    assert len(counted) == 3


def test_a_shard_cut_short_or_gone_after_it_was_indexed_is_named(tmp_path: Path) -> None:
    members = {**sample("a", "one"), **sample("b", "two")}
    data = caption_shards(shards=str(write_tar(tmp_path / "late.tar", members)))
    again = pickle.loads(pickle.dumps(data.pictures))
    (tmp_path / "late.tar").write_bytes((tmp_path / "late.tar").read_bytes()[:1600])
    with pytest.raises(DataError, match=r"late\.tar: b\.jpg: .* cut short"):
        again.open(1)
    other = caption_shards(shards=str(write_tar(tmp_path / "gone.tar", sample("a", "one"))))
    (tmp_path / "gone.tar").rename(tmp_path / "elsewhere.tar")
    assert other.pictures.open(0).size == (8, 8)  # still open here, but not in a new process
    sys.modules["jointembed.data.caption_shards"]._opened.cache_clear()
    with pytest.raises(DataError, match=r"gone\.tar: a\.jpg: the shard is gone"):
        pickle.loads(pickle.dumps(other.pictures)).open(0)


# -- training on them -----------------------------------------------------------------------------------------------


def samples_of(data: CaptionData, captions: str) -> CaptionSamples:
    return CaptionSamples(data, VIEWS["resize"](size=8), words(data.texts, threshold=1), captions, seed=3)  # type: ignore[arg-type]


def loaded(samples: CaptionSamples, start: int, workers: int, rank: int = 0, world: int = 1) -> list[dict]:
    assert samples.layout is not None
    plan = BatchPlan(
        len(samples), 6, seed=3, start=start, stop=12, drop_last=False, rank=rank, world=world,
        order=epoch_order(samples.layout, len(samples), 3),
    )  # fmt: skip
    return list(Loader(samples, plan, workers=workers))


@pytest.mark.parametrize("captions", ["random", "all"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_resumed_ranks_and_workers_see_the_batches_of_one_run(
    script: ModuleType, source: CaptionData, tmp_path: Path, captions: str, kind: str
) -> None:
    if kind == "tar":
        script.make_shards(source, tmp_path / "out", size=5, seed=0)
        data = caption_shards(shards=str(tmp_path / "out"), window=7, interleave=2)
    else:
        data = caption_parquet(files=str(write_parquet(source, tmp_path / "out")), window=7, interleave=2)
    samples = samples_of(data, captions)
    whole = loaded(samples, 0, 0)
    index = torch.cat([batch["index"] for batch in whole])[: len(samples)]
    assert sorted(index.tolist()) == list(range(len(samples)))
    late = loaded(samples, 4, 2)
    parts = [loaded(samples, 4, 0, rank, 2) for rank in (0, 1)]
    for step, batch in enumerate(whole[4:]):
        for found in (late[step]["image"], torch.cat([part[step]["image"] for part in parts])):
            assert torch.equal(found, batch["image"])
        assert torch.equal(late[step]["text"]["ids"], batch["text"]["ids"])


# -- parquet --------------------------------------------------------------------------------------------------------


def write_parquet(data: CaptionData, folder: Path) -> Path:
    folder.mkdir()
    rows = []
    for number, name in enumerate(data.pictures.names):
        content = (data.pictures.root / name).read_bytes()  # type: ignore[attr-defined]
        rows.append({"image": {"bytes": content, "path": name}, "caption": list(data.captions[number])})
    for part, some in enumerate((rows[:12], rows[12:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), folder / f"{part}.parquet", row_group_size=5)
    return folder


def test_parquet_rows_are_read_by_row_group(source: CaptionData, tmp_path: Path) -> None:
    data = caption_parquet(files=str(write_parquet(source, tmp_path / "out")), interleave=1)
    assert data.pictures.layout.sizes == (5, 5, 2, 5, 5, 1)  # type: ignore[attr-defined]
    assert data.captions == source.captions
    for number in (22, 0, 13, 4, 5):
        assert np.array_equal(np.asarray(data.pictures.open(number)), np.asarray(source.pictures.open(number)))
    assert len(data.pictures._kept) == 2  # type: ignore[attr-defined]
    assert sum(source.pictures.sizes()) <= sum(data.pictures.sizes()) < 2 * sum(source.pictures.sizes())


def test_parquet_faults_are_named(source: CaptionData, tmp_path: Path) -> None:
    folder = write_parquet(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"0\.parquet: no column 'title'; the columns are 'image', 'caption'"):
        caption_parquet(files=str(folder), caption_column="title")
    table = pyarrow.table({"image": [jpeg(), None], "caption": ["x", "y"]})
    pyarrow.parquet.write_table(table, tmp_path / "null.parquet")
    data = caption_parquet(files=str(tmp_path / "null.parquet"))
    assert data.pictures.open(0).size == (8, 8)
    with pytest.raises(DataError, match=r"null\.parquet\[1\]: the row holds no picture"):
        data.pictures.open(1)
    pyarrow.parquet.write_table(pyarrow.table({"image": [jpeg()], "caption": [" "]}), tmp_path / "blank.parquet")
    with pytest.raises(DataError, match=r"blank\.parquet\[0\]: the caption is empty"):
        caption_parquet(files=str(tmp_path / "blank.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"bad\.parquet: not a readable parquet file"):
        caption_parquet(files=str(tmp_path / "bad.parquet"))
    with pytest.raises(DataError, match="no .parquet file there"):
        caption_parquet(files=str(tmp_path / "source"))


@pytest.mark.parametrize("cell", ["/etc/hostname", [jpeg()], {"content": jpeg()}, {"bytes": "x"}, 3])
def test_a_column_without_pictures_is_refused(tmp_path: Path, cell: object) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": [cell], "caption": ["x"]}), tmp_path / "odd.parquet")
    with pytest.raises(DataError, match=r"odd\.parquet: the column 'image' holds .*; expected pictures as bytes"):
        caption_parquet(files=str(tmp_path / "odd.parquet"))


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens_are_made_once_and_read_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"word{number % 7} and {'more ' * (number % 5)}" for number in range(50)]
    tokens = words(texts, threshold=1)
    made = cached_tokens(tokens, texts, "data", tmp_path)
    assert list(made) == tokens.encode(texts) == list(tokenise(tokens, texts))
    assert made[-1] == made[49] and made[3:5] == [made[3], made[4]]
    monkeypatch.setattr(type(tokens), "encode", None)
    assert list(cached_tokens(tokens, texts, "data", tmp_path)) == list(made)
    monkeypatch.undo()
    cached_tokens(tokens, texts, "other data", tmp_path)
    cached_tokens(words(texts[:5], threshold=1), texts, "data", tmp_path)
    tokens.max_length = 4
    assert max(map(len, cached_tokens(tokens, texts, "data", tmp_path))) == 4
    assert len(list(tmp_path.glob("tokens-*.safetensors"))) == 4


def test_a_broken_token_file_is_named(tmp_path: Path) -> None:
    tokens = words(["a b"], threshold=1)
    cached_tokens(tokens, ["a b"], "data", tmp_path)
    with pytest.raises(DataError, match="tokens of 1 captions, there are 2"):
        cached_tokens(tokens, ["a b", "a"], "data", tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="delete the file"):
        cached_tokens(tokens, ["a b"], "data", tmp_path)


def with_a_cache_of_its_own(root: str) -> list[object]:
    """Tokens and unreadable pictures, twice, on a rank whose cache no other rank sees."""
    folder = Path(root) / f"cache of {distributed.rank()}"
    pictures = PictureFolder(root, ["good.jpg", "bad.jpg"])
    tokens = words(["a b"], threshold=1)
    return [
        (list(cached_tokens(tokens, ["a b", "b"], "data", folder)), unreadable(pictures, "x", workers=0, folder=folder))
        for _ in range(2)
    ]


@pytest.mark.ddp
def test_a_cache_that_one_machine_alone_sees(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg())
    (tmp_path / "bad.jpg").write_bytes(b"")
    found = run_ranks(2, with_a_cache_of_its_own, str(tmp_path))
    assert found[0] == found[1] == [found[0][0]] * 2
    assert len(found[0][0][0]) == 2 and list(found[0][0][1]) == [1]


def test_samples_take_stored_tokens(source: CaptionData, tmp_path: Path) -> None:
    tokens = words(source.texts, threshold=1)
    stored: TokenLists = cached_tokens(tokens, source.texts, source.fingerprint, tmp_path)
    view = VIEWS["resize"](size=8)
    pair = [CaptionSamples(source, view, tokens, "all", seed=3, ids=ids) for ids in (None, stored)]
    keys = [(0, number) for number in range(9)]
    one, other = (samples.__getitems__(keys)["text"] for samples in pair)
    assert torch.equal(one["ids"], other["ids"]) and torch.equal(one["length"], other["length"])
