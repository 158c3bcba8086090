"""Layers from events: against dense convolutions, loops, and `sparse_conv`.

Against float64 oracles the tolerance is 1e-12: a few hundred weights of size 1 are
added in another order. `sparse_conv` adds in float32, so there it is the bound of
rounding, (n + 1) 2**-24 times the sum of the n absolute terms of each output, with n
from the counter itself: nothing is assumed of the weights.
"""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.event_executor import (
    inverse_events,
    linear_events,
    strided_events,
    submanifold_events,
)
from e3dsnn_jax.events import to_events
from e3dsnn_jax.kernel_map import block_size, blocks_needed, invert, make_kernel
from e3dsnn_jax.kernel_map import pack_pairs as pack
from e3dsnn_jax.kernel_pairs import strided_pairs, submanifold_pairs
from e3dsnn_jax.sparse_conv import sparse_conv
from tests import oracles
from tests.clouds_of_voxels import hard_coords, random_coords

CASES = list(hard_coords(np.random.default_rng(0)))
DOWN = make_kernel(2, stride=2)
DETECTOR = make_kernel(3, stride=2, padding=1)
UNIT = 2.0**-24


def make_layer(rng, voxels, *, time=2, levels=3, c_in=3, c_out=4, offsets=27):
    spikes = rng.integers(0, levels + 1, (voxels, time, c_in))
    spikes *= rng.random(spikes.shape) < 0.5
    kernel = rng.standard_normal((offsets, c_in, c_out)).astype(np.float32)
    return spikes, to_events(spikes, levels=levels), kernel


def additions_by_loops(spikes, kernel, pairs, num_out):
    """One addition at a time: a pair, a step, a slot, a channel in, a channel out."""
    _, time, c_in = spikes.shape
    counted = np.zeros((num_out, time, kernel.shape[2]), int)
    for _, receiver, sender in pairs:
        for t in range(time):
            for channel in range(c_in):
                for _ in range(int(spikes[sender, t, channel])):
                    for out in range(kernel.shape[2]):
                        counted[receiver, t, out] += 1
    return counted


def check_against_dense(result, spikes, coords, kernel, geometry, extent, grid_of):
    for t in range(spikes.shape[1]):
        grid = grid_of(spikes[:, t])
        dense = oracles.dense_conv(grid, kernel.astype(np.float64), geometry)
        expected = dense[tuple(result.coords.T)]
        np.testing.assert_allclose(result.currents[:, t], expected, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_submanifold(rng, name):
    coords = hard_coords(rng)[name]
    spikes, events, kernel = make_layer(rng, len(coords))
    geometry = make_kernel(3)
    result = submanifold_events(events, coords, kernel, geometry)
    np.testing.assert_array_equal(result.coords, coords)
    extent = tuple(coords[:, 1:].max(0) + 1) if len(coords) else (1, 1, 1)
    check_against_dense(
        result,
        spikes,
        coords,
        kernel,
        geometry._replace(padding=(1, 1, 1)),
        extent,
        lambda rows: oracles.dense_grid(coords, rows, 2, extent),
    )
    pairs = oracles.submanifold_pairs(coords, geometry)
    counted = additions_by_loops(spikes, kernel, pairs, len(coords))
    np.testing.assert_array_equal(result.additions, counted)
    assert result.synaptic_operations == counted.sum()


@pytest.mark.parametrize("geometry", [DOWN, DETECTOR], ids=["k2s2", "k3s2p1"])
@pytest.mark.parametrize("name", CASES)
def test_strided_with_odd_extents_and_its_inverse(rng, name, geometry):
    coords = hard_coords(rng)[name]
    extent = (7, 7, 9)  # odd: with size 2 the last slab is dropped
    offsets = geometry.num_offsets
    spikes, events, kernel = make_layer(rng, len(coords), offsets=offsets)
    result = strided_events(events, coords, kernel, geometry, extent=extent)
    outputs, pairs = oracles.strided_pairs(coords, geometry, extent)
    assert [tuple(cell) for cell in result.coords.tolist()] == outputs
    check_against_dense(
        result,
        spikes,
        coords,
        kernel,
        geometry,
        extent,
        lambda rows: oracles.dense_grid(coords, rows, 2, extent),
    )
    counted = additions_by_loops(spikes, kernel, pairs, len(outputs))
    np.testing.assert_array_equal(result.additions, counted)
    # Back again, on the same pairs: by loops over them.
    spikes, events, kernel = make_layer(rng, len(outputs), offsets=offsets)
    back = inverse_events(events, result.coords, coords, kernel, geometry)
    expected = np.zeros((len(coords), 2, 4))
    for offset, coarse, fine in pairs:
        expected[fine] += spikes[coarse] @ kernel[offset].astype(np.float64)
    np.testing.assert_allclose(back.currents, expected, atol=1e-12)
    swapped = [(offset, fine, coarse) for offset, coarse, fine in pairs]
    counted = additions_by_loops(spikes, kernel, swapped, len(coords))
    np.testing.assert_array_equal(back.additions, counted)


def test_a_strided_layer_without_extent_drops_nothing(rng):
    coords = random_coords(rng)
    _, events, kernel = make_layer(rng, len(coords), offsets=8)
    result = strided_events(events, coords, kernel, DOWN)
    assert result.synaptic_operations == 4 * len(events.time)


def test_linear(rng):
    coords = random_coords(rng)
    spikes, events, kernel = make_layer(rng, len(coords), offsets=1)
    result = linear_events(events, coords, kernel[0])
    np.testing.assert_allclose(result.currents, spikes @ kernel[0].astype("f8"))
    assert result.synaptic_operations == 4 * len(events.time)


def map_of(pairs, num_in, num_out):
    size = block_size(len(pairs.senders), len(pairs.counts))
    capacity = max(blocks_needed(pairs, pairs_per_block=size), 1)
    return pack(
        pairs,
        num_in=num_in,
        num_out=num_out,
        pairs_per_block=size,
        blocks_capacity=capacity,
    )


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
@pytest.mark.parametrize("name", CASES)
def test_equal_to_sparse_conv_within_rounding(rng, name, kind):
    coords = hard_coords(rng)[name]
    geometry = make_kernel(3) if kind == "submanifold" else DOWN
    extent = (7, 7, 9)
    if kind == "submanifold":
        coords_out, pairs = coords, submanifold_pairs(coords, geometry)
    else:
        coords_out, pairs = strided_pairs(coords, geometry, extent=extent)
    kernel_map = map_of(pairs, len(coords), len(coords_out))
    if kind == "inverse":
        coords, coords_out, kernel_map = coords_out, coords, invert(kernel_map)
    spikes, events, kernel = make_layer(
        rng, len(coords), c_in=20, c_out=8, offsets=geometry.num_offsets
    )

    def run(weights):
        if kind == "submanifold":
            return submanifold_events(events, coords, weights, geometry)
        if kind == "strided":
            return strided_events(events, coords, weights, geometry, extent=extent)
        return inverse_events(events, coords, coords_out, weights, geometry)

    ours = sparse_conv(
        jnp.asarray(spikes, jnp.float32),
        jnp.asarray(kernel),
        kernel_map,
        num_out=len(coords_out),
        integer_inputs=True,
    )
    result, sizes = run(kernel), run(np.abs(kernel))
    bound = (result.additions + 1) * UNIT * sizes.currents
    assert (np.abs(np.asarray(ours) - result.currents) <= bound).all()
    if len(coords) > 1:
        assert result.synaptic_operations > 0


def test_what_does_not_fit_is_named(rng):
    coords = random_coords(rng)
    _, events, kernel = make_layer(rng, len(coords))
    geometry = make_kernel(3)
    for arguments, message in (
        ((events, coords[:-1], kernel, geometry), r"\d+ voxels have coordinates but"),
        ((events, coords, kernel[:, :2], geometry), "3 channels but the kernel takes"),
        ((events, coords, kernel[:8], geometry), "8 offsets but its geometry 27"),
        ((events._replace(num_voxels=1), coords, kernel, geometry), "ends at 0"),
    ):
        with pytest.raises(ValueError, match=message):
            submanifold_events(*arguments)
    with pytest.raises(ValueError, match="needs odd sizes"):
        submanifold_events(events, coords, kernel[:8], DOWN)
    with pytest.raises(ValueError, match=r"\[offsets, c_in, c_out\], got \(3, 4\)"):
        inspect.unwrap(submanifold_events)(events, coords, kernel[0], geometry)


def wrong_coords(coords):
    twice, padded = coords.copy(), coords.copy()
    twice[3], padded[-2:] = twice[1], -1
    return {
        "axes": (coords[:, :3], "2 axes beside the batch index but the geometry has 3"),
        "shape": (coords[:, 0], r"shape \[voxels, 1 \+ axes\], got int32\[\d+\]"),
        "duplicates": (twice, f"{len(coords)} rows but {len(coords) - 1} distinct"),
        "all one cell": (coords * 0, "1 distinct cells: merge"),
        "padding": (padded, rf"row {len(coords) - 2} is \[-1, -1, -1, -1\]"),
        "fractions": (coords.astype(float), r"whole numbers .* got float64"),
    }


@pytest.mark.parametrize("case", wrong_coords(np.zeros((9, 4), np.int32)))
def test_coordinates_that_are_no_cells_are_named(rng, case):
    coords = random_coords(rng)
    _, events, kernel = make_layer(rng, len(coords))
    wrong, message = wrong_coords(coords)[case]
    # Without the checks of types that tests alone have.
    layers = submanifold_events, strided_events, inverse_events, linear_events
    submanifold, strided, inverse, linear = map(inspect.unwrap, layers)
    with pytest.raises(ValueError, match=f"input voxels.*{message}"):
        submanifold(events, wrong, kernel, make_kernel(3))
    with pytest.raises(ValueError, match=f"input voxels.*{message}"):
        strided(events, wrong, kernel[:8], DOWN)
    with pytest.raises(ValueError, match=f"input voxels.*{message}"):
        inverse(events, wrong, coords, kernel[:8], DOWN)
    with pytest.raises(ValueError, match=f"output voxels.*{message}"):
        inverse(events, coords, wrong, kernel[:8], DOWN)
    if case != "axes":  # a linear layer has no geometry that could differ
        with pytest.raises(ValueError, match=f"input voxels.*{message}"):
            linear(events, wrong, kernel[0])


def test_a_linear_layer_has_voxels_of_any_axes(rng):
    cells = np.argwhere(rng.random((2, 5, 4)) < 0.5).astype(np.int32)
    spikes, events, kernel = make_layer(rng, len(cells), offsets=1)
    result = linear_events(events, cells, kernel[0])
    np.testing.assert_allclose(result.currents, spikes @ kernel[0].astype("f8"))


def test_rows_may_come_in_any_order(rng):
    coords = random_coords(rng)
    spikes, events, kernel = make_layer(rng, len(coords), offsets=8)
    order = rng.permutation(len(coords))
    shuffled = to_events(spikes[order], levels=events.levels)
    one = strided_events(events, coords, kernel, DOWN)
    other = strided_events(shuffled, coords[order], kernel, DOWN)
    np.testing.assert_array_equal(one.coords, other.coords)
    np.testing.assert_array_equal(one.additions, other.additions)
    np.testing.assert_allclose(one.currents, other.currents, atol=1e-12)
