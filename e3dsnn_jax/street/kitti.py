"""Writing streets as frames in the layout of KITTI's object detection benchmark.

    write_kitti(Path("street_boxes"), train=400, val=100)

Every frame is another street, so that no scene of the validation is seen in training.
There are no images: `label_2` holds the rectangles that camera 2 would see.
"""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from e3dsnn_jax.street.annotate import annotate
from e3dsnn_jax.street.calibration import (
    IMAGE_SIZE,
    format_calibration,
    street_calibration,
)
from e3dsnn_jax.street.label_lines import format_line
from e3dsnn_jax.street.manifest import claim_folder, write_bytes, write_text
from e3dsnn_jax.street.plan import plan_street
from e3dsnn_jax.street.scan import View, view_street
from e3dsnn_jax.street.semantic_kitti import points_bytes
from e3dsnn_jax.street.sensor import Sensor

FIRST_SCENE = 1_000
"""The scene of frame 0: sequences of SemanticKITTI's layout have smaller numbers."""
LATEST = 30.0
"""Frames are taken up to this long after a street begins, seconds."""


def view_of_frame(seed: int, frame: int, sensor: Sensor) -> View:
    """The view of one frame: a street of its own, at a time of its own."""
    plan = plan_street(seed, FIRST_SCENE + frame)
    rng = np.random.default_rng(np.random.SeedSequence((*plan.words, 5)))
    return view_street(plan, float(rng.uniform(0.0, LATEST)), sensor)


def write_kitti(
    folder: Path,
    *,
    train: int,
    val: int,
    seed: int = 0,
    sensor: Sensor | None = None,
) -> None:
    """Writes frames with calibration, labels and splits; keeps what is there.

    Args:
      folder: Where `training/` and `ImageSets/` go; made if absent.
      train: Number of frames to train on; they come first.
      val: Number of frames to validate on.
      seed: Seed of the streets.
      sensor: The sensor; the whole one if omitted.

    Raises:
      ValueError: If there are no frames, or the folder holds another street.
    """
    sensor = Sensor() if sensor is None else sensor
    if train < 0 or val < 0 or train + val < 1:
        raise ValueError(f"{train} and {val} frames: at least one, and none negative")
    counts = {"train": train, "val": val}
    claim_folder(folder, "kitti", seed, sensor, image_size=list(IMAGE_SIZE), **counts)
    home, splits = folder / "training", folder / "ImageSets"
    for name in ("velodyne", "calib", "label_2"):
        (home / name).mkdir(parents=True, exist_ok=True)
    splits.mkdir(exist_ok=True)
    chosen = {"train": range(train), "val": range(train, train + val)}
    for name, numbers in chosen.items():
        if not (splits / f"{name}.txt").exists():
            lines = "".join(f"{number:06d}\n" for number in numbers)
            write_text(splits / f"{name}.txt", lines)

    calibration = street_calibration()
    for frame in tqdm(range(train + val), desc="street frames", disable=None):
        stem = f"{frame:06d}"
        points = home / "velodyne" / f"{stem}.bin"
        calib, labels = (home / name / f"{stem}.txt" for name in ("calib", "label_2"))
        if points.exists() and calib.exists() and labels.exists():
            continue
        view = view_of_frame(seed, frame, sensor)
        lines = [format_line(line) + "\n" for line in annotate(view, calibration)]
        write_bytes(points, points_bytes(view.scan))
        write_text(calib, format_calibration(calibration))
        write_text(labels, "".join(lines))
