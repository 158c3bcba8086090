"""Maps built under jit are those of the host, array by array."""

import functools

import jax
import numpy as np
import pytest

from e3dsnn_jax.capacity import MapCapacity
from e3dsnn_jax.kernel_map import make_kernel, pack_pairs
from e3dsnn_jax.kernel_map_device import build_pyramid_on_device, build_submanifold_map
from e3dsnn_jax.kernel_pairs import submanifold_pairs
from e3dsnn_jax.pyramid import DOWN, find_levels, fit_capacity, pack_levels
from tests.clouds_of_voxels import hard_coords, random_coords

CASES = list(hard_coords(np.random.default_rng(0)).items())


@pytest.mark.parametrize(
    "kernel", [DOWN, make_kernel(3, stride=2, padding=1), make_kernel((3, 1, 1))]
)
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_pyramid_on_device_equals_host(name, coords, bounded, kernel):
    extent = (6, 7, 9) if bounded else None
    downs = [kernel, kernel]
    found = find_levels(coords, num_levels=3, downs=downs, extent=extent)
    capacity = fit_capacity([found], slack=1.2)
    host = pack_levels(found, capacity)
    build = jax.jit(
        functools.partial(
            build_pyramid_on_device, capacity=capacity, downs=downs, extent=extent
        )
    )
    jax.tree.map(
        np.testing.assert_array_equal, host, build(jax.numpy.asarray(host[0].coords))
    )


def test_coordinates_of_billions_on_device(rng):
    coords = random_coords(rng, extent=(4, 4, 4), density=0.5)
    coords[:, 1:] += 2_000_000_000
    kernel, size = make_kernel(3), MapCapacity(blocks=64, pairs=32)
    host = pack_pairs(
        submanifold_pairs(coords, kernel),
        num_in=len(coords),
        num_out=len(coords),
        pairs_per_block=size.pairs,
        blocks_capacity=size.blocks,
    )
    device = build_submanifold_map(jax.numpy.asarray(coords), kernel, size)
    jax.tree.map(np.testing.assert_array_equal, host, device)


def test_overflow_is_data_with_the_number_needed(rng):
    coords = random_coords(rng, density=0.6)
    found = find_levels(coords, num_levels=2)
    capacity = fit_capacity([found])
    full = pack_levels(found, capacity)
    small = (
        capacity[0].__class__(capacity[0].voxels, MapCapacity(3, 16), capacity[0].down),
        capacity[1].__class__(16, capacity[1].submanifold, None),
    )
    coords = jax.numpy.asarray(full[0].coords)
    levels = build_pyramid_on_device(coords, capacity=small)
    assert int(levels[0].submanifold.blocks_needed) > 3
    assert int(levels[1].voxels_needed) == len(found[1].coords) > 16
    assert levels[0].down is not None
    assert int(levels[0].down.blocks_needed) > levels[0].down.capacity


def test_bad_arguments_are_named(rng):
    coords = jax.numpy.asarray(random_coords(rng))
    with pytest.raises(ValueError, match="odd sizes"):
        build_submanifold_map(coords, make_kernel(2), MapCapacity(4, 4))
    with pytest.raises(ValueError, match=r"stride 1 and padding 0, got stride=\(2,"):
        build_submanifold_map(coords, make_kernel(3, stride=2), MapCapacity(4, 4))
    capacity = fit_capacity([find_levels(np.asarray(coords), num_levels=1)])
    with pytest.raises(ValueError, match="1 rows but the capacity is"):
        build_pyramid_on_device(coords[:1], capacity=capacity)
