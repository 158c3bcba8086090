"""The training state: what it starts from, and its moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.training.optimizer import MultiStep, Sgd, make_optimizer
from e3dsnn_jax.training.state import create_state, update_averages


@pytest.fixture(scope="module")
def model():
    return Classifier(Architecture(3, 4, (4,), (1,)), num_classes=3)


@pytest.fixture(scope="module")
def batch():
    coords = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [1, 2, 2, 2]], np.int32)
    levels = build_pyramid(coords, num_levels=2)
    features = np.ones((len(levels[0].coords), 3), np.float32)
    labels = np.array([0, 2], np.int32)
    return ShapeBatch(features, levels, labels, labels)


def test_initial_state(model, batch):
    optimizer = make_optimizer(Sgd(), MultiStep(), total_steps=10)
    state = create_state(model, optimizer, batch, jax.random.key(1), ema=True)
    assert int(state.step) == 0
    assert state.step.dtype == jnp.int32
    shapes = jax.eval_shape(
        lambda key: model.init(
            key, *jax.tree.map(jnp.asarray, batch[:2]), num_clouds=2, train=False
        ),
        jax.random.key(1),
    )
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    assert len({float(p.std()) for p in jax.tree.leaves(state.params)}) > 3
    jax.tree.map(np.testing.assert_array_equal, variables, state.ema)
    # A step donates its state, which must not hold one buffer under two names.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)


def test_no_averages_unless_asked_for(model, batch):
    optimizer = make_optimizer(Sgd(), MultiStep(), total_steps=10)
    state = jax.eval_shape(
        lambda key: create_state(model, optimizer, batch, key), jax.random.key(1)
    )
    assert state.ema is None


def test_averages_follow_the_formula(rng):
    values = rng.normal(size=(40, 3))
    average = values[0]
    ours = {"a": jnp.asarray(values[0], jnp.float32)}
    step = jax.jit(update_averages, static_argnums=3)
    for t, value in enumerate(values[1:]):
        decay = min(0.75, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * value
        current = {"a": jnp.asarray(value, jnp.float32)}
        ours = step(ours, current, jnp.int32(t), 0.75)
    np.testing.assert_allclose(ours["a"], average, rtol=1e-5, atol=1e-6)


def test_average_of_a_constant_is_exactly_that_constant():
    tree = {"a": jnp.asarray([0.1, -3.7, 1e-8])}
    updated = update_averages(tree, tree, jnp.int32(500), 0.9)
    np.testing.assert_array_equal(updated["a"], tree["a"])
