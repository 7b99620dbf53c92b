"""A run on sound, from recipe to retrieval: waveforms of unseen clips find their mel spectrograms, and back."""

from pathlib import Path

import numpy as np
import pytest
from tones import write_tones

from jointembed import build, runs
from jointembed.data.records import ImageData
from jointembed.errors import RecipeError
from jointembed.evaluation.retrieval import retrieval_metrics
from jointembed.inference.embed import embed_pictures
from jointembed.model import JointEmbedding
from jointembed.recipe import dump_recipe, load_recipe
from jointembed.runs_labels import task_recipe

RECIPE = """
name: tones
views: {waveform: wave, mel: mel}
branches:
  wave:
    encoder: {name: waveform_resnet, channels: 8}
    expander: {name: mlp, widths: [64, 64]}
  mel:
    encoder: {name: torchvision, model: resnet18, channels: 1, widen: 0.125}
    expander: {name: mlp, widths: [64, 64]}
objective: {name: vicreg, invariance: 10}
data:
  train: {name: esc50, path: ROOT, folds: [1, 2, 3], rate: 4000}
  validation: {name: esc50, path: ROOT, folds: [4], rate: 4000}
  audio: {name: waveform_mel, rate: 4000, seconds: 0.75, mels: 32, fft: 256, hop: 64, high: 2000.0}
  audio_evaluation: {name: waveform_mel_center, rate: 4000, seconds: 0.75, mels: 32, fft: 256, hop: 64, high: 2000.0}
loader: {batch: 32}
optimizer: {name: adam, lr: 2e-3}
schedule: {name: cosine, warmup_steps: 10}
training: {epochs: 24, precision: fp32}
evaluation: {every: 24, embedding: z, views: [waveform, mel], evaluators: [{name: collapse}]}
"""


def test_waveforms_and_spectrograms_of_a_clip_find_one_another(tmp_path: Path) -> None:
    path = tmp_path / "tones.yaml"
    path.write_text(RECIPE.replace("ROOT", str(write_tones(tmp_path / "tones", clips=60, folds=4))))
    recipe = build.check(load_recipe(path))
    runs.train(recipe, tmp_path / "run")
    model = JointEmbedding.from_pretrained(tmp_path / "run" / "model")
    unseen = build.dataset(recipe, "validation")
    assert isinstance(unseen, ImageData)
    view = build.view_pipeline(recipe.data, evaluation=True)
    waveform, mel = embed_pictures(model, unseen.pictures, view, ["waveform", "mel"]).tensor_split(2, dim=1)
    numbers = retrieval_metrics(waveform.numpy(), mel.numpy(), np.arange(60), k=(1, 5))
    print("waveform to mel is i2t:", {name: round(value, 1) for name, value in numbers.items() if "R@" in name})
    assert min(numbers["i2t_R@5"], numbers["t2i_R@5"]) > 30  # chance: 8.3


def test_a_task_of_pictures_refuses_a_run_on_sound(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(build.check(load_recipe(tmp_path / "recipe.yaml"))))
    with pytest.raises(RecipeError, match="its data are sounds; semi1 looks at pictures"):
        task_recipe(tmp_path / "run", "semi1")
