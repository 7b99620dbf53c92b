"""The command on two gloo processes: the weights of one process, and a resume to the bit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from ranks import run_ranks
from test_training_fsdp import batch, make

from jointembed import runs
from jointembed.errors import JointEmbedError
from jointembed.objectives.moco import MoCo
from jointembed.objectives.vicreg import VICReg
from jointembed.training import checkpoint as checkpoints
from jointembed.training import loop

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


def newest(out: Path) -> checkpoints.Checkpoint:
    saved = checkpoints.newest(out / "checkpoints")
    assert saved is not None
    return saved


def weights(out: Path) -> dict[str, torch.Tensor]:
    return newest(out).model


def parts_of_unequal_number() -> dict[str, str]:
    """What comes of 6 and 5 rows in micro-batches of 5, for branches that meet the other rank in each, and others."""
    cores = {
        "batch norm": make(VICReg(), {"left": "a", "right": "b"}, norm="batch"),
        "shuffle": make(MoCo(queue=12), {"left": "a", "right": "a"}),
        "alone": make(VICReg(), {"left": "a", "right": "b"}),
    }
    found = dict.fromkeys(cores, "trained")
    for name, core in cores.items():
        try:
            loop.forward_backward(core, core, batch(), Accelerator(cpu=True), 5)
        except JointEmbedError as error:
            found[name] = str(error)
    return found


def test_micro_batches_of_unequal_number_are_refused_where_ranks_meet_in_each() -> None:
    for rows, parts, found in zip((6, 5), (2, 1), run_ranks(2, parts_of_unequal_number), strict=True):
        for name in ("batch norm", "shuffle"):
            assert f"training.micro_batch: this rank's {rows} rows make {parts} micro-batches" in found[name]
        assert found["alone"] == "trained"


def test_two_processes_train_the_model_of_one_and_resume_to_the_bit(tiny_recipe: Callable, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    runs.train(tiny_recipe(*DOUBLE_CHECK), tmp_path / "one")
    whole = run(recipe, tmp_path / "two")
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert "rsum" in whole.stdout and whole.stdout.count("best validation") == 1
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name].double(), two[name].double(), rtol=1e-5, atol=2e-6), name
    random = [newest(tmp_path / out).random for out in ("one", "two")]
    assert torch.equal(random[0]["rank0.torch"], random[1]["rank0.torch"])
    assert not torch.equal(random[1]["rank0.torch"], random[1]["rank1.torch"])  # ranks draw dropout of their own

    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "environment.json"):
        (half / name).write_text((tmp_path / "two" / name).read_text())
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
