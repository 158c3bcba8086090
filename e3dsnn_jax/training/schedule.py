"""Learning rates over a run, with the definitions of PyTorch.

A schedule counts optimizer updates, from 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


@dataclass(frozen=True)
class MultiStep:
    """Piecewise constant: the rate is multiplied by `factor` at each milestone.

    A milestone m takes effect at update ceil(m * total_steps), held between the
    second update and the last, so that every milestone fires in every run of two
    updates or more.

    Source: `MultiStepLR` of the reference's schedulers.
    """

    # Differs from reference: there milestones are floats looked up among integer
    # steps, so 0.6 and 0.8 never fire unless the number of steps divides by 5.
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Fractions of the run, each strictly between 0 and 1."""
    factor: float = 0.1
    """What each milestone multiplies the learning rate by."""


@dataclass(frozen=True)
class OneCycle:
    """Cosine from a small rate up to the peak, then down to a far smaller one.

    The rate goes peak / div_factor -> peak at update warmup * total_steps - 1, a
    fractional number -> peak / div_factor / final_div_factor at the last update.
    Momentum (SGD) or beta1 (AdamW) goes the other way.

    Source: `torch.optim.lr_scheduler.OneCycleLR`, cosine annealing, which cycles
    momentum unless told otherwise; the SemanticKITTI config of the reference.
    """

    warmup: float = 0.04
    """Fraction of the run spent rising (`pct_start` in torch)."""
    div_factor: float = 10.0
    """Peak rate over initial rate."""
    final_div_factor: float = 100.0
    """Initial rate over final rate."""
    momentum_range: tuple[float, float] | None = (0.85, 0.95)
    """Momentum or beta1 at the peak rate and at both ends; None leaves it alone."""


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up to the peak rate, then a cosine down to `final` of the peak.

    With w = round(warmup * total_steps) the rate is peak * (i + 1) / (w + 1) for
    the w updates of the warm-up, peak at update w and final * peak at the last one.
    """

    warmup: float = 0.05
    """Fraction of the run spent rising."""
    final: float = 0.01
    """Last rate as a fraction of the peak."""


Schedule = MultiStep | OneCycle | Cosine
# A hyperparameter as a function of the optimizer update (an `optax.Schedule`).
StepFunction = Callable[[ArrayLike], Float[Array, ""]]


def make_schedule(
    schedule: Schedule, peak_learning_rate: float, total_steps: int
) -> StepFunction:
    """Returns the learning rate as a function of the optimizer update, from 0.

    Args:
      schedule: Shape of the curve.
      peak_learning_rate: Its highest value.
      total_steps: Optimizer updates in the whole run; later updates keep the rate
        of the last one.

    Returns:
      A jittable function (an `optax.Schedule`) from update to learning rate.

    Raises:
      ValueError: If a size or fraction of the schedule is out of range.
    """
    require(total_steps >= 1, "total_steps", total_steps, "at least 1")
    require(peak_learning_rate > 0, "learning_rate", peak_learning_rate, "positive")
    match schedule:
        case MultiStep():
            return _multi_step(schedule, peak_learning_rate, total_steps)
        case OneCycle():
            require(schedule.div_factor > 0, "div_factor", schedule.div_factor, "> 0")
            require(
                schedule.final_div_factor > 0,
                "final_div_factor",
                schedule.final_div_factor,
                "> 0",
            )
            low = peak_learning_rate / schedule.div_factor
            return _cycle(
                schedule.warmup,
                total_steps,
                start=low,
                top=peak_learning_rate,
                end=low / schedule.final_div_factor,
            )
        case Cosine():
            return _warmup_cosine(schedule, peak_learning_rate, total_steps)


def make_momentum_schedule(schedule: Schedule, total_steps: int) -> StepFunction | None:
    """Returns momentum as a function of the update, or None where it is constant."""
    if not isinstance(schedule, OneCycle) or schedule.momentum_range is None:
        return None
    low, high = schedule.momentum_range
    require(
        0 <= low <= high < 1, "momentum_range", schedule.momentum_range, "rising, < 1"
    )
    return _cycle(schedule.warmup, total_steps, start=high, top=low, end=high)


def _multi_step(schedule: MultiStep, peak: float, total_steps: int) -> StepFunction:
    for milestone in schedule.milestones:
        require(0 < milestone < 1, "milestone", milestone, "between 0 and 1")
    # The tiny subtraction keeps 0.55 * 100 = 55.00000000000001 at 55.
    boundaries = jnp.asarray(
        [
            max(1, min(math.ceil(milestone * total_steps - 1e-6), total_steps - 1))
            for milestone in schedule.milestones
        ],
        jnp.int32,
    )
    rates = jnp.asarray(
        [peak * schedule.factor**k for k in range(len(schedule.milestones) + 1)],
        jnp.float32,
    )

    def learning_rate(step: ArrayLike) -> Float[Array, ""]:
        i = jnp.minimum(jnp.asarray(step, jnp.int32), total_steps - 1)
        return rates[jnp.sum(i >= boundaries)]

    return learning_rate


def _cycle(
    warmup: float, total_steps: int, *, start: float, top: float, end: float
) -> StepFunction:
    require(0 <= warmup <= 1, "warmup", warmup, "between 0 and 1")
    last = float(total_steps - 1)
    # torch does not round the end of the rise to a whole update, and lets it lie
    # before update 0 in very short runs; then the whole run is the fall.
    rise_end = warmup * total_steps - 1.0

    def value(step: ArrayLike) -> Float[Array, ""]:
        i = jnp.minimum(jnp.asarray(step, jnp.float32), last)
        rise = jnp.clip(i / max(rise_end, 1e-6), 0.0, 1.0)
        fall = jnp.clip((i - rise_end) / max(last - rise_end, 1e-6), 0.0, 1.0)
        return jnp.where(
            i <= rise_end, _anneal(start, top, rise), _anneal(top, end, fall)
        )

    return value


def _warmup_cosine(schedule: Cosine, peak: float, total_steps: int) -> StepFunction:
    require(0 <= schedule.warmup < 1, "warmup", schedule.warmup, "in [0, 1)")
    require(0 <= schedule.final <= 1, "final", schedule.final, "between 0 and 1")
    rising = min(round(schedule.warmup * total_steps), total_steps - 1)
    last = float(total_steps - 1)
    falling = max(last - rising, 1.0)

    def learning_rate(step: ArrayLike) -> Float[Array, ""]:
        i = jnp.minimum(jnp.asarray(step, jnp.float32), last)
        fall = jnp.clip((i - rising) / falling, 0.0, 1.0)
        return jnp.where(
            i < rising,
            peak * (i + 1.0) / (rising + 1.0),
            _anneal(peak, schedule.final * peak, fall),
        )

    return learning_rate


def _anneal(start: float, end: float, fraction: Float[Array, ""]) -> Float[Array, ""]:
    """Half a cosine from `start` to `end`.

    Written with cos^2 of the half angle: 1 + cos loses all its digits near the end,
    where the rates of `OneCycle` are a thousandth of the peak.
    """
    return end + (start - end) * jnp.cos(fraction * (math.pi / 2)) ** 2


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError, with the field's name and value, unless `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value}")
