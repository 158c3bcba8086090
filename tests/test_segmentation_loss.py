"""Segmentation losses against float64 NumPy loops, closed forms and finite numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.training.loss import cross_entropy
from e3dsnn_jax.training.segmentation_loss import (
    cross_entropy_sums,
    lovasz_softmax,
    weighted_cross_entropy,
    weighted_mean,
)

CLASSES = 5
# Compiled whole: operation by operation takes longer.
lovasz = jax.jit(lovasz_softmax)


def log_softmax(row):
    top = max(row)
    total = sum(np.exp(value - top) for value in row)
    return [value - top - np.log(total) for value in row]


def cross_entropy_loop(logits, labels, weights, smoothing):
    total = weight = 0.0
    for row, label in zip(logits, labels, strict=True):
        if label < 0:
            continue
        log_p = log_softmax(row)
        total -= (1 - smoothing) * weights[label] * log_p[label]
        total -= (
            smoothing
            / len(row)
            * sum(w * lp for w, lp in zip(weights, log_p, strict=True))
        )
        weight += weights[label]
    return total / weight if weight else 0.0


def lovasz_loop(logits, labels):
    """As the definition has it: set functions on growing sets of mistakes."""
    kept = [i for i in range(len(labels)) if labels[i] >= 0]
    p = {i: np.exp(log_softmax(logits[i])) for i in kept}
    losses = []
    for c in range(logits.shape[1]):
        members = {i for i in kept if labels[i] == c}
        if not members:
            continue
        error = {i: abs((i in members) - p[i][c]) for i in kept}
        mistakes, loss, before = set(), 0.0, 0.0
        for i in sorted(kept, key=lambda i: -error[i]):
            mistakes.add(i)
            jaccard = len(mistakes) / len(members | mistakes)
            loss += error[i] * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return float(np.mean(losses)) if losses else 0.0


def numerical_gradient(function, logits, step=1e-5):
    gradient = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            gradient[place] += sign * function(moved) / (2 * step)
    return gradient


@pytest.fixture
def case(rng):
    logits = rng.normal(scale=2.0, size=(23, CLASSES))
    labels = rng.integers(-1, CLASSES - 1, size=23)  # the last class is absent
    weights = rng.uniform(0.5, 9.0, size=CLASSES)
    return logits, labels, weights


def on_device(*arrays):
    kinds = {"f": jnp.float32, "i": jnp.int32}
    return [jnp.asarray(array, kinds[array.dtype.kind]) for array in arrays]


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_cross_entropy_is_the_loop(case, smoothing, weighted):
    logits, labels, weights = case
    x, y, w = on_device(*case)
    used = weights if weighted else np.ones(CLASSES)
    given = w if weighted else None
    loss = lambda x: weighted_cross_entropy(x, y, given, label_smoothing=smoothing)
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    oracle = lambda logits: cross_entropy_loop(logits, labels, used, smoothing)
    np.testing.assert_allclose(value, oracle(logits), rtol=1e-6)
    expected = numerical_gradient(oracle, logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert (np.asarray(gradient)[labels < 0] == 0).all()


def test_without_weights_it_is_the_mean_of_the_classification_loss(case):
    x, y, _ = on_device(*case)
    each = cross_entropy(x, y, label_smoothing=0.2)
    mean = np.asarray(each).sum() / np.sum(np.asarray(y) >= 0)
    ours = weighted_cross_entropy(x, y, label_smoothing=0.2)
    np.testing.assert_allclose(ours, mean, rtol=1e-6)


def test_sums_of_parts_add_up_to_the_whole_but_means_do_not(case):
    x, y, w = on_device(*case)
    parts = [cross_entropy_sums(x[r], y[r], w) for r in (slice(0, 7), slice(7, 23))]
    whole = weighted_cross_entropy(x, y, w)
    added = weighted_mean(jax.tree.map(jnp.add, *parts))
    np.testing.assert_allclose(added, whole, rtol=1e-6)
    means = [float(weighted_mean(part)) for part in parts]
    assert abs(np.mean(means) - float(whole)) > 1e-3 * float(whole)


def test_lovasz_is_the_loop(case):
    logits, labels, _ = case
    x, y, _ = on_device(*case)
    value, gradient = jax.jit(jax.value_and_grad(lovasz_softmax))(x, y)
    np.testing.assert_allclose(value, lovasz_loop(logits, labels), rtol=1e-6)
    expected = numerical_gradient(lambda x: lovasz_loop(x, labels), logits)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)
    assert (np.asarray(gradient)[labels < 0] == 0).all()


@pytest.mark.parametrize(
    "labels",
    [[2], [0, 0, 0], [0, 1, 2, 3, 4], [-1, 3, -1], [1, 1, 4, 4, 4, 0, 0, 0, 0]],
)
def test_lovasz_on_few_rows(rng, labels):
    labels = np.array(labels)
    logits = rng.normal(size=(len(labels), CLASSES))
    x, y = on_device(logits, labels)
    np.testing.assert_allclose(lovasz(x, y), lovasz_loop(logits, labels), rtol=1e-6)


def test_lovasz_of_certain_predictions_is_one_minus_the_mean_iou():
    # Class 0: 2 of 3 found, 1 intruder. Class 1: 1 of 2 found, 1 intruder.
    labels = np.array([0, 0, 0, 1, 1, -1])
    predicted = np.array([0, 0, 1, 1, 0, 1])
    x, y = on_device(200.0 * np.eye(CLASSES)[predicted], labels)
    expected = 1 - np.mean([2 / 4, 1 / 3])
    np.testing.assert_allclose(lovasz(x, y), expected, rtol=1e-6)


def test_lovasz_keeps_its_digits_among_many_rows(rng):
    # Errors at least 1e-5 apart, so that float32 sorts them as float64 does.
    number = 20_000
    p = 0.1 + 0.8 * (np.arange(number) + 0.25) / number
    p = np.stack([p, 1 - p], axis=1)
    labels = rng.integers(0, 2, size=number)
    logits = np.log(p)
    expected = np.zeros_like(logits)
    for c in range(2):
        true = labels == c
        error = np.abs(true - p[:, c])
        order = np.argsort(-error, kind="stable")
        kept = true.sum() - np.cumsum(true[order])
        jaccard = 1 - kept / (true.sum() + np.cumsum(~true[order]))
        growth = np.empty(number)
        growth[order] = np.diff(jaccard, prepend=0.0)
        slope = np.where(true, -growth, growth)[:, None] * p[:, c, None]
        expected += slope * (np.eye(2)[c][None] - p) / 2
    gradient = jax.jit(jax.grad(lovasz_softmax))(*on_device(logits, labels))
    # Differences of float32 numbers near 1 would be wrong by a thousandth.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [weighted_cross_entropy, lovasz_softmax])
def test_padding_changes_nothing_whatever_it_holds(case, loss):
    x, y, _ = on_device(*case)
    rows = jnp.full((9, CLASSES), jnp.nan)
    padded = jnp.concatenate([x, rows]), jnp.concatenate([y, jnp.full(9, -1)])
    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(x, y)
    more, longer = both(*padded)
    np.testing.assert_allclose(more, value, rtol=1e-6)
    np.testing.assert_allclose(longer[:23], gradient, rtol=1e-5, atol=1e-9)
    assert (np.asarray(longer[23:]) == 0).all()


@pytest.mark.parametrize("loss", [weighted_cross_entropy, lovasz_softmax])
def test_without_labels_it_is_zero_and_so_is_the_gradient(loss):
    x, y = jnp.full((4, CLASSES), 3.0), jnp.full(4, -1)
    value, gradient = jax.jit(jax.value_and_grad(loss))(x, y)
    assert float(value) == 0
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.parametrize("loss", [weighted_cross_entropy, lovasz_softmax])
def test_extreme_and_half_precision_logits_stay_finite(case, loss):
    x, y, _ = on_device(*case)
    for logits in (x * 1e4, (x * 40).astype(jnp.bfloat16)):
        value, gradient = jax.jit(jax.value_and_grad(loss))(logits, y)
        assert value.dtype == jnp.float32
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_the_order_of_rows_does_not_matter(case, rng):
    x, y, w = on_device(*case)
    order = rng.permutation(len(y))
    weighted = jax.jit(lambda x, y: weighted_cross_entropy(x, y, w))
    for loss in (lovasz, weighted):
        np.testing.assert_allclose(loss(x[order], y[order]), loss(x, y), rtol=1e-6)
