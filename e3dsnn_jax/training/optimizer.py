"""Optimizers with the update rules of PyTorch.

Everything counts *optimizer updates*, from 0: with gradient accumulation one update
covers several micro-batches, and `total_steps` is the number of updates.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from e3dsnn_jax.training.schedule import (
    Cosine as Cosine,
)
from e3dsnn_jax.training.schedule import (
    MultiStep as MultiStep,
)
from e3dsnn_jax.training.schedule import (
    OneCycle as OneCycle,
)
from e3dsnn_jax.training.schedule import (
    Schedule as Schedule,
)
from e3dsnn_jax.training.schedule import (
    StepFunction,
    make_momentum_schedule,
    require,
)
from e3dsnn_jax.training.schedule import (
    make_schedule as make_schedule,
)


@dataclass(frozen=True)
class Sgd:
    r"""Stochastic gradient descent with momentum; the paper's classifier recipe.

    .. math::
        g \leftarrow g + \lambda p, \quad b \leftarrow \mu b + g, \quad
        p \leftarrow p - \eta\,(g + \mu b) \text{ (Nesterov) or } p - \eta\,b

    with :math:`b = g` at the first step. The decay is an L2 penalty inside the
    gradient, on every parameter: kernels, biases and BatchNorm alike.

    Source: `torch.optim.SGD` as configured by the ModelNet40 configs of the
    reference (no parameter groups).
    """

    learning_rate: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum; a `OneCycle` schedule that cycles momentum replaces it."""
    weight_decay: float = 1e-3
    """L2 penalty added to the gradient of every parameter."""
    nesterov: bool = True
    """Look ahead along the momentum."""


@dataclass(frozen=True)
class AdamW:
    r"""Adam with decoupled weight decay; the reference's segmentation recipe.

    .. math::
        p \leftarrow p - \eta \left(\hat m / (\sqrt{\hat v} + \epsilon)
        + \lambda p\right)

    The decay covers every parameter, and bias correction uses the current
    :math:`\beta_1` where a schedule cycles it.

    Source: `torch.optim.AdamW` as configured by the SemanticKITTI config of the
    reference.
    """

    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 5e-3
    """Decoupled decay of every parameter, multiplied by the learning rate."""
    b1: float = 0.9
    """Decay of the first moment; a `OneCycle` that cycles momentum replaces it."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""


Optimizer = Sgd | AdamW


def make_optimizer(
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    total_steps: int,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Builds the gradient transformation of one training run.

    The chain is: clip the global gradient norm, weight decay and momentum (or
    moments) in the order of the chosen optimizer, the scheduled learning rate.

    Args:
      optimizer: Update rule with its peak learning rate.
      schedule: Shape of the learning rate over the run.
      total_steps: Optimizer updates in the whole run.
      clip_norm: Largest global norm of the gradient (before weight decay); None
        never clips.

    Returns:
      An optax transformation whose updates are added to the parameters.

    Raises:
      ValueError: If a hyperparameter is out of range.
    """
    learning_rate = make_schedule(schedule, optimizer.learning_rate, total_steps)
    cycled = make_momentum_schedule(schedule, total_steps)
    require(optimizer.weight_decay >= 0, "weight_decay", optimizer.weight_decay, ">= 0")
    decay = optax.add_decayed_weights(optimizer.weight_decay)
    match optimizer:
        case Sgd():
            require(
                0 <= optimizer.momentum < 1, "momentum", optimizer.momentum, "[0, 1)"
            )
            momentum = cycled or _constant(optimizer.momentum)
            rule = optax.chain(
                decay, _scale_by_momentum(momentum, nesterov=optimizer.nesterov)
            )
        case AdamW():
            for name, beta in (("b1", optimizer.b1), ("b2", optimizer.b2)):
                require(0 <= beta < 1, name, beta, "in [0, 1)")
            moments = scale_by_moments(
                cycled or _constant(optimizer.b1), beta2=optimizer.b2, eps=optimizer.eps
            )
            rule = optax.chain(moments, decay)
    clip = optax.identity()
    if clip_norm is not None:
        require(clip_norm > 0, "clip_norm", clip_norm, "positive, or None")
        clip = optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, rule, optax.scale_by_learning_rate(learning_rate))


class MomentumState(NamedTuple):
    """State of SGD."""

    updates: Int32[Array, ""]
    """Updates done."""
    buffer: Any
    """Momentum buffer of every parameter."""


class MomentsState(NamedTuple):
    """State of AdamW."""

    updates: Int32[Array, ""]
    """Updates done."""
    first: Any
    """Moving average of every gradient."""
    second: Any
    """Moving average of every squared gradient."""


def _scale_by_momentum(
    momentum: StepFunction, *, nesterov: bool
) -> optax.GradientTransformation:
    """`optax.trace` with a momentum that may change from update to update."""

    def init(params: Any) -> MomentumState:
        return MomentumState(jnp.zeros((), jnp.int32), _zeros_like(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = momentum(state.updates)
        accumulate = lambda g, b: g + mu.astype(g.dtype) * b
        buffer = jax.tree.map(accumulate, updates, state.buffer)
        step = jax.tree.map(accumulate, updates, buffer) if nesterov else buffer
        return step, MomentumState(state.updates + 1, buffer)

    return optax.GradientTransformation(init, update)


def scale_by_moments(
    beta1: StepFunction, *, beta2: float, eps: float
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a beta1 that may change from update to update."""

    def init(params: Any) -> MomentsState:
        # Two trees: a donated state must not hold one buffer twice.
        first, second = (_zeros_like(params) for _ in range(2))
        return MomentsState(jnp.zeros((), jnp.int32), first, second)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        b1, t = beta1(state.updates), (state.updates + 1).astype(jnp.float32)
        # As in torch, the beta1 of this update stands for those of all before it.
        # 1 - beta2**t in float32 would be off by 1e-5 at the first updates.
        correct2 = -jnp.expm1(t * math.log(beta2)) if beta2 else jnp.ones_like(t)
        correct1 = 1 - b1**t
        average = lambda old, new, beta: old + (1 - beta) * (new - old)
        first = jax.tree.map(lambda m, g: average(m, g, b1), state.first, updates)
        second = jax.tree.map(
            lambda v, g: average(v, g * g, beta2), state.second, updates
        )
        step = jax.tree.map(
            lambda m, v: m / correct1 / (jnp.sqrt(v / correct2) + eps), first, second
        )
        return step, MomentsState(state.updates + 1, first, second)

    return optax.GradientTransformation(init, update)


def _zeros_like(params: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, params)


def _constant(value: float) -> StepFunction:
    return lambda step: jnp.full_like(step, value, jnp.float32)
