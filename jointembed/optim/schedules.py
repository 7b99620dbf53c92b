"""Learning-rate schedules: pure functions of the step, steps counted from 0.

Every schedule takes `step`, `steps` (of the run), `steps_per_epoch` and `peak`, and returns the learning rate of that
step. The warm-up rises linearly from 0 at step 0 to the peak at its last step + 1, in steps or in epochs.
"""

import math

from jointembed.errors import RecipeError


def constant(
    step: int, steps: int, steps_per_epoch: int, peak: float, *, warmup_steps: int = 0, warmup_epochs: float = 0.0
) -> float:
    """The peak, after the warm-up.

    Raises:
        RecipeError: both kinds of warm-up, or a negative one.
    """
    warmup = _warmup(warmup_steps, warmup_epochs, steps_per_epoch)
    return peak * step / warmup if step < warmup else peak


def cosine(
    step: int,
    steps: int,
    steps_per_epoch: int,
    peak: float,
    *,
    warmup_steps: int = 0,
    warmup_epochs: float = 0.0,
    final: float = 0.0,
    start: float = 0.0,
) -> float:
    """Half a cosine from the peak to `final` (a share of the peak) at the last step + 1 (Loshchilov & Hutter 2017).

    VICReg: `warmup_epochs=10, final=0.001`. The warm-up rises from `start`, a share too (SwAV: 1/16).

    Raises:
        RecipeError: both kinds of warm-up, a negative one, or a share outside 0..1.
    """
    for name, share in (("final", final), ("start", start)):
        if not 0 <= share <= 1:
            raise RecipeError(f"schedule.{name}: {share} is a share of the peak, 0 to 1")
    warmup = _warmup(warmup_steps, warmup_epochs, steps_per_epoch)
    if step < warmup:
        return peak * (start + (1 - start) * step / warmup)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def step_decay(
    step: int,
    steps: int,
    steps_per_epoch: int,
    peak: float,
    *,
    every_epochs: float = 15.0,
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_epochs: float = 0.0,
) -> float:
    """The peak times `factor` for each `every_epochs` that have passed (VSE++: x .1 every 15 epochs).

    Raises:
        RecipeError: both kinds of warm-up, a negative one, or `every_epochs` not above 0.
    """
    if every_epochs <= 0:
        raise RecipeError(f"schedule.every_epochs: {every_epochs} is not above 0")
    warmup = _warmup(warmup_steps, warmup_epochs, steps_per_epoch)
    if step < warmup:
        return peak * step / warmup
    period = max(1, round(every_epochs * steps_per_epoch))
    return peak * factor ** (step // period)


def milestones(
    step: int,
    steps: int,
    steps_per_epoch: int,
    peak: float,
    *,
    epochs: list[float] | None = None,
    at: list[int] | None = None,
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_epochs: float = 0.0,
    start: float = 0.0,
) -> float:
    """The peak times `factor` for each milestone that is past: of `epochs`, or of the steps `at`.

    MoCo v1: `epochs=[120, 160]`. VICReg's VOC07+12 detection: `at=[18000, 22000], warmup_steps=1000, start=0.333`; its
    COCO: `at=[60000, 80000], warmup_steps=50` (appendix C.3).

    Raises:
        RecipeError: neither or both of them, milestones that do not rise, both kinds of warm-up, a negative one, or a
            start outside 0..1.
    """
    if (epochs is None) == (at is None):
        raise RecipeError("schedule: milestones are epochs or, by the name at, steps; give one of them")
    past: list[float] = [*(epochs or []), *(at or [])]
    if sorted(set(past)) != past or any(one < 0 for one in past):
        raise RecipeError(f"schedule.{'at' if epochs is None else 'epochs'}: rising numbers expected, found {past}")
    if not 0 <= start <= 1:
        raise RecipeError(f"schedule.start: {start} is a share of the peak, 0 to 1")
    warmup = _warmup(warmup_steps, warmup_epochs, steps_per_epoch)
    if step < warmup:
        return peak * (start + (1 - start) * step / warmup)
    unit = steps_per_epoch if at is None else 1
    return peak * factor ** sum(step >= round(one * unit) for one in past)


def _warmup(steps: int, epochs: float, steps_per_epoch: int) -> int:
    if steps and epochs:
        raise RecipeError(f"schedule: warmup_steps ({steps}) or warmup_epochs ({epochs}), not both")
    if steps < 0 or epochs < 0:
        raise RecipeError(f"schedule: a warm-up of {steps or epochs} is negative")
    return steps or round(epochs * steps_per_epoch)
