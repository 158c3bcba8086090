"""Everything that a training run carries from one optimizer update to the next."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from e3dsnn_jax.data.loader import ShapeBatch


class TrainState(NamedTuple):
    """State of a training run; every leaf is an array, the same on all devices."""

    step: Int32[Array, ""]
    """Optimizer updates done so far."""
    params: dict[str, Any]
    """Trained parameters, nested by module."""
    batch_stats: dict[str, Any]
    """Running means and variances of the BatchNorm layers."""
    opt_state: optax.OptState
    """State of the optimizer."""
    ema: dict[str, Any] | None
    """Moving averages of `params` and `batch_stats` under those names, or None."""
    last_look: tuple[Array, ...] | None = None
    """What a guide of freeze training saw last, see `freeze_guide`; None without."""


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    example_batch: ShapeBatch,
    key: PRNGKeyArray,
    *,
    ema: bool = False,
) -> TrainState:
    """Initialises parameters, statistics and optimizer in one compiled program.

    Args:
      model: Network called as `model(features, levels, num_clouds=, train=)`.
      optimizer: The transformation that the train step will apply.
      example_batch: Batch of one device, without a device axis. Only its shapes
        matter.
      key: Random key of the initial parameters; the key is consumed.
      ema: Keep moving averages too; they start at the initial values.

    Returns:
      The state before the first update.
    """

    # Only initial values come out, so the compiler drops the network itself.
    @jax.jit
    def initialise(key: PRNGKeyArray) -> TrainState:
        blank = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example_batch
        )
        variables: Any = model.init(
            key,
            blank.features,
            blank.levels,
            num_clouds=blank.labels.shape[0],
            train=False,
        )
        params, batch_stats = variables["params"], variables["batch_stats"]
        averages = {"params": params, "batch_stats": batch_stats} if ema else None
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema=averages,
        )

    return initialise(key)


def update_averages(
    averages: dict[str, Any],
    current: dict[str, Any],
    step: Int32[Array, ""],
    decay: float,
) -> dict[str, Any]:
    r"""Moves the averages towards the current values.

    .. math::
        a \leftarrow d_t\,a + (1 - d_t)\,c, \qquad
        d_t = \min\left(d, \frac{1 + t}{10 + t}\right)

    The smaller decay of the first updates keeps the random initial values from
    lingering for 1 / (1 - d) updates.

    Args:
      averages: Values before this update.
      current: Values that the update has just produced, with the same structure.
      step: Updates done before this one, t.
      decay: Final decay d, in [0, 1).

    Returns:
      The averages after the update.
    """
    t = step.astype(jnp.float32)
    decay_now = jnp.minimum(decay, (1.0 + t) / (10.0 + t))

    def blend(
        average: Float[Array, "*shape"], value: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return value + decay_now.astype(value.dtype) * (average - value)

    return jax.tree.map(blend, averages, current)
