"""The optimizer of the published detector: AdamW under a one-cycle rule of its own.

Not torch's `OneCycle`: the rise ends on a whole update, and the last update does not
reach the final rate. Decay covers every parameter, normalisation and biases too.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from e3dsnn_jax.training.optimizer import scale_by_moments
from e3dsnn_jax.training.schedule import StepFunction, require


@dataclass(frozen=True)
class DetectorAdam:
    r"""`adam_onecycle` of the published detector.

    With a = int(warmup * total_steps) and :math:`t = i/a` before update a, else
    :math:`t = (i-a)/(total-a)`, rate and beta1 follow half a cosine from one end of
    their range to the other and back; the rate ends at peak / div_factor / 10,000.

    .. math::
        p \leftarrow (1 - \eta \lambda)\, p - \eta \hat m / (\sqrt{\hat v} + \epsilon)

    where bias correction uses the current :math:`\beta_1`.

    Source: `OptimWrapper` and `OneCycle` of OpenPCDet, after fastai.
    """

    learning_rate: float = 0.01
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled decay of every parameter, multiplied by the learning rate."""
    momentum_range: tuple[float, float] = (0.85, 0.95)
    """beta1 at the peak rate and at both ends."""
    b2: float = 0.99
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    warmup: float = 0.4
    """Fraction of the run spent rising."""
    div_factor: float = 10.0
    """Peak rate over initial rate."""
    clip_norm: float = 10.0
    """Largest global norm of the gradient."""


_FINAL_DIV_FACTOR = 1e4


def detector_learning_rate(config: DetectorAdam, total_steps: int) -> StepFunction:
    """Returns the learning rate as a function of the optimizer update, from 0.

    Raises:
      ValueError: If a field is out of range.
    """
    require(config.learning_rate > 0, "learning_rate", config.learning_rate, "positive")
    require(config.div_factor > 0, "div_factor", config.div_factor, "> 0")
    low = config.learning_rate / config.div_factor
    return _cycle(
        config, total_steps, low, config.learning_rate, low / _FINAL_DIV_FACTOR
    )


def detector_momentum(config: DetectorAdam, total_steps: int) -> StepFunction:
    """Returns beta1 as a function of the optimizer update, from 0.

    Raises:
      ValueError: If a field is out of range.
    """
    low, high = config.momentum_range
    require(
        0 <= low <= high < 1, "momentum_range", config.momentum_range, "rising, < 1"
    )
    return _cycle(config, total_steps, high, low, high)


def make_detector_optimizer(
    config: DetectorAdam, *, total_steps: int
) -> optax.GradientTransformation:
    """Builds the gradient transformation of one training run.

    Args:
      config: The hyperparameters.
      total_steps: Optimizer updates in the whole run.

    Raises:
      ValueError: If a field is out of range.
    """
    require(config.clip_norm > 0, "clip_norm", config.clip_norm, "positive")
    require(config.weight_decay >= 0, "weight_decay", config.weight_decay, ">= 0")
    require(0 <= config.b2 < 1, "b2", config.b2, "in [0, 1)")
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        scale_by_moments(
            detector_momentum(config, total_steps), beta2=config.b2, eps=config.eps
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(detector_learning_rate(config, total_steps)),
    )


def _cycle(
    config: DetectorAdam, total_steps: int, start: float, top: float, end: float
) -> StepFunction:
    require(total_steps >= 1, "total_steps", total_steps, "at least 1")
    require(0 <= config.warmup < 1, "warmup", config.warmup, "in [0, 1)")
    rising = int(config.warmup * total_steps)

    def value(step: ArrayLike) -> Float[Array, ""]:
        i = jnp.minimum(jnp.asarray(step, jnp.float32), total_steps - 1.0)
        rise = _half_cosine(start, top, i / max(rising, 1))
        fall = _half_cosine(top, end, (i - rising) / (total_steps - rising))
        return jnp.where(i < rising, rise, fall)

    return value


def _half_cosine(
    start: float, end: float, fraction: Float[Array, ""]
) -> Float[Array, ""]:
    """Half a cosine; cos^2 of half the angle keeps its digits near the end."""
    return end + (start - end) * jnp.cos(fraction * (math.pi / 2)) ** 2
