import inspect

import pytest
import torch
from ranks import views

from jointembed.errors import RecipeError
from jointembed.objectives import OBJECTIVES
from jointembed.objectives.objective import Objective, PairObjective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_the_contract(name: str) -> None:
    kind = OBJECTIVES[name]
    parameters = list(inspect.signature(kind).parameters.values())
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    objective = kind()
    assert objective.needs == frozenset()
    a, b = torch.randn(2, 6, 4, requires_grad=True)
    objective.before_step({"item": torch.arange(6)})
    terms = objective(views(image=a, text=b), index=torch.arange(6), item=torch.arange(6))
    objective.end_step(0.5)
    assert terms["loss"].requires_grad and terms["loss"].ndim == 0
    assert all(term.ndim == 0 and not term.requires_grad for key, term in terms.items() if key != "loss")


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if issubclass(kind, PairObjective)])
def test_two_views_exactly(name: str) -> None:
    objective = OBJECTIVES[name]()
    objective.check_views(["image", "text"])
    for names in (["image"], ["image", "text", "audio"]):
        message = rf"compares exactly 2 views, found {len(names)} \({', '.join(names)}\)"
        with pytest.raises(RecipeError, match=message):
            objective.check_views(names)
        with pytest.raises(RecipeError, match=message):
            objective(views(**{view: torch.zeros(3, 2) for view in names}))


def test_an_objective_without_forward_cannot_be_made() -> None:
    class Empty(Objective):
        pass

    with pytest.raises(TypeError, match="forward"):
        Empty()  # type: ignore[abstract]
