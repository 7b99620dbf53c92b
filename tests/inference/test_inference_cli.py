"""`embed`, `index`, `search` and `classify` from a trained run to an answer, as a user types them."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jointembed import runs
from jointembed.cli import main
from jointembed.inference.index import Index

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the command line in this process: exit code, what it printed, what it complained of."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jointembed", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return (stop.value.code if isinstance(stop.value.code, int) else 0), out, err

    return run


def test_from_a_trained_run_to_answers(
    tiny_recipe: Callable, pictures: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.train(tiny_recipe("branches.image.encoder.model=squeezenet1_1"), Path("run"))
    code, out, err = say("embed", "run", "pictures", "--out", "embeddings", "--shard-size", "4")
    assert code == 0 and "3 of 3 shards to do" in out and "11" not in err
    code, out, _ = say("embed", "run", "pictures", "--out", "embeddings", "--shard-size", "4")
    assert code == 0 and "0 of 3 shards to do" in out
    code, out, _ = say("index", "embeddings", "--out", "idx")
    assert code == 0 and "idx: 11 rows of width 16, exact" in out
    code, out, _ = say("search", "idx", "a red photo", "--top", "3", "--gallery", "page.html")
    ranked = re.findall(r"^ ?(\d) +(-?\d\.\d{4}) +(\S+) +(\S+)", out, re.MULTILINE)
    assert code == 0 and [one[0] for one in ranked] == ["1", "2", "3"]
    assert all(Path(path).is_file() and path.endswith(name) for _, _, name, path in ranked)
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg") == 3
    code, out, _ = say("search", "idx", "--picture", pictures / "a" / "02.png", "--top", "1", "--no-verify")
    assert code == 0 and "a/02.png" in out and "1.0000" in out
    code, out, _ = say("classify", "idx", "--classes", "red,green", "--template", "a {}", "--out", "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert code == 0 and len(rows) == 11 and {row["classes"][0] for row in rows} <= {"red", "green"}
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    code, out, _ = say("classify", "run", pictures / "a" / "02.png", "--classes", "@names.txt", "--top", "3")
    assert code == 0 and re.search(r"a/02.png +\w+, \w+, \w+", out)


def test_index_embeds_first_where_data_is_given(model_path: Path, tmp_path: Path, say: Say) -> None:
    code, out, _ = say("index", model_path, "emoji:test", "--out", tmp_path / "emoji")
    assert code == 0 and "400 rows of width 16, exact" in out
    assert [path.name for path in tmp_path.iterdir()] == ["emoji"]  # what lay between is gone
    code, out, _ = say("search", tmp_path / "emoji", "a red photo", "--top", "2")
    assert code == 0 and out.count("emoji://test/") == 2


def test_a_bad_picture_is_removed_and_the_index_is_made(
    model_path: Path, pictures: Path, tmp_path: Path, say: Say
) -> None:
    (pictures / "zz.jpg").write_bytes(b"no picture")
    code, _, err = say("index", model_path, pictures, "--out", tmp_path / "idx")
    assert code and "zz.jpg" in err
    (pictures / "zz.jpg").unlink()
    code, out, err = say("index", model_path, pictures, "--out", tmp_path / "idx")
    assert code == 0 and "rows of width" in out, err


def test_a_captions_file_can_be_searched_by_a_picture(
    model_path: Path, pictures: Path, tmp_path: Path, say: Say
) -> None:
    (tmp_path / "captions.csv").write_text("key,words\nx,red photo\ny,\x1b[2J green\n")
    code, _, err = say(
        "index", model_path, tmp_path / "captions.csv", "--column", "words", "--id-column", "key",
        "--out", tmp_path / "idx",
    )  # fmt: skip
    assert code == 0, err
    code, out, _ = say("search", tmp_path / "idx", "--picture", pictures / "a" / "02.png")
    assert code == 0 and "red photo" in out and "\x1b[2J" not in out and r"\x1b[2J green" in out


def test_ranks_of_the_environment_share_the_work(
    model_path: Path, pictures: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("1", "2"):
        for name, value in (("ID", task), ("COUNT", "2"), ("MIN", "1"), ("MAX", "2"), ("STEP", "1")):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        if task == "2":
            code, _, err = say("index", tmp_path / "e", "--out", tmp_path / "idx")
            assert code == 1 and "1 of 3 shards are not finished (1)" in err
        code, out, _ = say("embed", model_path, pictures, "--out", tmp_path / "e", "--shard-size", "4")
        assert code == 0 and f"rank {int(task) - 1} of 2: {3 - int(task)} of 3 shards to do" in out
    code, _, _ = say("index", tmp_path / "e", "--out", tmp_path / "idx")
    assert code == 0 and len(Index.open(tmp_path / "idx")) == 11


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "absent", "PICTURES", "--out", "OUT"], 1, "absent: no such model folder"),
        (["embed", "MODEL", "absent", "--out", "OUT"], 1, "absent: no such file or folder"),
        (["embed", "MODEL", "PICTURES", "--out", "OUT", "--precision", "fp8"], 2, "no precision 'fp8'"),
        (["embed", "MODEL", "PICTURES", "--out", "OUT", "--rank", "3", "--world", "2"], 1, "rank 3 of 2"),
        (["embed", "MODEL", "PICTURES"], 2, "--out"),
        (["index", "absent", "--out", "OUT"], 1, "absent: not a folder of embeddings"),
        (["index", "MODEL", "PICTURES", "--out", "PICTURES"], 1, "is there already; --overwrite"),
        (["search", "absent", "a dog"], 1, "absent: not an index"),
        (["search", "absent"], 2, "give either words or --picture FILE"),
        (["classify", "absent", "--classes", "a,b"], 1, "absent: no such model folder"),
        (["classify", "MODEL", "--classes", "a,b"], 1, "no index; name the pictures"),
        (["embed", "MODEL", "PICTURES", "--out", "OUT", "--batch", "0"], 2, "Invalid value for '--batch'"),
        (["embed", "MODEL", "PICTURES", "--out", "OUT", "--workers", "-1"], 2, "Invalid value for '--workers'"),
        (["index", "absent", "--out", "OUT", "--precision", "bf16"], 2, "--precision needs DATA"),
        (["index", "absent", "--out", "OUT", "--view", "image"], 2, "--view needs DATA"),
        (["embed", "MODEL", "PICTURES", "--out", "FILE"], 1, "a/02.png: File exists"),
        (["classify", "MODEL", "FILE", "--classes", "a,b", "--out", "no/x"], 1, "no/x: No such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    model_path: Path, pictures: Path, tmp_path: Path, say: Say, arguments: list[str], code: int, message: str
) -> None:
    names = {"MODEL": model_path, "PICTURES": pictures, "OUT": tmp_path / "out", "FILE": pictures / "a" / "02.png"}
    found, _, err = say(*(names.get(one, one) for one in arguments))
    assert found == code and message in err.replace("\n", " "), err
    if "Usage" not in err:
        assert err.count("\n") == 1 and err.startswith("jointembed: ")
