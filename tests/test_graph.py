"""Message passing by jraph as a second, independent oracle of the convolution."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.graph import graph_conv, to_graphs_tuple
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.sparse_conv import sparse_conv
from tests.clouds_of_voxels import hard_coords

CASES = list(hard_coords(np.random.default_rng(0)).items())


@pytest.mark.parametrize(("name", "coords"), CASES)
def test_message_passing_is_the_sparse_convolution(rng, name, coords):
    (level,) = build_pyramid(coords, num_levels=1)
    rows = level.coords.shape[0]
    features = jnp.asarray(rng.normal(size=(rows, 5)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(27, 5, 4)), jnp.float32)
    by_graph = graph_conv(to_graphs_tuple(features, level.submanifold), weights)
    directly = sparse_conv(features, weights, level.submanifold, num_out=rows)
    np.testing.assert_allclose(by_graph, directly, atol=2e-5, rtol=1e-5)


def test_edges_are_the_pairs(rng):
    (level,) = build_pyramid(CASES[-1][1], num_levels=1)
    graph = to_graphs_tuple(jnp.zeros((level.coords.shape[0], 1)), level.submanifold)
    real = np.asarray(graph.senders) < level.coords.shape[0]
    assert real.sum() == 9 + 2 * 8  # a line of nine: itself, and two neighbours each
    assert set(np.asarray(graph.edges)[real]) == {12, 13, 14}
