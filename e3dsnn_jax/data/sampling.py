"""Farthest point sampling: which points of a cloud to keep so that they lie apart."""

import numpy as np
from jaxtyping import Float, Int

from e3dsnn_jax.data.clouds import PointCloud


def farthest_point_sampling(
    points: Float[np.ndarray, "points 3"], count: int, *, start: int = 0
) -> Int[np.ndarray, " samples"]:
    """Indices of `count` points, each as far as possible from those before it.

    Starting from `start`, the next index is the point whose distance to the nearest
    chosen point is largest. Among equal distances the lowest index wins and no index
    is chosen twice, also among coinciding points, so the answer is unique. Squared
    distances are float32 sums of squared differences. Work is O(points * count),
    memory O(points): 10,000 to 8,192 points take about 0.2 s.

    Args:
      points: Coordinates, any unit; used as float32.
      count: How many points to choose, 1 to the number of points.
      start: Index of the first chosen point.

    Returns:
      The chosen indices in the order of choice, int64.

    Raises:
      ValueError: If `count` or `start` does not fit the number of points.

    Source: Eldar et al., "The farthest point strategy for progressive image sampling"
    (1997); used by PointNet++ and by the published ModelNet40 pipeline.
    """
    num_points = len(points)
    if not 1 <= count <= num_points:
        raise ValueError(
            f"cannot choose {count} of {num_points} points; count must be in "
            f"[1, {num_points}]"
        )
    if not 0 <= start < num_points:
        raise ValueError(f"start is {start}, expected [0, {num_points})")
    # One contiguous row an axis: every step is a few passes over rows.
    rows = np.ascontiguousarray(points.T, np.float32)
    offset, distance = np.empty_like(rows), np.empty_like(rows[0])
    nearest = np.full(num_points, np.inf, np.float32)
    chosen = np.empty(count, np.int64)
    index = start
    for step in range(count):
        chosen[step] = index
        np.subtract(rows, rows[:, index, None], out=offset)
        np.multiply(offset, offset, out=offset)
        np.add(offset[0], offset[1], out=distance)
        np.add(distance, offset[2], out=distance)
        np.minimum(nearest, distance, out=nearest)
        # Below every squared distance: a chosen point is never the farthest again.
        nearest[index] = -1
        index = int(nearest.argmax())
    return chosen


def thin_out(cloud: PointCloud, points_per_cloud: int | None) -> PointCloud:
    """The cloud with at most `points_per_cloud` points, chosen farthest first.

    A cloud that has no more points than asked is returned as it is, as is every cloud
    if `points_per_cloud` is None.

    Raises:
      ValueError: If `points_per_cloud` is below 1.
    """
    # Differs from reference: there the sampler is handed the six columns of a file as
    # if they were three, so that its choice mixes normals and coordinates.
    if points_per_cloud is None or len(cloud.points) <= points_per_cloud:
        return cloud
    kept = farthest_point_sampling(cloud.points, points_per_cloud)
    normals = None if cloud.normals is None else cloud.normals[kept]
    return cloud._replace(points=cloud.points[kept], normals=normals)
