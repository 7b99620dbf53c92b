from functools import partial

import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from jointembed.errors import RecipeError
from jointembed.optim import SCHEDULES
from jointembed.optim.schedules import constant, cosine, milestones, step_decay


@pytest.mark.parametrize(("steps", "warmup"), [(200, 20), (57, 0), (30, 1)])
def test_cosine_equals_the_one_of_transformers(steps: int, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.3)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=1e-3)
    for step in range(steps + 1):
        ours = cosine(step, steps, 10, 0.3, warmup_steps=warmup, final=1e-3)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_warmup_in_epochs_is_warmup_in_steps() -> None:
    for step in range(100):
        assert cosine(step, 100, 8, 1.0, warmup_epochs=2.5) == cosine(step, 100, 8, 1.0, warmup_steps=20)


def test_cosine_has_its_closed_form_values() -> None:
    assert cosine(0, 110, 10, 2.0, warmup_steps=10) == 0.0
    assert cosine(5, 110, 10, 2.0, warmup_steps=10) == 1.0
    assert cosine(10, 110, 10, 2.0, warmup_steps=10) == 2.0
    assert cosine(60, 110, 10, 2.0, warmup_steps=10, final=0.5) == pytest.approx(1.5)
    assert cosine(110, 110, 10, 2.0, warmup_steps=10, final=0.5) == pytest.approx(1.0)
    assert cosine(500, 110, 10, 2.0, final=0.5) == pytest.approx(1.0)


def test_step_decay_drops_at_epochs() -> None:
    found = [step_decay(step, 300, 10, 2e-4) for step in (0, 149, 150, 299, 300)]
    assert found == pytest.approx([2e-4, 2e-4, 2e-5, 2e-5, 2e-6])
    halves = [step_decay(step, 300, 10, 1.0, every_epochs=0.5, factor=0.5) for step in (4, 5, 10)]
    assert halves == [1.0, 0.5, 0.25]


ALL = {name: partial(one, epochs=[8]) if name == "milestones" else one for name, one in SCHEDULES.items()}


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_every_schedule_warms_up_linearly_to_its_peak(schedule) -> None:
    values = [schedule(step, 1000, 100, 0.5, warmup_steps=4) for step in range(5)]
    assert values == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5])


def test_constant_is_constant() -> None:
    assert {constant(step, 50, 5, 0.1) for step in range(50)} == {0.1}


@pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
def test_two_kinds_of_warmup_are_refused(schedule) -> None:
    with pytest.raises(RecipeError, match="not both"):
        schedule(0, 10, 5, 1.0, warmup_steps=3, warmup_epochs=1.0)
    with pytest.raises(RecipeError, match="negative"):
        schedule(0, 10, 5, 1.0, warmup_epochs=-1.0)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(RecipeError, match="final"):
        cosine(0, 10, 5, 1.0, final=1.5)
    with pytest.raises(RecipeError, match="every_epochs"):
        step_decay(0, 10, 5, 1.0, every_epochs=0)


def test_milestones_drop_after_each_epoch() -> None:
    found = [milestones(step, 200, 1, 0.03, epochs=[120, 160]) for step in (0, 119, 120, 159, 160, 199)]
    assert found == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    assert milestones(5, 200, 10, 1.0, epochs=[2], warmup_steps=10) == 0.5
    with pytest.raises(RecipeError, match="rising numbers"):
        milestones(0, 10, 1, 1.0, epochs=[3, 2])


def test_the_warmup_may_start_above_zero() -> None:
    assert cosine(0, 100, 10, 4.8, warmup_steps=10, start=1 / 16) == pytest.approx(0.3)
    assert cosine(5, 100, 10, 1.0, warmup_steps=10, start=0.5) == pytest.approx(0.75)
    with pytest.raises(RecipeError, match="schedule.start"):
        cosine(0, 10, 1, 1.0, start=2)
