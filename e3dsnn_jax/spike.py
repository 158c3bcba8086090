"""Spiking neurons as pure functions: integer spikes, LIF over time, unrolling.

The network trains with *integer* spikes 0..D and can be run with binary ones: an
integer spike s is s ones among D binary slots, and a linear layer cannot tell the
two apart. Time is the leading axis of the functions here; the networks keep it
between voxels and channels and use `Neuron`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e3dsnn_jax.lif_scan import MAX_LEVELS, Dynamics, run_lif

SpikeFn = Callable[[Float[Array, "..."]], Float[Array, "..."]]
"""A step function whose derivative is a surrogate: spikes of a potential."""

ResetFn = Callable[
    [Float[Array, "..."], Float[Array, "..."], float], Float[Array, "..."]
]
"""What is left of the potential, given (potential, spikes, threshold)."""


class NeuronTrace(NamedTuple):
    """What neurons did over time."""

    spikes: Float[Array, " time *shape"]
    """Spikes of every time step, whole numbers stored as floats."""
    membrane: Float[Array, "*shape"]
    """Potential carried past the last step, after reset and decay."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def integer_spike(
    membrane: Float[Array, "*shape"], levels: int = 4
) -> Float[Array, "*shape"]:
    r"""Integer spikes of a membrane potential, without memory.

    .. math:: s = \lfloor \mathrm{clip}(u, 0, D) + 1/2 \rfloor

    Rounding is half *up*: 0.5 gives 1 and 2.5 gives 3 (`jnp.round` would give 0 and
    2). The derivative is the rectangular surrogate, 1 where 0 < u < D strictly and 0
    elsewhere, in forward and in reverse mode.

    Args:
      membrane: Potential u, in units of the spacing between levels.
      levels: Largest spike D.

    Returns:
      Whole numbers 0..D in the dtype of `membrane`; NaN stays NaN.

    Source: E-3DSNN (AAAI 2025), integer LIF with T x D = 1 x D; `Multispike` in the
    authors' code.
    """
    return jnp.floor(jnp.clip(membrane, 0, levels) + 0.5)


@integer_spike.defjvp
def _integer_spike_jvp(levels, primals, tangents):
    (membrane,), (tangent,) = primals, tangents
    inside = (membrane > 0) & (membrane < levels)
    return integer_spike(membrane, levels), jnp.where(inside, tangent, 0)


def binary_spike(width: float = 1.0) -> SpikeFn:
    r"""Returns the Heaviside step with a rectangular surrogate derivative.

    .. math:: s = H(u), \qquad ds/du := \frac{1}{w}\,[\,|u| < w/2\,]

    Args:
      width: Width w of the window in which the surrogate is not zero.

    Returns:
      A function from (potential - threshold) to spikes 0 or 1; H(0) = 1.

    Raises:
      ValueError: If `width` is not positive.
    """
    if width <= 0:
        raise ValueError(f"the surrogate needs width > 0, got width={width}")
    return _BinarySpike(width)


@dataclasses.dataclass(frozen=True)
class _BinarySpike:
    """The function that `binary_spike` returns, which knows its width."""

    width: float

    def __call__(self, membrane: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return _heaviside(membrane, self.width)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _heaviside(membrane, width):
    del width
    return (membrane >= 0).astype(membrane.dtype)


@_heaviside.defjvp
def _heaviside_jvp(width, primals, tangents):
    (membrane,), (tangent,) = primals, tangents
    inside = jnp.abs(membrane) < width / 2
    return _heaviside(membrane, width), jnp.where(inside, tangent / width, 0)


def soft_reset(
    membrane: Float[Array, "*shape"], spikes: Float[Array, "*shape"], threshold: float
) -> Float[Array, "*shape"]:
    """Potential less what the spikes carried away: `u - threshold * s`."""
    return membrane - threshold * spikes


def hard_reset(
    membrane: Float[Array, "*shape"], spikes: Float[Array, "*shape"], threshold: float
) -> Float[Array, "*shape"]:
    """Zero where a neuron fired, untouched elsewhere: `u * [s == 0]`."""
    del threshold
    return jnp.where(spikes > 0, 0, membrane)


def _check(currents: Float[Array, " time *shape"], decay: float) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got decay={decay}")
    if currents.shape[0] == 0:
        raise ValueError(
            f"neurons need at least one time step, got currents of {currents.shape}"
        )


def _is_known(reset: ResetFn, *constants: float) -> bool:
    # An array among the constants may be traced, or be differentiated by the caller.
    known = all(isinstance(constant, int | float) for constant in constants)
    return known and (reset is soft_reset or reset is hard_reset)


def _run(
    currents: Float[Array, " time *shape"],
    spike: SpikeFn,
    reset: ResetFn,
    decay: float,
    threshold: float,
) -> NeuronTrace:
    def step(carried, current):
        membrane = carried + current
        spikes = spike(membrane)
        return decay * reset(membrane, spikes, threshold), spikes

    rest = jnp.zeros_like(currents[0])
    membrane, spikes = jax.lax.scan(step, rest, currents)
    return NeuronTrace(spikes, membrane)


def lif(
    currents: Float[Array, " time *shape"],
    *,
    decay: float = 0.5,
    threshold: float = 1.0,
    reset: ResetFn = hard_reset,
    spike: SpikeFn | None = None,
) -> NeuronTrace:
    r"""Leaky integrate-and-fire neurons with binary spikes, over time.

    .. math:: u_t = h_{t-1} + x_t, \quad s_t = H(u_t - \theta), \quad
              h_t = \beta\, r(u_t, s_t)

    with :math:`r = u (1 - s)` for `hard_reset` and :math:`u - \theta s` for
    `soft_reset`; :math:`h_0 = 0`. Gradients flow through the reset, in both modes. For
    the resets and surrogates of this module the derivative keeps one byte a step;
    other functions are differentiated as they are.

    Args:
      currents: Input x of each step, in the units of the threshold.
      decay: Leak :math:`\beta` in [0, 1] per step.
      threshold: Firing threshold :math:`\theta`.
      reset: `hard_reset`, `soft_reset`, or a function of the same arguments.
      spike: Step function with its surrogate; `binary_spike()` if omitted.

    Returns:
      The spikes, exactly 0 or 1, and the potential carried past the last step.

    Raises:
      ValueError: If `decay` lies outside [0, 1] or there is no time step.

    Source: E-3DSNN (AAAI 2025), the LIF neuron; the reset and the decay act in the
    order of that paper (the decayed potential is what the next step receives).
    """
    _check(currents, decay)
    step = binary_spike() if spike is None else spike
    if isinstance(step, _BinarySpike) and _is_known(
        reset, decay, threshold, step.width
    ):
        dynamics = Dynamics(
            decay, threshold, hard=reset is hard_reset, width=step.width
        )
        return NeuronTrace(*run_lif(currents, dynamics))
    return _run(currents, lambda u: step(u - threshold), reset, decay, threshold)


def integer_lif(
    currents: Float[Array, " time *shape"],
    *,
    levels: int = 4,
    decay: float = 0.5,
    reset: ResetFn = soft_reset,
) -> NeuronTrace:
    r"""Leaky neurons with integer spikes 0..D, over time (I-LIF).

    .. math:: u_t = h_{t-1} + x_t, \quad
              s_t = \lfloor \mathrm{clip}(u_t, 0, D) + 1/2 \rfloor, \quad
              h_t = \beta\,(u_t - s_t)

    One step is `integer_spike`. Gradients flow through the reset, in both modes, and
    keep one byte a step unless the reset is a function of your own.

    Args:
      currents: Input x of each step, in units of one spike.
      levels: Largest spike D of a step.
      decay: Leak :math:`\beta` in [0, 1] per step.
      reset: `soft_reset` (the formula above), `hard_reset`, or another function.

    Returns:
      The spikes, whole numbers 0..D, and the potential carried past the last step.

    Raises:
      ValueError: If `decay` lies outside [0, 1] or there is no time step.

    Source: the I-LIF neuron that E-3DSNN trains with, T x D = 1 x 4 by default.
    """
    _check(currents, decay)
    if levels <= MAX_LEVELS and _is_known(reset, decay):
        dynamics = Dynamics(decay, 1.0, hard=reset is hard_reset, levels=levels)
        return NeuronTrace(*run_lif(currents, dynamics))
    return _run(currents, lambda u: integer_spike(u, levels), reset, decay, 1.0)


def unroll_spikes(
    spikes: Float[Array, "*shape"], *, levels: int
) -> Float[Array, " {levels} *shape"]:
    r"""Binary spike trains that carry integer spikes: slot d fires where s > d.

    The sum over slots gives the integers back, so for any linear layer
    :math:`\sum_d W s_d = W s`: the integer-trained network runs on binary spikes.

    Args:
      spikes: Whole numbers 0..levels.
      levels: Number of binary slots D.

    Returns:
      Exactly 0 or 1, slots leading.
    """
    slots = jnp.arange(levels, dtype=spikes.dtype)
    slots = slots.reshape((levels,) + (1,) * spikes.ndim)
    return (spikes[None] > slots).astype(spikes.dtype)


@dataclasses.dataclass(frozen=True)
class Neuron:
    """What turns membranes into spikes in a network, over `[voxels, time, channels]`.

    With one time step this is `integer_spike`, the published network; with more it
    is `integer_lif` along the time axis.
    """

    levels: int = 4
    """Largest spike of a time step (D)."""
    time_steps: int = 1
    """Length of the network's time axis (T)."""
    decay: float = 0.5
    """Leak of the membrane from one time step to the next."""
    relu: bool = False
    """Use ReLU instead of spikes: the twin network with the same layers."""

    def __post_init__(self):
        """Raises ValueError on options that no network could run with."""
        if not 1 <= self.levels <= 127:
            raise ValueError(f"levels must lie in 1..127, got levels={self.levels}")
        if self.time_steps < 1:
            raise ValueError(f"time_steps must be >= 1, got {self.time_steps}")

    def __call__(
        self, membrane: Float[Array, "voxels time channels"]
    ) -> Float[Array, "voxels time channels"]:
        """Spikes of every voxel, time step and channel (or ReLU of the membrane)."""
        if self.relu:
            return jax.nn.relu(membrane)
        if membrane.shape[1] == 1:
            return integer_spike(membrane, self.levels)
        currents = jnp.moveaxis(membrane, 1, 0)
        trace = integer_lif(currents, levels=self.levels, decay=self.decay)
        return jnp.moveaxis(trace.spikes, 0, 1)
