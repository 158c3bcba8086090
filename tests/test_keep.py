"""Rules of how many directions are kept, at their edges."""

import jax.numpy as jnp
import numpy as np
import pytest

from svcca_jax import AllDirections, FixedCount, SumFraction, VarianceFraction

VALUES = jnp.array([3.0, 2.0, 1.0, 0.0], jnp.float32)  # squares 9, 4, 1, 0


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (VarianceFraction(9 / 14 - 1e-4), 1),
        (VarianceFraction(9 / 14 + 1e-4), 2),
        (VarianceFraction(0.99), 3),
        (VarianceFraction(1.0), 3),
        (SumFraction(0.5), 1),
        (SumFraction(0.8), 2),
        (SumFraction(0.99), 3),
        (FixedCount(1), 1),
        (FixedCount(20), 3),
        (AllDirections(), 3),
    ],
    ids=str,
)
def test_counts(keep, expected):
    assert keep.count(VALUES, jnp.asarray(3)) == expected


@pytest.mark.parametrize(
    "keep", [VarianceFraction(), SumFraction(), FixedCount(), AllDirections()], ids=str
)
def test_nothing_is_kept_of_a_dead_layer(keep):
    assert keep.count(jnp.zeros(4), jnp.asarray(0)) == 0


def test_the_sum_rule_keeps_more_than_the_variance_rule(rng):
    values = jnp.asarray(np.geomspace(1, 1e-3, 50), jnp.float32)
    rank = jnp.asarray(50)
    by_sum = SumFraction(0.99).count(values, rank)
    assert by_sum > VarianceFraction(0.99).count(values, rank)


def test_settings_out_of_range():
    for fraction in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match=r"\(0, 1\], got"):
            VarianceFraction(fraction)
        with pytest.raises(ValueError, match=r"\(0, 1\], got"):
            SumFraction(fraction)
    with pytest.raises(ValueError, match="directions=0"):
        FixedCount(0)
