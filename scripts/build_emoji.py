"""Rebuild the embedded emoji data set from its npm packages: two shards of pictures and one zip of words.

    python scripts/build_emoji.py --cache FOLDER [--out FOLDER]

The npm client downloads the packages into the cache, where they are checked. With the Pillow version named below
the files come out the same to the byte; otherwise the command says which differ and exits with 1.
"""

import argparse
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageFilter

PILLOW = "13.0.0"  # JPEG bytes depend on the libjpeg-turbo that its wheel carries
OUT = Path(__file__).resolve().parents[1] / "jointembed" / "assets" / "emoji"
PACKAGES = {  # name@version -> SHA-512, as the npm registry and lock files write it
    "@lobehub/fluent-emoji-3d@1.1.0": (
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
    ),
    "emoji-datasource-google@16.0.0": (
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="
    ),
    "emojibase-data@17.0.0": (
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="
    ),
}
FLUENT, NOTO, WORDS = PACKAGES
SHA256 = {
    "emoji-train.tar": "45930308a4d276022ef5021212247cf6ab081243ccdfdfa0a2018677f72bf7f3",
    "emoji-heldout.tar": "9e5bfd1a602442efdfc86c7187c81f8e8ece20e0a4510a3ce5db9c3f86d29c41",
    "words.zip": "8de93209e8fc6e3bab2b747aecc88d59094cd9876a8e96ccacd547283511a593",
}

SIDE, QUALITY = 64, 85  # pixels, JPEG; colour at full resolution
HELD_OUT = {"test": 200, "val": 100}  # concepts, at least
SALT = "jointembed emoji, second split"  # of the order in which families are held out
LARGEST_HELD_OUT_FAMILY = 8  # larger ones are trained on: 24 clocks would be a tenth of the test
REGIONAL = ("en-gb", "es-mx")  # say nearly the same as `en` and `es`

# Groups of Unicode left out: flags, skin tones and hair (components), letters and arrows (symbols) but for two
# subgroups of signs that show something; and families by members, pictograms that hardly differ.
LEFT_OUT_GROUPS = ("component", "flags", "symbols")
KEPT_SUBGROUPS = ("transport-sign", "warning")
LEFT_OUT_LABELS = "family:"

# Words of gender and age: concepts whose labels are equal without them are one family.
PEOPLE = frozenset("man men woman women person people boy girl child children baby adult older old".split())
# Pictures nearer than this are near copies, and their concepts one family: the root of the mean square, of 255, between
# blurred pictures of 32 x 32 pixels, of which one may be mirrored, as it may be in training.
NEAR_COPY = 16.0


@dataclass
class Concept:
    """One emoji: `key` is its code points without variation selectors."""

    key: str
    label: str
    group: str
    hexcode: str
    family: str = ""
    split: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)  # rendering -> JPEG


def fetch(package: str, cache: Path) -> Path:
    """The package's archive in the cache, downloaded by the npm client if it is not there, and checked."""
    name, version = package.lstrip("@").replace("/", "-").rsplit("@", 1)
    archive = cache / f"{name}-{version}.tgz"
    if not archive.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", package, "--silent", "--pack-destination", str(cache)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            sys.exit(f"cannot fetch {package}: `{' '.join(command)}` failed: {reason}")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != PACKAGES[package]:
        sys.exit(f"{archive}: SHA-512 is {found}, expected {PACKAGES[package]}; delete the file and try again")
    return archive


def read_members(archive: Path, pattern: str) -> dict[str, bytes]:
    """Members whose path in the package matches, by the pattern's first group."""
    found = {}
    with tarfile.open(archive, "r:gz") as tar:
        for info in tar:
            match = re.fullmatch(f"package/{pattern}", info.name)
            file = tar.extractfile(info) if match and info.isreg() else None
            if match and file:
                found[match[1]] = file.read()
    return found


def plain_key(code: str) -> str:
    """Lower-case code points without variation selectors: `1F3F3-FE0F-200D-1F308` -> `1f3f3-200d-1f308`."""
    return "-".join(part for part in code.lower().replace("_", "-").split("-") if part != "fe0f")


def by_key(pictures: Mapping[str, bytes]) -> dict[str, bytes]:
    """Pictures under their plain keys; of two spellings of one key the shorter is taken."""
    return {plain_key(code): pictures[code] for code in sorted(pictures, key=len, reverse=True)}


def choose(words: Mapping[str, bytes], renderings: Iterable[Mapping[str, bytes]]) -> list[Concept]:
    """The concepts that are in, in Unicode's order."""
    names = json.loads(words["meta/groups"])
    concepts = []
    for entry in json.loads(words["en/data"]):
        if "group" not in entry:  # regional indicators
            continue
        group, subgroup = names["groups"][str(entry["group"])], names["subgroups"][str(entry["subgroup"])]
        key = plain_key(entry["hexcode"])
        left_out = group in LEFT_OUT_GROUPS and subgroup not in KEPT_SUBGROUPS
        if left_out or entry["label"].startswith(LEFT_OUT_LABELS) or not all(key in one for one in renderings):
            continue
        concepts.append((entry["order"], Concept(key, entry["label"], group, entry["hexcode"])))
    return [concept for _, concept in sorted(concepts, key=lambda pair: pair[0])]


def label_root(label: str) -> str:
    """The label without words of gender and age: `woman firefighter` -> `firefighter`; clocks and moons are alike."""
    words = re.findall(r"[\w’']+", label.lower().removesuffix(": facing right").removesuffix(" facing right"))
    if "clock" in words[1:] or "o’clock" in words or "thirty" in words:
        return "o’clock"
    if "moon" in words and not {"cake", "viewing"} & set(words):
        return "moon"
    rest = sorted(word.removesuffix("s") for word in words if word not in PEOPLE)
    return " ".join(rest) or ("person" if set(words) & PEOPLE else label)


def code_root(key: str) -> str:
    """The code points without gender, hair and side: those of a woman firefighter -> those of a firefighter."""
    people = {"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"}
    told_apart_by = {"2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3", "27a1"}
    parts = [part for part in key.split("-200d-") if part not in told_apart_by]
    return "+".join("person" if part in people else part for part in parts)


def near_copies(pictures: list[bytes]) -> list[tuple[int, int]]:
    """Pairs of pictures that lie nearer than NEAR_COPY, the second as it is or mirrored."""

    def rows(mirrored: bool) -> np.ndarray:
        found = []
        for data in pictures:
            small = Image.open(io.BytesIO(data)).filter(ImageFilter.GaussianBlur(1)).resize((32, 32))
            pixels = np.asarray(small, dtype=np.float64)
            found.append((pixels[:, ::-1] if mirrored else pixels).ravel())
        return np.stack(found)

    plain, mirrored = rows(False), rows(True)
    lengths = (plain**2).sum(1)
    squares = [lengths[:, None] + lengths[None] - 2 * plain @ other.T for other in (plain, mirrored)]
    near = np.minimum(*squares) < NEAR_COPY**2 * plain.shape[1]
    return [(int(a), int(b)) for a, b in np.argwhere(np.triu(near, 1))]


def name_families(concepts: list[Concept]) -> None:
    """Concepts that share a root of label or code points, or a near copy of a picture, are one family (union-find)."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    def own(concept: Concept) -> str:
        return f"label {label_root(concept.label)}"

    for concept in concepts:
        parent[find(f"code {code_root(concept.key)}")] = find(own(concept))
    for rendering in ("fluent", "noto"):
        for a, b in near_copies([concept.pictures[rendering] for concept in concepts]):
            parent[find(own(concepts[a]))] = find(own(concepts[b]))
    names: dict[str, str] = {}
    for concept in concepts:
        concept.family = names.setdefault(find(own(concept)), concept.label)


def split_families(concepts: list[Concept]) -> None:
    """Families in the order of their hash: the first fill test, the next val, the rest is train."""
    sizes = Counter(concept.family for concept in concepts)
    small = [family for family, size in sizes.items() if size <= LARGEST_HELD_OUT_FAMILY]
    small.sort(key=lambda family: hashlib.sha256(f"{SALT} {family}".encode()).digest())
    split = dict.fromkeys(sizes, "train")
    filled: Counter[str] = Counter()
    for family in small:
        name = next((name for name, least in HELD_OUT.items() if filled[name] < least), None)
        if name is None:
            break
        split[family] = name
        filled[name] += sizes[family]
    for concept in concepts:
        concept.split = split[concept.family]


def to_jpeg(data: bytes) -> bytes:
    """Flattened on white, padded to a square, scaled to SIDE."""
    rgba = Image.open(io.BytesIO(data)).convert("RGBA")
    side = max(rgba.size)
    white = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    white.alpha_composite(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    picture = white.convert("RGB")
    if side != SIDE:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.HAMMING)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    return out.getvalue()


def shard(concepts: Iterable[Concept]) -> bytes:
    """WebDataset layout: `split/key.rendering.jpg`; nothing in a header depends on the day or the machine."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for concept in concepts:
            for rendering, data in concept.pictures.items():
                info = tarfile.TarInfo(f"{concept.split}/{concept.key}.{rendering}.jpg")
                info.size, info.mode, info.mtime = len(data), 0o644, 0
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_words(concepts: list[Concept], words: Mapping[str, bytes]) -> bytes:
    """`concepts.json` and one `<language>.json` each: [label, tag, ...] of every concept, in the same order."""
    names = ("key", "group", "family", "split")
    files: dict[str, object] = {
        "concepts.json": [{name: getattr(concept, name) for name in names} for concept in concepts]
    }
    for language in sorted(path.removesuffix("/data") for path in words if path.endswith("/data")):
        if language not in REGIONAL:
            entries = {entry["hexcode"]: entry for entry in json.loads(words[f"{language}/data"])}
            found = [entries[concept.hexcode] for concept in concepts]
            files[f"{language}.json"] = [[entry["label"], *entry.get("tags", [])] for entry in found]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            # bzip2, because its bytes do not depend on the version of the library, as those of zlib and xz do
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_BZIP2, 3, 0o644 << 16
            text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
            archive.writestr(info, text.encode(), compresslevel=9)
    return out.getvalue()


def build(cache: Path) -> dict[str, bytes]:
    """The three files, by name."""
    fluent = by_key(read_members(fetch(FLUENT, cache), r"assets/([\w-]+)\.webp"))
    noto = by_key(read_members(fetch(NOTO, cache), r"img/google/64/([\w-]+)\.png"))
    words = read_members(fetch(WORDS, cache), r"(meta/groups|[\w-]+/data)\.json")
    concepts = choose(words, (fluent, noto))
    for concept in concepts:
        concept.pictures = {"fluent": to_jpeg(fluent[concept.key]), "noto": to_jpeg(noto[concept.key])}
    name_families(concepts)
    split_families(concepts)
    report(concepts)
    return {
        "emoji-train.tar": shard(concept for concept in concepts if concept.split == "train"),
        "emoji-heldout.tar": shard(concept for concept in concepts if concept.split != "train"),
        "words.zip": zip_words(concepts, words),
    }


def report(concepts: list[Concept]) -> None:
    """Print the counts; a label that is in two splits is an error."""
    for split in ("train", "val", "test"):
        chosen = [concept for concept in concepts if concept.split == split]
        print(f"{split}: {len(chosen)} concepts of {len({concept.family for concept in chosen})} families")
    splits: dict[str, set[str]] = {}
    for concept in concepts:
        splits.setdefault(concept.label.lower(), set()).add(concept.split)
    shared = [label for label, found in splits.items() if len(found) > 1]
    if shared:
        sys.exit(f"labels in more than one split: {shared}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the npm packages")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the data set (default: in the package)")
    options = parser.parse_args()
    if PIL.__version__ != PILLOW:
        sys.exit(f"Pillow {PIL.__version__} is installed; the same bytes need `pip install pillow=={PILLOW}`")
    files = build(options.cache)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (options.out / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    differing = [name for name, data in files.items() if hashlib.sha256(data).hexdigest() != SHA256[name]]
    if differing:
        sys.exit(f"not the published bytes: {', '.join(differing)}")


if __name__ == "__main__":
    main()
