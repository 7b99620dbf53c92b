import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from jointembed.data.captions import clean_caption
from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_flickr import flickr8k_tokens
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.captions_table import caption_table
from jointembed.data.json_file import read_json
from jointembed.data.records import CaptionData
from jointembed.errors import DataError


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(path)


def coco_document() -> dict[str, Any]:
    return {
        "info": {},
        "images": [{"id": 9, "file_name": "b.png"}, {"id": 4, "file_name": "a.png"}],
        "annotations": [
            {"id": 71, "image_id": 4, "caption": " A dog.\n"},
            {"id": 70, "image_id": 9, "caption": "A cat"},
            {"id": 12, "image_id": 4, "caption": "The same dog"},
            {"id": 13, "image_id": 4, "caption": "Ein Hund, größer"},
        ],
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / "images" / name, 50 * number)
    return tmp_path / "images"


def coco(images: Path, document: object, **options: Any) -> CaptionData:
    path = images.parent / "captions_toy.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return coco_captions(images=str(images), annotations=str(path), **options)


# ---- COCO


def test_coco_keeps_the_order_of_the_file(images: Path) -> None:
    data = coco(images, coco_document())
    assert data.name == "captions_toy"
    assert data.picture_ids == ("9", "4") and data.pictures.names == ("b.png", "a.png")
    assert data.item.tolist() == [0, 1]
    assert data.captions == (("A cat",), ("A dog.", "The same dog", "Ein Hund, größer"))
    assert data.caption_ids == ((70,), (71, 12, 13))
    assert data.pictures.open(0).getpixel((0, 0)) == (50, 0, 0)


@pytest.mark.fault(13, "byte order mark: read")
def test_coco_with_a_byte_order_mark_and_fewer_captions(images: Path) -> None:
    path = images.parent / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco_document()).encode())
    data = coco_captions(images=str(images), annotations=str(path), captions_per_picture=2)
    assert data.captions == (("A cat",), ("A dog.", "The same dog")) and data.caption_ids == ((70,), (71, 12))
    with pytest.raises(DataError, match="captions_per_picture is 0"):
        coco(images, coco_document(), captions_per_picture=0)


def test_coco_pictures_without_captions(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = coco_document()
    document["images"] += [{"id": 5, "file_name": "c.png"}, {"id": 6, "file_name": "d.png"}]
    with pytest.raises(DataError, match=r"2 of 4 pictures have no caption, the first is 'c.png' \(id 5\)"):
        coco(images, document)
    with caplog.at_level(logging.WARNING):
        assert len(coco(images, document, skip_uncaptioned=True).pictures) == 2
    assert "2 of 4 pictures have no caption, the first is 'c.png'; left out" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ('{"images": [}', r"broken JSON at line 1, column 13 \(character 12\)"),
        ('{"images": [{"id": 1}', "broken JSON"),
        ('{"images": NaN}', "holds NaN"),
        ('{"images": -Infinity}', "holds -Infinity"),
        ('{"images": [], "images": []}', "key 'images' twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "digits"),
        ("[]", r"is list \[\]; expected an object"),
        ("{}", "has no 'images'; its keys are none"),
        ('{"images": {}}', "'images' is dict {}; expected a list"),
        ('{"images": [], "annotations": []}', "no image in it"),
        ('{"images": [{"id": 1, "file_name": "a.png"}], "info": 0}', "no 'annotations'; its keys are 'images', 'info'"),
        ('{"images": [3], "annotations": []}', r"images\[0\]: is int 3; expected an object"),
        ('{"images": [{"id": "1"}], "annotations": []}', r"images\[0\]: 'id' is str '1'; expected a whole number"),
        ('{"images": [{"id": true}], "annotations": []}', r"images\[0\]: 'id' is bool True"),
        ('{"images": [{"id": 1e2}], "annotations": []}', r"images\[0\]: 'id' is float 100.0"),
        ('{"images": [{"id": 99999999999999999999}], "annotations": []}', "'id' does not fit in 64 bits"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\] \(id 1\): has no 'file_name'; its keys are 'id'"),
    ],
)
@pytest.mark.fault(13, "broken, NaN, duplicate keys, top-level list, too deep")
def test_coco_broken_files(images: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=f"captions_toy.json: .*{message}"):
        coco(images, content)


def replaced(where: str, number: int, **values: object) -> dict[str, Any]:
    document = coco_document()
    document[where][number].update(values)
    return document


def without(number: int, key: str) -> dict[str, Any]:
    document = coco_document()
    del document["annotations"][number][key]
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (replaced("images", 1, id=9), r"images\[1\] \(id 9\): this id is there twice"),
        (replaced("images", 1, file_name="b.png"), "'b.png': named twice"),
        (replaced("images", 0, file_name="../images/a.png"), r"'\.\./images/a.png': .*must stay inside"),
        (replaced("images", 0, file_name="/etc/passwd"), "'/etc/passwd': .*must stay inside"),
        (replaced("images", 0, file_name="none.png"), "none.png: no such picture"),
        (replaced("images", 0, file_name="\ud800.png"), "must be valid Unicode"),
        (replaced("annotations", 2, id=71), r"annotations\[2\] \(id 71\): this id is there twice"),
        (replaced("annotations", 2, image_id=5), r"annotations\[2\] \(id 12\): image_id 5 is not among the images"),
        (replaced("annotations", 1, caption=" \t"), r"annotations\[1\] \(id 70\) of picture 'b.png': .*empty"),
        (replaced("annotations", 1, caption=None), r"\(id 70\) of picture 'b.png': the caption is NoneType None"),
        (replaced("annotations", 1, caption=7), r"\(id 70\) of picture 'b.png': the caption is int 7"),
        (replaced("annotations", 1, caption="a\0b"), r"\(id 70\) of picture 'b.png': .* a NUL character"),
        (replaced("annotations", 1, caption="a\ud83d"), r"\(id 70\) of picture 'b.png': .* half of a surrogate pair"),
        (without(3, "caption"), r"annotations\[3\] \(id 13\): has no 'caption'; its keys are 'id', 'image_id'"),
        (without(3, "id"), r"annotations\[3\]: has no 'id'"),
        (without(3, "image_id"), r"annotations\[3\] \(id 13\): has no 'image_id'"),
    ],
)
@pytest.mark.fault(13, "missing and duplicate ids; empty, None, NUL, lone surrogate captions")
def test_coco_broken_records(images: Path, document: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        coco(images, document)


@pytest.mark.fault(13, "no file, no UTF-8")
def test_files_that_cannot_be_read(images: Path, tmp_path: Path) -> None:
    for content, message in (
        (b"\xff\xfe{\x00}\x00", r"bad.json: not UTF-8 text \(byte 0"),
        (b'{"a": "\xe9"}', "byte 7"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(DataError, match=message):
            coco_captions(images=str(images), annotations=str(tmp_path / "bad.json"))
    with pytest.raises(DataError, match="none.json: no such file"):
        coco_captions(images=str(images), annotations=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match="cannot be read"):
        coco_captions(images=str(images), annotations=str(tmp_path))
    (tmp_path / "good.json").write_text(json.dumps(coco_document()))
    with pytest.raises(DataError, match="nowhere: no such folder of pictures"):
        coco_captions(images=str(tmp_path / "nowhere"), annotations=str(tmp_path / "good.json"))


def test_dropped_keys_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [{"b": 1, "c": 2}], "b": 3}')
    assert read_json(tmp_path / "a.json", drop=("b",)) == {"a": [{"c": 2}]}


# ---- Karpathy


def karpathy_document(coco_style: bool) -> dict[str, Any]:
    def image(number: int, split: str, captions: int) -> dict[str, Any]:
        first = 10 * number
        record: dict[str, Any] = {
            "filename": f"{number}.png",
            "imgid": number,
            "sentids": list(range(first, first + captions)),
            "split": split,
            "sentences": [
                {"tokens": ["one"], "raw": f"Picture {number}, caption {k}. ", "imgid": number, "sentid": first + k}
                for k in range(captions)
            ],
        }
        if coco_style:
            record |= {"cocoid": 1000 - number, "filepath": "train2014" if split == "train" else "val2014"}
        return record

    middle = "restval" if coco_style else "train"
    splits = ["test", middle, "train", "val", "test", "train"]
    return {
        "images": [image(number, split, 2 + number % 2) for number, split in enumerate(splits)],
        "dataset": "coco" if coco_style else "flickr8k",
    }


Karpathy = Callable[..., CaptionData]


@pytest.fixture
def read_karpathy(tmp_path: Path) -> Karpathy:
    def read(document: dict[str, Any], split: Any, **options: Any) -> CaptionData:
        for record in document["images"]:
            if isinstance(record, dict) and isinstance(record.get("filename"), str):
                picture(tmp_path / str(record.get("filepath", "")) / record["filename"].lstrip("./"))
        path = tmp_path / "dataset_toy.json"
        path.write_text(json.dumps(document))
        return karpathy(images=str(tmp_path), annotations=str(path), split=split, **options)

    return read


@pytest.mark.parametrize(
    ("split", "ids", "first"),
    [
        ("train", ("998", "995"), "train2014/2.png"),
        ("restval", ("999",), "val2014/1.png"),
        ("train+restval", ("999", "998", "995"), "val2014/1.png"),
        ("val", ("997",), "val2014/3.png"),
        ("test", ("1000", "996"), "val2014/0.png"),
    ],
)
def test_karpathy_coco_splits(read_karpathy: Karpathy, split: str, ids: tuple[str, ...], first: str) -> None:
    data = read_karpathy(karpathy_document(coco_style=True), split)
    assert data.name == f"dataset_toy {split}"
    assert data.picture_ids == ids and data.pictures.names[0] == first


def test_karpathy_flickr(read_karpathy: Karpathy) -> None:
    data = read_karpathy(karpathy_document(coco_style=False), "train")
    assert data.picture_ids == data.pictures.names == ("1.png", "2.png", "5.png")
    assert data.captions[0] == tuple(f"Picture 1, caption {k}." for k in range(3))
    assert data.caption_ids == ((10, 11, 12), (20, 21), (50, 51, 52))
    fewer = read_karpathy(karpathy_document(coco_style=False), "train", captions_per_picture=2)
    assert fewer.caption_ids == ((10, 11), (20, 21), (50, 51))


def test_karpathy_split_that_is_not_there(read_karpathy: Karpathy) -> None:
    for split in ("restval", "train+restval"):
        with pytest.raises(DataError, match="no picture of the split 'restval'; .* test 2, train 3, val 1"):
            read_karpathy(karpathy_document(coco_style=False), split)
    with pytest.raises(DataError, match="no picture of the split 'val'; pictures by split: none"):
        read_karpathy({"images": []}, "val")


def changed(path: str, value: object) -> dict[str, Any]:
    """The document with the value at a path such as `0/sentences/1/raw` replaced, or removed where it is `...`."""
    document = karpathy_document(coco_style=True)
    *parents, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    place: Any = document["images"]
    for step in parents:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("4", "x", r"images\[4\]: is str 'x'; expected an object"),
        ("3/split", ..., r"images\[3\]: has no 'split'"),
        ("3/split", "dev", r"images\[3\]: split 'dev'; expected one of train, restval, val, test"),
        ("0/filename", ..., r"images\[0\]: has no 'filename'"),
        ("0/filename", "../a.png", r"'val2014/../a.png': .*must stay inside"),
        ("0/filepath", 3, r"images\[0\] \('0.png'\): 'filepath' is int 3; expected a string"),
        ("0/cocoid", "7", r"images\[0\] \('0.png'\): 'cocoid' is str '7'"),
        ("0/sentences", [], r"images\[0\] \('0.png'\): has no caption"),
        ("0/sentences/1/raw", "", r"images\[0\] \('0.png'\): sentences\[1\] \(sentid 1\): the caption is empty"),
        ("0/sentences/1/raw", None, r"sentences\[1\] \(sentid 1\): the caption is NoneType"),
        ("0/sentences/1/raw", ..., r"sentences\[1\]: has no 'raw'; its keys are 'imgid', 'sentid'"),
        ("4/sentences/0/sentid", 1, r"images\[4\] \('4.png'\): sentences\[0\]: the sentid 1 is there twice"),
    ],
)
@pytest.mark.fault(13, "Karpathy JSON: missing and duplicate ids, odd captions")
def test_karpathy_broken_records(read_karpathy: Karpathy, path: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_karpathy(changed(path, value), "test")


# ---- Flickr8k


def flickr(images: Path, tokens: str, split: str) -> CaptionData:
    (images.parent / "Flickr8k.token.txt").write_text(tokens, newline="")
    (images.parent / "Flickr_8k.devImages.txt").write_text(split, newline="")
    return flickr8k_tokens(
        images=str(images),
        tokens=str(images.parent / "Flickr8k.token.txt"),
        split_file=str(images.parent / "Flickr_8k.devImages.txt"),
    )


TOKENS = "a.png#1\tsecond , of a\r\na.png#0\tfirst # of a\n\nx.jpg.1#0\tof no split\nb.png#0\tof b\twith a tab\n"


def test_flickr8k(images: Path) -> None:
    data = flickr(images, TOKENS, "b.png\r\na.png\n")
    assert data.name == "Flickr_8k.devImages"
    assert data.picture_ids == data.pictures.names == ("b.png", "a.png")
    assert data.captions == (("of b\twith a tab",), ("first # of a", "second , of a"))
    assert data.caption_ids is None


@pytest.mark.parametrize(
    ("tokens", "split", "message"),
    [
        (TOKENS, "", "devImages.txt: names no picture"),
        (TOKENS, "a.png\nb.png\na.png", "devImages.txt, line 3: 'a.png' is there twice"),
        (TOKENS, "a.png\nc.png", "token.txt: no caption of 'c.png', which .*devImages.txt names"),
        (TOKENS + "y.png#0\tof y", "a.png\n../y.png", "no caption of '../y.png'"),
        ("../y.png#0\tof y", "../y.png", "must stay inside"),
        ("d.png#0\tof d", "d.png", "d.png: no such picture"),
        ("a.png#0\tone\na.png\ttwo", "a.png", "token.txt, line 2: 'a.png.ttwo'; expected NAME#NUMBER, a tab"),
        ("a.png#0 one", "a.png", "token.txt, line 1: .*expected NAME#NUMBER"),
        ("a.png#²\tone", "a.png", "token.txt, line 1: .*expected NAME#NUMBER"),
        (f"a.png#{'9' * 5000}\tone", "a.png", "token.txt, line 1: .*expected NAME#NUMBER"),
        ("a.png#0\tone\na.png#0\ttwo", "a.png", "token.txt, line 2: 'a.png#0' is there twice"),
        ("a.png#0\t ", "a.png", r"token.txt, line 1 \('a.png#0'\): the caption is empty"),
    ],
)
def test_flickr8k_faults(images: Path, tokens: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        flickr(images, tokens, split)


# ---- tables


def table(images: Path, name: str, content: str | bytes, **options: Any) -> CaptionData:
    path = images.parent / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return caption_table(images=str(images), table=str(path), **options)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("t.csv", 'image,caption\r\nb.png,"Of b, ""quoted"""\na.png,one\n\nb.png,again\n', {}),
        ("t.CSV", b'\xef\xbb\xbfcaption, image\n"Of b, ""quoted""", b.png\none,a.png\nagain,b.png', {}),
        ("t.tsv", 'image\tcaption\nb.png\t"Of b, ""quoted"""\na.png\tone\nb.png\tagain', {}),
        (
            "t.txt",
            'image| n| caption\nb.png| 0| "Of b, ""quoted"""\na.png| 0| one\nb.png| 1| again',
            {"separator": "|"},
        ),
        (
            "t.jsonl",
            '{"image": "b.png", "caption": ["Of b, \\"quoted\\"", "again"]}\n\n{"image": "a.png", "caption": "one"}',
            {},
        ),
        (
            "t.csv",
            'p,c\nb.png,"Of b, ""quoted"""\na.png,one\nb.png,again\n',
            {"picture_column": "p", "caption_column": "c"},
        ),
    ],
)
def test_tables(images: Path, name: str, content: str | bytes, options: dict[str, str]) -> None:
    data = table(images, name, content, **options)
    assert data.name == "t" and data.pictures.names == ("b.png", "a.png")
    assert data.captions == (('Of b, "quoted"', "again"), ("one",))


def test_a_quoted_caption_may_span_lines(images: Path) -> None:
    assert table(images, "t.csv", 'image,caption\na.png,"two\nlines"\n').captions == (("two\nlines",),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "t.csv: empty; expected a header"),
        ("t.csv", "image,caption\n", "t: no picture in it"),
        ("t.csv", "image,text\na.png,x", "t.csv: no column 'caption'; the header is"),
        ("t.csv", "image,caption,image\na.png,x,y", "t.csv: two columns 'image'"),
        ("t.csv", "image,caption\na.png,x,y", "t.csv, line 2: 3 columns; the header has 2"),
        ("t.csv", "image,caption\na.png", "t.csv, line 2: 1 columns; the header has 2"),
        ("t.csv", "image,caption\na.png,", r"t.csv, line 2 \('a.png'\): the caption is empty"),
        ("t.csv", "image,caption\na.png,a\0b", r"t.csv, line 2 \('a.png'\): .*NUL"),
        ("t.csv", "image,caption\n ,x", "t.csv, line 2: 'image' is ''; expected the path"),
        ("t.csv", "image,caption\n../a.png,x", "must stay inside"),
        ("t.csv", "image,caption\nd.png,x", "d.png: no such picture"),
        ("t.csv", 'image,caption\na.png,"open', "t.csv, line 2: unexpected end of data"),
        (
            "t.tsv",
            'image\tcaption\na.png\t"A dog\nb.png\tand a "cat"\na.png\tone',
            "t.tsv, line 2: .* expected after",
        ),
        (
            "t.tsv",
            'image\tcaption\na.png\tone\n"b.png\tx\na.png"\ty\na.png\tz',
            "t.tsv, line 3: a cell that begins with a double quote goes on in line 4",
        ),
        ("t.csv", f"image,caption\na.png,{'x' * 200_000}", "t.csv, line 2: field larger than field limit"),
        ("t.csv", b"image,caption\na.png,\xe9", "t.csv: not UTF-8 text"),
        ("t.dat", "image,caption\na.png,x", "t.dat: the suffix is none of .csv, .tsv, .tab, .jsonl, .ndjson"),
        ("t.jsonl", "", "t: no picture in it"),
        ("t.jsonl", '{"image": "a.png", "caption": "x"}\n{"image"', "t.jsonl, line 2: broken JSON at line 1, column 9"),
        ("t.jsonl", "[1]", r"t.jsonl, line 1: \[1\]; expected an object"),
        ("t.jsonl", '{"image": "a.png"}', "t.jsonl, line 1: has no 'caption'; its keys are 'image'"),
        ("t.jsonl", '{"image": 3, "caption": "x"}', "t.jsonl, line 1: 'image' is 3; expected the path"),
        ("t.jsonl", '{"image": "a.png", "caption": []}', "t.jsonl, line 1: the list of captions is empty"),
        ("t.jsonl", '{"image": "a.png", "caption": [null]}', r"line 1 \('a.png'\): the caption is NoneType"),
        ("t.jsonl", '{"image": "a.png", "caption": "\\ud800"}', r"line 1 \('a.png'\): .*surrogate"),
    ],
)
@pytest.mark.fault(12, "captions of tables: empty, NUL, broken quotes")
def test_table_faults(images: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(images, name, content)


@pytest.mark.parametrize("separator", ["||", "\n", '"'])
def test_table_separators(images: Path, separator: str) -> None:
    with pytest.raises(DataError, match="t.csv: separator .* expected one character"):
        table(images, "t.csv", "image,caption\na.png,x", separator=separator)
    with pytest.raises(DataError, match="JSON Lines have no separator"):
        table(images, "t.jsonl", "{}", separator=",")


# ---- anything at all


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=6), children, max_size=3),
    max_leaves=12,
)
any_id = st.integers(-1, 2) | json_values
any_name = st.sampled_from(["a.png", "b.png", "c.png", "../a.png", "", "\0", ".", "\ud800"]) | json_values
records_of_coco = st.fixed_dictionaries(
    {},
    optional={
        "images": st.lists(st.fixed_dictionaries({}, optional={"id": any_id, "file_name": any_name}), max_size=3)
        | json_values,
        "annotations": st.lists(
            st.fixed_dictionaries({}, optional={"id": any_id, "image_id": any_id, "caption": json_values}), max_size=4
        )
        | json_values,
    },
)
records_of_karpathy = st.fixed_dictionaries(
    {
        "images": st.lists(
            st.fixed_dictionaries(
                {"split": st.sampled_from(["test", "val"]) | json_values},
                optional={
                    "filename": any_name,
                    "filepath": st.sampled_from(["", ".", "..", "images"]) | json_values,
                    "cocoid": any_id,
                    "sentences": st.lists(
                        st.fixed_dictionaries({}, optional={"raw": json_values, "sentid": any_id}) | json_values,
                        max_size=3,
                    )
                    | json_values,
                },
            )
            | json_values,
            max_size=3,
        )
        | json_values
    }
)
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def nothing_but_data_errors(read: Callable[[], CaptionData]) -> None:
    try:
        data = read()
    except DataError as error:
        assert str(error).encode() and "\n" not in str(error)
    else:
        assert len(data.pictures) == len(data.item) > 0 and all(all(captions) for captions in data.captions)


@SETTINGS
@given(document=records_of_coco | json_values)
@pytest.mark.fault(22, "COCO captions JSON, 150 cases")
def test_any_json_as_coco(images: Path, document: object) -> None:
    nothing_but_data_errors(lambda: coco(images, json.dumps(document)))


@SETTINGS
@given(document=records_of_karpathy | json_values)
@pytest.mark.fault(22, "Karpathy JSON, 150 cases")
def test_any_json_as_karpathy(images: Path, document: object) -> None:
    path = images.parent / "dataset.json"
    path.write_text(json.dumps(document))
    nothing_but_data_errors(lambda: karpathy(images=str(images), annotations=str(path), split="test"))


@SETTINGS
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@pytest.mark.fault(22, "bytes as JSON, JSON Lines, CSV, TSV, Flickr tokens, 150 cases")
def test_any_bytes_as_json_csv_and_tokens(images: Path, content: bytes) -> None:
    path = images.parent / "any"
    path.write_bytes(content)
    nothing_but_data_errors(lambda: coco_captions(images=str(images), annotations=str(path)))
    nothing_but_data_errors(lambda: table(images, "any.jsonl", content))
    nothing_but_data_errors(lambda: table(images, "any.csv", b"image,caption\n" + content))
    nothing_but_data_errors(lambda: table(images, "any.tsv", content))
    nothing_but_data_errors(lambda: flickr8k_tokens(images=str(images), tokens=str(path), split_file=str(path)))


@pytest.mark.parametrize("caption", ["a", "  tröt \n", "\u200b.", "日本"])
def test_clean_caption(caption: str) -> None:
    assert clean_caption(caption, "x") == caption.strip()


# ---- real data


@pytest.mark.data
@pytest.mark.parametrize(
    ("images", "annotations", "pictures", "captions"),
    [
        ("flickr8k/images", "flickr8k/captions_val.json", 1000, 5000),
        ("flickr8k/images", "flickr8k/captions_train.json", 6000, 30000),
        ("coco_mini/images/val2017", "coco_mini/annotations/captions_val2017.json", 283, 1416),
        ("coco_mini/images/train2017", "coco_mini/annotations/captions_train2017.json", 80, 400),
    ],
)
def test_local_data(data_folder: Path, images: str, annotations: str, pictures: int, captions: int) -> None:
    data = coco_captions(images=str(data_folder / images), annotations=str(data_folder / annotations))
    assert (len(data.pictures), len(data.texts)) == (pictures, captions)
    assert data.caption_ids is not None and len({number for ids in data.caption_ids for number in ids}) == captions
    assert data.pictures.open(0).mode == "RGB"
