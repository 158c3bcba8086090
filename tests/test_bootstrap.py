"""Draws of groups, against similarities of rows that are repeated one by one."""

import jax
import numpy as np
import pytest
from layers_of_activations import related

from svcca_jax import CKA, MeanCCA, MeanSVCCA, ProcrustesSimilarity, pairwise
from svcca_jax.bootstrap import bootstrap, draw_weights, interval


@pytest.mark.parametrize("measure", [MeanSVCCA(), MeanCCA(), CKA()])
def test_a_draw_is_the_similarity_of_the_rows_repeated(measure):
    rng = np.random.default_rng(0)
    x, y = related(rng, datapoints=90)
    groups = np.repeat(np.arange(9), 10)
    weights = np.asarray(draw_weights(9, draws=4, key=jax.random.key(1)))[:, groups]
    found = bootstrap(x, y, weights, measure=measure)
    for value, counts in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(90), counts)
        expected = pairwise([x[rows]], [y[rows]], measure=measure)[0, 0]
        np.testing.assert_allclose(value, expected, atol=2e-4)
    assert np.ptp(found) > 1e-3


def test_weights_of_one_are_the_layers_themselves():
    x, y = related(np.random.default_rng(0))
    ones = np.ones((1, len(x)), np.int32)
    found = bootstrap(x, y, ones, measure=ProcrustesSimilarity())
    expected = pairwise([x], [y], measure=ProcrustesSimilarity())[0, 0]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_a_large_mean_costs_no_digits():
    x, y = related(np.random.default_rng(0))
    ones = np.ones((1, len(x)), np.int32)
    plain, shifted = (
        bootstrap(a, b, ones, measure=MeanSVCCA())[0]
        for a, b in ((x, y), (x + 1000, y - 1000))
    )
    np.testing.assert_allclose(shifted, plain, atol=1e-3)


def test_groups_are_drawn_as_often_as_there_are_groups():
    weights = np.asarray(draw_weights(50, draws=200, key=jax.random.key(0)))
    assert weights.shape == (200, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert weights.min() == 0
    # Each group once in the mean, with the spread of draws with replacement.
    np.testing.assert_allclose(weights.mean(), 1)
    np.testing.assert_allclose(weights.var(), 1 - 1 / 50, rtol=0.1)


def test_an_interval_holds_the_value_and_is_as_wide_as_the_spread():
    rng = np.random.default_rng(0)
    draws = 0.6 + 0.05 * rng.standard_normal((4000, 2))
    reach = 1.645 * 0.05
    low, high = interval(np.array([0.5, 0.99]), draws, level=0.9)
    np.testing.assert_allclose(low, [0.5 - reach, 0.99 - reach], atol=5e-3)
    np.testing.assert_allclose(high, [0.5 + reach, 1], atol=5e-3)


def test_intervals_of_unrelated_layers_hold_the_value():
    # Draws of wide layers all lie above: the value must lie in the interval even so.
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(300, 60)).astype(np.float32) for _ in range(2))
    groups = np.repeat(np.arange(60), 5)
    weights = np.asarray(draw_weights(60, draws=20, key=jax.random.key(0)))
    value = np.array(pairwise([x], [y], measure=MeanCCA())[0, 0])
    draws = np.asarray(bootstrap(x, y, weights[:, groups], measure=MeanCCA()))
    assert draws.min() > value
    low, high = interval(value, draws)
    assert low < value < high


def test_wrong_arguments_are_refused():
    x, y = related(np.random.default_rng(0))
    with pytest.raises(ValueError, match="120 datapoints but the weights have"):
        bootstrap(x, y, np.ones((2, 7), np.int32), measure=CKA())
    with pytest.raises(ValueError, match="needs groups and draws, got 0 and 3"):
        draw_weights(0, draws=3, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1"):
        interval(np.zeros(2), np.zeros((3, 2)), level=1)
    with pytest.raises(ValueError, match="at least 2 draws, got 1"):
        interval(np.zeros(2), np.zeros((1, 2)))
