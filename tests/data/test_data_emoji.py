import hashlib
import importlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFilter
from PIL.JpegImagePlugin import get_sampling

from jointembed.data.emoji import emoji, emoji_languages
from jointembed.data.records import CaptionData
from jointembed.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
module = importlib.import_module("jointembed.data.emoji")  # by attribute it is the function of the same name
SPLITS = {"train": 1079, "val": 100, "test": 200}
SIZE_LIMIT = 8_000_000


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_emoji", ROOT / "scripts" / "build_emoji.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    sys.modules["build_emoji"] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    return script


script = load_script()


@pytest.fixture(scope="module")
def data() -> dict[str, CaptionData]:
    return {split: emoji(split=split) for split in SPLITS}  # type: ignore[arg-type]


def read_words(name: str) -> Any:
    with zipfile.ZipFile(module._folder() / "words.zip") as archive:
        return json.loads(archive.read(f"{name}.json"))


# the files


def test_the_files_are_the_published_ones_and_small() -> None:
    folder = module._folder()
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    assert {name: sums[name] for name in script.SHA256} == script.SHA256
    assert set(found) == {*script.SHA256, "LICENSE.txt"}
    assert sum(map(len, found.values())) <= SIZE_LIMIT


def test_the_data_card_says_the_same() -> None:
    card = (ROOT / "data_cards" / "emoji.md").read_text()
    for name, checksum in script.SHA256.items():
        assert re.search(rf"`{re.escape(name)}`.*{checksum}", card)
    for split, concepts in SPLITS.items():
        assert re.search(rf"\| {split} \| {concepts} \|", card)
    assert " ".join(f"`{language}`" for language in emoji_languages()) in " ".join(card.split())


def test_the_licence_names_every_source() -> None:
    text = (module._folder() / "LICENSE.txt").read_text()
    for package in script.PACKAGES:
        name, version = package.rsplit("@", 1)
        assert re.search(rf"{re.escape(name)}\s+{re.escape(version)}", text)
    for licence in ("MIT License", "Apache License", "Unicode License v3", "Copyright (c) Microsoft Corporation"):
        assert licence in text


# the splits


def test_sizes(data: dict[str, CaptionData]) -> None:
    for split, concepts in SPLITS.items():
        assert len(data[split].captions) == concepts
        assert len(data[split].pictures) == 2 * concepts
        assert data[split].name == f"emoji-{split}"


def test_no_family_is_in_two_splits() -> None:
    concepts = read_words("concepts")
    splits: dict[str, set[str]] = {}
    for concept in concepts:
        splits.setdefault(concept["family"], set()).add(concept["split"])
    assert all(len(found) == 1 for found in splits.values())
    sizes = Counter(concept["family"] for concept in concepts)
    held_out = [sizes[family] for family, found in splits.items() if found != {"train"}]
    assert max(held_out) <= script.LARGEST_HELD_OUT_FAMILY < max(sizes.values())
    assert len({concept["key"] for concept in concepts}) == len(concepts) == sum(SPLITS.values())


def test_variants_of_gender_are_in_one_split() -> None:
    """By a rule of its own: not the one that named the families."""
    splits: dict[str, set[str]] = {}
    for concept, (label, *_) in zip(read_words("concepts"), read_words("en"), strict=True):
        plain = re.sub(r"^(wo)?m[ae]n |^(person|people) ", "", label)
        plain = re.sub(r":? facing right$|: (wo)?m[ae]n.*$|^\w+[ -](o’clock|thirty)$", "", plain)
        splits.setdefault(plain, set()).add(concept["split"])
    assert len(splits["firefighter"]) == 1 and "wrestling" in splits and "o’clock" not in splits
    assert [plain for plain, found in splits.items() if len(found) > 1] == []


def test_no_label_is_in_two_splits_in_any_language() -> None:
    concepts = read_words("concepts")
    for language in emoji_languages():
        splits: dict[str, set[str]] = {}
        for concept, (label, *_) in zip(concepts, read_words(language), strict=True):
            splits.setdefault(label.casefold(), set()).add(concept["split"])
        assert [label for label, found in splits.items() if len(found) > 1] == [], language


def test_no_held_out_picture_has_a_near_copy_in_another_split(data: dict[str, CaptionData]) -> None:
    """Root mean square over blurred 32 x 32 pixels, of 255, as it is and mirrored."""
    for rendering in range(2):
        pixels = {
            split: np.stack([blurred(one.pictures.open(2 * item + rendering)) for item in range(len(one.captions))])
            for split, one in data.items()
        }
        for split, other in (("val", "train"), ("test", "train"), ("val", "test")):
            a, b = pixels[split], pixels[other]
            for other_way in (b, b.reshape(-1, 32, 32, 3)[:, :, ::-1].reshape(b.shape)):
                squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ other_way.T
                assert np.sqrt(squares.min() / a.shape[1]) > 16


def blurred(picture: Image.Image) -> np.ndarray:
    small = picture.filter(ImageFilter.GaussianBlur(1)).resize((32, 32))
    return np.asarray(small, dtype=np.float64).ravel()


# pictures and captions


def test_every_picture_is_64_pixels_on_white(data: dict[str, CaptionData]) -> None:
    for one in data.values():
        corners = []
        for number in range(len(one.pictures)):
            picture = one.pictures.open(number)
            assert (picture.mode, picture.size) == ("RGB", (64, 64))
            pixels = np.asarray(picture)
            corners.append(pixels[[0, 0, -1, -1], [0, -1, 0, -1]].mean())
        assert np.mean(np.array(corners) > 250) > 0.9  # the others are drawn to the edge
        assert min(corners) > 60


def test_pictures_are_jpeg_of_quality_85_with_full_colour() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG", quality=85)
    expected = Image.open(out).quantization  # type: ignore[attr-defined]
    with tarfile.open(module._folder() / "emoji-heldout.tar") as tar:
        for info in tar.getmembers():
            file = tar.extractfile(info)
            assert file
            picture = Image.open(file)
            assert picture.format == "JPEG" and picture.quantization == expected  # type: ignore[attr-defined]
            assert get_sampling(picture) == 0
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_an_item_is_two_renderings_of_one_concept(data: dict[str, CaptionData]) -> None:
    for split, one in data.items():
        assert one.item.tolist() == [number // 2 for number in range(len(one.pictures))]
        for number in range(0, len(one.pictures), 2):
            key = one.picture_ids[number].removesuffix(".fluent")
            assert one.picture_ids[number + 1] == f"{key}.noto"
            assert one.pictures.names[number] == f"{split}/{key}.fluent.jpg"
        first, second = (np.asarray(one.pictures.open(number)) for number in (0, 1))
        assert (first != second).any()


def test_one_rendering_of_every_concept(data: dict[str, CaptionData]) -> None:
    both = data["test"]
    for shift, rendering in enumerate(("fluent", "noto")):
        one = emoji(split="test", renderings=[rendering])
        assert one.name == f"emoji-test-{rendering}" and one.captions == both.captions
        assert one.picture_ids == both.picture_ids[shift::2] and one.item.tolist() == list(range(SPLITS["test"]))
        assert (np.asarray(one.pictures.open(7)) == np.asarray(both.pictures.open(14 + shift))).all()


def test_held_out_concepts_have_one_english_caption(data: dict[str, CaptionData]) -> None:
    for split in ("val", "test"):
        assert all(len(captions) == 1 for captions in data[split].captions)
        assert len(set(data[split].texts)) == SPLITS[split]
    assert data["test"].captions[data["test"].picture_ids.index("1f9b4.noto") // 2] == (
        "bone: bones, dog, skeleton, wishbone",
    )


def test_train_concepts_have_many_captions(data: dict[str, CaptionData]) -> None:
    captions = data["train"].captions[data["train"].picture_ids.index("1f600.noto") // 2]
    whole, label, tags, *draws = captions
    assert label == "grinning face"
    assert whole.startswith("grinning face: cheerful, cheery, face,")
    listed = whole.removeprefix("grinning face: ").split(", ")
    assert sorted(tags.split(", ")) == sorted(listed) and tags.split(", ") != listed
    assert len(draws) == 4 == len(set(draws))
    for draw in draws:
        drawn = draw.removeprefix("grinning face: ").split(", ")
        assert len(drawn) == -(-len(listed) // 2) and set(drawn) < set(listed)
    assert all(len(set(one)) == len(one) <= 7 for one in data["train"].captions)


def test_captions_and_tags_are_choices() -> None:
    one = emoji(split="train", captions="one")
    assert {len(captions) for captions in one.captions} == {1}
    plain = emoji(split="test", tags=False)
    assert plain.captions == emoji(split="test", tags=False, captions="many").captions
    assert all(": " not in text or text.split(": ")[0] in ("kiss", "couple with heart") for text in plain.texts)
    assert max(map(len, emoji(split="val", captions="many").captions)) == 7


def test_the_same_captions_in_every_run(data: dict[str, CaptionData]) -> None:
    code = "from jointembed.data.emoji import emoji; print(emoji(split='train').fingerprint)"
    again = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert again.stdout.strip() == data["train"].fingerprint, again.stderr


def test_languages_come_with_label_and_tags() -> None:
    languages = list(emoji_languages())
    assert len(languages) == 26 and {"en", "de", "ja", "zh", "hi", "ru"} < set(languages)
    every = emoji(split="val", languages=languages)
    assert all(len(captions) == len(languages) for captions in every.captions)
    bone = emoji(split="test", languages=["de", "fr"])
    captions = bone.captions[bone.picture_ids.index("1f9b4.fluent") // 2]
    assert [caption.split(":")[0] for caption in captions] == ["Knochen", "os"]
    english = set(emoji(split="val").texts)
    for language in languages:
        found = emoji(split="val", languages=[language])
        assert found.fingerprint != every.fingerprint
        shared = len(english & set(found.texts))
        assert shared == SPLITS["val"] if language == "en" else shared <= 2  # a name that needs no translation
        assert np.mean([": " in text for text in found.texts]) > 0.95


def test_words_are_clean_text() -> None:
    for language in emoji_languages():
        entries = read_words(language)
        assert len(entries) == sum(SPLITS.values())
        for words in entries:
            assert words and all(word and word == word.strip() and "\0" not in word for word in words)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(DataError, match="no split 'dev'; expected one of train, val, test"):
        emoji(split="dev")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="captions is 'all'; expected one, many or null"):
        emoji(split="val", captions="all")  # type: ignore[arg-type]
    for languages in (["en", "xx"], [], ["en", "en"], ["concepts"], ["../en"]):
        with pytest.raises(DataError, match="expected different ones of bn, da, de, en"):
            emoji(split="val", languages=languages)
    for renderings in ([], ["fluent", "fluent"], ["apple"]):
        with pytest.raises(DataError, match="expected different ones of fluent, noto"):
            emoji(split="val", renderings=renderings)


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (module._folder() / "words.zip").read_bytes()
    shard = (module._folder() / "emoji-heldout.tar").read_bytes()
    monkeypatch.setattr(module, "_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"words\.zip: missing or damaged"):
        emoji(split="val")
    (tmp_path / "words.zip").write_bytes(words[:1000])
    with pytest.raises(DataError, match=r"words\.zip: missing or damaged"):
        emoji(split="val")
    flipped = bytearray(words)
    flipped[200] ^= 0xFF
    (tmp_path / "words.zip").write_bytes(flipped)
    with pytest.raises(DataError, match=r"words\.zip: missing or damaged"):
        emoji(split="val")
    (tmp_path / "words.zip").write_bytes(words)
    (tmp_path / "emoji-heldout.tar").write_bytes(shard[: len(shard) // 2])
    with pytest.raises(DataError, match=r"emoji-heldout\.tar"):
        emoji(split="val")
    (tmp_path / "emoji-heldout.tar").write_bytes(shard)
    assert len(emoji(split="val").pictures) == 2 * SPLITS["val"]


# the script


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("woman firefighter", "firefighter", True),
        ("men with bunny ears", "women with bunny ears", True),
        ("one o’clock", "eleven-thirty", True),
        ("blue heart", "green heart", False),
        ("person walking: facing right", "woman walking", True),
        ("new moon face", "waxing crescent moon", True),
        ("moon cake", "full moon", False),
        ("firefighter", "farmer", False),
        ("orange", "tangerine", False),
    ],
)
def test_roots_of_labels(one: str, other: str, same: bool) -> None:
    assert (script.label_root(one) == script.label_root(other)) is same


def test_roots_of_code_points() -> None:
    assert script.code_root("1f469-200d-1f692") == script.code_root("1f9d1-200d-1f692")
    assert script.code_root("1f3c3-200d-2640") == script.code_root("1f3c3")
    assert script.code_root("1f468-200d-1f9b0") == script.code_root("1f466")
    assert script.code_root("1f469-200d-1f692") != script.code_root("1f469-200d-1f33e")


def test_the_split_depends_on_families_alone() -> None:
    def concepts(families: list[str]) -> list[Any]:
        return [script.Concept(str(n), "", "", "", family=family) for n, family in enumerate(families)]

    families = [f"family {number % 400}" for number in range(800)] + ["clock"] * 30
    there, back = concepts(families), concepts(families[::-1])
    script.split_families(there)
    script.split_families(back)
    assert {one.family: one.split for one in there} == {one.family: one.split for one in back}
    assert Counter(one.split for one in there) == {"train": 530, "val": 100, "test": 200}
    assert {one.split for one in there if one.family == "clock"} == {"train"}


def test_pictures_are_flattened_on_white_without_a_dark_rim() -> None:
    pixels = np.zeros((264, 256, 4), dtype=np.uint8)  # transparent black around a yellow disc with soft edges
    y, x = np.mgrid[:264, :256]
    distance = np.hypot(y - 132, x - 128)
    pixels[distance < 101, :3] = (255, 200, 0)
    pixels[..., 3] = (255 * np.clip(101 - distance, 0, 1)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    picture = Image.open(io.BytesIO(script.to_jpeg(out.getvalue())))
    found = np.asarray(picture.convert("RGB")).astype(int)
    assert found.shape == (64, 64, 3)
    edges = np.concatenate([found[:4].ravel(), found[-4:].ravel(), found[:, :4].ravel(), found[:, -4:].ravel()])
    assert edges.min() > 225 and edges.mean() > 253, (edges.min(), edges.mean())
    assert np.abs(found[32, 32] - [255, 200, 0]).max() < 8
    assert found[..., 0].min() > 235 and found[..., 1].min() > 185  # red is full on white and yellow alike


def test_a_package_with_another_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="emojibase-data-17.0.0.tgz: SHA-512 is .*, expected Yvgb5AWo"):
        script.fetch(script.WORDS, tmp_path)


def test_rebuilding_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if script.PILLOW != PIL.__version__:
        pytest.skip(f"Pillow {PIL.__version__} is installed, not {script.PILLOW}: JPEG bytes may differ")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    try:
        for package in script.PACKAGES:
            script.fetch(package, tmp_path)
    except SystemExit as error:
        if "cannot fetch" not in str(error):
            raise
        pytest.skip(str(error))
    built = script.build(tmp_path)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in built.items()} == script.SHA256
    assert built == {name: (module._folder() / name).read_bytes() for name in built}
