import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import crafted_pictures as crafted
import pytest

from jointembed.data.captions_coco import coco_captions
from jointembed.data.captions_karpathy import karpathy
from jointembed.data.detection_coco import coco_detection
from jointembed.data.json_file import read_json
from jointembed.errors import DataError

GOOD = {
    "coco": {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 32}],
        "annotations": [{"id": 7, "image_id": 1, "caption": "a", "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "x"}],
    },
    "karpathy": {
        "images": [
            {"split": "test", "filename": "a.jpg", "cocoid": 1, "sentences": [{"raw": "a", "sentid": 7}]},
        ]
    },
}
READERS: dict[str, Callable[[Path, Path], object]] = {
    "coco captions": lambda root, path: coco_captions(images=str(root), annotations=str(path)),
    "coco detection": lambda root, path: coco_detection(images=str(root), annotations=str(path)),
    "karpathy": lambda root, path: karpathy(images=str(root), annotations=str(path), split="test"),
}
FAULTS = {
    "broken": (lambda text: text[:-9], "broken JSON at line 1, column"),
    "NaN": (lambda text: text.replace('"id": 7', '"id": NaN').replace('"sentid": 7', '"sentid": NaN'), "holds NaN"),
    "infinity": (lambda text: text.replace(": 1", ": -Infinity", 1), "holds -Infinity"),
    "duplicate keys": (lambda text: text.replace('"images":', '"images": [], "images":', 1), "the key 'images' twice"),
    "top-level list": (lambda text: f"[{text}]", "is list .*expected an object"),
    "top-level null": (lambda text: "null", "is NoneType None; expected an object"),
    "empty": (lambda text: "", "empty; expected JSON"),
    "UTF-16": (lambda text: text.encode("utf-16"), "not UTF-8 text"),
    "two documents": (lambda text: text + text, "broken JSON .*Extra data"),
    "too deep": (lambda text: "[" * 100_000, "nested too deeply"),
    "missing id": (lambda text: text.replace('"id": 7, ', "").replace(', "sentid": 7', ""), "has no '(id|sentid)'"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    crafted.write(tmp_path, {"a.jpg": crafted.good()["rgb.jpg"]})
    return tmp_path


def document(reader: str) -> str:
    return json.dumps(GOOD["karpathy" if reader == "karpathy" else "coco"])


@pytest.mark.fault(13, "broken, NaN, duplicate keys, top-level list, UTF-16, too deep, missing ids: every reader")
@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("reader", list(READERS))
def test_faulty_files_are_refused_by_name(reader: str, fault: str, root: Path) -> None:
    spoil, words = FAULTS[fault]
    content = spoil(document(reader))
    (root / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"a.json: .*{words}") as found:
        READERS[reader](root, root / "a.json")
    assert "\n" not in str(found.value)


@pytest.mark.fault(13, "byte order mark: read, every reader")
@pytest.mark.parametrize("reader", list(READERS))
def test_a_byte_order_mark_is_no_fault(reader: str, root: Path) -> None:
    (root / "a.json").write_text(document(reader), encoding="utf-8-sig")
    assert READERS[reader](root, root / "a.json") is not None


@pytest.mark.fault(13, "duplicate ids: every reader")
@pytest.mark.parametrize("reader", list(READERS))
def test_an_id_that_is_there_twice_is_refused(reader: str, root: Path) -> None:
    tree = json.loads(document(reader))
    rows = tree["images"][0]["sentences"] if reader == "karpathy" else tree["annotations"]
    rows.append(rows[0])
    (root / "a.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"a.json: .*\b7\b.* twice"):
        READERS[reader](root, root / "a.json")


MEASURE = """
import gc, sys
from pathlib import Path

import jointembed.data.captions as captions
from jointembed.data.captions_coco import coco_captions
from jointembed.data.json_file import read_json


class NoFiles:  # the file's pictures are not there
    def __init__(self, root, names):
        self.names = tuple(names)

    def __len__(self):
        return len(self.names)


def memory(key):
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


captions.PictureFolder = NoFiles
gc.collect()
before = memory("VmRSS")
path, what = sys.argv[1:]
found = read_json(Path(path)) if what == "json" else coco_captions(images=".", annotations=path)
peak = memory("VmHWM")
gc.collect()
print(memory("VmRSS") - before, peak - before)
"""


def write_large(path: Path, megabytes: int) -> None:
    """Captions as COCO has them, with one emoji: Python then holds the text at four bytes a letter."""
    words = "a man riding a wave on top of a surfboard beside a dog with a red ball in the sea"
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        count = megabytes * 1000  # 1,000 bytes each with its five captions
        for number in range(count):
            comma = ", " if number else ""
            file.write(
                f'{comma}{{"license": 3, "file_name": "{number:012d}.jpg", "coco_url": "http://images.cocodataset.org/'
                f'train2017/{number:012d}.jpg", "height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", '
                f'"id": {number}}}'
            )
        file.write('], "annotations": [')
        for number in range(5 * count):
            comma = ", " if number else ""
            text = f"{words} {number}" if number else "a dog \N{DOG}"
            file.write(f'{comma}{{"image_id": {number // 5}, "id": {number}, "caption": "{text}"}}')
        file.write("]}")


def check_memory(folder: Path, megabytes: int, what: str) -> None:
    path = folder / "large.json"
    write_large(path, megabytes)
    size = path.stat().st_size
    assert 0.7 * megabytes < size / 1e6 < 1.3 * megabytes, size
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path), what], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    result, peak = map(int, done.stdout.split())
    print(f"{what}: file {size / 1e6:.0f} MB, result {result / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert result > size and peak <= 3 * result, (size, result, peak)


@pytest.mark.fault(13, "a 20 MB file with an emoji is read within three times the memory of its result")
@pytest.mark.parametrize("what", ["json", "captions"])
def test_a_large_file_is_read_in_bounded_memory(what: str, tmp_path: Path) -> None:
    check_memory(tmp_path, 20, what)


@pytest.mark.slow
@pytest.mark.fault(13, "a 200 MB file with an emoji is read within three times the memory of its result")
@pytest.mark.parametrize("what", ["json", "captions"])
def test_a_very_large_file_is_read_in_bounded_memory(what: str, tmp_path: Path) -> None:
    check_memory(tmp_path, 200, what)


@pytest.mark.fault(13, "a folder or nothing where a file is named")
def test_what_is_no_file(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "cannot be read"), (tmp_path / "none.json", "no such file")):
        with pytest.raises(DataError, match=words):
            read_json(path)
