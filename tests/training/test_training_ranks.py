"""The command on two gloo processes: the weights of one process, and a resume to the bit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jointembed import runs
from jointembed.training import checkpoint as checkpoints

pytestmark = pytest.mark.ddp

DOUBLE_CHECK = [
    "loader.drop_last=false", "loader.batch=7", "training.save_every=0.5", "optimizer={name: sgd, lr: 1e-3}",
    "branches.text.encoder={name: bag_of_words, embedding: 8}", "data.cache=false",
    # of untrained encoders this one keeps pictures apart; batch norm would blow up the last bits of equal rows
    "branches.image.encoder={name: torchvision, model: resnet18, widen: 0.25}",
]  # fmt: skip


def run(recipe: Path, out: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "jointembed", "train", str(recipe), *DOUBLE_CHECK, "--out", str(out), *more,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def weights(out: Path) -> dict[str, torch.Tensor]:
    saved = checkpoints.newest(out / "checkpoints")
    assert saved is not None
    return saved.model


def test_two_processes_train_the_model_of_one_and_resume_to_the_bit(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    runs.train(tiny_recipe(*DOUBLE_CHECK), tmp_path / "one")
    whole = run(recipe, tmp_path / "two")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert "rsum" in whole.stdout and whole.stdout.count("best validation") == 1
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name].double(), two[name].double(), rtol=1e-5, atol=2e-6), name

    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    (half / "recipe.yaml").write_text((tmp_path / "two" / "recipe.yaml").read_text())
    first = checkpoints.complete(tmp_path / "two" / "checkpoints")[0]
    first.rename(half / "checkpoints" / first.name)
    resumed = run(recipe, half, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"at step {first.name.removeprefix('step-')}" in resumed.stdout
    for name, tensor in weights(half).items():
        assert torch.equal(tensor, two[name]), name

    refused = run(recipe, half)
    assert refused.returncode != 0 and "not empty; pass --resume" in refused.stderr


def test_parameters_in_shards_train_the_model_of_one_process(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    build_one = tiny_recipe(*DOUBLE_CHECK)
    runs.train(build_one, tmp_path / "one")
    done = run(recipe, tmp_path / "shards", ACCELERATE_USE_FSDP="true")  # as `accelerate launch` sets it
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rsum" in done.stdout
    one, two = weights(tmp_path / "one"), weights(tmp_path / "shards")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name].double(), two[name].double(), rtol=1e-4, atol=5e-5), name

    refused = run(recipe, tmp_path / "lars", "optimizer={name: lars, lr: 0.1}", ACCELERATE_USE_FSDP="true")
    assert refused.returncode != 0 and "lars cannot run on parameters in shards" in refused.stderr
    uneven = run(recipe, tmp_path / "uneven", "training.micro_batch=3", ACCELERATE_USE_FSDP="true")
    assert uneven.returncode != 0 and "training.micro_batch: this rank's" in uneven.stderr
