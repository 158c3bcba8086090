"""Networks of digits, their training, and the experiments on them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import svcca_jax
from experiments.digits import (
    class_information,
    compression,
    data,
    figures,
    freeze_training,
    intrinsic_dimension,
    learning_dynamics,
    memorising,
    training,
)
from experiments.digits.networks import (
    Conv,
    Dense,
    image_rows,
    position_rows,
    valid_conv,
)
from svcca_jax.projection import leading, pca_projector, project
from tests.test_svcca_tutorial import write_mnist

pytestmark = pytest.mark.usefixtures("lenient_promotion")

DENSE = Dense(width=6, depth=2)
CONV = Conv(channels=(3, 4, 5), width=6, norm=True)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).random((40, 24, 24, 1), np.float32)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 10, 40).astype(np.int32)


@pytest.mark.parametrize("network", [DENSE, CONV], ids=["dense", "conv"])
def test_activations_are_what_the_next_layer_reads(network, images):
    state = training.init_training(network, images, key=jax.random.key(0))
    found = training.activations(network, state.variables, jnp.asarray(images))
    assert list(found) == network.layer_names()
    logits = found["logits"].reshape(len(images), 10)
    for name in list(found)[:-1]:
        # Other images below: only the given activation counts.
        above = training.logits_above(
            network, state.variables, jnp.asarray(images[::-1]), name, found[name]
        )
        np.testing.assert_allclose(above, logits, atol=1e-5)


def test_convolution_by_patches(rng):
    maps = jnp.asarray(rng.standard_normal((2, 7, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 2, 3, 4)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        maps, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(valid_conv(maps, kernel), expected, atol=1e-4)


def test_rows_of_maps():
    maps = jnp.arange(2 * 6 * 6 * 3, dtype=jnp.float32).reshape(2, 6, 6, 3)
    assert position_rows(maps).shape == (72, 3)
    np.testing.assert_array_equal(position_rows(maps)[7], maps[0, 1, 1])
    few = position_rows(maps, most=10)
    assert few.shape == (10, 3)
    np.testing.assert_array_equal(few, position_rows(maps, most=10))
    assert image_rows(maps).shape == (2, 27)
    np.testing.assert_array_equal(
        image_rows(maps[:, :3, :3]), maps[:, :3, :3].reshape(2, -1)
    )
    constant = image_rows(jnp.full((2, 8, 8, 2), 5.0))
    np.testing.assert_allclose(constant, 5, rtol=1e-5)


def test_training_is_the_same_however_it_is_cut(images, labels):
    given = (DENSE, images, labels)
    whole = training.train(*given, steps=[5], key=jax.random.key(3))[0]
    parts = training.train(*given, steps=[0, 2, 5], key=jax.random.key(3))
    assert len(parts) == 3
    jax.tree.map(np.testing.assert_array_equal, whole, parts[-1])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), parts[0], whole)
    assert all(jax.tree.leaves(moved["params"]))


@pytest.mark.parametrize("network", [DENSE, CONV], ids=["dense", "conv"])
def test_frozen_layers_stay_and_others_learn(network, images, labels):
    state = training.init_training(network, images, key=jax.random.key(0))
    x, y = jnp.asarray(images), jnp.asarray(labels)
    state = training.advance(network, state, x, y, jnp.asarray(1))
    state = training.freeze(network, state, 2)
    owned = network.layer_names()[:2]
    assert not any(name.split("_")[0] in owned for name in state.optimizer)
    done = training.advance(network, state, x, y, jnp.asarray(3), frozen=2)
    for part in state.variables:
        for name, before in state.variables[part].items():
            same = jax.tree.map(
                lambda a, b: bool((a == b).all()), before, done.variables[part][name]
            )
            fixed = name.split("_")[0] in owned
            assert all(v is fixed for v in jax.tree.leaves(same)), name


def test_frozen_layers_cost_nothing_backward(images):
    costs = [
        whole - forward
        for whole, forward in (
            training.step_flops(DENSE, images, frozen=frozen) for frozen in range(3)
        )
    ]
    assert costs[0] > costs[1] > costs[2] > 0


def test_small_training_learns(images, labels):
    # A bright row of pixels names the digit.
    bright = images.copy()
    bright[np.arange(len(labels)), labels] += 1
    (last,) = training.train(
        Dense(width=32, depth=2), bright, labels, steps=[100], key=jax.random.key(0)
    )
    found = training.accuracy(Dense(width=32, depth=2), last, bright, labels)
    assert found > 0.9
    logits = training.activations(Dense(width=32, depth=2), last, bright)["logits"]
    assert found == (np.asarray(logits).argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("network", [DENSE, CONV], ids=["dense", "conv"])
def test_compressed_networks_are_the_projected_ones(network, images):
    x = jnp.asarray(images)
    variables = training.init_training(network, x, key=jax.random.key(0)).variables
    layers = training.activations(network, variables, x)
    hidden = network.layer_names()[:-1]
    projectors = {
        name: leading(pca_projector(position_rows(layers[name])), 1) for name in hidden
    }
    small, merged = compression.compress(network, variables, projectors)
    assert [name for name, _ in small.ranks] == hidden
    assert compression.count_parameters(merged) < compression.count_parameters(
        variables
    )

    def edit(name, activation):
        if name not in projectors:
            return activation
        return project(activation, projectors[name])

    expected = network.apply(variables, x, edit)[0]
    np.testing.assert_allclose(small.apply(merged, x)[0], expected, atol=1e-4)


def test_compression_leaves_kernels_that_would_grow(images):
    x = jnp.asarray(images)
    variables = training.init_training(DENSE, x, key=jax.random.key(0)).variables
    rows = training.activations(DENSE, variables, x)["fc1"]
    small, merged = compression.compress(DENSE, variables, {"fc1": pca_projector(rows)})
    assert small == DENSE
    assert merged["params"] == variables["params"]


def test_smallest_count_stays_enough():
    counts = [1, 2, 4, 8]
    found = intrinsic_dimension.smallest_count
    assert found(np.array([0.95, 0.5, 0.95, 0.95]), counts, 0.955) == 4
    assert found(np.array([0.95, 0.95, 0.95, 0.95]), counts, 0.955) == 1
    assert np.isnan(found(np.array([0.1, 0.1, 0.1, 0.9]), counts, 0.955))
    assert intrinsic_dimension.counts_up_to(6) == [1, 2, 4, 6]
    assert intrinsic_dimension.counts_up_to(8) == counts


def test_schedules_of_freezing():
    assert freeze_training.linear_schedule(600, 4) == [150, 300, 450]
    share = freeze_training.backward_share
    assert share([], [4.0, 2.0, 1.0], 100) == 1
    assert share([50], [4.0, 2.0, 1.0], 100) == pytest.approx(0.75)
    assert share([50, 50], [4.0, 2.0, 1.0], 100) == pytest.approx(0.625)


def test_looks_of_the_guide_cost_forward_operations():
    # 12 looks at 1000 images, against 400 steps of 128 that cost twice as much.
    share = freeze_training.look_share(12, 1000, 5.0, 10.0, 400)
    assert share == pytest.approx(12_000 * 5 / (400 * 128 * 10))
    assert freeze_training.look_share(0, 1000, 5.0, 10.0, 400) == 0


@pytest.fixture
def taken(images) -> list[training.Variables]:
    """Two states of a dense network."""
    keys = jax.random.split(jax.random.key(0))
    return [training.init_training(DENSE, images, key=k).variables for k in keys]


def test_layers_are_compared_with_the_end(taken, images):
    measure = svcca_jax.CKA()
    found = learning_dynamics.against_final(DENSE, taken, images, measure)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found[1], 1, atol=1e-5)
    assert (found[0] < 0.9999).all()
    grids = learning_dynamics.layer_by_layer(DENSE, taken, images, measure)
    # The layers of a dense network have no positions: both take the same rows.
    np.testing.assert_allclose(grids.diagonal(axis1=1, axis2=2), found, atol=1e-5)
    np.testing.assert_allclose(grids[1], grids[1].T, atol=1e-5)
    assert (grids[1][~np.eye(3, dtype=bool)] < 0.9999).all()


def test_baselines_are_of_unrelated_layers(taken, images):
    given = DENSE, taken[1], images, svcca_jax.MeanSVCCA()
    # 40 images, and layers of 6, 6 and 10 neurons.
    alone = learning_dynamics.measure_baseline(*given)
    grid = learning_dynamics.measure_grid_baseline(*given)
    assert grid.shape == (3, 3)
    for found in (alone, grid):
        assert np.ptp(found) > 0
        assert (found > 0).all()
        assert (found < 0.6).all()


def test_table_says_what_the_p_value_takes_for_granted():
    test = {"correlation": 0.5, "p_value": 0.01, "correlations": (1.0, 0.0)}
    result = {
        "layers": ["fc1", "logits"],
        "steps": [0],
        "against_final": [[[0.5, 0.25]]],
        "baseline": [0.1, 0.2],
        "bottom_up": {"0.8": {"all_layers": test}},
        "convergence": {"0.8": [[0.0, None]]},
    }
    table = learning_dynamics.format_table("dense", result)
    told = "depth 0.50 (runs: 1.00, 0.00), p 0.01 (layers treated as independent)"
    assert told in table
    assert "0.100    0.200" in table


def test_baseline_is_a_band_over_layers():
    x, y = figures.level([10, 5, 70], [0.1, 0.3])
    np.testing.assert_array_equal(x, [5, 70])
    np.testing.assert_array_equal(y, [[0.1, 0.1], [0.3, 0.3]])


def test_class_is_found_in_a_layer_that_holds_it(rng):
    labels = rng.integers(0, 10, 60)
    found = class_information.indicators(labels)
    assert [each.shape for each in found] == [(60, 1)] * 10
    np.testing.assert_array_equal(np.hstack(found).argmax(axis=1), labels)
    np.testing.assert_array_equal(np.hstack(found).sum(axis=1), 1)
    layer = np.hstack([3 * found[4] + 1, rng.standard_normal((60, 2))])
    values = svcca_jax.pairwise([layer.astype(np.float32)], found)[0]
    assert values[4] == pytest.approx(1, abs=1e-4)
    assert np.delete(values, 4).max() < 0.9


def test_first_directions_project_as_those_alone(rng):
    rows = jnp.asarray(rng.standard_normal((30, 6)), jnp.float32)
    others = jnp.asarray(rng.standard_normal((30, 6)), jnp.float32)
    for projector in intrinsic_dimension.find_bases(rows, others, 0).values():
        for count in (1, 4, 6):
            held = intrinsic_dimension.first_directions(projector, count)
            alone = leading(projector, count)
            np.testing.assert_allclose(
                project(rows, held), project(rows, alone), atol=1e-5
            )


def test_guided_freezing_follows_its_threshold(images, labels):
    state = training.init_training(DENSE, images, key=jax.random.key(0))
    given = DENSE, state, jnp.asarray(images), jnp.asarray(labels), 4
    options = {"checks": 2, "looked_at": 40}
    done, at = freeze_training.train_guided(*given, **options, threshold=0.0)
    assert at == [2, 2]
    assert list(done.optimizer) == ["logits"]
    done, at = freeze_training.train_guided(*given, **options, threshold=1.1)
    assert at == []
    assert len(done.optimizer) == 3


def test_small_images_are_repeated(tmp_path, rng):
    maps = data._as_maps(np.arange(64, dtype=np.float32)[None])
    assert maps.shape == (1, 24, 24, 1)
    np.testing.assert_array_equal(maps[0, ::3, ::3, 0], np.arange(64).reshape(8, 8))
    np.testing.assert_array_equal(maps[0, 2::3, 1::3, 0], np.arange(64).reshape(8, 8))
    with pytest.raises(ValueError, match="images of 12 pixels are not square"):
        data.open_images(write_mnist(tmp_path / "mnist.npz", rng))


@pytest.fixture
def mnist(tmp_path, rng):
    labels = rng.integers(0, 10, (2, 60), dtype=np.uint8)
    pixels = rng.integers(0, 20, (2, 60, 24, 24)) + 25 * labels[..., None, None]
    pixels = pixels.astype(np.uint8)
    arrays = {"x_train": pixels[0], "y_train": labels[0]}
    arrays |= {"x_test": pixels[1], "y_test": labels[1]}
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path / "mnist.npz"


def run(experiment, mnist, capsys, *options: str) -> dict:
    arguments = ["--mnist", str(mnist), "--out", str(mnist.parent / "out"), *options]
    assert experiment.main(arguments) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_memorising_compares_all_pairs(mnist, capsys):
    options = ("--seeds", "2", "--widths", "5", "--steps", "3", "--images", "50")
    found = run(memorising, mnist, capsys, *options)
    (width,) = found["widths"]
    assert [len(v) for v in width["cka"]["gen-mem"]] == [4] * 4
    assert [len(v) for v in width["pwcca"]["gen-gen"]] == [1] * 4
    assert (mnist.parent / "out" / "memorising.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    [
        class_information,
        compression,
        freeze_training,
        intrinsic_dimension,
        learning_dynamics,
    ],
    ids=lambda module: module.__name__.split(".")[-1],
)
def test_experiments_run_small(experiment, mnist, capsys):
    options = ("--seeds", "1", "--steps", "3", "--images", "50", "--width", "5")
    found = run(experiment, mnist, capsys, *options)
    assert {"data", "dense", "conv", "seconds"} <= set(found)
    assert list((mnist.parent / "out").iterdir())


def test_bad_mnist_is_an_error_message(tmp_path, capsys):
    assert memorising.main(["--mnist", str(tmp_path)]) != 0
    assert "holds no train-images" in capsys.readouterr().err
