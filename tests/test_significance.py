"""Bartlett's test against scipy's distribution, and baselines of random layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layers_of_activations import related
from scipy import stats

from svcca_jax import (
    CKA,
    FixedCount,
    MeanCCA,
    MeanFourierCCA,
    MeanSVCCA,
    bartlett_test,
    cca,
    random_baseline,
    random_coefficients,
)


def test_bartlett_against_the_formula(rng):
    x, y = related(rng)
    result = cca(x, y)
    found = bartlett_test(result, 120)
    rho = np.asarray(result.coefficients, np.float64)
    for k in range(6):
        statistic = -(119 - (8 + 6 + 1) / 2) * np.log(1 - rho[k:] ** 2).sum()
        degrees = (8 - k) * (6 - k)
        np.testing.assert_allclose(found.statistics[k], statistic, rtol=1e-4)
        assert found.degrees[k] == degrees
        np.testing.assert_allclose(
            found.p_values[k], stats.chi2.sf(statistic, degrees), rtol=1e-3, atol=1e-6
        )
    assert found.significant() == 3  # the layers share three signals


def test_bartlett_at_the_edges(rng):
    x, y = related(rng)
    same = bartlett_test(cca(x, x), 120)
    assert (np.asarray(same.p_values) == 0).all()
    assert same.significant() == 8
    nothing = bartlett_test(cca(np.ones_like(x), y), 120)
    assert (np.asarray(nothing.p_values) == 1).all()
    assert nothing.significant() == 0
    with pytest.raises(ValueError, match="at least 2 datapoints, got 1"):
        bartlett_test(cca(x, y), 1)


def test_false_alarms_are_as_rare_as_the_level():
    def p_value(key):
        layers = jax.random.normal(key, (2, 60, 4))
        return bartlett_test(cca(layers[0], layers[1]), 60).p_values[0]

    p_values = jax.jit(jax.vmap(p_value))(jax.random.split(jax.random.key(0), 400))
    assert 0.02 < np.mean(np.asarray(p_values) < 0.05) < 0.09


def test_baselines(getkey):
    # Independent layers that fill the space of datapoints are fully correlated.
    full = random_baseline(MeanCCA(), (12, 11), (12, 11), key=getkey())
    np.testing.assert_allclose(full, 1, atol=1e-4)
    many = random_baseline(MeanCCA(), (4000, 5), (4000, 3), key=getkey(), repeats=3)
    assert many.shape == (3,)
    assert np.asarray(many).max() < 0.06
    maps = random_baseline(MeanFourierCCA(), (30, 2, 2, 3), (30, 2, 2, 2), key=getkey())
    assert len(set(np.asarray(maps).tolist())) == 5
    with pytest.raises(ValueError, match="x has 10 datapoints and y has 11"):
        random_baseline(CKA(), (10, 2), (11, 2), key=getkey())


def test_the_published_baseline_of_svcca(getkey):
    # Tutorial 001 gives 0.19 for the mean CCA of 500 x 10,000 normal numbers; the
    # number depends on the ratio alone, here 25 x 500.
    found = random_baseline(MeanCCA(), (500, 25), (500, 25), key=getkey(), repeats=20)
    np.testing.assert_allclose(np.mean(found), 0.19, atol=0.01)
    cut = MeanSVCCA(keep=FixedCount(20))
    assert jnp.mean(random_baseline(cut, (500, 25), (500, 25), key=getkey())) < 0.19


def test_bartlett_with_too_few_datapoints_is_not_known(rng):
    x, y = rng.standard_normal((2, 30, 20))
    test = bartlett_test(cca(x, y), 30)
    assert np.isnan(test.p_values).all()
    assert test.significant() == 0
    result = cca(x[:, :4], y[:, :4])
    traced = jax.jit(lambda count: bartlett_test(result, count).p_values)
    np.testing.assert_allclose(
        traced(jnp.asarray(30)), bartlett_test(result, 30).p_values, rtol=1e-5
    )


def test_random_coefficients(getkey):
    found = random_coefficients([200, 6], [200, 4], key=getkey(), repeats=3)
    assert found.shape == (3, 4)
    assert (np.diff(found, axis=1) <= 0).all()
    assert 0 < found.max() < 0.6
    kept = random_coefficients(
        (200, 6), (200, 4), key=getkey(), keep=FixedCount(2), repeats=1
    )
    assert (np.asarray(kept)[:, 2:] == 0).all()
    with pytest.raises(ValueError, match="200 datapoints and y has 100"):
        random_coefficients((200, 6), (100, 4), key=getkey())
