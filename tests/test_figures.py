"""Figures: what is on them, found in the artists or in the pixels."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e3dsnn_jax import figures
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.training.metrics import FiringRate


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    save = figures._save

    def keep(figure: Figure, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "_save", keep)
    return saved


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def points(axes: Axes, line: int) -> np.ndarray:
    return np.asarray(axes.lines[line].get_xydata())


def is_drawn(path: Path) -> bool:
    """Whether a PNG holds more than its background."""
    return matplotlib.image.imread(path).std() > 0.01


@pytest.mark.parametrize("classes", [3, 40])
def test_confusion_shows_counts_and_names(
    drawn: list[Figure], tmp_path: Path, classes: int
):
    rng = np.random.default_rng(0)
    mistakes = rng.integers(1, 4, (classes, classes)) * (rng.random(classes) < 0.1)
    confusion = mistakes + 20 * np.eye(classes, dtype=int)
    names = [f"class {k} with a very long name indeed" for k in range(classes)]
    figures.draw_confusion(confusion, names, tmp_path / "new" / "confusion.png")
    assert is_drawn(tmp_path / "new" / "confusion.png")
    main = drawn[0].axes[0]
    assert len(texts(drawn[0])) == np.count_nonzero(confusion)
    labels = [label.get_text() for label in main.get_yticklabels()]
    assert len(labels) == classes
    assert all(len(label) <= 24 and label.endswith("…") for label in labels)
    right, clouds = np.trace(confusion), confusion.sum()
    assert f"{right} of {clouds} clouds right" in main.get_title()
    # No label covers the next one: a row is at least as high as its letters.
    height = drawn[0].get_size_inches()[1] * 72 * 0.7 / classes
    assert height >= main.get_yticklabels()[0].get_fontsize()


def test_confusion_with_a_class_that_does_not_occur(tmp_path: Path):
    confusion = np.array([[2, 1], [0, 0]])
    figures.draw_confusion(confusion, ["a", "b"], tmp_path / "confusion.png")
    assert is_drawn(tmp_path / "confusion.png")


def test_firing_has_a_bar_for_each_layer(drawn: list[Figure], tmp_path: Path):
    firing = {
        f"stage{k}/block0/unit0": FiringRate(0.1 * k, 0.25 * k, k) for k in range(5)
    }
    figures.draw_firing(firing, tmp_path / "firing.png")
    assert is_drawn(tmp_path / "firing.png")
    left, right = drawn[0].axes
    widths = [bar.get_width() for bar in left.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(widths, [0, 10, 20, 30, 40])
    assert [label.get_text() for label in left.get_yticklabels()] == list(firing)
    assert "%" in left.get_xlabel()
    assert "mean spike" in right.get_xlabel()


def test_training_curves(drawn: list[Figure], tmp_path: Path):
    metrics = [
        {
            "kind": "train",
            "step": s,
            "epoch": s / 2,
            "loss": 3.0 - s,
            "accuracy": 0.2 * s,
        }
        for s in range(4)
    ] + [{"kind": "eval", "step": 2, "epoch": 1, "loss": 1.5, "accuracy": 0.3}]
    figures.draw_training(metrics, tmp_path / "training.png")
    assert is_drawn(tmp_path / "training.png")
    loss, accuracy = drawn[0].axes
    np.testing.assert_allclose(points(loss, 0)[2], [1.0, 1.0])
    np.testing.assert_allclose(points(accuracy, 1), [[1, 30]])
    assert loss.get_xlabel() == "epoch"
    assert accuracy.get_ylabel() == "accuracy (%)"


def test_clouds_are_titled_with_prediction_and_truth(
    drawn: list[Figure], tmp_path: Path, rng: np.random.Generator
):
    clouds = [
        PointCloud(rng.standard_normal((50, 3)).astype(np.float32), None, label, "x")
        for label in (0, 1, -1)
    ]
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    path = tmp_path / "clouds.png"
    figures.draw_clouds(clouds, probabilities, ["lamp", "chair"], path, columns=2)
    assert is_drawn(path)
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == ["lamp 90%", "lamp 60%\ntrue: chair", "chair 80%", ""]
