from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from jointembed import JointEmbedding
from jointembed.branches.branch import Branch
from jointembed.branches.members import Members, first_member
from jointembed.layers import MLP
from jointembed.model import from_config


class Linear(nn.Linear):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.width = after


def test_members_are_the_modules_they_were_made_of_side_by_side() -> None:
    made: list[nn.Module] = []

    def make(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def one() -> nn.Module:
            made.append(kind())
            return made[-1]

        return one

    encoder = Members(make(lambda: Linear(5, 3)), 2, split=False)
    expander = Members(make(lambda: MLP(3, widths=[4, 6])), 2, split=True)
    branch = Branch(encoder, expander)
    assert (branch.width, branch.embedding_width) == (6, 12)
    x = torch.randn(7, 5)
    h, z = branch(x).h, branch(x).z
    a, b, first, second = made
    assert h.equal(torch.cat([a(x), b(x)], 1))
    assert torch.allclose(z, torch.cat([first(a(x)), second(b(x))], 1))
    assert not torch.equal(a.weight, b.weight)  # type: ignore[arg-type]
    assert first_member(encoder) is a and first_member(a) is a


def test_a_member_learns_nothing_from_the_other() -> None:
    encoder = Members(lambda: Linear(5, 3), 2, split=False)
    encoder(torch.randn(4, 5))[:, :3].sum().backward()
    first, second = (one.get_parameter("weight").grad for one in encoder.copies)
    assert first is not None and first.any() and second is not None and not second.any()


def config(members: int) -> dict:
    expander = {"name": "mlp", "widths": [8, 6]}
    block = {"encoder": {"name": "torchvision", "model": "resnet18", "widen": 0.125}, "expander": expander}
    return {
        "views": {"image": "image"},
        "branches": {"image": block | {"train": "all", "members": members}},
        "image": {"name": "resize", "size": 32, "interpolation": "bilinear"},
    }


def test_a_model_of_members_is_saved_and_loaded(tmp_path: Path) -> None:
    model = from_config(config(3), None)
    assert model.width("image") == 18 and model.branch("image").width == 3 * 64
    model.save_pretrained(tmp_path / "model")
    again = JointEmbedding.from_pretrained(tmp_path / "model")
    pictures = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    assert torch.equal(torch.as_tensor(model.encode_image(pictures)), torch.as_tensor(again.encode_image(pictures)))
    weights = [copy.model.conv1.weight for copy in again.branch("image").encoder.copies]  # type: ignore[union-attr]
    assert not torch.equal(weights[0], weights[1])


def test_one_member_has_the_names_of_a_plain_branch() -> None:
    assert not any("copies" in name for name in from_config(config(1), None).state_dict())


def test_members_of_a_partly_frozen_encoder_share_it() -> None:
    block = config(2)
    block["branches"]["image"]["train"] = ["layer4"]
    branch = from_config(block, None).branch("image")
    assert branch.width == 64 and not isinstance(branch.encoder, Members) and isinstance(branch.expander, Members)
    trained = {name.split(".")[1] for name, p in branch.encoder.named_parameters() if p.requires_grad}
    assert trained == {"layer4"}


def test_a_second_stage_of_members_starts_from_a_frozen_first() -> None:
    stages = {}
    for train in ("none", ["layer4"]):
        block = config(2)
        block["branches"]["image"]["train"] = train
        stages[str(train)] = from_config(block, None).state_dict()
    first, second = stages.values()
    assert first.keys() == second.keys()
