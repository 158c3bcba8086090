"""Where the cameras of the street's car are, as a KITTI calibration.

Coordinates of the rectified camera are x to the right, y down and z ahead. The cameras
look almost, not exactly, along the sensor's x axis, as they do in a real car.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.street.primitives import rotation

IMAGE_SIZE = (1242, 375)
"""Width and height of the images there would be, pixels."""


class Calibration(NamedTuple):
    """What a KITTI calibration file holds; lengths in metres, focal lengths in pixels.

    Attributes:
      projections: P0 to P3, from rectified camera coordinates to each image.
      rectification: R0_rect, from camera 0 to its rectified coordinates.
      sensor_to_camera: Tr_velo_to_cam, from the sensor to camera 0.
      imu_to_sensor: Tr_imu_to_velo.
    """

    projections: Float[np.ndarray, "4 3 4"]
    rectification: Float[np.ndarray, "3 3"]
    sensor_to_camera: Float[np.ndarray, "3 4"]
    imu_to_sensor: Float[np.ndarray, "3 4"]


def street_calibration() -> Calibration:
    """The calibration of every frame of the street."""
    focal, center = 720.0, (612.0, 180.0)
    # Two grey cameras 0.54 m apart and two in colour beside them.
    shifts = (
        (0.0, 0.0, 0.0),
        (-0.54, 0.0, 0.0),
        (0.06, 0.2, 0.0025),
        (-0.48, 1.0, 0.0025),
    )
    projections = np.zeros((4, 3, 4))
    for projection, (aside, down, ahead) in zip(projections, shifts, strict=True):
        projection[:, :3] = [[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1]]
        projection[:, 3] = focal * aside, down, ahead
    swap = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    to_camera = rotation(0.004, -0.006, 0.008) @ swap
    to_sensor = rotation(0.0007, 0.002, -0.005)
    return Calibration(
        projections,
        rotation(-0.006, 0.004, -0.003),
        np.column_stack([to_camera, (-0.01, -0.08, -0.28)]),
        np.column_stack([to_sensor, (-0.81, 0.32, -0.8)]),
    )


def to_camera(
    calibration: Calibration, points: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, "points 3"]:
    """Points of the sensor's frame in rectified camera coordinates."""
    turn, shift = (
        calibration.sensor_to_camera[:, :3],
        calibration.sensor_to_camera[:, 3],
    )
    return (points @ turn.T + shift) @ calibration.rectification.T


def from_camera(
    calibration: Calibration, points: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, "points 3"]:
    """Points in rectified camera coordinates in the sensor's frame."""
    turn, shift = (
        calibration.sensor_to_camera[:, :3],
        calibration.sensor_to_camera[:, 3],
    )
    return (points @ calibration.rectification - shift) @ turn


def project(
    calibration: Calibration, points: Float[np.ndarray, "points 3"]
) -> Float[np.ndarray, "points 2"]:
    """Pixels in the image of camera 2 of points in rectified camera coordinates.

    Meaningless for points that are not in front of the camera.
    """
    projection = calibration.projections[2]
    scaled = points @ projection[:, :3].T + projection[:, 3]
    return scaled[:, :2] / scaled[:, 2:]


def format_matrices(matrices: Mapping[str, Float[np.ndarray, "..."]]) -> str:
    """Lines of a calibration file: a name, a colon and the numbers, row by row."""
    return "".join(
        f"{name}: {' '.join(f'{value:.12e}' for value in matrix.ravel())}\n"
        for name, matrix in matrices.items()
    )


def format_calibration(calibration: Calibration) -> str:
    """The text of a calibration file of the detection benchmark."""
    matrices = {f"P{i}": p for i, p in enumerate(calibration.projections)}
    matrices["R0_rect"] = calibration.rectification
    matrices["Tr_velo_to_cam"] = calibration.sensor_to_camera
    matrices["Tr_imu_to_velo"] = calibration.imu_to_sensor
    return format_matrices(matrices) + "\n"
