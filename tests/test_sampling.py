import numpy as np
import pytest

from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.data.sampling import farthest_point_sampling, thin_out


def obvious_fps(points, count, start):
    """Every distance again at every step, in float32 as documented."""
    chosen = [start]
    while len(chosen) < count:
        best, best_distance = -1, np.float32(-1)
        for i, point in enumerate(points):
            if i in chosen:
                continue
            nearest = min(
                np.float32(
                    np.float32((point[0] - points[j][0]) ** 2)
                    + np.float32((point[1] - points[j][1]) ** 2)
                )
                + np.float32((point[2] - points[j][2]) ** 2)
                for j in chosen
            )
            if nearest > best_distance:
                best, best_distance = i, nearest
        chosen.append(best)
    return chosen


def random_points(seed):
    return np.random.default_rng(seed).normal(size=(60, 3)).astype(np.float32)


def grid_with_ties():
    axis = np.arange(4, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)


def duplicates():
    return np.repeat(random_points(3)[:12], 4, axis=0)


@pytest.mark.parametrize("start", [0, 17])
@pytest.mark.parametrize(
    "points",
    [random_points(0), random_points(1), grid_with_ties(), duplicates()],
    ids=["random", "random2", "ties", "duplicates"],
)
def test_equals_the_obvious_loop(points, start):
    for count in (1, 2, 13, len(points)):
        chosen = farthest_point_sampling(points, count, start=start)
        assert chosen.tolist() == obvious_fps(points, count, start)


def test_all_points_are_a_permutation_even_if_they_coincide():
    chosen = farthest_point_sampling(np.ones((7, 3), np.float32), 7)
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_prefixes_agree():
    points = random_points(4)
    few, many = farthest_point_sampling(points, 5), farthest_point_sampling(points, 30)
    np.testing.assert_array_equal(few, many[:5])


def test_known_order_on_a_line():
    line = np.array([[x, 0, 0] for x in (0, 1, 2, 3, 10)], np.float32)
    assert farthest_point_sampling(line, 4).tolist() == [0, 4, 3, 1]


@pytest.mark.parametrize("count", [0, 5, -1])
def test_count_out_of_range(count):
    with pytest.raises(ValueError, match=f"cannot choose {count} of 4 points"):
        farthest_point_sampling(np.zeros((4, 3), np.float32), count)


@pytest.mark.parametrize("start", [4, -1])
def test_start_out_of_range(start):
    with pytest.raises(ValueError, match=rf"start is {start}, expected \[0, 4\)"):
        farthest_point_sampling(np.zeros((4, 3), np.float32), 2, start=start)


def test_thin_out_keeps_normals_with_their_points():
    points = random_points(5)
    cloud = PointCloud(points, points * 2, 3, "x")
    thin = thin_out(cloud, 10)
    assert len(thin.points) == 10
    np.testing.assert_array_equal(thin.normals, thin.points * 2)
    assert (thin.label, thin.name) == (3, "x")


@pytest.mark.parametrize("points_per_cloud", [None, 60, 100])
def test_thin_out_leaves_small_clouds(points_per_cloud):
    cloud = PointCloud(random_points(6), None, 0, "x")
    assert thin_out(cloud, points_per_cloud) is cloud
