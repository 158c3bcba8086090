"""Writing streets as sequences in the layout of SemanticKITTI.

    write_semantic_kitti(Path("street"), sequences={0: 40, 1: 40, 8: 20})

Each sequence is a street of its own, the scene of its number, and its scans are
consecutive views from the moving sensor.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from e3dsnn_jax.street.calibration import (
    Calibration,
    format_matrices,
    street_calibration,
)
from e3dsnn_jax.street.manifest import claim_folder, write_bytes, write_text
from e3dsnn_jax.street.plan import Plan, plan_street
from e3dsnn_jax.street.primitives import rotation
from e3dsnn_jax.street.scan import Pose, Scan, pose_at, scan_street
from e3dsnn_jax.street.sensor import Sensor


def points_bytes(scan: Scan) -> bytes:
    """The content of a `.bin` file: float32 x, y, z and intensity of each point."""
    rows = np.column_stack([scan.points, scan.intensity])
    return rows.astype("<f4").tobytes()


def label_bytes(scan: Scan) -> bytes:
    """The content of a `.label` file: instance << 16 | raw label, uint32."""
    return ((scan.instance << 16) | scan.label).astype("<u4").tobytes()


def write_semantic_kitti(
    folder: Path,
    *,
    sequences: Mapping[int, int],
    seed: int = 0,
    sensor: Sensor | None = None,
    interval: float = 0.1,
) -> None:
    """Writes sequences with labels, poses, calibration and times; keeps what is there.

    Args:
      folder: Where `sequences/` goes; made if absent.
      sequences: The number of scans of each sequence, by the sequence's number.
      seed: Seed of the streets.
      sensor: The sensor; the whole one if omitted.
      interval: Time from scan to scan, seconds; longer ones make scans differ more.

    Raises:
      ValueError: If a number is out of range, or the folder holds another street.
    """
    sensor = Sensor() if sensor is None else sensor
    if not (np.isfinite(interval) and interval > 0):
        raise ValueError(
            f"the interval from scan to scan must be positive: {interval} s"
        )
    for number, scans in sequences.items():
        if not 0 <= number <= 99 or scans < 1:
            raise ValueError(
                f"sequence {number} with {scans} scans: numbers go from 0 to 99, and "
                "a sequence has at least one scan"
            )
    chosen = {f"sequence_{n:02d}": scans for n, scans in sorted(sequences.items())}
    claim_folder(folder, "semantic_kitti", seed, sensor, interval=interval, **chosen)
    frames = [(n, i) for n, scans in sorted(sequences.items()) for i in range(scans)]
    for number, scans in sequences.items():
        _write_head(
            folder / "sequences" / f"{number:02d}",
            plan_street(seed, number),
            sensor,
            interval * np.arange(scans),
        )
    for number, index in tqdm(frames, desc="street scans", disable=None):
        home = folder / "sequences" / f"{number:02d}"
        points = home / "velodyne" / f"{index:06d}.bin"
        labels = home / "labels" / f"{index:06d}.label"
        if points.exists() and labels.exists():
            continue
        scan = scan_street(plan_street(seed, number), interval * index, sensor)
        write_bytes(points, points_bytes(scan))
        write_bytes(labels, label_bytes(scan))


def _write_head(
    home: Path, plan: Plan, sensor: Sensor, times: Float[np.ndarray, " scans"]
) -> None:
    """The folders of a sequence, and its files that belong to no single scan."""
    for name in ("velodyne", "labels"):
        (home / name).mkdir(parents=True, exist_ok=True)
    calibration = street_calibration()
    matrices = {f"P{i}": p for i, p in enumerate(calibration.projections)}
    matrices["Tr"] = sensor_to_rectified(calibration)[:3]
    poses = [pose_at(plan, float(time), sensor) for time in times]
    lines = camera_poses(poses, calibration)
    texts = {
        "calib.txt": format_matrices(matrices),
        "times.txt": "".join(f"{time:.6e}\n" for time in times),
        "poses.txt": "".join(
            " ".join(f"{value:.6e}" for value in pose.ravel()) + "\n" for pose in lines
        ),
    }
    for name, text in texts.items():
        if not (home / name).exists():
            write_text(home / name, text)


def sensor_to_rectified(calibration: Calibration) -> Float[np.ndarray, "4 4"]:
    """The transform from the sensor to rectified camera coordinates."""
    whole = np.eye(4)
    whole[:3] = calibration.rectification @ calibration.sensor_to_camera
    return whole


def camera_poses(
    poses: list[Pose], calibration: Calibration
) -> Float[np.ndarray, "scans 3 4"]:
    """Poses of the camera in its own frame at the first scan, as the benchmark has."""
    change = sensor_to_rectified(calibration)
    transforms = []
    for pose in poses:
        whole = np.eye(4)
        whole[:3, :3], whole[:3, 3] = rotation(pose.yaw), pose.position
        transforms.append(whole)
    begin = np.linalg.inv(transforms[0])
    back = np.linalg.inv(change)
    return np.stack([(change @ begin @ whole @ back)[:3] for whole in transforms])
