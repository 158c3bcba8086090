"""Buckets, and static shapes from counts."""

import numpy as np
import pytest

from e3dsnn_jax.capacity import (
    LevelCapacity,
    LevelCounts,
    MapCapacity,
    bucket_size,
    fit_counts,
    list_needs,
)


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


def test_capacity_holds_the_largest_of_each_size():
    pairs = np.array([[100, 3], [0, 90]])
    counts = (LevelCounts(np.array([10, 200]), pairs, None),)
    (level,) = fit_counts(counts)
    # Mean pairs an offset of the larger batch: 51; blocks of 32; 4 + 1 and 3 blocks.
    assert level == LevelCapacity(256, MapCapacity(blocks=8, pairs=32), None)
    (larger,) = fit_counts(counts, slack=2.0)
    assert (larger.voxels, larger.submanifold.blocks) == (448, 16)


def test_needs_are_listed_with_what_is_held():
    counts = (
        LevelCounts(np.array(7), np.array([33, 0, 1]), np.array([64])),
        LevelCounts(np.array(2), np.array([1, 1, 1]), None),
    )
    size = MapCapacity(blocks=2, pairs=32)
    capacity = (LevelCapacity(8, size, size), LevelCapacity(1, size, None))
    assert [tuple(need) for need in list_needs(counts, capacity)] == [
        ("level 0", "voxels", 7, 8),
        ("level 0 submanifold map", "blocks", 3, 2),
        ("level 0 down map", "blocks", 2, 2),
        ("level 1", "voxels", 2, 1),
        ("level 1 submanifold map", "blocks", 3, 2),
    ]
