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

import PIL
from PIL import Image

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
    "emoji-train.tar": "07de82111527d19e1015f741a93f3631e45d422d078aa0e74c0d7ace7481efe1",
    "emoji-heldout.tar": "777fb17129902efb96dd220f723bd3fffc7e7b04fd7fdd45039d17cf5b1e2f29",
    "words.zip": "9846cf1c0ca05ccc365e8ad3c8a164a8e8dc0a828e6c187cc8690b2b7e3fabcc",
}

SIDE, QUALITY = 64, 85  # pixels, JPEG; colour at full resolution
HELD_OUT = 200  # concepts of val and of test, at least
LARGEST_HELD_OUT_FAMILY = 8  # larger ones are trained on: 24 clocks would be a tenth of the test
REGIONAL = ("en-gb", "es-mx")  # say nearly the same as `en` and `es`

# Groups of Unicode left out: flags, skin tones and hair (components), letters and arrows (symbols) but for two
# subgroups of signs that show something; and families by members, pictograms that hardly differ.
LEFT_OUT_GROUPS = ("component", "flags", "symbols")
KEPT_SUBGROUPS = ("transport-sign", "warning")
LEFT_OUT_LABELS = "family:"

# What tells the members of a family apart: concepts whose labels are equal without these words are one family.
VARIANTS = {
    "people": "man men woman women person people boy girl child children baby adult older old",
    "side": "left right up down leftwards rightwards facing pointing tilted oncoming horizontal vertical front",
    "colour": "red orange yellow green blue light purple brown black white grey pink blond",
    "degree": "small big large little low medium high muted decreasing increasing volume done not",
    "state": "open closed raised lowered face with without and of in at the a on 1st 2nd 3rd",
    "money": "dollar euro pound yen",
}
# Families that no rule finds; those of faces hardly differ in one of the renderings.
ALIKE = (
    ("prince", "princess", "person with crown"),
    ("person biking", "person mountain biking"),
    ("person in manual wheelchair", "person in motorized wheelchair"),
    ("kiss", "couple with heart"),
    ("merman", "mermaid", "merperson"),
    ("see-no-evil monkey", "hear-no-evil monkey", "speak-no-evil monkey"),
    ("locked", "unlocked", "locked with pen", "locked with key"),
    ("umbrella", "umbrella on ground", "umbrella with rain drops"),
    ("globe showing Americas", "globe showing Asia-Australia", "globe showing Europe-Africa", "globe with meridians"),
    ("inbox tray", "outbox tray"),
    ("bullet train", "high-speed train"),
    ("airplane", "airplane arrival", "airplane departure"),
    ("left speech bubble", "speech balloon", "right anger bubble", "thought balloon"),
    ("page facing up", "page with curl", "spiral notepad"),
    ("mobile phone", "mobile phone with arrow"),
    ("envelope", "envelope with arrow", "incoming envelope", "e-mail", "love letter"),
    ("potable water", "non-potable water"),
    ("bell", "bell with slash"),
    ("camera", "camera with flash"),
    ("pushpin", "round pushpin"),
    ("paperclip", "linked paperclips"),
    ("tram", "tram car"),
    ("beer mug", "clinking beer mugs"),
    ("station", "train", "metro", "light rail"),
    ("raised fist", "oncoming fist", "left-facing fist", "right-facing fist"),
    ("shopping bags", "handbag"),
    ("nest with eggs", "empty nest"),
    ("notebook", "notebook with decorative cover", "ledger", "closed book"),
    ("mouse", "rat"),
    ("cloud", "cloud with rain", "cloud with snow", "cloud with lightning", "cloud with lightning and rain"),
    ("sun behind cloud", "sun behind rain cloud"),
    ("snowman", "snowman without snow"),
    ("optical disk", "dvd"),
    ("fork and knife", "fork and knife with plate"),
    ("tear-off calendar", "calendar", "spiral calendar"),
    ("post office", "Japanese post office"),
    ("men’s room", "women’s room", "restroom", "water closet"),
    ("house", "house with garden"),
    ("index pointing up", "backhand index pointing up"),
    ("bus", "trolleybus"),
    ("alien", "alien monster"),
    ("1st place medal", "sports medal", "military medal"),
    ("ram", "ewe", "goat"),
    ("whale", "spouting whale"),
    ("ox", "water buffalo"),
    ("evergreen tree", "Christmas tree", "deciduous tree"),
    ("two hearts", "revolving hearts"),
    ("cat", "grinning cat", "grinning cat with smiling eyes", "cat with wry smile", "pouting cat", "kissing cat"),
    (
        *("grinning face", "grinning face with big eyes", "grinning face with smiling eyes", "grinning squinting face"),
        *("grinning face with sweat", "beaming face with smiling eyes"),
    ),
    (
        *("smiling face", "smiling face with smiling eyes", "relieved face", "pensive face"),
        *("neutral face", "expressionless face", "face without mouth", "face with diagonal mouth", "confused face"),
        *("slightly smiling face", "slightly frowning face", "frowning face", "worried face"),
        *("kissing face", "kissing face with smiling eyes", "kissing face with closed eyes", "face blowing a kiss"),
    ),
    ("hushed face", "astonished face", "anguished face", "frowning face with open mouth"),
    ("smiling face with horns", "angry face with horns"),
    ("pleading face", "face holding back tears"),
    ("weary face", "tired face"),
)


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
    """The label without what tells variants apart: `woman firefighter` -> `firefighter`."""
    words = re.findall(r"[\w’']+", label.lower())
    if "clock" in words[1:] or "o’clock" in words or "thirty" in words:
        return "o’clock"
    if "moon" in words and not {"cake", "viewing"} & set(words):
        return "moon"
    variants = set(" ".join(VARIANTS.values()).split())
    rest = sorted(word.removesuffix("s") for word in words if word not in variants)
    return " ".join(rest) or ("person" if set(words) & set(VARIANTS["people"].split()) else label)


def code_root(key: str) -> str:
    """The code points without gender and hair: those of a woman firefighter -> those of a firefighter."""
    people = {"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"}
    told_apart_by = {"2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3"}
    parts = [part for part in key.split("-200d-") if part not in told_apart_by]
    return "+".join("person" if part in people else part for part in parts)


def name_families(concepts: list[Concept]) -> None:
    """Concepts that share a root of label or code points, or are listed as alike, are one family (union-find)."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    listed = {label: f"alike {number}" for number, labels in enumerate(ALIKE) for label in labels}
    wrong = set(listed) - {concept.label for concept in concepts}
    if wrong or len(listed) < sum(map(len, ALIKE)):
        sys.exit(f"ALIKE names a concept twice, or what is none: {sorted(wrong)}")
    for concept in concepts:
        own = f"label {label_root(concept.label)}"
        for other in (f"code {code_root(concept.key)}", listed.get(concept.label, own)):
            parent[find(other)] = find(own)
    names: dict[str, str] = {}
    for concept in concepts:
        root = find(f"label {label_root(concept.label)}")
        concept.family = names.setdefault(root, concept.label)


def split_families(concepts: list[Concept]) -> None:
    """Families in the order of their hash: the first fill test, the next val, the rest is train."""
    sizes = Counter(concept.family for concept in concepts)
    small = [family for family, size in sizes.items() if size <= LARGEST_HELD_OUT_FAMILY]
    small.sort(key=lambda family: hashlib.sha256(f"jointembed emoji {family}".encode()).digest())
    split = dict.fromkeys(sizes, "train")
    filled: Counter[str] = Counter()
    for family in small:
        name = next((name for name in ("test", "val") if filled[name] < HELD_OUT), None)
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
    name_families(concepts)
    split_families(concepts)
    for concept in concepts:
        concept.pictures = {"fluent": to_jpeg(fluent[concept.key]), "noto": to_jpeg(noto[concept.key])}
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
