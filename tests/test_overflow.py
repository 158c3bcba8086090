"""What a batch needs of its capacity, and the error when it does not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.capacity import CapacityError
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.training.overflow import capacity_needed, check_overflow


@pytest.fixture
def levels(rng):
    cells = np.unique(rng.integers(0, 6, size=(50, 3)), axis=0)
    coords = np.insert(cells, 0, 0, axis=1).astype(np.int32)
    return build_pyramid(coords, num_levels=2)


def test_needed_numbers_are_those_of_the_levels(levels):
    fine, coarse = levels
    expected = [
        [fine.voxels_needed, fine.submanifold.blocks_needed, fine.down.blocks_needed],
        [coarse.voxels_needed, coarse.submanifold.blocks_needed, 0],
    ]
    assert fine.voxels_needed == np.sum(fine.coords[:, 0] == 0)
    np.testing.assert_array_equal(capacity_needed(levels), expected)


def test_a_batch_that_fits_passes(levels):
    needed = np.stack([capacity_needed(levels)] * 2)
    check_overflow(needed, levels)
    # Exactly full is not too full.
    fine, coarse = levels
    held = [
        [len(fine.coords), fine.submanifold.capacity, fine.down.capacity],
        [len(coarse.coords), coarse.submanifold.capacity, 0],
    ]
    check_overflow(jnp.asarray([held, held]), levels)


@pytest.mark.parametrize(
    ("level", "kind", "unit"),
    [
        (0, 0, "voxels"),
        (1, 1, "blocks of the submanifold map"),
        (0, 2, "blocks of the map down"),
    ],
)
def test_overflow_names_device_level_and_both_numbers(levels, level, kind, unit):
    needed = np.array(jnp.stack([capacity_needed(levels)] * 2))
    needed[1, level, kind] = 9999
    held = {
        0: len(levels[0].coords),
        1: levels[1].submanifold.capacity,
        2: levels[0].down.capacity,
    }[kind]
    message = f"device 1, level {level}: 9999 {unit} needed, {held} held. Raise"
    with pytest.raises(CapacityError, match=message):
        check_overflow(needed, levels)


def test_batched_levels_are_read_by_their_last_axes(levels):
    fine = levels[0]._replace(coords=np.stack([levels[0].coords] * 4))
    check_overflow(np.zeros((4, 2, 3), int), (fine, levels[1]))


def test_another_number_of_levels_is_refused(levels):
    with pytest.raises(ValueError, match="reports 3 levels, the batch has 2"):
        check_overflow(np.zeros((1, 3, 3), int), levels)
