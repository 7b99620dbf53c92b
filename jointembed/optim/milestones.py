"""The schedule of detection: a learning rate that falls at given steps, after a warm-up that need not begin at 0."""

from jointembed.errors import RecipeError


def milestones(
    step: int,
    steps: int,
    steps_per_epoch: int,
    peak: float,
    *,
    at: list[int],
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_factor: float = 0.0,
) -> float:
    """The peak, times `factor` for each step of `at` that has been reached.

    The warm-up rises linearly from `warmup_factor` of the peak at step 0 to the peak at `warmup_steps`. VICReg's
    VOC07+12: `at=[18000, 22000], warmup_steps=1000, warmup_factor=0.333`; its COCO: `at=[60000, 80000],
    warmup_steps=50` (appendix C.3).

    Raises:
        RecipeError: steps that do not rise, a negative warm-up, or a share outside 0..1.
    """
    if sorted(set(at)) != at or any(one < 0 for one in at):
        raise RecipeError(f"schedule.at: {at} must be steps that rise")
    if warmup_steps < 0 or not 0 <= warmup_factor <= 1:
        raise RecipeError(f"schedule: a warm-up of {warmup_steps} steps from {warmup_factor} of the peak is none")
    rate = peak * factor ** sum(step >= one for one in at)
    if step >= warmup_steps:
        return rate
    done = step / warmup_steps
    return rate * (warmup_factor * (1 - done) + done)
