"""A new user's first ten minutes, as docs/search_your_pictures.md has them: its commands, run in a copy of the project.

Left out is what needs the network: pip does nothing here, and `.venv` holds the interpreter that runs this test. The
quickstart is shortened by the overrides its script takes; a served page is asked for its answers, then told to end.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "search_your_pictures.md"
SHORT = (
    "runs/quickstart training.epochs=1 'branches.image.encoder={name: torchvision, model: squeezenet1_1}' "
    "data.image.size=32 data.image_evaluation.size=32"
)


def commands() -> list[str]:
    """The lines of the bash blocks in the numbered sections."""
    numbered = PAGE.read_text(encoding="utf-8").split("\n## As JSON")[0]
    blocks = re.findall(r"```bash\n(.*?)```", numbered, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project's files, with a `.venv` that is installed already."""
    clone = tmp_path / "jointembed"
    for name in ("jointembed", "recipes", "scripts"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = clone / ".venv" / "bin"
    folder.mkdir(parents=True)
    write_script(folder / "jointembed", f'PYTHONPATH="{clone}" exec "{sys.executable}" -m jointembed "$@"')
    write_script(folder / "pip", 'echo "pip $*"')
    (folder / "activate").write_text(f'PATH="{folder}:$PATH"\n')
    return clone


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a folder of pictures, and one file in it that is none."""
    home = tmp_path / "home"
    (home / "Pictures" / "a trip").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("first.jpg", "second.png", "a trip/beach 🏖.jpg", "a trip/harbour.webp"):
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / "Pictures" / name)
    (home / "Pictures" / "broken.jpg").write_bytes(b"a download that failed")
    return home


def ask(line: str, clone: Path, environment: dict[str, str]) -> dict:
    """Start the line's server on a free port, search by words, and end it as Ctrl-C does."""
    words = f". .venv/bin/activate; exec {line.partition('#')[0]} --port 0"
    server = subprocess.Popen(
        ["bash", "-c", words], cwd=clone, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        first = server.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/) searches", first)
        assert found is not None, first + server.stderr.read()
        query = urllib.parse.urlencode({"q": "red flower"})
        with urllib.request.urlopen(f"{found[1]}api/search?{query}", timeout=60) as answer:
            answers = json.loads(answer.read())
        with urllib.request.urlopen(found[1], timeout=60) as answer:
            assert b'<input id="q"' in answer.read()
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
        assert server.returncode == 0, err
        return answers
    finally:
        server.kill()
        server.communicate()


@pytest.mark.timeout(1200)
def test_the_first_ten_minutes(clone: Path, home: Path) -> None:
    environment = os.environ | {"HOME": str(home), "COLUMNS": "200"}
    said: dict[str, str] = {}
    lines = commands()
    for line in lines:
        if line.startswith("jointembed serve"):
            answers = ask(line, clone, environment)
            continue
        shortened = line.replace("scripts/quickstart.sh", f"scripts/quickstart.sh {SHORT}")
        done = subprocess.run(
            ["bash", "-c", f". .venv/bin/activate; {shortened}"],
            cwd=clone, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        said[line] = done.stdout
    assert len(said) == len(lines) - 1 and len(lines) == 10
    assert "chance" in said[next(line for line in lines if "quickstart.sh" in line)]
    assert said[next(line for line in lines if line.startswith("pip "))].startswith("pip install --editable .[serve]")
    assert (clone / "runs" / "quickstart" / "report.html").is_file()
    emoji = said[next(line for line in lines if "musical instrument" in line)]
    assert len(re.findall(r"^ *\d +-?\d\.\d{4} ", emoji, re.MULTILINE)) == 5
    by_picture = said[next(line for line in lines if "--picture" in line)]
    assert re.search(r"^ *1 +1\.0000 +first\.jpg", by_picture, re.MULTILINE), by_picture
    assert "data:image/jpeg" in (clone / "answers.html").read_text(encoding="utf-8")
    skipped = [json.loads(one) for one in (clone / "embeddings" / "mine" / "skipped.jsonl").read_text().splitlines()]
    assert [one["id"] for one in skipped] == ["broken.jpg"]
    assert answers["rows"] == 4 and {one["id"] for one in answers["answers"]} == {
        "first.jpg", "second.png", "a trip/beach 🏖.jpg", "a trip/harbour.webp",
    }  # fmt: skip
