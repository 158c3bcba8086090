"""Pooling over maps and over clouds against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.kernel_map import make_kernel
from e3dsnn_jax.kernel_pairs import strided_pairs
from e3dsnn_jax.pooling import cloud_mean, sparse_max_pool, sparse_mean_pool
from e3dsnn_jax.pyramid import build_pyramid
from tests import oracles
from tests.clouds_of_voxels import hard_coords, random_coords

CASES = list(hard_coords(np.random.default_rng(0)).items())


@pytest.mark.parametrize(
    "kernel", [make_kernel(2, stride=2), make_kernel(3, stride=2, padding=1)]
)
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_pooling_over_a_map(rng, name, coords, kernel):
    fine, coarse = build_pyramid(coords, num_levels=2, downs=[kernel])
    assert fine.down is not None
    inputs = rng.normal(size=(fine.coords.shape[0], 3)).astype(np.float32) - 5
    num_out = coarse.coords.shape[0]
    cells, triples = oracles.strided_pairs(coords, kernel, None)
    members = [[] for _ in cells]
    for _, receiver, sender in triples:
        members[receiver].append(inputs[sender])
    largest = sparse_max_pool(jnp.asarray(inputs), fine.down, num_out=num_out)
    mean = sparse_mean_pool(jnp.asarray(inputs), fine.down, num_out=num_out)
    for row, group in enumerate(members):
        np.testing.assert_array_equal(largest[row], np.max(group, 0))
        np.testing.assert_allclose(mean[row], np.mean(group, 0), rtol=1e-5)
    np.testing.assert_array_equal(largest[len(cells) :], 0)
    np.testing.assert_array_equal(mean[len(cells) :], 0)


def test_a_map_for_other_rows_is_refused(rng):
    fine, coarse = build_pyramid(random_coords(rng), num_levels=2)
    assert fine.down is not None
    rows, num_out = (level.coords.shape[0] for level in (fine, coarse))
    for pool in (sparse_max_pool, sparse_mean_pool):
        with pytest.raises(ValueError, match=f"joins {rows} input rows"):
            pool(jnp.ones((rows - 1, 2)), fine.down, num_out=num_out)


def test_a_truncated_map_is_never_pooled(rng):
    coords = random_coords(rng)
    fine, coarse = build_pyramid(coords, num_levels=2)
    assert fine.down is not None
    cut = fine.down._replace(blocks_needed=np.asarray(10**6, np.int32))
    inputs = jnp.ones((fine.coords.shape[0], 2))
    reached = len(strided_pairs(coords, make_kernel(2, stride=2))[0])
    for pool in (sparse_max_pool, sparse_mean_pool):
        outputs = pool(inputs, cut, num_out=coarse.coords.shape[0])
        assert np.isnan(outputs[:reached]).all()


def test_cloud_mean_leaves_padding_out_and_empty_clouds_zero(rng):
    coords = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], [-1] * 4], np.int32)
    inputs = jnp.array([[1.0], [3.0], [5.0], [1e6]])
    pooled = cloud_mean(inputs, jnp.asarray(coords), num_clouds=4)
    np.testing.assert_array_equal(pooled, [[2.0], [0.0], [5.0], [0.0]])
