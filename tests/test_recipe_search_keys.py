"""Keys of a recipe that a search turns: several captions a sample, kept random views, shares, ramps, corrections."""

import json
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from jointembed import build, build_frozen, runs, runs_evaluate
from jointembed.build_corrections import correction_of
from jointembed.build_frozen import FrozenRows, key_of_pictures, some_pixels
from jointembed.data.caption_parquet import ParquetPictures
from jointembed.data.caption_shards import caption_shards
from jointembed.data.hub import DatasetPictures
from jointembed.data.pictures import PictureFolder
from jointembed.data.records import CaptionData, Pictures
from jointembed.data.shards import PictureTar, PictureZip
from jointembed.data.subsets import PicturePart
from jointembed.errors import DataError, RecipeError
from jointembed.inference.embed import set_centres
from jointembed.model import JointEmbedding
from jointembed.recipe import load_recipe

CAPTIONS = ("data.texts=2", "views={image: image, text: text, text2: text}")
DRAWN = ("data.image={name: crop, size: 32}", "data.image_evaluation={name: resize, size: 32}", "data.cache_views=3")


def samples_of(recipe: build.Recipe, cached: torch.Tensor | None = None) -> build.CaptionSamples:
    train = build.dataset(recipe, "train")
    return build.make_samples(recipe, train, build.tokens_of(recipe, train), cached)


@pytest.mark.parametrize("captions", ["all", "random"])
def test_several_captions_of_a_picture_are_views_of_one_sample(tiny_recipe: Callable, captions: str) -> None:
    recipe = tiny_recipe(*CAPTIONS, f"data.captions={captions}", "objective.pairs=[[image, text], [image, text2]]")
    samples, one = samples_of(recipe), samples_of(tiny_recipe(f"data.captions={captions}"))
    keys = [(epoch, number) for epoch in range(3) for number in range(len(samples))]
    for key in keys:
        text, other = samples.pick_texts(key)
        assert text == one.pick(key)[1] and other != text  # the first is what it would be alone
        assert samples.data.text_item[text] == samples.data.text_item[other] == samples.pick(key)[2]
    batch = samples.__getitems__(keys[:5])
    assert {"image", "text", "text2"} <= set(batch)
    expected = [list(samples.ids[samples.pick_texts(key)[1]]) for key in keys[:5]]
    assert [ids[:n].tolist() for ids, n in zip(*batch["text2"].values(), strict=True)] == expected


def test_a_run_with_all_captions_of_a_picture_trains_and_is_evaluated(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        *CAPTIONS, "objective.pairs=[[image, text+text2]]", "data.captions=random",
        "objective.variance={image: 50, text: 12.5, text2: 12.5}",
    )  # fmt: skip
    runs.train(recipe, tmp_path / "run")
    assert "rsum" in runs_evaluate.evaluate_run(tmp_path / "run", "validation").record["metrics"]
    model = JointEmbedding.from_pretrained(tmp_path / "run")
    assert torch.equal(model.get_buffer("centre_text"), model.get_buffer("centre_text2"))
    assert model.get_buffer("centre_text2").any()


def test_captions_that_are_not_there_are_named(tiny_recipe: Callable) -> None:
    with pytest.raises(RecipeError, match="views.text2: missing"):
        tiny_recipe("data.texts=2")
    with pytest.raises(RecipeError, match="views.text3: the data gives no such view"):
        tiny_recipe("data.texts=2", "views={image: image, text: text, text2: text, text3: text}")
    recipe = tiny_recipe("data.texts=3", "views={image: image, text: text, text2: text, text3: text}")
    with pytest.raises(DataError, match=r"000.jpg' has 2 captions; data.texts is 3"):
        samples_of(recipe)


def test_views_of_one_branch_share_its_centre(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(*CAPTIONS)
    train = build.dataset(recipe, "train")
    assert isinstance(train, CaptionData)
    model = build.make_model(recipe, build.tokens_of(recipe, train))
    set_centres(model, train, seed=0)
    assert torch.equal(model.get_buffer("centre_text"), model.get_buffer("centre_text2"))


def test_random_views_of_a_frozen_encoder_are_kept_and_drawn_anew_each_epoch(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(*DRAWN)
    train = build.dataset(recipe, "train")
    assert isinstance(train, CaptionData)
    model = build.make_model(recipe, build.tokens_of(recipe, train))
    frozen = FrozenRows(recipe, model)
    fixed, drawn = frozen(train), frozen.of_training(train, frozen(train))
    assert fixed is not None and drawn is not None
    assert fixed.shape == (12, model.branch("image").width) and drawn.shape == (12, 3, model.branch("image").width)
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    samples = samples_of(recipe, drawn)
    seen = set()
    for epoch in range(40):
        picture = samples.pick((epoch, 4))[0]
        row = samples[epoch, 4]["image"]["h"][0]
        seen.add(next(v for v in range(3) if torch.equal(row, drawn[picture, v])))
        assert torch.equal(row, samples[epoch, 4]["image"]["h"][0])
    assert seen == {0, 1, 2}
    pixels = some_pixels(train)
    monkeypatch.setattr(build_frozen, "some_pixels", lambda data: pixels)
    monkeypatch.setattr(type(train.pictures), "open", None)  # a second time nothing is decoded but for the key
    again = FrozenRows(recipe, model).of_training(train, fixed)
    assert again is not None and torch.equal(again, drawn)
    other = FrozenRows(tiny_recipe(*DRAWN, "seed=1"), model)
    with pytest.raises(DataError, match="TypeError"):
        other.of_training(train, fixed)  # another seed is another key


def test_other_pictures_of_the_same_names_and_sizes_are_not_taken_from_the_cache(
    tiny_recipe: Callable, tiny_data: Path
) -> None:
    recipe, found, prints = tiny_recipe(), [], []
    rng = np.random.default_rng(0)
    for _ in range(2):
        for path in (tiny_data / "images").iterdir():  # as many bytes each time, whatever the pixels
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path, format="BMP")
        train = build.dataset(recipe, "train")
        assert isinstance(train, CaptionData)
        torch.manual_seed(0)
        model = build.make_model(recipe, build.tokens_of(recipe, train))
        prints.append(train.fingerprint)
        found.append(FrozenRows(recipe, model)(train))
    assert prints[0] == prints[1] and found[0] is not None and found[1] is not None
    assert not torch.equal(found[0], found[1])


def bmps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.bmp"))


def in_folder(folder: Path) -> Pictures:
    return PictureFolder(folder, bmps(folder))


def in_part(folder: Path) -> Pictures:
    return PicturePart(in_folder(folder), range(40))


def in_tar(folder: Path) -> Pictures:
    with tarfile.open(folder / "t.tar", "w") as file:
        for name in bmps(folder):
            file.add(folder / name, name)
    return PictureTar(folder / "t.tar")


def in_zip(folder: Path) -> Pictures:
    with zipfile.ZipFile(folder / "t.zip", "w") as file:
        for name in bmps(folder):
            file.write(folder / name, name)
    return PictureZip(folder / "t.zip")


def in_shards(folder: Path) -> Pictures:
    with tarfile.open(folder / "t.tar", "w") as file:
        for name in bmps(folder):
            text = (folder / name).with_suffix(".txt")
            text.write_text("a dog")
            file.add(folder / name, name)
            file.add(text, text.name)
    return caption_shards(shards=str(folder / "t.tar"), captions="txt").pictures


def in_parquet(folder: Path) -> Pictures:
    table = pyarrow.table({"image": [(folder / name).read_bytes() for name in bmps(folder)]})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return ParquetPictures([folder / "t.parquet"], "image", 8, 1)


def in_rows(folder: Path) -> Pictures:
    shutil.rmtree(folder / "saved", ignore_errors=True)
    datasets.Dataset.from_dict({"image": [(folder / name).read_bytes() for name in bmps(folder)]}).save_to_disk(
        folder / "saved"
    )
    return without_captions(datasets.Dataset.load_from_disk(folder / "saved"), folder)


def in_rows_of_paths(folder: Path) -> Pictures:
    cells = [{"bytes": None, "path": str(folder / name)} for name in bmps(folder)]
    features = datasets.Features({"image": datasets.Image()})
    return without_captions(datasets.Dataset.from_dict({"image": cells}, features=features), folder)


def without_captions(rows: datasets.Dataset, folder: Path) -> Pictures:
    return DatasetPictures(rows.cast_column("image", datasets.Image(decode=False)), "t", range(40), folder)


@pytest.mark.parametrize("kind", [in_folder, in_part, in_tar, in_zip, in_shards, in_parquet, in_rows, in_rows_of_paths])
def test_one_other_picture_of_the_same_name_and_size_is_another_key(
    kind: Callable[[Path], Pictures], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)

    def draw(number: int) -> None:  # as many bytes each time, whatever the pixels
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.bmp")

    def data() -> CaptionData:
        captions, ids = tuple((str(number),) for number in range(40)), tuple(map(str, range(40)))
        return CaptionData("t", kind(tmp_path), np.arange(40), captions, ids)

    for number in range(40):
        draw(number)
    first = data()
    before, fingerprint = key_of_pictures(first), first.fingerprint
    assert key_of_pictures(pickle.loads(pickle.dumps(first))) == before
    draw(1)  # the pixels of 0 and 3 are looked at
    second = data()
    after = key_of_pictures(second)
    assert second.fingerprint == fingerprint and after["pixels"] == before["pixels"]
    assert after != before


def test_the_key_of_pictures_is_the_main_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.bmp")
    data = CaptionData("t", in_folder(tmp_path), np.arange(1), (("a",),), ("0",))
    monkeypatch.setattr(build_frozen.distributed, "broadcast_object", lambda own: "of the main rank")
    assert key_of_pictures(data)["files"] == "of the main rank"


def test_kept_views_do_not_depend_on_workers(
    tiny_recipe: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    for workers in (0, 2):
        monkeypatch.setenv("JOINTEMBED_CACHE", str(tmp_path / str(workers)))
        recipe = tiny_recipe(*DRAWN, f"loader.workers={workers}", "evaluation.batch=4")
        train = build.dataset(recipe, "train")
        torch.manual_seed(0)
        model = build.make_model(recipe, build.tokens_of(recipe, train))
        found.append(FrozenRows(recipe, model).of_training(train, None))
    assert found[0] is not None and found[1] is not None and torch.equal(found[0], found[1])


def test_a_run_on_kept_views_trains(tiny_recipe: Callable, tmp_path: Path) -> None:
    runs.train(tiny_recipe(*DRAWN), tmp_path / "run")
    assert "rsum" in runs_evaluate.evaluate_run(tmp_path / "run", "validation").record["metrics"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.cache_views=2"], "data.cache_views: data.image is not random"),
        (["data.share.pictures=0"], "data.share.pictures"),
        (["data.share.picture=0.5"], "data.share.picture: unknown key; did you mean 'pictures'"),
        (["ramp.covarance.end=0.5"], "ramp.covarance: VICReg has no coefficient"),
        (["ramp.covariance.ends=0.5"], "ramp.covariance.ends: unknown key; did you mean 'end'"),
        (["contrast.wieght=0.5"], "contrast.wieght: unknown key; did you mean 'weight'"),
        (["contrast.pairs=[[image, words]]"], "contrast.pairs: no view 'words'"),
        (["evaluation.correct=clss"], "evaluation.correct.name: no 'clss' here; did you mean 'csls'"),
        (["evaluation.correct={name: csls, n: 3}"], "evaluation.correct.n: csls has no such argument"),
        (["branches.text.encoder.bag=both"], "branches.text.encoder.bag"),
        (["views={image: text, text: image}"], "views.image: the encoder of branch 'text' is for text, .* is image"),
        (["objective={name: deepcluster_v2}", "data.captions=all"], "data.captions: DeepClusterV2 clusters pictures"),
        (
            ["objective={name: deepcluster_v2}", "data.captions=random", "views={text: text, image: image}"],
            "views: DeepClusterV2 clusters",
        ),
        (["data.test={name: image_folder, path: x}"], "data.test: image_folder gives no captions, unlike data.train"),
    ],
)
def test_wrong_keys_are_named_before_any_work(tiny_recipe: Callable, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        tiny_recipe(*overrides)


def test_kept_views_need_a_frozen_encoder(tiny_recipe: Callable, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="data.cache_views: needs"):
        runs.train(tiny_recipe(*DRAWN, "branches.image.train=all"), tmp_path / "run")


def test_a_share_of_the_training_data_alone(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe("data.share={pictures: 0.5, captions: 0.5, seed: 3}")
    train, validation = build.dataset(recipe, "train"), build.dataset(recipe, "validation")
    assert isinstance(train, CaptionData) and isinstance(validation, CaptionData)
    assert (len(train.pictures), len(train.texts)) == (6, 6) and len(validation.texts) == 24
    assert "50% of the pictures, 50% of the captions, seed 3" in train.name


def test_ramp_contrast_and_regularize_work_together(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tiny_recipe("ramp.covariance={start: 0, end: 1.0}", "contrast.weight=0.5", "regularize.variance=2")
    runs.train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = (one for one in (lines[0], [line for line in lines if line["kind"] == "train"][-1]))
    for line, factor in ((first, 0.0), (last, 1 - 1 / last["step"])):
        expected = 25 * line["invariance"] + 25 * line["variance"] + factor * line["covariance"]
        assert line["uncontrasted"] == pytest.approx(expected, rel=1e-4)
        assert line["unregularized"] == pytest.approx(line["uncontrasted"] + 0.5 * line["contrast"], rel=1e-4)


def test_a_run_is_judged_on_other_data_without_being_trained_again(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tiny_recipe("training.epochs=0.5")
    runs.train(recipe, tmp_path / "run")
    split = runs_evaluate.evaluate_run(tmp_path / "run", "test")
    other = runs_evaluate.evaluate_run(tmp_path / "run", "validation", other=recipe.data.test)
    assert other.record["metrics"] == split.record["metrics"] and other.record["split"] is None
    assert other.folder.name == f"on-{other.data.name}-full" and split.folder.name == "test-full"
    with pytest.raises(RecipeError, match="--data.images: .*NOT_SET"):
        unset = {"name": "coco_captions", "images": "${NOT_SET}/a", "annotations": "b.json"}
        runs_evaluate.evaluate_run(tmp_path / "run", "test", other=unset)
    emoji = {"name": "emoji", "split": "val", "renderings": ["noto"]}
    found = runs_evaluate.evaluate_run(tmp_path / "run", "test", other=emoji, correct="csls")
    assert found.folder.name == "on-emoji-val-noto-full-csls" and found.record["n_images"] == 100
    assert "Other data, protocol `full, csls`, emoji-val-noto" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_corrected_evaluation_says_so_and_has_its_own_folder(tiny_recipe: Callable, tmp_path: Path) -> None:
    runs.train(tiny_recipe("training.epochs=0.5", "evaluation.correct=csls"), tmp_path / "run")
    called = {
        "csls": "csls",
        "{name: csls, bank: train, k: 50}": "csls-bank-train-k-50",
        "{name: whiten, shrink: 0.1}": "whiten",
        "{name: inverted_softmax, temperature: 0.1}": "inverted_softmax-temperature-0.1",
    }
    for given, name in called.items():
        found = runs_evaluate.evaluate_run(tmp_path / "run", "test", correct=correction_of(given))
        assert (found.folder.name, found.record["protocol"]) == (f"test-full-{name}", f"full, {name}")
        assert name.startswith(found.record["correct"]["name"])
    plain = runs_evaluate.evaluate_run(tmp_path / "run", "test", correct="none")
    assert (plain.folder.name, plain.record["protocol"], plain.record["correct"]) == ("test-full", "full", None)
    by_recipe = runs_evaluate.evaluate_run(tmp_path / "run", "validation")
    assert by_recipe.record["protocol"] == "full, csls" and by_recipe.record["correct"] == {
        "name": "csls",
        "k": 10,
        "bank": "test",
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "validation"][-1]
    assert last["rsum"] == pytest.approx(by_recipe.record["metrics"]["rsum"], abs=0.2)


def test_a_file_of_embeddings_may_be_corrected(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.savez(tmp_path / "some.npz", image=rows, text=rows, image_of_text=np.arange(6))
    record = runs_evaluate.evaluate_file(tmp_path / "some.npz", "full", correct="csls")
    assert record["protocol"] == "full, csls" and record["metrics"]["rsum"] == 600
    record = runs_evaluate.evaluate_file(tmp_path / "some.npz", "full", correct={"name": "csls", "k": 2})
    assert record["protocol"] == "full, csls-k-2"


def test_captions_of_a_frozen_text_encoder_go_through_it_once(
    tiny_recipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    recipe = tiny_recipe("branches.text.train=none", "evaluation.batch=5")
    train = build.dataset(recipe, "train")
    assert isinstance(train, CaptionData)
    tokens = build.tokens_of(recipe, train)
    model = build.make_model(recipe, tokens).eval()
    cached = FrozenRows(recipe, model).rows(train)
    assert cached["cached_text"] is not None and cached["cached_text"].shape == (24, 12)
    assert FrozenRows(tiny_recipe(), build.make_model(tiny_recipe(), tokens)).texts(train) is None  # it is trained
    samples = build.make_samples(recipe, train, tokens, cached["cached"], cached["cached_text"])
    keys = [(0, number) for number in range(4)]
    with torch.no_grad():
        plain = model.embed(build.make_samples(recipe, train, tokens, cached["cached"]).__getitems__(keys))
        found = model.embed(samples.__getitems__(keys))
    torch.testing.assert_close(found["text"].z, plain["text"].z)
    calls: list[int] = []
    monkeypatch.setattr(type(model.branch("text").encoder), "forward", lambda self, x: calls.append(1))
    again = FrozenRows(recipe, model).texts(train)
    assert again is not None and torch.equal(again, cached["cached_text"]) and not calls


def test_rows_of_frozen_encoders_are_of_all_their_arguments(tiny_recipe: Callable) -> None:
    config = "{model_type: vit, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 8, "
    config += "image_size: 32, patch_size: 16}"
    found = []
    for of_picture, of_caption in (("mean", "mean"), ("cls", "last")):  # leave no trace in the state dict
        recipe = tiny_recipe(
            *DRAWN, "branches.text.train=none",
            f"branches.image.encoder={{name: transformers_vision, config: {config}, pool: {of_picture}}}",
            f"branches.text.encoder={{name: text_transformer, width: 8, depth: 1, heads: 2, pool: {of_caption}}}",
        )  # fmt: skip
        train = build.dataset(recipe, "train")
        torch.manual_seed(0)
        frozen = FrozenRows(recipe, build.make_model(recipe, build.tokens_of(recipe, train)))
        found.append([frozen(train), frozen.texts(train), frozen.of_training(train, None)])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None and not torch.equal(one, other)


def test_training_sees_its_own_view_where_evaluation_has_another(tiny_recipe: Callable) -> None:
    recipe = tiny_recipe(
        "data.image={name: center, size: 32}", "data.image_evaluation={name: resize, size: 32}",
        "branches.image.encoder={name: torchvision, model: resnet18, widen: 0.125}",
    )  # fmt: skip
    samples = samples_of(recipe)
    model = build.make_model(recipe, build.tokens_of(recipe, samples.data)).eval()
    frozen = FrozenRows(recipe, model)
    seen = frozen.of_training(samples.data, frozen(samples.data))
    with torch.no_grad():
        plain = model.branch("image").encoder(samples[0, 4]["image"])
    assert seen is not None
    torch.testing.assert_close(seen[samples.pick((0, 4))[0]], plain[0])


def test_a_run_with_both_encoders_frozen_trains_and_is_evaluated(tiny_recipe: Callable, tmp_path: Path) -> None:
    runs.train(tiny_recipe("branches.text.train=none", "training.epochs=0.5"), tmp_path / "run")
    found = runs_evaluate.evaluate_run(tmp_path / "run", "validation", correct="whiten")
    assert found.record["protocol"] == "full, whiten"


def test_pictures_without_captions_have_nothing_to_correct() -> None:
    path = Path(__file__).parent.parent / "recipes" / "small" / "cifar10_vicreg.yaml"
    for override, key in (("evaluation.correct=csls", "evaluation.correct"), ("data.texts=2", "data.texts")):
        with pytest.raises(RecipeError, match=f"{key}: .*no captions"):
            build.check(load_recipe(path, [override]))
