"""The masked BatchNorm against float64, its running statistics, and the unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from e3dsnn_jax import layers as layers_module
from e3dsnn_jax.layers import (
    Compute,
    MaskedBatchNorm,
    SparseConv,
    Unit,
    masked_moments,
    strided_init,
)
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike import Neuron
from tests import oracles
from tests.clouds_of_voxels import random_coords


def run_norm(values, real, *, train=True, norm=None):
    norm = norm or MaskedBatchNorm()
    x, mask = jnp.asarray(values, jnp.float32), jnp.asarray(real)
    variables = norm.init(jax.random.key(0), x, mask, train=False)
    return norm.apply(variables, x, mask, train=train, mutable=["batch_stats"])


@pytest.mark.parametrize("time", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_norm_over_real_voxels_and_time_only(rng, time, offset):
    values = rng.normal(size=(40, time, 5)) * 3 + offset
    real = np.arange(40) < 29
    values[~real] = 1e9
    outputs, updated = run_norm(values, real)
    expected, mean, var = oracles.batch_norm(values.astype(np.float32), real)
    np.testing.assert_allclose(outputs, expected, atol=2e-4 if offset else 1e-5)
    np.testing.assert_array_equal(np.asarray(outputs)[~real], 0)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.01 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * var, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_of_a_million_voxels_keep_their_digits(rng, offset):
    """float32 sums of a million terms, against float64; a naive sum keeps 3 digits."""
    values = (rng.normal(size=(1_000_000, 1, 4)) * 2 + offset).astype(np.float32)
    real = np.arange(len(values)) < 999_983
    moments = jax.jit(lambda x, mask: masked_moments(x, mask, None))
    count, mean, squares = moments(jnp.asarray(values), jnp.asarray(real))
    exact = values[real, 0].astype(np.float64)
    assert int(count) == 999_983
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(squares / count, exact.var(0), rtol=1e-6)


def test_running_variance_biased_on_request(rng):
    values, real = rng.normal(size=(4, 1, 2)), np.ones(4, bool)
    _, updated = run_norm(values, real, norm=MaskedBatchNorm(unbiased=False))
    biased = values.astype(np.float32).var((0, 1))
    np.testing.assert_allclose(
        updated["batch_stats"]["var"], 0.99 + 0.01 * biased, rtol=1e-6
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_no_voxel_or_one_voxel_stays_finite(rows):
    values, real = np.full((6, 1, 3), 7.0), np.arange(6) < rows
    outputs, updated = run_norm(values, real)
    assert np.isfinite(np.asarray(outputs)).all()
    stats = updated["batch_stats"]
    assert np.isfinite(np.asarray(stats["var"])).all()
    if rows == 0:
        np.testing.assert_array_equal(stats["mean"], 0)
        np.testing.assert_array_equal(stats["var"], 1)


def test_evaluation_uses_running_statistics(rng):
    values, real = rng.normal(size=(10, 1, 3)), np.arange(10) < 8
    outputs, updated = run_norm(values, real, train=False)
    expected = np.where(real[:, None, None], values / np.sqrt(1.001), 0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], 0)


def test_statistics_are_global_over_devices_of_unequal_voxels(rng):
    values = rng.normal(size=(4, 20, 2, 3)) + 100
    real = np.arange(20)[None] < np.array([20, 3, 0, 11])[:, None]
    norm = MaskedBatchNorm(batch_axis="devices")
    whole, whole_stats = run_norm(values.reshape(80, 2, 3), real.reshape(80))
    mesh = Mesh(np.array(jax.devices()[:4]), ("devices",))
    variables = MaskedBatchNorm().init(
        jax.random.key(0), jnp.zeros((20, 2, 3)), jnp.ones(20, bool), train=False
    )

    def one_device(x, mask):
        outputs, updated = norm.apply(
            variables, x[0], mask[0], train=True, mutable=["batch_stats"]
        )
        return outputs[None], updated

    split, everywhere = PartitionSpec("devices"), PartitionSpec()
    run = jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(split, split),
        out_specs=(split, everywhere),
        check_vma=False,
    )
    parts, parts_stats = jax.jit(run)(jnp.asarray(values, jnp.float32), real)
    np.testing.assert_allclose(parts.reshape(80, 2, 3), whole, atol=2e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        parts_stats,
        whole_stats,
    )


def test_unit_returns_membrane_and_spikes(rng):
    (level,) = build_pyramid(random_coords(rng), num_levels=1)
    rows = level.coords.shape[0]
    mask = jnp.asarray(level.coords[:, 0] >= 0)
    membrane = jnp.asarray(rng.normal(size=(rows, 2, 4)) * 2, jnp.float32)
    unit = Unit(6, Neuron(time_steps=2))
    variables = unit.init(
        jax.random.key(0), membrane, level.submanifold, mask, train=False
    )
    outputs, activations = unit.apply(
        variables, membrane, level.submanifold, mask, train=False
    )
    assert outputs.shape == (rows, 2, 6)
    np.testing.assert_array_equal(activations["spikes"], Neuron(time_steps=2)(membrane))
    assert variables["params"]["conv"]["kernel"].shape == (27, 4, 6)


def conv_case(rng, *, spikes=True):
    coords = random_coords(rng, density=0.5)
    (level,) = build_pyramid(coords, num_levels=1)
    rows = len(level.coords)
    inputs = (
        rng.integers(0, 5, (rows, 1, 16)) if spikes else rng.normal(size=(rows, 1, 16))
    )
    return jnp.asarray(inputs, jnp.float32), level, rows


def convolve(inputs, level, rows, params, **options):
    conv = SparseConv(8, **options)

    def apply(params, x):
        return conv.apply(params, x, level.submanifold, num_out=rows)

    outputs, pull_back = jax.vjp(apply, params, inputs)
    d_params, d_inputs = pull_back(jnp.ones_like(outputs))
    return outputs, d_params["params"]["kernel"], d_inputs


def test_weights_in_two_parts_lose_little(rng):
    inputs, level, rows = conv_case(rng)
    params = {
        "params": {"kernel": jnp.asarray(rng.normal(size=(27, 16, 8)), jnp.float32)}
    }
    options = {"integer_inputs": True}
    exact = convolve(inputs, level, rows, params, **options)
    errors = {}
    for policy in ("bfloat16", "bfloat16_split"):
        found = convolve(
            inputs, level, rows, params, compute=Compute(policy), **options
        )
        errors[policy] = [
            float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
            for a, b in zip(found, exact, strict=True)
        ]
    assert errors["bfloat16"][0] > 1e-3
    assert errors["bfloat16_split"][0] < 2e-5
    # Gradients carry bfloat16 cotangents: 2**-9 of each, here of ones, which are exact.
    assert max(errors["bfloat16_split"]) < 1e-2


def test_real_inputs_stay_float32_under_the_split_policy(rng):
    inputs, level, rows = conv_case(rng, spikes=False)
    params = {
        "params": {"kernel": jnp.asarray(rng.normal(size=(27, 16, 8)), jnp.float32)}
    }
    exact = convolve(inputs, level, rows, params)
    found = convolve(inputs, level, rows, params, compute=Compute("bfloat16_split"))
    jax.tree.map(np.testing.assert_array_equal, found, exact)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_order_of_sums_reaches_the_convolution(rng, monkeypatch, wanted):
    asked = []

    def record(inputs, kernel, *, num_out, deterministic, **_):
        asked.append(deterministic)
        return jnp.zeros((num_out, *inputs.shape[1:-1], kernel.shape[-1]))

    monkeypatch.setattr(layers_module, "sparse_conv", record)
    inputs, level, rows = conv_case(rng)
    params = {"params": {"kernel": jnp.zeros((27, 16, 8))}}
    compute = Compute(deterministic=wanted)
    convolve(inputs, level, rows, params, compute=compute)
    assert asked == [wanted]


def test_strided_init_has_the_bound_of_torch():
    kernel = strided_init(jax.random.key(0), (8, 32, 64))
    assert np.abs(kernel).max() == pytest.approx(1 / 16, rel=1e-3)
    assert np.std(kernel) == pytest.approx(1 / 16 / np.sqrt(3), rel=0.02)
