import json
from pathlib import Path

import yaml

from jointembed.inference.card import DATA_CARDS, model_card

RECIPE = {
    "views": {"image": "image", "text": "text"},
    "data": {
        "train": {"name": "coco_captions", "images": str(Path.home() / "flickr8k/images"), "annotations": "t.json"},
        "validation": {"name": "emoji", "split": "val"},
        "test": {"name": "caption_table", "images": "mine", "table": "a|b.csv"},
        "image": {"name": "resize", "size": 224},
        "text": {"name": "words", "max_length": 48},
    },
    "evaluation": {"select": "rsum"},
    "seed": 3,
}


def measure(run: Path, name: str, **record: object) -> None:
    (run / "evaluation" / name).mkdir(parents=True)
    (run / "evaluation" / name / "metrics.json").write_text(json.dumps(record))


def test_it_says_what_was_measured_on_which_data_and_under_which_terms(tmp_path: Path) -> None:
    measure(
        tmp_path, "test-full", split="test", protocol="full", data="flickr", date="2026-01-02",
        command=f"jointembed evaluate {Path.home()}/runs/x", metrics={"rsum": 241.234, "n_images": 1000.0},
        intervals={"rsum": [230.0, 250.0]}, chance={"rsum": 3.2},
    )  # fmt: skip
    card = model_card("dogs", "", yaml.safe_dump(RECIPE, sort_keys=False), tmp_path)
    assert card.startswith(
        "---\nlibrary_name: jointembed\ntags: [joint-embedding, image-text-retrieval]\n---\n# dogs\n"
    )
    assert f'from_pretrained("{tmp_path.as_posix()}/model")' in card and "model.encode_text(" in card
    assert "| rsum | 241.23 | 230.00 to 250.00 | 3.20 |" in card and "| n_images | 1000.00 |  |  |" in card
    assert "One seed (3)." in card and "chosen by `rsum` on the validation data" in card
    assert "| train | `coco_captions` (images ~/flickr8k/images, annotations t.json) | non-commercial research" in card
    assert "| validation | `emoji` (split val) | Fluent Emoji (MIT)" in card and "`data_cards/emoji.md`" in card
    assert "a\\|b.csv) | not known to this card |" in card
    assert "Pictures are seen at 224 px. Texts beyond 48 tokens are cut" in card
    assert "## Intended use" in card and "it is no probability" in card and "max_length: 48" in card
    assert "jointembed evaluate ~/runs/x" in card and f"{Path.home()}/" not in card.replace(tmp_path.as_posix(), "")


def test_pictures_alone_and_sounds_have_a_card_of_their_own(tmp_path: Path) -> None:
    pictures = {"views": {"view1": "net"}, "data": {"train": {"name": "image_folder", "path": "x"}}}
    measure(tmp_path, "validation-features", split="validation", data="x", date="d", command="c", metrics={"knn": 30})
    card = model_card("p", "Two views.", yaml.safe_dump(pictures), tmp_path)
    assert 'vectors = model.encode(["photo.jpg"], "view1")' in card and "encode_text" not in card
    assert "tags: [joint-embedding]" in card and "protocol" not in card.split("## Data")[0] and "Texts" not in card
    assert "chosen by" not in card and "Representations of pictures" in card
    sounds = {"views": {"mel": "net"}, "data": {"train": {"name": "esc50", "path": "x"}, "audio": {"name": "y"}}}
    card = model_card("s", "", yaml.safe_dump(sounds), tmp_path / "empty")
    assert 'model.encode(["sound.wav"], "mel")' in card and "Nothing was measured yet" in card
    assert "Attribution-NonCommercial; see `data_cards/esc50.md`" in card


def test_a_data_set_is_not_known_by_the_name_of_its_reader_or_a_part_of_a_path(tmp_path: Path) -> None:
    blocks: dict[str, dict[str, str]] = {
        "train": {"name": "coco_captions", "images": "my_holiday", "annotations": "mine.json"},
        "validation": {"name": "caption_table", "path": "/home/me/emoji_scrape/t.csv"},
        "test": {"name": "karpathy", "images": "photos", "annotations": "x/dataset_coco.json"},
    }
    card = model_card("m", "", yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | blocks}), tmp_path)  # type: ignore
    lines = [line for line in card.splitlines() if line.startswith(("| train |", "| validation |", "| test |"))]
    assert ["not known to this card" in line for line in lines] == [True, True, False] and "CC BY 4.0" in lines[2]


def test_the_data_cards_it_names_are_there() -> None:
    folder = Path(__file__).parents[2] / "data_cards"
    for name, _ in DATA_CARDS.values():
        assert (folder / f"{name}.md").is_file()
