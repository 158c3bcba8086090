"""Batches: a pure function of (seed, step), dealt evenly, padded to fixed shapes."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from e3dsnn_jax.capacity import CapacityError
from e3dsnn_jax.data.augment import Augment
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.data.loader import (
    BatchLayout,
    BatchSource,
    deal,
    iterate,
    voxelize_cloud,
)
from e3dsnn_jax.data.plan import plan_capacities


@dataclasses.dataclass(frozen=True)
class Spheres:
    """Random points on spheres, of growing number."""

    count: int = 11
    class_names: tuple[str, ...] = ("even", "odd")
    normals: bool = True

    def __len__(self):
        return self.count

    def __getitem__(self, index, /):
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        points = rng.normal(size=(40 + 10 * index, 3)).astype(np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        normals = points if self.normals else None
        return PointCloud(points, normals, index % 2, f"sphere[{index}]")


LAYOUT = BatchLayout(batch_size=4, num_devices=2, num_levels=3, voxel_size=0.2)


@pytest.fixture(scope="module")
def source():
    unplanned = BatchSource(
        Spheres(), LAYOUT, recipe=Augment(), seed=7, epochs=3, shuffle=True
    )
    return dataclasses.replace(unplanned, capacities=plan_capacities(unplanned))


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_steps_and_epochs(source):
    assert (source.steps_per_epoch, len(source)) == (2, 6)
    ordered = dataclasses.replace(source, shuffle=False)
    assert (ordered.steps_per_epoch, len(ordered)) == (3, 9)
    with pytest.raises(IndexError, match="step 6 of a run of 6 steps"):
        source[6]


def test_a_step_is_the_same_whenever_it_is_asked_for(source):
    again = dataclasses.replace(source)
    equal(source[4], again[4])
    other = dataclasses.replace(source, seed=8)
    assert not np.array_equal(source[4].features, other[4].features)


def test_each_epoch_has_its_own_order_without_repeats(source):
    orders = []
    for epoch in range(3):
        batches = [source[epoch * 2 + step].indices for step in range(2)]
        seen = np.concatenate(batches, axis=None).tolist()
        assert len(set(seen)) == 8
        orders.append(tuple(seen))
    assert len(set(orders)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_iteration_resumes_anywhere(source, workers):
    batches = list(iterate(source, start=3, workers=workers))
    assert len(batches) == 3
    for step, batch in enumerate(batches, start=3):
        equal(batch, source[step])


def test_rows_of_a_batch_are_the_voxels_of_its_clouds(source):
    batch = source[0]
    for device, slot in itertools.product(range(2), range(2)):
        index = int(batch.indices[device, slot])
        rng = np.random.default_rng((7, 0, index, 1))
        voxels = voxelize_cloud(
            Spheres()[index], rng, voxel_size=0.2, normals=True, recipe=Augment()
        )
        coords = batch.levels[0].coords[device]
        mine = coords[:, 0] == slot
        np.testing.assert_array_equal(coords[mine, 1:], voxels.coords)
        np.testing.assert_array_equal(batch.features[device][mine], voxels.features)
        assert batch.labels[device, slot] == index % 2


def test_evaluation_covers_every_cloud_once_and_pads_the_last_batch(source):
    ordered = dataclasses.replace(source, shuffle=False, recipe=None, epochs=1)
    batches = [ordered[step] for step in range(3)]
    indices = np.concatenate([batch.indices for batch in batches], axis=None)
    assert sorted(indices[indices >= 0].tolist()) == list(range(11))
    last = batches[-1]
    assert (last.labels == -1).sum() == 1
    padding = np.argwhere(last.labels == -1)[0]
    coords = last.levels[0].coords[padding[0]]
    assert not (coords[:, 0] == padding[1]).any()


def test_more_devices_than_clouds_in_the_last_batch():
    layout = dataclasses.replace(LAYOUT, num_devices=4)
    source = BatchSource(Spheres(5), layout)
    source = dataclasses.replace(source, capacities=plan_capacities(source))
    assert (source[1].labels >= 0).sum() == 1


def test_shapes_of_a_run_are_few(source):
    shapes = {
        tuple(leaf.shape for leaf in jax.tree.leaves(source[step]))
        for step in range(len(source))
    }
    assert len(shapes) <= len(source.capacities)


def test_a_batch_beyond_every_capacity_stops_with_both_numbers(source):
    small = dataclasses.replace(source, layout=LAYOUT, dataset=Spheres(4))
    small = dataclasses.replace(small, capacities=plan_capacities(small))
    crowded = dataclasses.replace(small, dataset=Spheres(400))
    with pytest.raises(CapacityError, match=r"needs \d+ \w+ but the capacity is \d+"):
        _ = [crowded[step] for step in range(50)]


def test_deal_balances_voxels_and_counts():
    sizes = [100, 90, 50, 40, 30, 20, 10, 5]
    hands = deal(sizes, 2)
    assert sorted(hands[0] + hands[1]) == list(range(8))
    assert len(hands[0]) == len(hands[1])
    totals = [sum(sizes[member] for member in hand) for hand in hands]
    assert abs(totals[0] - totals[1]) <= 20
    assert deal([], 3) == [[], [], []]


def test_bad_use_is_named(source):
    with pytest.raises(ValueError, match=r"batch_size=4 .* num_devices=3"):
        dataclasses.replace(LAYOUT, num_devices=3)
    bare = BatchSource(Spheres(normals=False), LAYOUT)
    with pytest.raises(ValueError, match=r"sphere\[0\]: the cloud has no normals"):
        bare.shards(0)
    few = BatchSource(Spheres(3), LAYOUT, shuffle=True)
    with pytest.raises(ValueError, match="3 clouds, fewer than a batch of 4"):
        plan_capacities(few)
    with pytest.raises(ValueError, match="plan_capacities first"):
        BatchSource(Spheres(), LAYOUT)[0]


def test_maps_have_runs_where_the_layout_asks_for_them(source):
    assert all(level.submanifold.runs is None for level in source[1].levels)
    layout = dataclasses.replace(LAYOUT, runs=True)
    with_runs = dataclasses.replace(source, layout=layout)[1]
    for level, plain in zip(with_runs.levels, source[1].levels, strict=True):
        assert level.submanifold.runs is not None
        rows = level.coords.shape[1]
        assert level.submanifold.runs.forward.shape == (2, 9, rows)
        assert (level.down is None) or level.down.runs is not None
        without = level._replace(
            submanifold=level.submanifold._replace(runs=None),
            down=None if level.down is None else level.down._replace(runs=None),
        )
        equal(without, plain)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_parts_of_a_batch_hold_the_same_clouds_on_any_number_of_devices(devices):
    layout = BatchLayout(8, devices, num_levels=2, voxel_size=0.2, accumulate=2)
    source = BatchSource(Spheres(count=16), layout, seed=3, shuffle=True)
    order = np.random.default_rng((3, 0)).permutation(16)
    for step in range(2):
        indices = source.shards(step).indices
        assert indices.shape == (devices * 2, 8 // (devices * 2))
        for part in range(2):
            first = step * 8 + part * 4
            expected = set(order[first : first + 4].tolist())
            assert set(indices[part::2].ravel().tolist()) == expected


def test_parts_that_devices_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"num_devices=2 times accumulate=3"):
        BatchLayout(8, 2, num_levels=2, voxel_size=0.2, accumulate=3)
