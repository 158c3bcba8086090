"""Random changes of a training scan, and two scans in one.

The defaults are the published SemanticKITTI recipe: half of the scans are rotated about
the sensor, then cropped; all are scaled, mirrored along x and y with probability a half
each, and every point is moved a little.
"""

from dataclasses import dataclass

import numpy as np

from e3dsnn_jax.scans.crop import Box, clamp_scan_as_published, crop_scan
from e3dsnn_jax.scans.scan import Scan


@dataclass(frozen=True)
class ScanAugment:
    """How training scans are changed; the defaults are the published recipe."""

    rotate: float = 0.5
    """Probability of a rotation about z, through the sensor."""
    rotate_degrees: float = 180.0
    """Largest rotation, either way."""
    scale: tuple[float, float] = (0.9, 1.1)
    """Range of the random factor on the coordinates; (1, 1) turns it off."""
    flip: float = 0.5
    """Probability of mirroring x, and independently of mirroring y."""
    jitter: float = 0.005
    """Standard deviation of noise added to every coordinate, in metres."""
    jitter_clip: float = 0.02
    """Largest noise that `jitter` may add, in metres."""


def check_scan_augment(config: ScanAugment) -> None:
    """Refuses settings that make no sense, naming the field and its value.

    Raises:
      ValueError: If a field of `config` lies outside its range.
    """
    low, high = config.scale
    if not 0 < low <= high < np.inf:
        raise ValueError(f"scale is {config.scale}, expected 0 < lowest <= highest")
    for field in ("rotate", "flip"):
        value = getattr(config, field)
        if not 0 <= value <= 1:
            raise ValueError(f"{field} is {value}, expected a probability in [0, 1]")
    for field in ("rotate_degrees", "jitter", "jitter_clip"):
        value = getattr(config, field)
        if not 0 <= value < np.inf:
            raise ValueError(f"{field} is {value}, expected 0 or more")


def augment_scan(
    scan: Scan,
    rng: np.random.Generator,
    config: ScanAugment,
    *,
    box: Box | None = None,
    clamp_as_published: bool = False,
) -> Scan:
    """Changes a scan at random: rotation, crop, scale, mirrors, jitter, in this order.

    Args:
      scan: The scan; labels and features go with their points unchanged.
      rng: The source of all randomness; its state advances.
      config: What to do, and how much.
      box: Points that lie beyond it after the rotation are dropped; None keeps all.
      clamp_as_published: Move them onto its walls instead.

    Returns:
      The changed scan, float32, in new arrays.

    Raises:
      ValueError: If a field of `config` lies outside its range, or no point is left.

    Source: `RandomRotate`, `PointClip`, `RandomScale`, `RandomFlip`, `RandomJitter` of
    the published SemanticKITTI configuration.
    """
    check_scan_augment(config)
    if rng.random() < config.rotate:
        angle = np.deg2rad(rng.uniform(-1, 1) * config.rotate_degrees)
        scan = rotate_scan(scan, float(angle))
    if box is not None:
        if clamp_as_published:
            scan = clamp_scan_as_published(scan, box)
        else:
            scan, _ = crop_scan(scan, box)
    factors = rng.uniform(*config.scale) * np.ones(3)
    factors[:2] *= np.where(rng.random(2) < config.flip, -1.0, 1.0)
    points = scan.points.astype(np.float32) * factors.astype(np.float32)
    if config.jitter:
        noise = rng.standard_normal(points.shape, dtype=np.float32)
        noise *= np.float32(config.jitter)
        points += noise.clip(-config.jitter_clip, config.jitter_clip)
    return scan._replace(points=points)


def rotate_scan(scan: Scan, angle: float) -> Scan:
    """Turns a scan about the z axis through the origin.

    Args:
      scan: The scan.
      angle: Counter-clockwise as seen from above, in radians.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    points = scan.points @ rotation.T.astype(scan.points.dtype)
    return scan._replace(points=points)


def mix_scans(first: Scan, second: Scan) -> Scan:
    """Two scans in one, each in its own sensor's frame: a scene out of context.

    Voxels are to be found afterwards, so that the two share one grid.

    Returns:
      The points of the first and then those of the second; instances of the second are
      numbered after those of the first.

    Raises:
      ValueError: If the scans differ in their feature channels, or only one of them has
        labels.

    Source: Mix3D (3DV 2021); the published configuration mixes 80 % of the pairs.
    """
    # Differs from reference: there each scan keeps the cells of its own grid, counted
    # from its own lowest cell, so the sensors do not coincide and cells occur twice.
    channels = first.features.shape[1], second.features.shape[1]
    if channels[0] != channels[1]:
        raise ValueError(
            f"{first.name} has {channels[0]} feature channels but {second.name} has "
            f"{channels[1]}; only like scans can be mixed"
        )
    if (first.labels is None) != (second.labels is None):
        without = first if first.labels is None else second
        raise ValueError(f"{without.name} has no labels, the scan mixed with it has")
    labels = instances = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    if first.instances is not None and second.instances is not None:
        offset = int(first.instances.max(initial=0))
        later = np.where(second.instances > 0, second.instances + offset, 0)
        instances = np.concatenate([first.instances, later])
    return Scan(
        np.concatenate([first.points, second.points]),
        np.concatenate([first.features, second.features]),
        labels,
        instances,
        f"{first.name} + {second.name}",
    )
