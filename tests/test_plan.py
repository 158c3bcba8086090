"""Sizes that are known before the first batch."""

import numpy as np
import pytest
from feed_run import Clusters, make_source

from e3dsnn_jax.data.clouds import CloudSubset, voxels_of
from e3dsnn_jax.data.loader import voxelize_cloud
from e3dsnn_jax.data.plan import expected_voxels, plan_capacities

CLUSTERS = Clusters()


def true_voxels(voxel_size: float) -> list[int]:
    rng = np.random.default_rng(0)
    return [
        len(
            voxelize_cloud(
                CLUSTERS[index], rng, voxel_size=voxel_size, normals=False, recipe=None
            ).coords
        )
        for index in range(len(CLUSTERS))
    ]


@pytest.mark.parametrize("parts", [1, 2, 5, 24, 30])
def test_expected_voxels_of_any_number_of_processes(parts: int):
    expected = true_voxels(0.3)
    assert len(set(expected)) > 5

    counted = []
    for part in range(parts):

        def keep(counts: np.ndarray) -> np.ndarray:
            counted.append(counts)
            return np.concatenate([counts] * parts)

        expected_voxels(CLUSTERS, 0.3, part=part, parts=parts, gather=keep)

    def all_of_them(counts: np.ndarray) -> np.ndarray:
        return np.concatenate(counted)

    found = expected_voxels(CLUSTERS, 0.3, parts=parts, gather=all_of_them)
    assert found.tolist() == expected


class Known(Clusters):
    """A dataset that knows its voxels."""

    voxels = np.arange(24)


def test_known_voxels_are_not_counted():
    assert expected_voxels(Known(broken=0), 0.3).tolist() == list(range(24))
    subset = CloudSubset(Known(broken=0), (5, 2))
    assert expected_voxels(subset, 0.3).tolist() == [5, 2]
    # Those of another edge serve as well: it is their order that matters.
    assert expected_voxels(Known(), 0.2).tolist() == list(range(24))
    assert voxels_of(CLUSTERS) is None


def test_capacities_of_gathered_counts():
    source = make_source(CLUSTERS, devices=2, shared=False)

    def twice(counts):
        return tuple(
            level._replace(voxels=np.concatenate([level.voxels, 2 * level.voxels]))
            for level in counts
        )

    (alone,) = plan_capacities(source, slacks=(1.0,))
    (gathered,) = plan_capacities(source, slacks=(1.0,), gather=twice)
    most = max(len(p[0].coords) for s in range(6) for p in source.shards(s).levels)
    assert most <= alone[0].voxels < 2 * most <= gathered[0].voxels
