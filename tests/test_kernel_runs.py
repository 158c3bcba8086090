"""Runs of a map, read back into pairs, against look-ups in a dict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.kernel_map import (
    blocks_needed,
    invert,
    later_places,
    make_kernel,
    pack_pairs,
)
from e3dsnn_jax.kernel_pairs import strided_pairs, submanifold_pairs
from e3dsnn_jax.kernel_runs import add_runs, add_runs_to_levels, run_length
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.sparse_conv import sparse_conv
from tests import oracles
from tests.clouds_of_voxels import hard_coords, random_coords

CASES = list(hard_coords(np.random.default_rng(0)).items())
STRIDED = [
    make_kernel(2, stride=2),
    make_kernel(3, stride=2, padding=1),
    make_kernel(3, padding=1),
]


def make_map(pairs, num_in, num_out, *, submanifold, spare=2):
    packed = pack_pairs(
        pairs,
        num_in=num_in,
        num_out=num_out,
        pairs_per_block=16,
        blocks_capacity=blocks_needed(pairs, pairs_per_block=16) + spare,
    )
    return add_runs(packed, num_offsets=len(pairs.counts), submanifold=submanifold)


def read(first, follow, run, *, from_the_end):
    """Every (offset, row, partner) that runs name, by their definition."""
    partners, found = len(follow) - 1, []
    for step, codes in enumerate(first.tolist()):
        for row, code in enumerate(codes):
            begin, partner = divmod(code, partners + 1)
            if partner == partners:
                continue
            filled = {begin: partner}
            for number, (place, later) in enumerate(later_places(run)):
                distance = int(follow[partner]) >> 2 * number & 3
                if place == begin and distance:
                    filled[later] = partner + distance
            for place, other in filled.items():
                tap = run - 1 - place if from_the_end else place
                found.append((step * run + tap, row, other))
    return sorted(found)


@pytest.mark.parametrize("submanifold", [False, True])
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_runs_of_a_submanifold_map_are_its_pairs(name, coords, submanifold):
    kernel = make_kernel(3)
    rows = len(coords) + 3
    pairs = submanifold_pairs(coords, kernel)
    runs = make_map(pairs, rows, rows, submanifold=submanifold).runs
    expected = sorted(oracles.submanifold_pairs(coords, kernel))
    forward = read(runs.forward, runs.follow_senders, 3, from_the_end=False)
    assert forward == expected
    mirrored = runs.backward is None
    assert mirrored == submanifold
    backward = read(
        runs.forward[::-1] if mirrored else runs.backward,
        runs.follow_senders if mirrored else runs.follow_receivers,
        3,
        from_the_end=True,
    )
    swapped = sorted((k, sender, receiver) for k, receiver, sender in expected)
    assert backward == swapped


@pytest.mark.parametrize("kernel", STRIDED)
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_runs_of_a_strided_map_are_its_pairs(name, coords, kernel):
    outputs, pairs = strided_pairs(coords, kernel)
    num_in, num_out = len(coords) + 1, len(outputs) + 2
    runs = make_map(pairs, num_in, num_out, submanifold=False).runs
    run = run_length(kernel.num_offsets)
    _, expected = oracles.strided_pairs(coords, kernel, None)
    forward = read(runs.forward, runs.follow_senders, run, from_the_end=False)
    assert forward == sorted(expected)
    backward = read(runs.backward, runs.follow_receivers, run, from_the_end=True)
    assert backward == sorted((k, sender, receiver) for k, receiver, sender in expected)


def test_partners_that_do_not_follow_each_other_are_refused(rng):
    coords = random_coords(rng, extent=(3, 3, 6), density=0.9)
    for kernel in (make_kernel(3, dilation=2), make_kernel((3, 1, 1))):
        pairs = submanifold_pairs(coords, kernel)
        with pytest.raises(ValueError, match="a dilated kernel has no runs"):
            make_map(pairs, len(coords), len(coords), submanifold=True)


def test_a_truncated_map_has_runs_without_pairs(rng):
    coords = random_coords(rng)
    pairs = submanifold_pairs(coords, make_kernel(3))
    rows = len(coords)
    runs = make_map(pairs, rows, rows, submanifold=True, spare=-1).runs
    np.testing.assert_array_equal(runs.forward, rows)


def test_the_inverse_of_a_map_has_no_runs(rng):
    outputs, pairs = strided_pairs(random_coords(rng), make_kernel(2, stride=2))
    num_in = int(pairs.senders.max()) + 1
    kernel_map = make_map(pairs, num_in, len(outputs), submanifold=False)
    assert invert(kernel_map).runs is None


def test_every_map_of_a_pyramid_gets_its_runs(rng):
    levels = build_pyramid(random_coords(rng), num_levels=3)
    with_runs = add_runs_to_levels(levels)
    for index, (level, plain) in enumerate(zip(with_runs, levels, strict=True)):
        rows = len(level.coords)
        assert level.submanifold.runs.forward.shape == (9, rows)
        assert level.submanifold.runs.backward is None
        if index < 2:
            coarse = len(levels[index + 1].coords)
            assert level.down.runs.forward.shape == (4, coarse)
            assert level.down.runs.backward.shape == (4, rows)
        without = level._replace(
            submanifold=level.submanifold._replace(runs=None),
            down=None if level.down is None else level.down._replace(runs=None),
        )
        jax.tree.map(np.testing.assert_array_equal, without, plain)


def test_runs_for_another_kernel_or_other_rows_are_refused(rng):
    coords = random_coords(rng)
    rows = len(coords)
    pairs = submanifold_pairs(coords, make_kernel(3))
    kernel_map = make_map(pairs, rows, rows, submanifold=True)
    features = jnp.zeros((rows, 4))
    weights = jnp.zeros((27, 4, 5))
    with pytest.raises(ValueError, match=r"9 steps from .* kernel has 8 offsets"):
        sparse_conv(features, weights[:8], kernel_map, num_out=rows)
    other = rf"from {rows} rows to {rows}, but .* from {rows} rows to {rows - 1}"
    with pytest.raises(ValueError, match=other):
        sparse_conv(features, weights, kernel_map, num_out=rows - 1)
