"""The scan with its own derivative against plain autodiff of a scan over time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.lif_scan import MAX_LEVELS
from e3dsnn_jax.spike import (
    binary_spike,
    hard_reset,
    integer_lif,
    integer_spike,
    lif,
    soft_reset,
)

# Exact in binary, so that thresholds, ties at one half and the surrogates' edges are
# met exactly: 0.5, 1, 1.5, 2.5, 4 and so on.
EIGHTHS = (-16, 41)


def plain(neuron, currents, *, decay, reset):
    """The same neuron, written as one differentiates it without further thought."""
    threshold = 1.0
    spike = binary_spike() if neuron is lif else integer_spike

    def step(carried, current):
        membrane = carried + current
        above = membrane - threshold if neuron is lif else membrane
        spikes = spike(above)
        return decay * reset(membrane, spikes, threshold), spikes

    carried, spikes = jax.lax.scan(step, jnp.zeros_like(currents[0]), currents)
    return spikes, carried


def ours(neuron, currents, *, decay, reset):
    trace = neuron(currents, decay=decay, reset=reset)
    return trace.spikes, trace.membrane


@functools.partial(jax.jit, static_argnums=0)
def derivatives(run, currents, dots, cotangents):
    """Values, forward-mode and reverse-mode derivatives of both results."""
    values, forward = jax.jvp(run, (currents,), (dots,))
    _, pull = jax.vjp(run, currents)
    return values, forward, pull(cotangents)


def make_inputs(rng, steps, dtype, shape=(120,)):
    currents = rng.integers(*EIGHTHS, (steps, *shape)) / 8
    dots, spikes_bar = rng.integers(-8, 9, (2, steps, *shape)) / 8
    carried_bar = rng.integers(-8, 9, shape) / 8
    cast = functools.partial(jnp.asarray, dtype=dtype)
    return cast(currents), cast(dots), (cast(spikes_bar), cast(carried_bar))


@pytest.mark.parametrize("neuron", [lif, integer_lif])
@pytest.mark.parametrize("reset", [soft_reset, hard_reset])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_equals_plain_autodiff_bit_for_bit(rng, neuron, reset, steps):
    inputs = make_inputs(rng, steps, jnp.float32)

    @jax.jit
    def expect(decay, *inputs):
        run = functools.partial(plain, neuron, decay=decay, reset=reset)
        return derivatives(run, *inputs)

    for decay in (0.0, 0.5, 1.0):
        run = functools.partial(ours, neuron, decay=decay, reset=reset)
        results, expected = derivatives(run, *inputs), expect(decay, *inputs)
        jax.tree.map(np.testing.assert_array_equal, results, expected)


@pytest.mark.parametrize("neuron", [lif, integer_lif])
@pytest.mark.parametrize("reset", [soft_reset, hard_reset])
def test_equals_plain_autodiff_in_float64(rng, neuron, reset):
    with jax.enable_x64(True):
        currents, dots, bars = (
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
            for tree in make_inputs(rng, 5, np.float64)
        )
        currents = currents + jnp.asarray(rng.normal(size=currents.shape))
        results, expected = (
            derivatives(
                functools.partial(run, neuron, decay=0.9, reset=reset),
                currents,
                dots,
                bars,
            )
            for run in (ours, plain)
        )
        assert results[0][0].dtype == jnp.float64
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
            results,
            expected,
        )


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.5])
@pytest.mark.parametrize("reset", [soft_reset, hard_reset])
def test_any_threshold_and_width_with_ties(rng, threshold, reset):
    inputs = make_inputs(rng, 6, jnp.float32)
    resets = (reset, lambda *arguments: reset(*arguments))
    results, expected = (
        derivatives(
            lambda x, r=r: tuple(
                lif(x, threshold=threshold, spike=binary_spike(2.0), reset=r)
            ),
            *inputs,
        )
        for r in resets
    )
    jax.tree.map(np.testing.assert_array_equal, results, expected)


def test_unknown_functions_keep_their_own_derivative(rng):
    currents = make_inputs(rng, 3, jnp.float32)[0]

    def smooth(membrane):
        return jax.nn.sigmoid(membrane)

    def total(x, decay):
        reset = lambda u, s, threshold: u - threshold * s * s
        return lif(x, decay=decay, spike=smooth, reset=reset).spikes.sum()

    total = jax.jit(total, static_argnums=1)
    slope = jax.grad(total)(currents, 0.5)
    bumped = currents.at[0, 0].add(0.01)
    difference = (total(bumped, 0.5) - total(currents, 0.5)) / 0.01
    np.testing.assert_allclose(slope[0, 0], difference, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("levels", [1, MAX_LEVELS, MAX_LEVELS + 1])
def test_every_number_of_levels(levels):
    edges = [-1, 0, 0.25, 0.5, 1, 2.5, levels - 0.5, levels - 0.25, levels, levels + 1]
    currents = jnp.asarray([edges, edges[::-1]], jnp.float32)

    @jax.jit
    def both(x):
        trace, pull = jax.vjp(lambda x: integer_lif(x, levels=levels, decay=0.0), x)
        return trace.spikes, *pull(jax.tree.map(jnp.ones_like, trace))

    spikes, slope = both(currents)
    np.testing.assert_array_equal(spikes, integer_spike(currents, levels))
    inside = (np.asarray(currents) > 0) & (np.asarray(currents) < levels)
    np.testing.assert_array_equal(slope, inside)


@pytest.mark.parametrize("reset", [soft_reset, hard_reset])
def test_nan_is_the_plain_scans(reset):
    currents = jnp.asarray([[jnp.nan, 1.0], [2.0, jnp.nan], [1.0, 1.0]], jnp.float32)
    for neuron in (lif, integer_lif):
        results, expected = (
            jax.jit(functools.partial(run, neuron, decay=0.5, reset=reset))(currents)
            for run in (ours, plain)
        )
        jax.tree.map(np.testing.assert_array_equal, results, expected)


def test_under_vmap_and_second_derivatives(rng):
    currents, dots, _ = make_inputs(rng, 3, jnp.bfloat16, shape=(4,))

    def total(x):
        return (integer_lif(x).spikes * x).sum()

    def plain_total(x):
        spikes, _ = plain(integer_lif, x, decay=0.5, reset=soft_reset)
        return (spikes * x).sum()

    batched = jax.jit(jax.vmap(jax.grad(total), in_axes=1, out_axes=1))(currents)
    np.testing.assert_array_equal(batched, jax.jit(jax.grad(total))(currents))
    assert batched.dtype == jnp.bfloat16
    # The surrogate's own derivative is zero; the product rule's part is left.
    second, expected = (
        jax.jit(lambda x, dot, f=f: jax.jvp(jax.grad(f), (x,), (dot,))[1])(
            currents, dots
        )
        for f in (total, plain_total)
    )
    np.testing.assert_array_equal(second, expected)


@pytest.mark.parametrize("neuron", [lif, integer_lif])
@pytest.mark.parametrize("reset", [soft_reset, hard_reset])
@pytest.mark.parametrize("steps", [4, 16])
def test_reverse_mode_keeps_one_byte_a_step(neuron, reset, steps):
    currents = jnp.zeros((steps, 64), jnp.float32)

    def pull_back(x):
        return jax.vjp(lambda x: neuron(x, reset=reset).spikes, x)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull_back, currents))
    large = [leaf for leaf in kept if leaf.size >= currents.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(currents.shape, jnp.uint8)]
