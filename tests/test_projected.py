"""Projected and shrunken units against the membranes that the network returns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clouds_of_voxels import random_coords
from tiny_run import share_compilations

from e3dsnn_jax.analysis.projected import (
    identity,
    replacement_of,
    run_projected,
    run_small,
    shrink_units,
)
from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.voxels import pad_features
from svcca_jax.projection import leading, pca_projector

MODEL = Classifier(Architecture(6, 6, (8,), (1,)), num_classes=3)
OPTIONS = {"num_clouds": 2, "train": False}
UNITS = ("stem/unit0", "stem/unit1", "stage0/down", "stage0/block0/unit1")


@pytest.fixture(scope="module", autouse=True)
def compilations(tmp_path_factory):
    return share_compilations(tmp_path_factory)


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    coords = random_coords(rng)
    levels = jax.tree.map(jnp.asarray, build_pyramid(coords, num_levels=2))
    rows = rng.normal(size=(len(coords), 6)).astype(np.float32)
    features = jnp.asarray(pad_features(rows, rows=len(levels[0].coords)))
    init = jax.jit(functools.partial(MODEL.init, **OPTIONS))
    shapes = jax.eval_shape(init, jax.random.key(0), features, levels)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.2, 1, leaf.shape) - 0.25, leaf.dtype),
        shapes,
    )
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    return variables, features, levels


def projectors(network, directions):
    """Of each unit, from its own membranes on the real voxels."""
    variables, features, levels = network
    _, activations = jax.jit(functools.partial(MODEL.apply, **OPTIONS))(
        variables, features, levels
    )
    found = {}
    for name in UNITS:
        values = np.asarray(activations[name])[:, 0]
        coords = levels[0 if name.startswith("stem") else 1].coords
        found[name] = leading(
            pca_projector(values[np.asarray(coords)[:, 0] >= 0]), directions
        )
    return found


def test_the_identity_changes_nothing(network):
    expected, _ = MODEL.apply(network[0], *network[1:], **OPTIONS)
    same = {"stem/unit1": identity(6), "stage0/down": identity(8)}
    found, _ = run_projected(MODEL, *network, replacements=same, **OPTIONS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_projected_membrane_is_its_projection_and_padding_stays_zero(network):
    one = {"stage0/down": projectors(network, 2)["stage0/down"]}
    replaced = {name: replacement_of(found) for name, found in one.items()}
    _, before = MODEL.apply(network[0], *network[1:], **OPTIONS)
    _, after = run_projected(MODEL, *network, replacements=replaced, **OPTIONS)
    directions, back, mean = (np.asarray(x, np.float64) for x in one["stage0/down"])
    y = np.asarray(before["stage0/down"], np.float64)[:, 0]
    real = np.asarray(network[2][1].coords)[:, 0] >= 0
    expected = np.where(real[:, None], mean + (y - mean) @ directions.T @ back.T, 0)
    np.testing.assert_allclose(after["stage0/down"][:, 0], expected, atol=1e-5)
    assert np.abs(expected - y).max() > 1e-2  # something was left out
    assert not real.all()


@pytest.mark.parametrize("directions", [1, 3])
def test_small_units_compute_what_projected_ones_do(network, directions):
    variables, _, _ = network
    found = projectors(network, directions)
    small = shrink_units(variables, found)
    replaced = {name: replacement_of(projector) for name, projector in found.items()}
    for name, unit in small.items():
        offsets, c_in, _ = unit.first.shape
        size = directions * (offsets * c_in + unit.second.shape[1])
        assert unit.weights == size, name
    _, expected = run_projected(MODEL, *network, replacements=replaced, **OPTIONS)
    _, computed = run_small(MODEL, *network, units=small, **OPTIONS)
    for name in ("stem/unit0", "stem/unit1"):
        np.testing.assert_allclose(computed[name], expected[name], atol=2e-5)
    # Where no spike has flipped by rounding, all of it.
    for name, values in expected.items():
        if name.endswith("/spikes"):
            np.testing.assert_array_equal(computed[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(computed[name], values, atol=1e-4)


def test_names_of_no_unit_are_refused(network):
    wrong = {"stage0/block0": identity(8)}
    with pytest.raises(ValueError, match="no units of the names stage0/block0"):
        run_projected(MODEL, *network, replacements=wrong, **OPTIONS)
    projector = projectors(network, 1)["stage0/down"]
    with pytest.raises(ValueError, match="no unit stage0/block0"):
        shrink_units(network[0], {"stage0/block0": projector})
