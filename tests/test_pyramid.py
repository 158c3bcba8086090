"""Levels, capacities and buckets."""

import dataclasses

import jax
import numpy as np
import pytest

from e3dsnn_jax.capacity import CapacityError
from e3dsnn_jax.pyramid import (
    build_pyramid,
    capacity_of,
    count_levels,
    find_levels,
    fit_capacity,
    fits,
    mark_overflow,
    pack_levels,
)
from tests.clouds_of_voxels import random_coords


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


def test_packed_levels_tell_their_capacity(rng):
    found = find_levels(random_coords(rng), num_levels=3)
    capacity = fit_capacity([found], slack=1.3)
    levels = pack_levels(found, capacity)
    assert capacity_of(levels) == capacity
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), levels)
    assert capacity_of(stacked) == capacity


def test_counts_tell_what_a_batch_needs(rng):
    found = find_levels(random_coords(rng), num_levels=2)
    fine, coarse = count_levels(found)
    assert fine.voxels == len(found[0].coords)
    assert fine.submanifold.sum() == len(found[0].submanifold.senders)
    assert fine.down is not None
    assert fine.down.sum() == len(found[0].coords)  # each voxel has one parent
    assert coarse.down is None


def test_marked_overflow_tells_all_needs_and_holds_nothing(rng):
    found = find_levels(random_coords(rng, density=0.6), num_levels=2)
    fitted = fit_capacity([found])
    whole = pack_levels(found, fitted)
    rows = len(found[0].coords)
    few = (dataclasses.replace(fitted[0], voxels=rows - 1), fitted[1])
    marked = mark_overflow(found, few)
    assert capacity_of(marked) == few
    for level, expected in zip(marked, whole, strict=True):
        assert level.voxels_needed == expected.voxels_needed
        assert level.submanifold.blocks_needed == expected.submanifold.blocks_needed
        assert (level.coords == -1).all()
        same, size = level.submanifold, len(level.coords)
        assert (same.senders == size).all()  # one past the end: no pair
    assert marked[0].down is not None
    assert whole[0].down is not None
    assert marked[0].down.blocks_needed == whole[0].down.blocks_needed
