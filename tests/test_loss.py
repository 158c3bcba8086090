"""The smoothed cross-entropy against NumPy, torch and its special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.training.loss import cross_entropy


def smoothed(logits, label, share):
    """Cross-entropy of one cloud from its definition, in float64."""
    probabilities = np.exp(logits) / np.sum(np.exp(logits))
    target = np.full(len(logits), share / len(logits))
    target[label] += 1 - share
    return -np.sum(target * np.log(probabilities))


@pytest.fixture
def batch(rng):
    return rng.normal(size=(6, 5)) * 3, np.array([0, 4, 2, -1, 1, -1], np.int32)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_matches_the_definition(batch, share):
    logits, labels = batch
    losses = cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), label_smoothing=share
    )
    for loss, row, label in zip(losses, logits, labels, strict=True):
        if label < 0:
            assert loss == 0
        else:
            np.testing.assert_allclose(loss, smoothed(row, label, share), rtol=2e-6)


def test_matches_torch(batch):
    torch = pytest.importorskip("torch")
    logits, labels = batch
    expected = torch.nn.CrossEntropyLoss(
        label_smoothing=0.2, reduction="none", ignore_index=-1
    )(torch.tensor(logits), torch.tensor(labels, dtype=torch.long))
    losses = cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), label_smoothing=0.2
    )
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_gradient_is_probabilities_minus_target():
    logits = jnp.asarray([[1.0, -2.0, 0.5]])
    gradient = jax.grad(
        lambda x: jnp.sum(cross_entropy(x, jnp.asarray([1]), label_smoothing=0.3))
    )(logits)
    target = np.array([[0.1, 0.8, 0.1]])
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - target, atol=1e-6)


def test_broken_padding_rows_reach_neither_loss_nor_gradient():
    logits = jnp.asarray([[1.0, 2.0], [jnp.nan, jnp.inf]])
    total = lambda x: jnp.sum(cross_entropy(x, jnp.asarray([0, -1])))
    loss, gradient = jax.value_and_grad(total)(logits)
    np.testing.assert_allclose(loss, np.log(1 + np.e), rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.all(np.isfinite(gradient[0]))


def test_extreme_logits_stay_finite():
    logits = jnp.asarray([[1e4, -1e4], [-1e4, 1e4]])
    losses = cross_entropy(logits, jnp.asarray([0, 0]))
    np.testing.assert_allclose(losses, [0.0, 2e4])


def test_half_precision_logits_are_summed_in_float32():
    logits = jnp.asarray([[1.0, 2.0, 3.0]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.asarray([0]), label_smoothing=0.1)
    assert loss.dtype == jnp.float32
    expected = smoothed(np.array([1.0, 2.0, 3.0]), 0, 0.1)
    np.testing.assert_allclose(loss[0], expected, rtol=1e-6)
