import inspect

import pytest
import torch
from ranks import CASES, Tiny, views

from jointembed.errors import RecipeError
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.objective import Objective, PairObjective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_arguments_are_the_recipes_schema(name: str) -> None:
    parameters = list(inspect.signature(OBJECTIVES[name]).parameters.values())
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


@pytest.mark.parametrize("case", CASES)
def test_every_objective_keeps_the_contract(case: str) -> None:
    model = Tiny(case)
    assert model.objective.needs <= {"target", "shuffle", "maps", "target_maps", "label"}
    assert set(model.objective.online_views(model.views)) <= set(model.views)
    assert "target" in model.objective.needs or model.objective.target_views(model.views) == []
    assert all(0 <= model.objective.momentum(progress) <= 1 for progress in (0, 0.5, 1))
    a, b = torch.randn(2, 11, 6)
    index, item = torch.arange(11), torch.arange(11) // 2
    model.objective.start_epoch(0, lambda: model.embed(a, b, index))
    model.before_step(index, item)
    before = {key: buffer.clone() for key, buffer in model.objective.named_buffers() if "running" not in key}
    terms = model(a, b, index, item)
    assert terms["loss"].requires_grad and terms["loss"].ndim == 0
    assert all(term.ndim == 0 and not term.requires_grad for key, term in terms.items() if key != "loss")
    terms["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    for key, buffer in model.objective.named_buffers():  # a refused step leaves no trace
        assert key not in before or "num_batches" in key or torch.equal(buffer, before[key]), key
    model.objective.end_step(0.5)


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if issubclass(kind, PairObjective)])
def test_two_views_exactly(name: str) -> None:
    objective = OBJECTIVES[name]()
    objective.check_views(["image", "text"])
    for names in (["image"], ["image", "text", "audio"]):
        message = rf"compares exactly 2 views, found {len(names)} \({', '.join(names)}\)"
        with pytest.raises(RecipeError, match=message):
            objective.check_views(names)
        if len(objective.online_views(["image", "text"])) == 2:
            with pytest.raises(RecipeError, match=message):
                objective(views(**{view: torch.zeros(3, 2) for view in names}))


def test_an_objective_without_forward_cannot_be_made() -> None:
    class Empty(Objective):
        pass

    with pytest.raises(TypeError, match="forward"):
        Empty()  # type: ignore[abstract]
