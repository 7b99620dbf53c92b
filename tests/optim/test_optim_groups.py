import pytest
import torch
from torch import nn

from jointembed.errors import RecipeError
from jointembed.optim import OPTIMIZERS, parameter_groups, set_lr


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.branches = nn.ModuleDict({"image": nn.ModuleDict({"encoder": encoder, "expander": nn.Linear(4, 3)})})
        self.branches["image_2"] = nn.Linear(4, 3)
        self.predictor = nn.Linear(3, 3)
        self.temperature = nn.Parameter(torch.tensor(0.07))


def by_name(groups: list[dict]) -> dict[str, dict]:
    return {group["name"]: group for group in groups}


def test_every_trained_parameter_is_in_one_group_and_frozen_ones_in_none() -> None:
    model = Model()
    for p in model.branches["image"]["encoder"][0].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    grouped = [p for group in parameter_groups(model, weight_decay=0.1) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}


def test_vectors_neither_decay_nor_adapt_unless_asked() -> None:
    groups = by_name(parameter_groups(Model(), weight_decay=0.1))
    assert set(groups) == {"all weights", "all vectors"}
    assert all(p.ndim > 1 for p in groups["all weights"]["params"])
    assert all(p.ndim <= 1 for p in groups["all vectors"]["params"])
    assert (groups["all weights"]["weight_decay"], groups["all weights"]["adapt"]) == (0.1, True)
    assert (groups["all vectors"]["weight_decay"], groups["all vectors"]["adapt"]) == (0.0, False)
    (only,) = parameter_groups(Model(), weight_decay=0.1, decay_all=True)
    assert (only["weight_decay"], only["adapt"]) == (0.1, True)


def test_longest_path_wins_and_paths_end_at_dots() -> None:
    model = Model()
    scale = {"branches.image": 0.5, "branches.image.encoder": 0.1, "branches.image.encoder.2": 0.2}
    share = {}
    for group in parameter_groups(model, weight_decay=0.0, scale=scale):
        for p in group["params"]:
            share[id(p)] = group["lr_scale"]
    expected = {
        "branches.image.encoder.0.weight": 0.1,
        "branches.image.encoder.2.bias": 0.2,
        "branches.image.expander.weight": 0.5,
        "branches.image_2.weight": 1.0,
        "temperature": 1.0,
    }
    parameters = dict(model.named_parameters())
    assert {name: share[id(parameters[name])] for name in expected} == expected


def test_an_exact_parameter_path_is_a_path() -> None:
    groups = parameter_groups(Model(), weight_decay=0.1, scale={"temperature": 3.0})
    assert by_name(groups)["temperature vectors"]["lr_scale"] == 3.0


def test_path_that_matches_nothing_is_an_error_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'branches.imag.encoder': no param.*nearest is 'branches.image.encoder'"):
        parameter_groups(Model(), weight_decay=0.0, scale={"branches.imag.encoder": 0.1})
    frozen = Model()
    frozen.branches["image"].requires_grad_(False)
    with pytest.raises(RecipeError, match="'branches.image.encoder': all its parameters are frozen"):
        parameter_groups(frozen, weight_decay=0.0, scale={"branches.image.encoder": 0.1})


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_set_lr_scales_each_group(name: str) -> None:
    model = Model()
    groups = parameter_groups(
        model, weight_decay=0.0, scale={"branches.image.encoder": 0.1}, vector_scale=0.5, constant=["predictor"]
    )
    optimizer = OPTIMIZERS[name](groups, lr=0.8)
    for lr in (0.4, 0.2):
        set_lr(optimizer, lr)
        found = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert found == pytest.approx(
            {
                "branches.image.encoder weights": 0.1 * lr,
                "branches.image.encoder vectors": 0.05 * lr,
                "all weights": lr,
                "all vectors": 0.5 * lr,
                "all weights constant": 0.8,
                "all vectors constant": 0.4,
            }
        )


def test_constant_groups_keep_their_peak_over_a_checkpoint() -> None:
    model = Model()
    optimizer = OPTIMIZERS["sgd"](parameter_groups(model, weight_decay=0.0, constant=["predictor"]), lr=0.8)
    set_lr(optimizer, 0.1)
    again = OPTIMIZERS["sgd"](parameter_groups(model, weight_decay=0.0, constant=["predictor"]), lr=0.8)
    again.load_state_dict(optimizer.state_dict())
    set_lr(again, 0.05)
    assert sorted({group["lr"] for group in again.param_groups}) == [0.05, 0.8]
