"""Random changes of a training cloud: the published recipe, and options beyond it.

The published ModelNet40 recipe is: normalise, scale, shift, (voxelise,) shuffle. It is
what the defaults of `Augment` do; everything else is off unless asked for.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.data.clouds import PointCloud


@dataclass(frozen=True)
class Augment:
    """How training clouds are changed; the defaults are the published recipe.

    Lengths are in units of the normalised cloud, whose farthest point is at 1.
    """

    scale: tuple[float, float] = (0.9, 1.1)
    """Range of the random factor on the coordinates; (1, 1) turns it off."""
    anisotropic: bool = False
    """Draw one factor an axis instead of one factor for the cloud."""
    shift: float = 0.2
    """Largest random shift along each axis; 0 turns it off."""
    shuffle: bool = True
    """Put the points in random order."""
    rotate_z_degrees: float = 0.0
    """Largest random rotation about z, either way; 180 means any angle."""
    quarter_turns: bool = False
    """Rotate about z by a random multiple of 90 degrees."""
    tilt_degrees: float = 0.0
    """Standard deviation of a small rotation about each axis, cut at 3 of them."""
    flip: float = 0.0
    """Probability of mirroring x, and independently of mirroring y."""
    jitter: float = 0.0
    """Standard deviation of noise added to every coordinate."""
    jitter_clip: float = 0.05
    """Largest noise that `jitter` may add."""
    dropout: float = 0.0
    """Largest share of the points left out; the share is drawn anew for each cloud."""


def normalize(cloud: PointCloud) -> PointCloud:
    """Moves the centroid to the origin and scales the farthest point to distance 1.

    A cloud whose points all coincide is only moved.

    Source: `NormalizeCoord` of the Pointcept transforms, itself after PointNet++.
    """
    points = cloud.points.astype(np.float64)
    points -= points.mean(axis=0)
    # Differs from reference: one place only divides 0 by 0 there and yields NaN.
    radius = np.sqrt((points**2).sum(axis=1).max()) or 1.0
    return cloud._replace(points=(points / radius).astype(np.float32))


def augment(cloud: PointCloud, rng: np.random.Generator, config: Augment) -> PointCloud:
    """Normalises a cloud and changes it at random as `config` says.

    The order is dropout, mirroring, rotations, scale, shift, jitter, shuffle; all act
    about the centroid. Normals are mirrored and rotated with the points, and scaled by
    the inverse of an anisotropic scale, then brought back to length 1.

    Args:
      cloud: The cloud as read; normalising twice does no harm.
      rng: The source of all randomness; its state advances.
      config: What to do, and how much.

    Returns:
      The changed cloud, in new arrays.

    Raises:
      ValueError: If a field of `config` lies outside its range.

    Source: `RandomScale` (one factor a cloud unless anisotropic) and then `RandomShift`
    (one shift an axis) of the Pointcept transforms, in the order of the published
    ModelNet40 configuration; point dropout as in PointNet++.
    """
    check_augment(config)
    points, normals, label, name = normalize(cloud)
    if config.dropout:
        kept = rng.random(len(points)) >= config.dropout * rng.random()
        kept[rng.integers(len(points))] = True  # a cloud never becomes empty
        points = points[kept]
        normals = None if normals is None else normals[kept]
    # One linear map collects mirrors and rotations, which normals share.
    linear = _mirror(rng, config) @ _rotation(rng, config)
    scale = rng.uniform(*config.scale, size=3 if config.anisotropic else 1)
    points = points @ linear.astype(np.float32) * scale.astype(np.float32)
    if normals is not None:
        normals = normals @ linear.astype(np.float32)
        if config.anisotropic:
            normals = normals / scale
            lengths = np.linalg.norm(normals, axis=1, keepdims=True)
            normals = (normals / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    points += rng.uniform(-config.shift, config.shift, size=3).astype(np.float32)
    if config.jitter:
        noise = config.jitter * rng.standard_normal(points.shape, dtype=np.float32)
        points += noise.clip(-config.jitter_clip, config.jitter_clip)
    if config.shuffle:
        order = rng.permutation(len(points))
        points = points[order]
        normals = None if normals is None else normals[order]
    return PointCloud(points, normals, label, name)


def check_augment(config: Augment) -> None:
    """Refuses settings that make no sense, naming the field and its value.

    Raises:
      ValueError: If a field of `config` lies outside its range.
    """
    low, high = config.scale
    if not 0 < low <= high:
        raise ValueError(
            f"augment.scale is {config.scale}, expected 0 < lowest <= highest"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"augment.dropout is {config.dropout}, expected [0, 1)")
    if not 0 <= config.flip <= 1:
        raise ValueError(f"augment.flip is {config.flip}, expected [0, 1]")
    for field in ("shift", "rotate_z_degrees", "tilt_degrees", "jitter", "jitter_clip"):
        value = getattr(config, field)
        if not 0 <= value < np.inf:
            raise ValueError(f"augment.{field} is {value}, expected 0 or more")


def _mirror(rng: np.random.Generator, config: Augment) -> Float[np.ndarray, "3 3"]:
    """A diagonal matrix of signs; z is never mirrored, shapes stand upright."""
    if not config.flip:
        return np.eye(3)
    mirrored = rng.random(2) < config.flip
    return np.diag([*np.where(mirrored, -1.0, 1.0), 1.0])


def _rotation(rng: np.random.Generator, config: Augment) -> Float[np.ndarray, "3 3"]:
    """The transposed rotation matrix (points are rows): about z, then the tilt."""
    angle = 0.0
    if config.rotate_z_degrees:
        limit = np.deg2rad(config.rotate_z_degrees)
        angle += rng.uniform(-limit, limit)
    if config.quarter_turns:
        angle += np.pi / 2 * rng.integers(4)
    rotation = rotation_matrix(np.array([0.0, 0.0, angle]))
    if config.tilt_degrees:
        vector = rng.standard_normal(3).clip(-3, 3) * np.deg2rad(config.tilt_degrees)
        rotation = rotation_matrix(vector) @ rotation
    return rotation.T


def rotation_matrix(vector: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation about the axis `vector` by its length, in radians (Rodrigues).

    It acts on column vectors: `rotated = points @ rotation_matrix(vector).T`.
    """
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
