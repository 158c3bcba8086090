"""Neurons against Python loops, at the ties, and in both modes of differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.spike import (
    Neuron,
    binary_spike,
    hard_reset,
    integer_lif,
    integer_spike,
    lif,
    soft_reset,
    unroll_spikes,
)
from tests import oracles

TIES = [-1.0, -0.5, 0.0, 0.4999, 0.5, 1.4999, 1.5, 2.5, 3.5, 3.9999, 4.0, 9.0]
AT_TIES = [0, 0, 0, 0, 1, 1, 2, 3, 4, 4, 4, 4]
SLOPES = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_integer_spike_rounds_half_up_at_every_tie():
    np.testing.assert_array_equal(integer_spike(jnp.array(TIES)), AT_TIES)


def test_integer_spike_slope_is_one_strictly_inside_in_both_modes():
    membrane = jnp.array(TIES)
    reverse = jax.grad(lambda u: integer_spike(u).sum())(membrane)
    _, forward = jax.jvp(integer_spike, (membrane,), (jnp.ones_like(membrane),))
    np.testing.assert_array_equal(reverse, SLOPES)
    np.testing.assert_array_equal(forward, SLOPES)


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
def test_integer_spike_levels(levels):
    membrane = jnp.linspace(-2, levels + 2, 41)
    spikes = np.asarray(integer_spike(membrane, levels))
    expected = np.floor(np.clip(np.asarray(membrane), 0, levels) + 0.5)
    np.testing.assert_array_equal(spikes, expected)
    assert spikes.max() == levels


def test_integer_spike_keeps_nan_and_dtype():
    membrane = jnp.array([jnp.nan, 1.0], jnp.bfloat16)
    spikes = integer_spike(membrane)
    assert spikes.dtype == jnp.bfloat16
    assert np.isnan(np.asarray(spikes, np.float32)[0])


def test_spikes_are_exact_in_bfloat16():
    spikes = jnp.arange(128, dtype=jnp.float32)
    back = spikes.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(back, spikes)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_lif_is_the_python_loop(rng, soft, decay, steps):
    # Multiples of 1/8 are exact in float32, so that ties at the threshold are real.
    currents = rng.integers(-8, 24, (steps, 3, 5)) / 8
    reset = soft_reset if soft else hard_reset
    trace = lif(jnp.asarray(currents, jnp.float32), decay=decay, reset=reset)
    expected = oracles.python_lif(currents, decay=decay, threshold=1.0, soft=soft)
    np.testing.assert_array_equal(trace.spikes, expected)


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_integer_lif_is_the_python_loop(rng, levels, steps):
    currents = rng.integers(-16, 40, (steps, 4, 6)) / 8
    trace = integer_lif(jnp.asarray(currents, jnp.float32), levels=levels)
    expected = oracles.python_integer_lif(currents, levels=levels, decay=0.5)
    np.testing.assert_array_equal(trace.spikes, expected)


def test_one_step_of_integer_lif_is_the_integer_spike(rng):
    currents = jnp.asarray(rng.normal(size=(1, 50)) * 3, jnp.float32)
    np.testing.assert_array_equal(
        integer_lif(currents).spikes[0], integer_spike(currents[0])
    )


def test_gradient_flows_through_the_reset_over_time():
    # u1 = x1 = 0.7 fires 1; u2 = x2 + (x1 - s1) / 2. With slope 1 everywhere,
    # d(s2)/d(x1) = (1 - 1) / 2 = 0, and for a silent first step (x1 = 0.2, still
    # inside the window) the spike's surrogate cancels it just the same.
    def second(x1):
        return integer_lif(jnp.stack([x1, jnp.float32(1.0)])).spikes[1]

    assert jax.grad(second)(jnp.float32(0.7)) == 0
    # Below zero the surrogate is 0 and the leak alone carries the gradient: 1/2.
    assert jax.grad(second)(jnp.float32(-0.6)) == 0.5


def test_binary_surrogate_is_a_window():
    spike = binary_spike(width=2.0)
    inputs = jnp.array([-1.5, -0.5, 0.0, 0.5, 1.5])
    np.testing.assert_array_equal(spike(inputs), [0, 0, 1, 1, 1])
    slope = jax.grad(lambda u: spike(u).sum())(inputs)
    np.testing.assert_array_equal(slope, [0, 0.5, 0.5, 0.5, 0])


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_unrolled_spikes_are_binary_and_sum_back(levels):
    spikes = jnp.arange(levels + 1, dtype=jnp.float32)
    slots = unroll_spikes(spikes, levels=levels)
    assert set(np.unique(slots)) <= {0.0, 1.0}
    np.testing.assert_array_equal(slots.sum(0), spikes)


def test_a_linear_layer_cannot_tell_unrolled_from_integer_spikes(rng):
    spikes = jnp.asarray(rng.integers(0, 5, (20, 8)), jnp.float32)
    weights = jnp.asarray(rng.integers(-8, 8, (8, 3)) / 8, jnp.float32)
    slots = unroll_spikes(spikes, levels=4)
    np.testing.assert_array_equal((slots @ weights).sum(0), spikes @ weights)


def test_network_neuron_with_and_without_time(rng):
    membrane = jnp.asarray(rng.normal(size=(6, 3, 2)) * 2, jnp.float32)
    spikes = Neuron(time_steps=3)(membrane)
    expected = integer_lif(jnp.moveaxis(membrane, 1, 0)).spikes
    np.testing.assert_array_equal(spikes, jnp.moveaxis(expected, 0, 1))
    np.testing.assert_array_equal(
        Neuron()(membrane[:, :1]), integer_spike(membrane[:, :1])
    )
    np.testing.assert_array_equal(Neuron(relu=True)(membrane), jax.nn.relu(membrane))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lif(jnp.zeros((2, 1)), decay=1.5), r"\[0, 1\], got decay=1.5"),
        (lambda: lif(jnp.zeros((0, 1))), "at least one time step"),
        (lambda: binary_spike(0.0), "width > 0, got width=0.0"),
        (lambda: Neuron(levels=0), r"1..127, got levels=0"),
        (lambda: Neuron(levels=200), r"1..127, got levels=200"),
        (lambda: Neuron(time_steps=0), "time_steps must be >= 1"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
