"""Tar shards of captioned pictures (WebDataset layout) from COCO, Flickr, Karpathy, a table or a folder.

    python scripts/make_shards.py coco train2017 captions_train2017.json --out shards/train

A sample is KEY.jpg (the file as it is, under its own suffix) and KEY.json ({"id", "file", "captions"}); the key is its
number. Samples are shuffled once by a seed, so that a shard is a fair draw of the data. Equal input gives equal bytes.
Every picture is decoded before it is packed, every shard is read back and its SHA-256 compared. `shards.json` lists
what is done: run the same command again after an interruption, and it goes on with the next shard.
"""

import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import typer

from jointembed.data.caption_shards import MANIFEST
from jointembed.data.captions import Record, clean_caption, from_records
from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_flickr import flickr8k_tokens
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.captions_table import caption_table
from jointembed.data.json_file import read_text
from jointembed.data.pictures import PictureFolder
from jointembed.data.records import CaptionData
from jointembed.data.shards import SUFFIXES, is_picture
from jointembed.errors import DataError, JointEmbedError

FORMAT = 1
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Images = Annotated[Path, typer.Argument(help="Folder that the pictures' names begin at.")]
Out = Annotated[Path, typer.Option(help="Folder of the shards.")]
Size = Annotated[int, typer.Option(help="Samples of a shard.")]
Seed = Annotated[int, typer.Option(help="Of the order of the samples; -1 keeps that of the source.")]
Decode = Annotated[bool, typer.Option(help="Decode every picture before it is packed.")]


@app.command()
def coco(
    images: Images,
    annotations: Annotated[Path, typer.Argument(help="captions_train2017.json, ...")],
    out: Out,
    size: Size = 1000,
    seed: Seed = 0,
    decode: Decode = True,
) -> None:
    """Official COCO captions."""
    data = coco_captions(images=str(images), annotations=str(annotations), skip_uncaptioned=True)
    make_shards(data, out, size=size, seed=seed, decode=decode)


@app.command()
def flickr(
    images: Images,
    tokens: Annotated[Path, typer.Argument(help="Flickr8k.token.txt or results_20130124.token.")],
    split_file: Annotated[Path, typer.Argument(help="File names of the split, one a line.")],
    out: Out,
    size: Size = 1000,
    seed: Seed = 0,
    decode: Decode = True,
) -> None:
    """Flickr8k and Flickr30k, from their token files."""
    data = flickr8k_tokens(images=str(images), tokens=str(tokens), split_file=str(split_file))
    make_shards(data, out, size=size, seed=seed, decode=decode)


@app.command("karpathy")
def karpathy_split(
    images: Images,
    annotations: Annotated[Path, typer.Argument(help="dataset_coco.json, dataset_flickr30k.json, ...")],
    split: Annotated[str, typer.Argument(help="train, restval, val, test; or train+restval.")],
    out: Out,
    size: Size = 1000,
    seed: Seed = 0,
    decode: Decode = True,
) -> None:
    """Karpathy's splits of COCO, Flickr8k and Flickr30k."""
    data = karpathy(images=str(images), annotations=str(annotations), split=split)
    make_shards(data, out, size=size, seed=seed, decode=decode)


@app.command()
def table(
    images: Images,
    file: Annotated[Path, typer.Argument(help=".csv, .tsv or .jsonl with the columns image and caption.")],
    out: Out,
    size: Size = 1000,
    seed: Seed = 0,
    decode: Decode = True,
) -> None:
    """A table of picture paths and captions."""
    data = caption_table(images=str(images), table=str(file))
    make_shards(data, out, size=size, seed=seed, decode=decode)


@app.command()
def folder(images: Images, out: Out, size: Size = 1000, seed: Seed = 0, decode: Decode = True) -> None:
    """A folder of pictures, each with its captions beside it: NAME.jpg and NAME.txt, one caption a line."""
    make_shards(read_folder(images), out, size=size, seed=seed, decode=decode)


@app.command()
def verify(out: Annotated[Path, typer.Argument(help="Folder of shards.")]) -> None:
    """Compare the SHA-256 of every shard with `shards.json`."""
    manifest = _read_manifest(out / MANIFEST)
    bad = [one["name"] for one in manifest["shards"] if _sha256(out / one["name"]) != one["sha256"]]
    if bad:
        raise DataError(f"{out / bad[0]}: altered since it was made ({len(bad)} of {len(manifest['shards'])} shards)")
    if not manifest["complete"]:
        raise DataError(f"{out}: unfinished; run the command that makes it again")
    print(f"{len(manifest['shards'])} shards, {sum(one['samples'] for one in manifest['shards'])} samples: unaltered")


def read_folder(images: Path) -> CaptionData:
    """Pictures in the order of their names. Raises DataError naming a picture without captions beside it."""
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*") if is_picture(path.name))
    records = []
    for name in names:
        beside = (images / name).with_suffix(".txt")
        lines = [line for line in read_text(beside).splitlines() if line.strip()]
        if not lines:
            raise DataError(f"{beside}: no caption in it")
        records.append(Record(name, name, [clean_caption(line, str(beside)) for line in lines]))
    if not records:
        raise DataError(f"{images}: no picture in it")
    return from_records(images.name, str(images), records, captions_per_picture=None)


def make_shards(data: CaptionData, out: Path, *, size: int, seed: int, decode: bool = True) -> list[Path]:
    """Write all shards that are not there yet, then mark the manifest complete.

    Args:
        data: pictures in a folder, with captions.
        out: made if need be.
        size: samples of a shard.
        seed: of the order; below 0 keeps that of the data.
        decode: refuse a picture that cannot be decoded before it is packed.

    Raises:
        DataError: naming the picture that is none, or whose suffix no reader of shards takes; a folder that holds
            shards of other data or settings; a shard that does not read back as it was written.
    """
    if size < 1:
        raise DataError(f"--size {size}: a shard holds at least 1 sample")
    count = len(data.pictures)
    order = np.arange(count) if seed < 0 else np.random.default_rng(seed).permutation(count)
    _check_names(data)
    made_of = {"format": FORMAT, "fingerprint": data.fingerprint, "size": size, "seed": seed}
    out.mkdir(parents=True, exist_ok=True)
    done = _started(out, made_of)
    if not done:  # before the first shard: one that no manifest lists would be taken for another's
        _write_manifest(out, made_of | {"complete": False, "shards": []})
    parts = [order[first : first + size] for first in range(0, count, size)]
    for number, part in enumerate(parts):
        path = out / f"{number:05d}.tar"
        if number < len(done):
            if not path.is_file() or path.stat().st_size != done[number]["bytes"]:
                raise DataError(f"{path}: not the shard that {MANIFEST} lists; empty the folder to start anew")
            continue
        digest = _write_shard(path, data, part, first=number * size, decode=decode)
        done.append({"name": path.name, "samples": len(part), "bytes": path.stat().st_size, "sha256": digest})
        _write_manifest(out, made_of | {"complete": number + 1 == len(parts), "shards": done})
        print(f"{path}: {len(part)} samples, sha256 {digest}", flush=True)
    return [out / one["name"] for one in done]


def _started(out: Path, made_of: dict[str, Any]) -> list[dict[str, Any]]:
    if not (out / MANIFEST).is_file():
        stray = next(out.glob("*.tar"), None)
        if stray is not None:
            raise DataError(f"{stray}: a shard that no {MANIFEST} lists; choose an empty folder")
        return []
    manifest = _read_manifest(out / MANIFEST)
    if not manifest["shards"] and not any(out.glob("*.tar")):  # stopped before there was anything
        return []
    for key, value in made_of.items():
        if manifest.get(key) != value:
            raise DataError(f"{out / MANIFEST}: {key} is {manifest.get(key)}, now {value}; choose an empty folder")
    return manifest["shards"]


def _check_names(data: CaptionData) -> None:
    """Raise DataError naming a picture that would be packed, and not found again: members are known by their suffix."""
    assert isinstance(data.pictures, PictureFolder)  # every reader above gives one
    for name in data.pictures.names:
        if not is_picture(_member(name, "0")):
            known = ", ".join(SUFFIXES)
            raise DataError(f"{data.pictures.root / name}: shards hold pictures called {known}; rename the file")


def _member(name: str, key: str) -> str:
    return f"{key}{Path(name).suffix.lower()}"


def _write_shard(path: Path, data: CaptionData, numbers: np.ndarray, *, first: int, decode: bool) -> str:
    """Write one shard aside, check it, and name it by a rename; its SHA-256."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        written = _Hashed(file)
        with tarfile.open(fileobj=written, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for place, number in enumerate(numbers):
                for name, content in _members(data, int(number), f"{first + place:09d}", decode=decode):
                    info = tarfile.TarInfo(name)  # no owner, no time: equal input, equal bytes
                    info.size, info.mode = len(content), 0o644
                    tar.addfile(info, io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
    digest = written.digest.hexdigest()
    if _sha256(part) != digest:
        raise DataError(f"{part}: reads back other bytes than were written; is the disk sound?")
    part.replace(path)
    return digest


class _Hashed:
    """A file that is only written to, and the SHA-256 of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)


def _members(data: CaptionData, number: int, key: str, *, decode: bool) -> list[tuple[str, bytes]]:
    assert isinstance(data.pictures, PictureFolder)  # every reader above gives one
    name = data.pictures.names[number]
    if decode:
        data.pictures.open(number)
    record = {"id": data.picture_ids[number], "file": name, "captions": list(data.captions[int(data.item[number])])}
    words = json.dumps(record, ensure_ascii=False, sort_keys=True).encode()
    picture = (data.pictures.root / name).read_bytes()
    return [(_member(name, key), picture), (f"{key}.json", words)]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(read_text(path))
        return manifest | {"complete": bool(manifest["complete"]), "shards": list(manifest["shards"])}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: not the manifest of a folder of shards") from None


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    part = out / f".{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    part.replace(out / MANIFEST)


if __name__ == "__main__":
    try:
        app()
    except JointEmbedError as problem:
        print(f"make_shards: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
