"""Odd data, too little memory, and the same run twice."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_runs import Ended, Trainings

from jointembed import runs
from jointembed.errors import JointEmbedError
from jointembed.training import checkpoint as checkpoints
from jointembed.training.memory import is_out_of_memory

pytestmark = pytest.mark.timeout(600)


@pytest.mark.fault(15, "a batch of one: refused in one line by objectives and batch norms that cannot use it")
@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("{name: vicreg}", "step 1: variance and covariance need at least 2 samples"),
        ("{name: simsiam, predictor_width: 8}", "step 1: Expected more than 1 value per channel"),
    ],
)
def test_a_batch_of_one(trainings: Trainings, objective: str, message: str) -> None:
    ended = trainings.run("loader.batch=1", f"objective={objective}")
    assert ended.codes == [1]
    assert message in ended.line() and ended.line().endswith("; raise loader.batch")


@pytest.mark.fault(15, "fewer samples than a batch, so that an epoch has none: refused with both numbers")
def test_fewer_samples_than_a_batch(trainings: Trainings) -> None:
    ended = trainings.run("loader.batch=17")
    assert ended.codes == [1]
    assert "16 training samples do not fill one batch of 17; lower loader.batch" in ended.line()
    ended = trainings.run("loader.batch=17", "loader.drop_last=false", "training.epochs=1")
    assert ended.codes == [0] and ended.saved() == [1]


ADDED = "regularize={variance: 1, covariance: 0.01}"
REGULARIZE = "lower the learning rate, or add regularize: {variance: 1, covariance: 0.01}"


@pytest.mark.fault(15, "constant embeddings (all pictures and captions equal): finite, and warned of")
@pytest.mark.parametrize("objective", ["vicreg", "barlow_twins", "clip", "vse", "siglip"])
def test_constant_embeddings_stay_finite_and_are_warned_of(
    tiny_recipe: Callable, tiny_data: Path, tmp_path: Path, objective: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = (tiny_data / "images" / "000.jpg").read_bytes()
    for path in (tiny_data / "images").glob("*.jpg"):
        path.write_bytes(first)
    equal_captions(tiny_data)
    norms = ["branches.image.expander.norm=layer", "branches.text.expander.norm=layer"]
    state = runs.train(tiny_recipe(f"objective={{name: {objective}}}", "training.epochs=1", *norms), tmp_path / "run")
    assert state["step"] == 4 and math.isfinite(state["best"])
    assert_finite(tmp_path / "run")
    assert "has collapsed to a point" in caplog.text
    known = {"raise objective.variance or lower objective.invariance": "objective.variance=50", REGULARIZE: ADDED}
    remedy = caplog.text.partition("of its embeddings): ")[2].splitlines()[0]
    tiny_recipe(f"objective={{name: {objective}}}", known[remedy])  # what it says to do is accepted
    assert state["best"] <= 100 * 6 * 10 / 12  # chance, not the 600 of ties that are counted as hits


@pytest.mark.fault(15, "all captions equal: finite values, retrieval no better than chance")
def test_equal_captions(tiny_recipe: Callable, tiny_data: Path, tmp_path: Path) -> None:
    equal_captions(tiny_data)
    state = runs.train(tiny_recipe("training.epochs=1"), tmp_path / "run")
    assert_finite(tmp_path / "run")
    assert math.isfinite(state["best"]) and state["best"] < 400


def equal_captions(root: Path) -> None:
    path = root / "captions.json"
    tree = json.loads(path.read_text())
    for annotation in tree["annotations"]:
        annotation["caption"] = "a red photo"
    path.write_text(json.dumps(tree))


def assert_finite(run: Path) -> None:
    saved = checkpoints.newest(run / "checkpoints")
    assert saved is not None
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.model.values() if tensor.is_floating_point())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines if line["kind"] == "train")


MEMORY = [  # a hidden layer whose activations are large beside its weights
    "loader.batch=24", "evaluation.batch=2", "training.epochs=1", "optimizer={name: sgd, lr: 1e-3, momentum: 0}",
    "branches.image.expander={name: mlp, widths: [16, 16], norm: none}",
    "branches.text.expander={name: mlp, widths: [400000, 16], norm: layer}",
]  # fmt: skip
LIMIT = {"kind": "memory", "bytes": 200 * 2**20}


def last(ended: Ended) -> checkpoints.Checkpoint:
    assert ended.codes == [0], ended.run.said()[-2000:]
    saved = checkpoints.newest(ended.out / "checkpoints")
    assert saved is not None and saved.state["step"] == 1
    return saved


@pytest.mark.fault(16, "out of memory in step 1 (RLIMIT_AS): smaller micro-batches, the same weights, logged")
def test_a_first_step_that_does_not_fit_is_taken_in_parts(trainings: Trainings) -> None:
    whole = last(trainings.run(*MEMORY, kind="captions"))
    ended = trainings.run(*MEMORY, kind="captions", fault=LIMIT)
    limited = last(ended)
    size = limited.state["micro_batch"]
    assert size < 24 and f"going on with micro_batch={size}, the same gradient" in ended.run.said()
    asked = last(trainings.run(*MEMORY, f"training.micro_batch={size}", kind="captions"))
    for name, tensor in whole.model.items():
        assert torch.equal(limited.model[name], asked.model[name]), name
        assert torch.allclose(limited.model[name].double(), tensor.double(), rtol=1e-4, atol=1e-5), name


@pytest.mark.fault(16, "out of memory with batch norm in a branch: refused with the keys to set")
def test_batch_norm_has_the_micro_batch_asked_for(trainings: Trainings) -> None:
    ended = trainings.run(*MEMORY, "branches.text.expander.norm=batch", kind="captions", fault=LIMIT)
    assert ended.codes == [1] and ended.saved() == []
    assert "out of memory with 24 samples in a pass (" in ended.line() and "batch norm in a branch" in ended.line()
    assert "set training.micro_batch=12, which keeps the whole batch's loss, or lower loader.batch" in ended.line()


def test_only_allocators_run_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60)
    assert is_out_of_memory(refused.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(JointEmbedError("out of memory"))


@pytest.mark.fault(21, "one seed, twice with 0 workers and with 2: equal hashes of the weights")
def test_equal_seeds_give_equal_hashes(trainings: Trainings) -> None:
    hashes = []
    for options in (["loader.workers=0"], ["loader.workers=0"], ["loader.workers=2"], ["seed=1"]):
        ended = trainings.run("data.image={name: moco_v2, size: 16}", *options)
        assert ended.codes == [0], ended.run.said()[-2000:]
        weights = (ended.out / "model" / "model.safetensors").read_bytes()
        hashes.append(hashlib.sha256(weights).hexdigest())
    assert len(set(hashes[:3])) == 1 and hashes[3] != hashes[0]
