"""Leaky neurons over time as one scan with a derivative of its own.

What a step leaves for the derivative fits into one byte: its spikes, and whether the
membrane was where the surrogate is not zero. The derivative is a linear scan over those
bytes, in forward and, transposed, in reverse mode; neither membranes nor masks are
kept. `spike` chooses this scan for the resets and surrogates that it defines itself.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

MAX_LEVELS = 126
"""Largest spike that a byte holds beside the mark of the surrogate and NaN."""

_SPIKES, _NAN, _INSIDE = 0x7F, 0x7F, 0x80
_UNROLLED = 4


class Dynamics(NamedTuple):
    """What a leaky neuron does in a step, all of it constants."""

    decay: float
    """Share of the potential that the next step receives."""
    threshold: float
    """Firing threshold, and what a soft reset takes away for each spike."""
    hard: bool
    """Whether a spike resets the potential to zero."""
    levels: int | None = None
    """Largest spike of rounded spikes; binary spikes if None."""
    width: float = 1.0
    """Window of a binary spike's surrogate around the threshold."""


class _Step(NamedTuple):
    spikes: Float[Array, "*shape"]
    inside: Bool[Array, "*shape"]


def _fire(membrane: Float[Array, "*shape"], dynamics: Dynamics) -> _Step:
    if dynamics.levels is not None:
        spikes = jnp.floor(jnp.clip(membrane, 0, dynamics.levels) + 0.5)
        return _Step(spikes, (membrane > 0) & (membrane < dynamics.levels))
    above = membrane - dynamics.threshold
    spikes = (above >= 0).astype(membrane.dtype)
    return _Step(spikes, jnp.abs(above) < dynamics.width / 2)


def _carry(
    membrane: Float[Array, "*shape"],
    spikes: Float[Array, "*shape"],
    fired: Bool[Array, "*shape"],
    dynamics: Dynamics,
) -> Float[Array, "*shape"]:
    # Linear in the first two, so that it serves potentials and their tangents alike.
    if dynamics.hard:
        return dynamics.decay * jnp.where(fired, 0, membrane)
    return dynamics.decay * (membrane - dynamics.threshold * spikes)


def _encode(step: _Step) -> UInt8[Array, "*shape"]:
    spikes = jnp.where(jnp.isnan(step.spikes), _NAN, step.spikes).astype(jnp.uint8)
    return jnp.where(step.inside, spikes | _INSIDE, spikes)


def _decode(
    code: UInt8[Array, "*shape"], dtype: jnp.dtype, dynamics: Dynamics
) -> Float[Array, "*shape"]:
    spikes = (code & _SPIKES).astype(dtype)
    if dynamics.levels is None:
        return spikes
    return jnp.where(spikes == _NAN, jnp.nan, spikes)


def _unroll(steps: int) -> int:
    # Few steps fuse into one loop over the neurons without any memory in between.
    # More of them XLA takes apart again, computing every step anew for each later one.
    return steps if steps <= _UNROLLED else 1


def _record(
    currents: Float[Array, " time *shape"], dynamics: Dynamics
) -> tuple[UInt8[Array, " time *shape"], Float[Array, "*shape"]]:
    def advance(membrane, current):
        spikes, _ = _fire(membrane, dynamics)
        return _carry(membrane, spikes, spikes > 0, dynamics)

    def step(membrane, current):
        membrane = advance(membrane, current) + current
        return membrane, _encode(_fire(membrane, dynamics))

    # The membrane is carried as it was before its reset, and reset when it is read:
    # the loop then neither copies what it carries nor stores whole floats. This start
    # is one that a reset of either kind leaves at zero.
    start = jnp.full_like(currents[0], min(dynamics.threshold, 0.0))
    last, codes = jax.lax.scan(step, start, currents, unroll=_unroll(len(currents)))
    return codes, advance(last, None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def run_lif(
    currents: Float[Array, " time *shape"], dynamics: Dynamics
) -> tuple[Float[Array, " time *shape"], Float[Array, "*shape"]]:
    """Spikes of every step, and the potential carried past the last one.

    Differentiable in the currents in both modes. Second derivatives are those of the
    surrogates' own: zero.

    Args:
      currents: Input of each step; at least one.
      dynamics: Constants; `levels` at most `MAX_LEVELS`.
    """
    codes, carried = _record(currents, dynamics)
    return _decode(codes, currents.dtype, dynamics), carried


@run_lif.defjvp
def _run_lif_jvp(dynamics, primals, tangents):
    (currents,), (tangent,) = primals, tangents
    codes, carried = _record(currents, dynamics)
    spikes = _decode(codes, currents.dtype, dynamics)

    # Rematerialised, the step leaves its byte to the reverse mode and not the masks.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carried_dot, inputs):
        code, current_dot = inputs
        membrane_dot = carried_dot + current_dot
        slope_dot = membrane_dot
        if dynamics.levels is None:
            slope_dot = membrane_dot / dynamics.width
        spikes_dot = jnp.where(code >= _INSIDE, slope_dot, 0)
        fired = _decode(code, currents.dtype, dynamics) > 0
        return _carry(membrane_dot, spikes_dot, fired, dynamics), spikes_dot

    carried_dot, spikes_dot = jax.lax.scan(
        step,
        jnp.zeros_like(tangent[0]),
        (codes, tangent),
        unroll=_unroll(len(currents)),
    )
    return (spikes, carried), (spikes_dot, carried_dot)
