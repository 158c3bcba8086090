"""Plots of similarities: what is drawn, found in the artists."""

import io
import itertools
import subprocess
import sys

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from svcca_jax import plots

LONG = [f"stage{k // 4}/block{k // 2 % 2}/unit{k % 2}" for k in range(40)]


def render(figure: Figure) -> np.ndarray:
    """The figure's pixels, by way of PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    assert buffer.getvalue().startswith(b"\x89PNG")
    buffer.seek(0)
    pixels = matplotlib.image.imread(buffer)
    assert pixels.std() > 0.01
    return pixels


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def x_names(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def y_names(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def overlaps(figure: Figure) -> int:
    """How many of the neighbouring tick labels of a figure cover each other."""
    figure.draw_without_rendering()
    found = 0
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [t.get_window_extent() for t in axis.get_ticklabels()]
            found += sum(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    return found


def test_grid_is_a_table_of_its_values():
    values = np.array([[1.0, 0.25, 0.0], [0.504, np.nan, -0.001]])
    names, others = ["stem", "head"], ["a", "b", "c"]
    figure = plots.plot_grid(
        values, names=names, other_names=others, title="two runs", label="CKA"
    )
    (axes,) = figure.axes
    assert texts(axes) == ["1.00", "0.25", "0.00", "0.50", "0.00"]
    places = [text.get_position() for text in axes.texts]
    assert places == [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1)]
    assert (x_names(axes), y_names(axes)) == (others, names)
    assert axes.yaxis_inverted()
    (image,) = axes.images
    assert image.get_clim() == (0, 1)
    np.testing.assert_array_equal(image.get_array(), values)
    (bar,) = axes.child_axes
    assert bar.get_ylabel() == "CKA"
    assert figure.get_suptitle() == "two runs"
    render(figure)


def test_numbers_stand_out_and_nan_is_grey():
    figure = plots.plot_grid([[1.0, 0.0, np.nan]], names=["x"], other_names=list("abc"))
    (axes,) = figure.axes
    assert [text.get_color() for text in axes.texts] == ["black", "white"]
    red, green, blue, _ = axes.images[0].to_rgba(np.ma.masked_invalid([np.nan]))[0]
    assert red == green == blue == pytest.approx(0.8, abs=0.01)
    grey = (np.abs(render(figure)[..., :3] - 0.8) < 0.01).all(axis=-1)
    assert grey.sum() > 100


@pytest.mark.parametrize(("size", "numbers"), [(12, 144), (13, 0)])
def test_large_grids_carry_no_numbers(size: int, numbers: int):
    values = jnp.full((size, size), 0.5, jnp.bfloat16)
    figure = plots.plot_grid(values, names=LONG[:size], lowest=-1, highest=2)
    assert len(texts(figure.axes[0])) == numbers
    assert figure.axes[0].images[0].get_clim() == (-1, 2)


@pytest.mark.parametrize("size", [6, 40, 70])
def test_names_of_a_grid_do_not_overlap(size: int):
    names = [f"{LONG[k % 40]}/{k}" for k in range(size)]
    figure = plots.plot_grid(np.eye(size), names=names)
    (axes,) = figure.axes
    assert overlaps(figure) == 0
    stride = -(-size // len(y_names(axes)))
    assert y_names(axes) == x_names(axes) == names[::stride]
    assert list(axes.get_yticks()) == list(range(0, size, stride))
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90}
    # The whole figure is drawn: no name runs over its edge.
    bounds, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(bounds.x0, bounds.y0) > -0.02
    assert bounds.x1 < width + 0.02
    assert bounds.y1 < height + 0.02


def test_short_names_stay_level():
    figure = plots.plot_grid(np.eye(3), names=["a", "b", "c"])
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {0}


@pytest.mark.parametrize(
    ("checkpoints", "down", "across"), [(1, 1, 1), (4, 1, 4), (7, 2, 4), (11, 3, 4)]
)
def test_training_is_a_panel_a_checkpoint(checkpoints: int, down: int, across: int):
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(checkpoints, 3, 2))
    steps = np.arange(checkpoints) * 1500
    figure = plots.plot_training(
        jnp.asarray(values),
        steps=steps,
        names=["x", "y", "z"],
        other_names=["u", "v"],
        title="dynamics",
        label="CKA",
    )
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == [f"step {s:,}" for s in steps]
    for axes, grid in zip(panels, values, strict=True):
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), grid, rtol=1e-6)
        assert image.get_clim() == (0, 1)
        assert not axes.yaxis_inverted()
        spec = axes.get_subplotspec()
        assert spec is not None
        assert spec.get_gridspec().get_geometry() == (down, across)
    assert panels[0].get_ylabel() == "layer at the step"
    bars = [bar for axes in panels for bar in axes.child_axes]
    assert [bar.get_ylabel() for bar in bars] == ["CKA"]
    render(figure)


def test_panels_of_training_share_their_names():
    values = np.broadcast_to(np.eye(40), (7, 40, 40))
    figure = plots.plot_training(values, steps=range(7), names=LONG)
    assert overlaps(figure) == 0
    # Rows of four and three: the panel above the empty place is named too.
    assert [bool(y_names(axes)) for axes in figure.axes] == [
        k in (0, 4) for k in range(7)
    ]
    assert [bool(x_names(axes)) for axes in figure.axes] == 3 * [False] + 4 * [True]
    heights = [axes.get_position().height for axes in figure.axes]
    np.testing.assert_allclose(heights, heights[0], rtol=1e-3)


def test_dynamics_is_a_line_a_layer():
    values = np.linspace(0, 1, 12).reshape(4, 3)
    steps = [0, 10, 50, 400]
    figure = plots.plot_dynamics(
        values, steps=steps, names=["stem", "body", "head"], title="t", label="CKA"
    )
    (axes,) = figure.axes
    assert len(axes.lines) == 3
    for line, curve in zip(axes.lines, values.T, strict=True):
        np.testing.assert_allclose(line.get_xdata(), steps)
        np.testing.assert_allclose(line.get_ydata(), curve)
    assert legend(figure) == ["stem", "body", "head"]
    brightness = [np.sum(line.get_color()[:3]) for line in axes.lines]
    assert brightness == sorted(brightness)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "CKA")
    assert axes.get_title() == "t"
    render(figure)


def test_legend_is_outside_of_the_plot():
    figure = plots.plot_dynamics(np.ones((2, 40)), steps=[0, 1], names=LONG)
    render(figure)
    outside, inside = figure.legends[0].get_window_extent(), figure.axes[0].bbox
    assert outside.x0 >= inside.x1
    assert outside.y0 >= 0
    assert inside.width > 3.5 * figure.dpi


def test_coefficients_are_sorted_lines():
    values = np.array([[0.1, 0.9, 0.5], [0.3, 0.2, 1.0]])
    baseline = np.array([[0.3, 0.2, 0.1], [0.1, 0.4, 0.2]])
    figure = plots.plot_coefficients(
        values, names=["early", "late"], baseline=baseline, title="t"
    )
    (axes,) = figure.axes
    random, early, late = axes.lines
    np.testing.assert_allclose(early.get_xydata(), [[1, 0.9], [2, 0.5], [3, 0.1]])
    np.testing.assert_allclose(late.get_ydata(), [1.0, 0.3, 0.2])
    np.testing.assert_allclose(random.get_ydata(), [0.35, 0.2, 0.1])
    (band,) = axes.collections
    assert isinstance(band, PolyCollection)
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
    edges = {1: (0.3, 0.4), 2: (0.2, 0.2), 3: (0.1, 0.1)}
    assert corners == {(x, y) for x, pair in edges.items() for y in pair}
    assert legend(figure) == ["random baseline", "early", "late"]
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] == pytest.approx(1, abs=0.05)
    assert axes.get_xlabel() == "direction"
    assert axes.get_title() == "t"
    render(figure)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_coefficients_of_one_pair():
    figure = plots.plot_coefficients(jnp.asarray([0.9, 0.2]))
    assert len(figure.axes[0].lines) == 1
    assert not figure.legends
    both = plots.plot_coefficients([0.9, 0.2], baseline=[0.1, 0.1])
    assert len(both.axes[0].lines) == 2
    assert legend(both) == ["random baseline"]
    render(both)


GRID, CUBE = np.ones((3, 3)), np.ones((2, 3, 3))
ABC, STEPS = ["a", "b", "c"], [0, 1]


@pytest.mark.parametrize(
    ("function", "values", "options", "message"),
    [
        ("grid", GRID, {"names": [*ABC, "d"]}, "3 layers but names has 4 entries"),
        ("grid", GRID[:, :2], {"names": ABC}, "2 other layers but names has 3 entries"),
        (
            "grid",
            GRID,
            {"names": ABC, "other_names": ["a"]},
            "values have 3 other layers but other_names has 1 entries",
        ),
        ("grid", CUBE, {"names": ABC}, "2 axes .layers, other layers., got 3: shape"),
        (
            "grid",
            np.ones((0, 3)),
            {"names": []},
            "values must hold some layers, got 0: .0, 3.",
        ),
        (
            "grid",
            np.ones((3, 0)),
            {"names": ABC},
            "must hold some other layers, got 0: .3, 0.",
        ),
        (
            "grid",
            GRID,
            {"names": ABC, "lowest": 1.0, "highest": 0.5},
            "lowest must be below highest, got 1.0 and 0.5",
        ),
        (
            "training",
            CUBE,
            {"names": ABC, "steps": [1]},
            "values have 2 checkpoints but steps has 1 entries",
        ),
        (
            "training",
            CUBE,
            {"names": ABC[:2], "steps": STEPS},
            "values have 3 layers but names has 2 entries",
        ),
        (
            "training",
            CUBE,
            {"names": ABC, "other_names": ABC[:2], "steps": STEPS},
            "values have 3 other layers but other_names has 2 entries",
        ),
        ("training", GRID, {"names": ABC, "steps": STEPS}, "3 axes .*, got 2"),
        ("training", CUBE[:0], {"names": ABC, "steps": []}, "some checkpoints, got 0"),
        ("training", CUBE, {"names": ABC, "steps": [[0, 1]]}, "1 axis, got 2: shape"),
        (
            "dynamics",
            GRID,
            {"names": ABC[:2], "steps": range(3)},
            "values have 3 layers but names has 2 entries",
        ),
        (
            "dynamics",
            GRID,
            {"names": ABC, "steps": range(4)},
            "values have 3 checkpoints but steps has 4 entries",
        ),
        ("dynamics", CUBE, {"names": ABC, "steps": STEPS}, "2 axes .*, got 3"),
        ("dynamics", GRID[:0], {"names": ABC, "steps": []}, "some checkpoints, got 0"),
        (
            "coefficients",
            GRID,
            {"names": ["a"]},
            "coefficients have 3 pairs but names has 1 entries",
        ),
        (
            "coefficients",
            GRID,
            {"baseline": np.ones(4)},
            "coefficients have 3 directions but baseline has 4",
        ),
        ("coefficients", CUBE, {}, "coefficients must have 2 axes .*, got 3"),
        ("coefficients", 0.5, {}, "coefficients must have 2 axes .*, got 0"),
        (
            "coefficients",
            np.ones(0),
            {},
            "coefficients must hold some directions, got 0",
        ),
        ("coefficients", GRID, {"baseline": CUBE}, "baseline must have 2 axes .*got 3"),
        (
            "coefficients",
            GRID,
            {"baseline": GRID[:0]},
            "baseline must hold some samples, got 0",
        ),
    ],
)
def test_what_does_not_match_is_refused(function, values, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(plots, f"plot_{function}")(values, **options)


def test_the_package_does_not_import_matplotlib():
    program = (
        "import sys, svcca_jax; assert 'matplotlib' not in sys.modules; "
        "import svcca_jax.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_random_baselines_are_drawn_and_checked():
    grids = np.linspace(0, 1, 18).reshape(2, 3, 3)
    plain = plots.plot_training(grids, steps=[0, 5], names=list("abc"))
    random = np.full((3, 3), 0.25)
    figure = plots.plot_training(
        grids, steps=[0, 5], names=list("abc"), baseline=random
    )
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["step 0", "step 5", "random"]
    assert len(figure.axes) == len(plain.axes) + 1
    image = next(axes for axes in figure.axes if axes.get_title() == "random").images[0]
    np.testing.assert_array_equal(np.asarray(image.get_array()), random)
    with pytest.raises(ValueError, match=r"\(3, 3\) but the baseline is \(2, 2\)"):
        plots.plot_training(
            grids, steps=[0, 5], names=list("abc"), baseline=np.zeros((2, 2))
        )
    curves = np.linspace(0, 1, 6).reshape(2, 3)
    drawn = plots.plot_dynamics(
        curves, steps=[0, 5], names=list("abc"), baseline=[0.1, 0.2, 0.3]
    )
    (band,) = drawn.axes[0].patches
    assert band.get_y() == pytest.approx(0.1)
    assert band.get_height() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="2 layers but names has 3"):
        plots.plot_dynamics(
            curves, steps=[0, 5], names=list("abc"), baseline=[0.1, 0.2]
        )
