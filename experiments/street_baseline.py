"""What height and intensity alone give away of the embedded street's classes.

    python -m experiments.street_baseline

Points of some scenes fill a histogram of (height, intensity) for each class; a point of
other scenes gets the class with the largest entry in its cell. Heights are counted from
the sensor. Three rules are tried, and the best is what a network has to beat: plain
counts, counts divided by the square root of the class's size, and by the size. Moving
classes count as their classes at rest. The last line is JSON.
"""

import dataclasses
import json
import time

import numpy as np
import tyro
from jaxtyping import Float, Int

from e3dsnn_jax.street.classes import AT_REST, RawLabel
from e3dsnn_jax.street.plan import plan_street
from e3dsnn_jax.street.scan import Scan, scan_street
from e3dsnn_jax.street.sensor import Sensor

HEIGHTS = (-8.0, 8.0)
"""Range of the histogram, metres from the sensor; beyond it the last cells count."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A histogram of height and intensity as a classifier."""

    train_scenes: int = 40
    """Scenes whose points fill the histogram."""
    test_scenes: int = 10
    """Other scenes, on which it is judged."""
    beams: int = 32
    """Beams of the sensor."""
    columns: int = 512
    """Azimuths of the sensor in a turn."""
    height_cells: int = 64
    """Cells of the histogram along the height."""
    intensity_cells: int = 25
    """Cells of the histogram along the intensity."""
    seed: int = 0
    """Seed of the streets."""


def classes_at_rest(scan: Scan) -> Int[np.ndarray, " points"]:
    """The raw label of each point, without regard to motion."""
    labels = scan.label.copy()
    for moving, still in AT_REST.items():
        labels[labels == moving] = still
    return labels


def cells_of(
    scan: Scan, height_cells: int, intensity_cells: int
) -> Int[np.ndarray, " points"]:
    """The cell of the histogram that each point falls into."""
    low, high = HEIGHTS
    height = np.floor((scan.points[:, 2] - low) / (high - low) * height_cells)
    intensity = np.floor(scan.intensity * intensity_cells)
    return np.ravel_multi_index(
        (
            height.astype(int).clip(0, height_cells - 1),
            intensity.astype(int).clip(0, intensity_cells - 1),
        ),
        (height_cells, intensity_cells),
    )


def mean_iou(
    confusion: Int[np.ndarray, "classes classes"],
) -> tuple[float, Float[np.ndarray, " classes"]]:
    """The mean IoU of the classes present, and the IoU of each; rows are the truth."""
    correct = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - correct
    iou = correct / np.maximum(union, 1)
    return float(iou[confusion.sum(axis=1) > 0].mean()), iou


def baseline(config: Config) -> dict[str, object]:
    """Mean IoU of the three rules, and the IoU of each class under the best.

    Raises:
      ValueError: If there is no scene to train or to test on.
    """
    if config.train_scenes < 1 or config.test_scenes < 1:
        raise ValueError(
            f"at least one scene to train and one to test on, not "
            f"{config.train_scenes} and {config.test_scenes}"
        )
    sensor = Sensor(beams=config.beams, columns=config.columns)
    classes = np.array(sorted(set(RawLabel) - set(AT_REST)))
    cells = config.height_cells * config.intensity_cells
    counts = np.zeros((2, cells, len(classes)), np.int64)
    for scene in range(config.train_scenes + config.test_scenes):
        scan = scan_street(plan_street(config.seed, scene), 0.0, sensor)
        row = cells_of(scan, config.height_cells, config.intensity_cells)
        column = np.searchsorted(classes, classes_at_rest(scan))
        np.add.at(counts[int(scene >= config.train_scenes)], (row, column), 1)
    train, test = counts
    size = np.maximum(train.sum(axis=0), 1)
    results = {}
    for rule, power in (("counts", 0.0), ("roots", 0.5), ("shares", 1.0)):
        predicted = (train / size**power).argmax(axis=1)
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        np.add.at(confusion.T, predicted, test)
        results[rule] = mean_iou(confusion)
    best = max(results, key=lambda rule: results[rule][0])
    return {
        "points": int(counts.sum()),
        **{rule: round(miou, 4) for rule, (miou, _) in results.items()},
        "best": round(results[best][0], 4),
        "iou": {
            RawLabel(label).name.lower(): round(float(iou), 3)
            for label, iou in zip(classes, results[best][1], strict=True)
        },
    }


def main(config: Config) -> None:
    """Prints the baseline, as JSON on the last line."""
    began = time.perf_counter()
    result = baseline(config)
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"dataset": "embedded street", **result, "seconds": seconds}))


if __name__ == "__main__":
    main(tyro.cli(Config))
