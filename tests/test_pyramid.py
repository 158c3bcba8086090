"""Levels, capacities and buckets."""

import dataclasses

import numpy as np
import pytest

from e3dsnn_jax.pyramid import (
    CapacityError,
    bucket_size,
    build_pyramid,
    find_levels,
    fit_capacity,
    fits,
    pack_levels,
)
from tests.clouds_of_voxels import random_coords


def test_buckets_hold_their_count_and_are_few():
    sizes = [bucket_size(count) for count in range(1, 20_000)]
    assert all(size >= count for count, size in enumerate(sizes, start=1))
    assert len(set(sizes)) <= 25
    assert all(size % 256 == 0 for size in sizes)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(("multiple", "growth"), [(0, 1.25), (8, 1.0)])
def test_buckets_that_cannot_grow_are_refused(multiple, growth):
    with pytest.raises(ValueError, match="multiple >= 1 and growth > 1"):
        bucket_size(5, multiple=multiple, growth=growth)


def test_levels_halve_and_padding_is_marked(rng):
    coords = random_coords(rng, extent=(9, 9, 9))
    levels = build_pyramid(coords, num_levels=4)
    cells = coords
    for level in levels:
        rows = int(level.voxels_needed)
        np.testing.assert_array_equal(level.coords[:rows], cells)
        assert (level.coords[rows:] == -1).all()
        halved = np.column_stack([cells[:, :1], cells[:, 1:] // 2])
        cells = np.unique(halved, axis=0)
    assert levels[-1].down is None


def test_capacity_of_several_batches_holds_each(rng):
    batches = [
        find_levels(random_coords(rng, density=density), num_levels=3)
        for density in (0.1, 0.5, 0.3)
    ]
    capacity = fit_capacity(batches)
    shapes = {tuple(l.coords.shape for l in pack_levels(b, capacity)) for b in batches}
    assert all(fits(batch, capacity) for batch in batches)
    assert len(shapes) == 1


def test_a_batch_that_does_not_fit_stops_with_both_numbers(rng):
    found = find_levels(random_coords(rng, density=0.6), num_levels=2)
    capacity = fit_capacity([found])
    rows = len(found[0].coords)
    few = (dataclasses.replace(capacity[0], voxels=rows - 1), capacity[1])
    assert not fits(found, few)
    with pytest.raises(
        CapacityError, match=f"level 0 needs {rows} voxels .* is {rows - 1}"
    ):
        pack_levels(found, few)
    small = dataclasses.replace(capacity[0].submanifold, blocks=2)
    few = (dataclasses.replace(capacity[0], submanifold=small), capacity[1])
    with pytest.raises(
        CapacityError, match=r"level 0 submanifold map needs \d+ blocks .* is 2:"
    ):
        pack_levels(found, few)


def test_bad_arguments_are_named(rng):
    coords = random_coords(rng)
    with pytest.raises(ValueError, match="2 levels need 1 strided kernels, got 0"):
        find_levels(coords, num_levels=2, downs=[])
    with pytest.raises(ValueError, match="at least one batch"):
        fit_capacity([])
    found = find_levels(coords, num_levels=2)
    with pytest.raises(ValueError, match="2 levels, but a capacity of 1"):
        pack_levels(found, fit_capacity([found])[:1])
    with pytest.raises(ValueError, match="finest level: rows must be unique"):
        find_levels(coords[::-1], num_levels=2)
