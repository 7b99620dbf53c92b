import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jointembed import build, runs, runs_evaluate
from jointembed.cli import main
from jointembed.errors import EvaluationError, JointEmbedError
from jointembed.evaluation.corrections import CSLS
from jointembed.evaluation.protocols import Protocol
from jointembed.report.gallery import write_gallery


def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit code, what it printed, what it complained of."""
    monkeypatch.setattr(sys, "argv", ["jointembed", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), out, err


def test_help_and_import_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, jointembed, jointembed.cli; sys.argv = ['jointembed', '--help']\n"
        "try: jointembed.cli.main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'torchvision', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "evaluate" in done.stdout


@pytest.mark.parametrize(
    "start", [["-m", "jointembed"], ["-m", "accelerate.commands.launch", "--cpu", "-m", "jointembed"]]
)
def test_other_ways_to_start_it(start: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, "table", "retrieval"], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "VICReg" in done.stdout and "77.9" in done.stdout


def test_train_evaluate_compare_and_table(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tmp_path / "tiny.yaml")
    for seed in ("0", "1"):
        code, out, _ = say(monkeypatch, capsys, "train", recipe, f"seed={seed}", "--out", str(tmp_path / f"run{seed}"))
        assert code == 0 and "rsum" in out and "chance" in out and "report.html" in out
        code, out, _ = say(monkeypatch, capsys, "evaluate", str(tmp_path / f"run{seed}"), "--split", "test")
        assert code == 0 and "text query" in out
    run = tmp_path / "run0"
    folder = run / "evaluation" / "test-full"
    assert {path.name for path in folder.iterdir()} >= {"metrics.json", "ranks.npz", "collapse.json", "gallery.json"}
    record = json.loads((folder / "metrics.json").read_text())
    assert (
        record["n_images"] == 12
        and record["n_texts"] == 24
        and record["intervals"]["rsum"][0] <= record["metrics"]["rsum"]
    )
    assert record["command"].startswith("jointembed evaluate")
    card = (run / "model" / "README.md").read_text()
    assert "`test`, protocol `full`" in card and "| rsum |" in card
    code, out, _ = say(monkeypatch, capsys, "evaluate", str(run), "--against", str(tmp_path / "run1"))
    assert code == 0 and "rsum: " in out and "against" in out
    for other in (tmp_path / "run1" / "evaluation").glob("*/metrics.json"):
        other.write_text(json.dumps(json.loads(other.read_text()) | {"fingerprint": "of other pictures"}))
    code, _, err = say(monkeypatch, capsys, "evaluate", str(run), "--against", str(tmp_path / "run1"))
    assert code and "is of different data" in err
    for form, part in (("markdown", "| "), ("json", '"rows"'), ("html", "<table")):
        code, out, _ = say(monkeypatch, capsys, "table", "retrieval", str(run), "--format", form)
        assert code == 0 and part in out and "tiny" in out


@pytest.mark.parametrize(
    ("correct", "words"),
    [
        ("none", "cosines"), ("csls", "cosines corrected by csls"), ("euclidean", "squared distances, negated"),
        ("whiten", "cosines corrected by whiten"),
    ],
)  # fmt: skip
def test_the_gallery_shows_the_scores_that_were_measured(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    correct: str, words: str,
) -> None:  # fmt: skip
    run = tmp_path / "a[b]"
    runs.train(tiny_recipe("training.epochs=0.5"), run)
    code, out, err = say(monkeypatch, capsys, "evaluate", str(run), "--correct", correct)
    assert code == 0 and f"report: {run}/report.html" in out, err  # brackets are no markup
    folder = run / "evaluation" / ("test-full" if correct == "none" else f"test-full-{correct}")
    gallery, ranks = json.loads((folder / "gallery.json").read_text()), np.load(folder / "ranks.npz")
    assert gallery["scores"] == words and f"Scores are {words}." in (run / "report.html").read_text()
    assert not list(folder.glob(".*.part"))
    data = tiny_recipe().data.test
    texts = [one["caption"] for one in json.loads(Path(data["annotations"]).read_text())["annotations"]]
    assert {query["direction"] for query in gallery["queries"]} == {"i2t", "t2i"}
    for query in gallery["queries"]:
        if query["direction"] == "i2t":
            assert query["rank"] == ranks["i2t_rank"][int(query["query"]["thumb"][7:13])]
        else:
            assert query["rank"] in [ranks["t2i_rank"][i] for i, t in enumerate(texts) if t == query["query"]["text"]]


def test_the_gallery_of_folds_has_their_ranks(tiny_recipe: Callable, tmp_path: Path) -> None:
    tiny_recipe()
    protocol = Protocol("two", captions=1, folds=2)
    data = build.caption_data(tiny_recipe(), "test")
    rng = np.random.default_rng(0)
    image, text = (torch.from_numpy(rng.normal(size=(count, 4)).astype("f4")) for count in (12, 24))
    scorer = runs_evaluate._Scorer(CSLS(k=2))
    found = protocol(image, text, data.item, data.text_item, correct=scorer)
    record = {"correct": {"name": "csls", "k": 2, "bank": "test"}}
    done = runs_evaluate._evaluated(tmp_path, record, data, protocol, scorer, found.ranks)
    assert done.scoring.words == "cosines corrected by csls-k-2, each query among its fold"
    path = write_gallery(
        tmp_path, image=done.image, text=done.text, image_names=data.pictures.names, texts=data.texts,
        positives=torch.from_numpy(data.positives), open_picture=data.pictures.open, scoring=done.scoring, queries=50,
    )  # fmt: skip
    queries = json.loads(path.read_text())["queries"]
    assert len(queries) == 24
    plain = write_gallery(
        tmp_path / "computed", image=done.image, text=done.text, image_names=data.pictures.names, texts=data.texts,
        positives=torch.from_numpy(data.positives), open_picture=data.pictures.open,
        scoring=done.scoring._replace(ranks=None), queries=50,
    )  # fmt: skip
    ranks = [one["rank"] for one in queries]
    assert ranks == [one["rank"] for one in json.loads(plain.read_text())["queries"]]
    assert sorted(ranks) == sorted([*found.ranks.i2t.rank, *found.ranks.t2i.rank])


@pytest.mark.parametrize("arguments", [["--resume", "--overwrite"], ["--overwrite", "--resume"]])
def test_to_go_on_and_to_start_anew_is_refused(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("kept")
    out = ("--out", str(tmp_path / "run"))
    code, _, err = say(monkeypatch, capsys, "train", str(tmp_path / "tiny.yaml"), *arguments, *out)
    assert code == 2 and "--overwrite does not go with --resume: a run goes on or starts anew" in err
    assert (tmp_path / "run" / "mine").read_text() == "kept"


def test_the_best_is_told_in_the_digits_of_its_number(
    tmp_path: Path, tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "train", lambda *arguments, **options: {"best": 0.04321, "best_step": 7})
    monkeypatch.setattr("jointembed.cli._evaluate_features", lambda run, split: None)
    recipe = Path(__file__).parent.parent / "recipes" / "small" / "cifar10_vicreg.yaml"
    monkeypatch.setenv("JOINTEMBED_DATA", str(tmp_path))
    code, out, err = say(monkeypatch, capsys, "train", str(recipe), "evaluation.select=z_std", "--out", "x")
    assert code == 0 and "best validation z_std 0.04321 at step 7" in out, err


def test_a_file_in_another_order_has_no_folds(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    of = np.arange(5000).repeat(5)
    np.savez(tmp_path / "sorted.npz", image=rows, text=rows[of], image_of_text=of, image_ids=np.arange(5000))
    with pytest.raises(EvaluationError, match="sorted by id"):
        runs_evaluate.evaluate_file(tmp_path / "sorted.npz", "coco_1k_5fold")


def test_evaluate_a_file_of_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.eye(6, dtype=np.float32)
    np.savez(tmp_path / "perfect.npz", image=rows, text=rows, image_of_text=np.arange(6))
    code, out, _ = say(monkeypatch, capsys, "evaluate", "--embeddings", str(tmp_path / "perfect.npz"))
    assert code == 0 and "rsum 600.0" in out
    rows[2, 3] = np.nan
    np.savez(tmp_path / "broken.npz", image=rows, text=rows, image_of_text=np.arange(6))
    code, _, err = say(monkeypatch, capsys, "evaluate", "--embeddings", str(tmp_path / "broken.npz"))
    assert code == 1 and "image" in err and "2" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "absent.yaml"], 2, "absent.yaml: cannot read the recipe"),
        (["train", "RECIPE", "objective.invarance=3"], 2, "objective.invarance: vicreg has no such"),
        (["train", "RECIPE", "objective.name=vicregg"], 2, "objective.name: no 'vicregg' here; did you mean 'vicreg'"),
        (["train", "RECIPE", "optimizer.lr=fast"], 2, "optimizer.lr"),
        (["train", "RECIPE", "evaluation.protocol=coco5k"], 2, "evaluation.protocol: no 'coco5k'; did you mean"),
        (["train", "RECIPE", "data.train.annotations=absent.json"], 1, "absent.json"),
        (["train", "RECIPE", "data.train.images=absent"], 1, "absent"),
        (["train", "RECIPE", "branches.image.encoder.weights=absent.pth"], 1, "absent.pth"),
        (["train", "RECIPE", "branches.image.train=[layer9]"], 2, "layer9"),
        (["train", "RECIPE", "training.trackers=[tensorbord]"], 2, "tensorbord"),
        (["data", "check", "RECIPE", "--split", "val"], 2, "data.val: no such split; valid: test, train, validation"),
        (["data", "check", "RECIPE", "--split", "image"], 2, "data.image: no such split"),
        (["evaluate", "nowhere"], 2, "nowhere: no recipe.yaml there"),
        (["evaluate"], 2, "give either a run folder or --embeddings"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_an_exit_code(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, message: str,
) -> None:  # fmt: skip
    arguments = [str(tmp_path / "tiny.yaml") if part == "RECIPE" else part for part in arguments]
    more = ["--out", str(tmp_path / "run")] if arguments[0] == "train" else []
    found, _, err = say(monkeypatch, capsys, *arguments, *more)
    assert found == code, err
    assert message in err.replace("│", "").replace("\n", " "), err
    if "Usage" not in err:
        assert err.count("\n") == 1 and err.startswith("jointembed: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--truth", "cxc.json"], "--truth needs --embeddings"),
        (["RUN", "--set", "training.epochs=1"], "--set needs --task"),
        (["RUN", "--overwrite"], "--overwrite needs --task"),
        (["RUN", "--task", "linear", "--resume", "--overwrite"], "--overwrite does not go with --resume: a task goes"),
        (["RUN", "--task", "linear", "--split", "test"], "--split does not go with --task"),
        (["RUN", "--task", "voc07", "--correct", "csls"], "--correct does not go with --task"),
        (["RUN", "--task", "voc07", "--set", "root=x", "--resume"], "--resume does not go with --task voc07"),
        (["--embeddings", "x.npz", "--against", "RUN"], "--against does not go with --embeddings"),
        (["--embeddings", "x.npz", "--truth", "y", "--protocol", "full"], "--protocol does not go with --truth"),
        (["PICTURES", "--protocol", "full"], "--protocol needs captions"),
        (["PICTURES", "--against", "RUN"], "--against needs captions"),
        (["RUN", "--data", "{name: emoji, split: test}", "--split", "test"], "--split does not go with --data"),
        (["RUN", "--data", "{name: emoji, split: test}", "--task", "linear"], "--data does not go with --task"),
        (["RUN", "--data", "emoji"], "--data: a block such as {name: coco_captions, ...} expected, found 'emoji'"),
        (["RUN", "--data", "{name: emojis}"], "--data.name: no 'emojis' here; did you mean 'emoji'"),
        (["RUN", "--data", "{name: image_folder, path: x}"], "--data: image_folder gives no captions"),
        (["RUN", "--protocol", "coco5k"], "--protocol: no 'coco5k'; there are full, coco_5k, coco_1k_5fold, flickr_1k"),
    ],
)
def test_what_evaluate_would_not_heed_is_refused_before_any_work(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    pictures = Path(__file__).parent.parent / "recipes" / "small" / "cifar10_vicreg.yaml"
    for name, recipe in (("RUN", tmp_path / "tiny.yaml"), ("PICTURES", pictures)):  # without a model
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(recipe.read_text())
    monkeypatch.chdir(tmp_path)
    code, _, err = say(monkeypatch, capsys, "evaluate", *arguments)
    assert code == 2 and message in err, err


def test_data_check_finds_what_is_wrong(
    tiny_recipe: Callable, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = str(tmp_path / "tiny.yaml")
    code, out, _ = say(monkeypatch, capsys, "data", "check", recipe)
    assert code == 0 and "12" in out and "24" in out
    picture = tiny_data / "images" / "003.jpg"
    picture.write_bytes(picture.read_bytes()[:100])
    code, out, _ = say(monkeypatch, capsys, "data", "check", recipe, "--split", "train")
    assert code == 1 and "003.jpg" in out


def test_a_truncated_picture_stops_training_by_name(tiny_recipe: Callable, tiny_data: Path, tmp_path: Path) -> None:
    picture = tiny_data / "images" / "003.jpg"
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(JointEmbedError, match="003.jpg"):
        runs.train(tiny_recipe(), tmp_path / "run")


def test_data_get_lists_its_sources(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = say(monkeypatch, capsys, "data", "get", "list")
    assert code == 0 and {"coco2014", "coco2017", "karpathy", "flickr8k", "flickr30k"} <= set(out.split())
