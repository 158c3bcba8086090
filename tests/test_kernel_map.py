"""Host maps against look-ups in a dict, in both directions, over hard cases."""

import numpy as np
import pytest

from e3dsnn_jax.kernel_map import Pairs, blocks_needed, invert, make_kernel, pack_pairs
from e3dsnn_jax.kernel_pairs import strided_pairs, submanifold_pairs
from tests import oracles
from tests.clouds_of_voxels import hard_coords, random_coords

CASES = list(hard_coords(np.random.default_rng(0)).items())
SUBMANIFOLD = [
    make_kernel(1),
    make_kernel(3),
    make_kernel(5),
    make_kernel(3, dilation=2),
    make_kernel((3, 1, 1)),
    make_kernel((1, 1, 3)),
    make_kernel((3, 5, 3), dilation=(1, 2, 1)),
    make_kernel((1, 3, 5)),
]
STRIDED = [
    make_kernel(2, stride=2),
    make_kernel(3, stride=2, padding=1),
    make_kernel((3, 1, 1), stride=(2, 1, 1)),
    make_kernel(3, padding=1),
    make_kernel(3, stride=2, padding=(0, 1, 1), dilation=2),
    make_kernel(2, stride=3),
]


def triples(pairs: Pairs) -> list[tuple[int, int, int]]:
    offset = np.repeat(np.arange(len(pairs.counts)), pairs.counts)
    columns = (offset.tolist(), pairs.receivers.tolist(), pairs.senders.tolist())
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("kernel", SUBMANIFOLD)
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_submanifold_pairs_are_exactly_the_neighbours(name, coords, kernel):
    pairs = submanifold_pairs(coords, kernel)
    assert triples(pairs) == oracles.submanifold_pairs(coords, kernel)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("kernel", STRIDED)
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_strided_pairs_are_exactly_the_reached_cells(name, coords, kernel, bounded):
    extent = (7, 8, 9) if bounded else None
    if extent and (coords[:, 1:] >= extent).any():
        extent = tuple((coords[:, 1:].max(0) + 1).tolist())
    outputs, pairs = strided_pairs(coords, kernel, extent=extent)
    expected_outputs, expected = oracles.strided_pairs(coords, kernel, extent)
    assert [tuple(cell) for cell in outputs.tolist()] == expected_outputs
    assert triples(pairs) == expected


def test_two_dimensional_maps(rng):
    coords = random_coords(rng, extent=(9, 8))
    kernel = make_kernel(3, dims=2)
    assert triples(submanifold_pairs(coords, kernel)) == oracles.submanifold_pairs(
        coords, kernel
    )
    down = make_kernel(3, stride=2, padding=1, dims=2)
    outputs, pairs = strided_pairs(coords, down)
    cells, expected = oracles.strided_pairs(coords, down, None)
    assert ([tuple(c) for c in outputs.tolist()], triples(pairs)) == (cells, expected)


@pytest.mark.parametrize(
    ("start", "step"),
    [
        (0, 500),  # cells numbered in 32 bits
        (0, 50_000),  # in 64
        (0, 2_000_000_000),  # in neither
        (1_000_000_000, 100_000),
        (100_000_000, 1_000_000),
    ],
)
@pytest.mark.parametrize("kernel", [make_kernel(3), make_kernel(3, dilation=2)])
def test_extents_have_no_limit(rng, start, step, kernel):
    near = random_coords(rng, extent=(4, 4, 4), density=0.5)
    near[:, 1:] += start
    far = near.copy()
    far[:, 1:] += step
    coords = np.concatenate([near, far])
    coords = coords[np.lexsort(coords.T[::-1])]
    pairs = submanifold_pairs(coords, kernel)
    assert triples(pairs) == oracles.submanifold_pairs(coords, kernel)
    outputs, down = strided_pairs(coords, make_kernel(2, stride=2))
    cells, expected = oracles.strided_pairs(coords, make_kernel(2, stride=2), None)
    assert [tuple(cell) for cell in outputs.tolist()] == cells
    assert triples(down) == expected


def test_odd_extent_drops_the_last_slab():
    coords = np.array([[0, 0, 0, 0], [0, 2, 0, 0]], np.int32)
    kernel = make_kernel(2, stride=2)
    assert strided_pairs(coords, kernel, extent=(3, 2, 2))[0].tolist() == [[0, 0, 0, 0]]
    assert len(strided_pairs(coords, kernel)[0]) == 2


@pytest.mark.parametrize("size", [1, 3, 16, 1000])
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_packing_keeps_every_pair_once_in_blocks_of_one_offset(name, coords, size):
    pairs = submanifold_pairs(coords, make_kernel(3))
    needed = blocks_needed(pairs, pairs_per_block=size)
    rows = len(coords) + 3
    packed = pack_pairs(
        pairs,
        num_in=rows,
        num_out=rows,
        pairs_per_block=size,
        blocks_capacity=needed + 2,
    )
    assert int(packed.blocks_needed) == needed
    assert packed.capacity == needed + 2
    real = packed.senders < rows
    np.testing.assert_array_equal(real, packed.receivers < rows)
    offset = np.broadcast_to(packed.offset[:, None], real.shape)[real]
    kept = zip(offset, packed.receivers[real], packed.senders[real], strict=True)
    assert [tuple(map(int, triple)) for triple in kept] == triples(pairs)


def test_packing_beyond_the_capacity_says_how_much_is_needed(rng):
    pairs = submanifold_pairs(random_coords(rng), make_kernel(3))
    packed = pack_pairs(
        pairs, num_in=200, num_out=200, pairs_per_block=8, blocks_capacity=5
    )
    assert packed.senders.shape == (5, 8)
    assert int(packed.blocks_needed) > 5


def test_inverting_swaps_the_ends(rng):
    pairs = submanifold_pairs(random_coords(rng), make_kernel(3))
    packed = pack_pairs(
        pairs, num_in=99, num_out=99, pairs_per_block=64, blocks_capacity=64
    )
    inverse = invert(packed)
    np.testing.assert_array_equal(inverse.senders, packed.receivers)
    np.testing.assert_array_equal(invert(inverse).senders, packed.senders)


UNSORTED = np.array([[0, 1, 0, 0], [0, 0, 0, 0]], np.int32)
TWICE = np.zeros((2, 4), np.int32)
NEGATIVE = np.array([[0, 0, -1, 0]], np.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: submanifold_pairs(UNSORTED, make_kernel(3)), r"row 1 is .* \(sort"),
        (lambda: submanifold_pairs(TWICE, make_kernel(3)), "unique and sorted"),
        (lambda: strided_pairs(NEGATIVE, make_kernel(2, stride=2)), ">= 0, row 0"),
        (lambda: submanifold_pairs(TWICE, make_kernel(2)), r"odd sizes, got \(2, 2, 2"),
        (
            lambda: submanifold_pairs(TWICE, make_kernel(3, stride=2)),
            "stride 1 and padding 0",
        ),
        (
            lambda: strided_pairs(
                UNSORTED[:1], make_kernel(2, stride=2), extent=(1, 1, 1)
            ),
            r"reach \(1, 0, 0\) but the extent is \(1, 1, 1\)",
        ),
        (lambda: make_kernel((3, 3)), "3 whole numbers >= 1, got"),
        (lambda: make_kernel(0), "size needs 3 whole numbers"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
