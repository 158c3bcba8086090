"""Layers on binary steps are the integer layers: by pairs, in float32 and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.binary_steps import add_binary_steps, binary_conv, wide_conv
from e3dsnn_jax.kernel_map import invert
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.sparse_conv import sparse_conv
from tests.clouds_of_voxels import random_coords


def largest(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()


def convolve_by_pairs(inputs, kernel, kernel_map, num_out):
    """In float64, a block of pairs after the other; the last row is padding."""
    expected = np.zeros((num_out + 1, *inputs.shape[1:-1], kernel.shape[-1]))
    padded = np.concatenate([inputs, np.zeros((1, *inputs.shape[1:]))])
    blocks = kernel_map.offset, kernel_map.senders, kernel_map.receivers
    for offset, senders, receivers in zip(*map(np.asarray, blocks), strict=True):
        messages = padded[senders] @ np.asarray(kernel[int(offset)], np.float64)
        np.add.at(expected, receivers, messages)
    return expected[:-1]


@pytest.mark.parametrize(
    ("kind", "levels", "time"),
    [
        ("submanifold", 4, 1),
        ("submanifold", 1, 3),
        ("submanifold", 3, 2),
        ("strided", 3, 2),
        ("inverse", 3, 2),
    ],
)
def test_a_binary_convolution_is_the_integer_one(rng, kind, levels, time):
    fine, _ = build_pyramid(random_coords(rng), num_levels=2)
    kernel_map = {"submanifold": fine.submanifold, "strided": fine.down}.get(
        kind, invert(fine.down)
    )
    rows_in, rows_out = (int(rows) for rows in kernel_map.rows)
    offsets = 27 if kind == "submanifold" else 8
    spikes = jnp.asarray(rng.integers(0, levels + 1, (rows_in, time, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((offsets, 3, 4)), jnp.float32)
    binary = binary_conv(spikes, kernel, kernel_map, num_out=rows_out, levels=levels)
    whole = sparse_conv(spikes, kernel, kernel_map, num_out=rows_out)
    assert largest(binary, whole) < 1e-6
    expected = convolve_by_pairs(spikes, kernel, kernel_map, rows_out)
    assert largest(binary, expected) < 1e-6


@pytest.mark.parametrize("inverse", [False, True])
def test_a_wide_convolution_adds_in_float64(rng, inverse):
    fine, _ = build_pyramid(random_coords(rng), num_levels=2)
    kernel_map = invert(fine.down) if inverse else fine.down
    rows_in, rows_out = (int(rows) for rows in kernel_map.rows)
    inputs, kernel = rng.normal(size=(rows_in, 3)), rng.normal(size=(8, 3, 4))
    expected = convolve_by_pairs(inputs, kernel, kernel_map, rows_out)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        inputs, kernel = jnp.asarray(inputs), jnp.asarray(kernel)
        wide = wide_conv(inputs, kernel, kernel_map, num_out=rows_out)
        assert wide.dtype == np.float64
        np.testing.assert_allclose(wide, expected, atol=1e-13)
        cut = kernel_map._replace(blocks_needed=kernel_map.blocks_needed + 1000)
        assert np.isnan(wide_conv(inputs, kernel, cut, num_out=rows_out)).all()


def test_a_layer_is_given_zeros_and_ones_alone_and_all_of_them(rng):
    spikes = jnp.asarray(rng.integers(0, 4, (5, 3, 2)), jnp.float32)
    fed = []

    def step(rows):
        jax.debug.callback(lambda values: fed.append(np.asarray(values)), rows)
        return rows

    total = add_binary_steps(spikes, step, levels=3)
    jax.effects_barrier()
    np.testing.assert_array_equal(total, spikes)
    assert len(fed) == 9
    assert set(np.unique(fed)) == {0, 1}
    by_time = np.sum(fed, axis=0)
    np.testing.assert_array_equal(by_time, np.sum(spikes, axis=1))


def test_a_binary_linear_layer_is_the_integer_one(rng):
    spikes = jnp.asarray(rng.integers(0, 5, (9, 2, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    step = lambda rows: jnp.matmul(rows, kernel, precision="highest")
    binary = add_binary_steps(spikes, step, levels=4)
    assert largest(binary, np.asarray(spikes, "f8") @ np.asarray(kernel)) < 1e-6


@pytest.mark.parametrize("wrong", [np.nan, 0.5, -1, 5])
def test_what_is_no_spike_makes_all_of_the_layer_nan(wrong):
    spikes = jnp.zeros((4, 1, 2)).at[2, 0, 1].set(wrong)
    step = lambda rows: jnp.matmul(rows, jnp.ones((2, 3)))
    assert np.isnan(add_binary_steps(spikes, step, levels=4)).all()
