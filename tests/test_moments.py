"""Streamed moments: equal to the whole in any order, batch size and number of parts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from layers_of_activations import padded, related

from svcca_jax import (
    accumulate,
    cca,
    cca_from_moments,
    init_moments,
    merge_moments,
    merge_over_axis,
    stream,
    update_moments,
)


def assert_equal_moments(found, layers, rtol=2e-6):
    layers = [layer.astype(np.float64) for layer in layers]
    assert found.datapoints == len(layers[0])
    for i, x in enumerate(layers):
        np.testing.assert_allclose(found.mean(i), x.mean(axis=0), rtol=rtol, atol=1e-6)
        for j, y in enumerate(layers):
            expected = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0))
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                found.comoment(i, j), expected, atol=rtol * scale
            )


@pytest.mark.parametrize("sizes", [[120], [1] * 5 + [115], [50, 70], [119, 1]])
def test_batches_of_any_size(rng, sizes):
    layers = related(rng)
    bounds = np.cumsum([0, *sizes])
    batches = [[layer[a:b] for layer in layers] for a, b in itertools.pairwise(bounds)]
    assert_equal_moments(accumulate(batches), layers)


def test_many_batches_lose_no_digits_to_a_large_offset(rng):
    x = (rng.standard_normal((40_000, 4)) + 300).astype(np.float32)
    moments = accumulate([(batch,) for batch in x.reshape(1000, 40, 4)])
    assert_equal_moments(moments, [x], rtol=3e-7)


def test_padding_and_empty_batches(rng):
    x, y = related(rng)
    mask, wide_x, wide_y = padded(rng, x, y, rows=140)
    update = jax.jit(update_moments)
    moments = init_moments([8, 6])
    for rows in (slice(0, 70), slice(70, 140)):
        batch = tuple(jnp.asarray(a[rows]) for a in (wide_x, wide_y))
        moments = update(moments, batch, jnp.asarray(mask[rows]))
        moments = update(moments, batch, jnp.zeros(70, bool))
    assert_equal_moments(moments, [x, y])


def test_parts_merge_in_any_order(rng):
    layers = related(rng)
    parts = [
        accumulate([[layer[a:b] for layer in layers]])
        for a, b in ((0, 1), (1, 50), (50, 120))
    ]
    empty = init_moments([8, 6])
    merge = jax.jit(merge_moments)
    for order in ((0, 1, 2), (2, 0, 1)):
        merged = functools.reduce(merge, [parts[i] for i in order], empty)
        assert_equal_moments(merge(merged, empty), layers)


def test_devices_merge_their_parts(rng):
    layers = related(rng)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    def gather(x, y):
        own = update_moments(init_moments([8, 6]), [x, y])
        return merge_over_axis(own, "data")

    assert_equal_moments(gather(*layers), layers)


def make_mesh(devices):
    return jax.make_mesh((devices,), ("devices",), devices=jax.devices()[:devices])


@pytest.mark.parametrize("devices", [1, 3, 4])
@pytest.mark.parametrize("sizes", [[120], [1] * 5 + [115], [50, 70], [119, 1]])
def test_devices_share_the_datapoints_of_every_batch(rng, sizes, devices):
    layers = related(rng)
    bounds = np.cumsum([0, *sizes])
    batches = [[layer[a:b] for layer in layers] for a, b in itertools.pairwise(bounds)]
    found = accumulate(batches, mesh=make_mesh(devices))
    assert_equal_moments(found, layers)
    # They go on where moments of one device do.
    merged = merge_moments(found, accumulate(batches[:1]))
    assert merged.datapoints == 120 + sizes[0]


def test_devices_lose_no_digits_to_a_large_offset(rng):
    x = (rng.standard_normal((40_010, 4)) + 300).astype(np.float32)
    before = stream._update_shares._cache_size()
    batches = [(x[start : start + 90],) for start in range(0, 39_960, 90)]
    moments = accumulate([*batches, (x[39_960:],)], mesh=make_mesh(4))
    assert_equal_moments(moments, [x], rtol=3e-7)
    # A program for 90 datapoints, and one for the 50 that are left.
    assert stream._update_shares._cache_size() == before + 2


def test_integer_spikes(rng):
    spikes = rng.integers(0, 5, (100, 5)).astype(np.int8)
    assert_equal_moments(accumulate([(spikes[:40],), (spikes[40:],)]), [spikes])


def test_the_memory_does_not_grow(rng):
    x = rng.standard_normal((64, 8)).astype(np.float32)

    def batches():
        for _ in range(50):
            yield (x,)

    moments = accumulate(batches())
    assert moments.datapoints == 3200
    assert sum(leaf.size for leaf in jax.tree.leaves(moments)) == 1 + 2 * (8 + 64)


def test_cca_of_moments(rng):
    x, y = related(rng)
    moments = accumulate([(x[:50], y[:50]), (x[50:], y[50:])])
    found, expected = cca_from_moments(moments), cca(x, y)
    np.testing.assert_allclose(found.coefficients, expected.coefficients, atol=1e-5)
    np.testing.assert_allclose(cca_from_moments(moments, 0, 0).mean, 1, atol=1e-5)
    empty = cca_from_moments(init_moments([8, 6]))
    assert (empty.mean, empty.num_coefficients) == (0, 0)


def test_errors():
    with pytest.raises(ValueError, match="no batch"):
        accumulate([])
    with pytest.raises(ValueError, match="no batch"):
        accumulate([], mesh=make_mesh(2))
    with pytest.raises(ValueError, match="one axis, got"):
        accumulate([(np.ones((4, 3)),)], mesh=jax.make_mesh((2, 2), ("a", "b")))
    with pytest.raises(ValueError, match=r"widths \[3, 0\]"):
        init_moments([3, 0])
    with pytest.raises(ValueError, match=r"widths \[3\], got \[2\]"):
        accumulate([(np.ones((4, 3)),), (np.ones((4, 2)),)])
    with pytest.raises(ValueError, match="layer 0 of batch 1 holds 1 "):
        accumulate([(np.ones((4, 1)),), (np.full((1, 1), np.nan),)])
    with pytest.raises(ValueError, match="4 datapoints and layer 1 of batch 0 has 5"):
        accumulate([(np.ones((4, 1)), np.ones((5, 1)))])
    with pytest.raises(ValueError, match="no layer 2 in moments of 1 layers"):
        cca_from_moments(init_moments([3]), 0, 2)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export(platform):
    moments = jax.eval_shape(lambda: init_moments([3, 2]))
    batch = [jax.ShapeDtypeStruct((16, n), jnp.float32) for n in (3, 2)]
    exported = jax.export.export(
        jax.jit(lambda m, b: cca_from_moments(update_moments(m, b))),
        platforms=[platform],
    )(moments, batch)
    assert exported.platforms == (platform,)


def test_an_update_converts_and_checks(rng):
    x = rng.standard_normal((40, 3)).astype(np.float32)
    half = jnp.asarray(x, jnp.bfloat16)
    exact = update_moments(init_moments([3]), [half.astype(jnp.float32)])
    found = update_moments(init_moments([3]), [half])
    np.testing.assert_array_equal(found.comoment(0, 0), exact.comoment(0, 0))
    spikes = update_moments(init_moments([3]), [jnp.asarray(x > 0)])
    np.testing.assert_allclose(spikes.mean(0), (x > 0).mean(axis=0), atol=1e-6)
    two = init_moments([3, 2])
    with pytest.raises(ValueError, match="40 datapoints and layer 1 has 39"):
        update_moments(two, [jnp.asarray(x), jnp.asarray(x[:39, :2])])
    with pytest.raises(ValueError, match="0 datapoints"):
        update_moments(two, [jnp.asarray(x[:0]), jnp.asarray(x[:0, :2])])
    with pytest.raises(ValueError, match=r"widths \[3, 2\] and \[3\]"):
        merge_moments(two, init_moments([3]))


def test_more_datapoints_than_can_be_counted_are_no_number(rng):
    moments = accumulate([(rng.standard_normal((40, 3)),)])
    many = moments._replace(datapoints=jnp.asarray(2**31 - 10, jnp.int32))
    assert np.isnan(merge_moments(many, moments).comoment(0, 0)).all()
