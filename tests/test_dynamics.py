"""Convergence steps, and the test of bottom-up, against brute force."""

import itertools

import numpy as np
import pytest
from scipy import stats

from svcca_jax.dynamics import bottom_up_test, convergence_steps


def slow_convergence(values: np.ndarray, steps: list[int], threshold: float) -> list:
    found = []
    for layer in values.T:
        step = np.nan
        for at, rest in ((steps[i], layer[i:]) for i in range(len(steps))):
            if all(value >= threshold for value in rest):
                step = at
                break
        found.append(step)
    return found


def slow_test(convergence: np.ndarray) -> tuple[float, float]:
    """All orders of all runs, one by one."""
    runs = np.nan_to_num(convergence, nan=1e9).tolist()

    def score(run) -> int:
        return sum(np.sign(b - a) for a, b in itertools.combinations(run, 2))

    scores = [[score(order) for order in itertools.permutations(run)] for run in runs]
    observed = sum(score(run) for run in runs)
    totals = np.array([sum(draw) for draw in itertools.product(*scores)])
    pairs = len(runs) * len(runs[0]) * (len(runs[0]) - 1) / 2
    return observed / pairs, float((totals >= observed).mean())


def test_settled_is_above_and_staying():
    steps = [0, 10, 20, 40]
    values = np.array(
        [
            # never low, late, falls back, only at the end, never, NaN early, equal
            [0.9, 0.1, 0.9, 0.0, 0.9, np.nan, 0.1],
            [0.9, 0.9, 0.2, 0.1, 0.9, 0.9, 0.8],
            [0.9, 0.9, 0.9, 0.2, 0.9, np.nan, 0.8],
            [1.0, 1.0, 1.0, 1.0, 0.1, 0.9, 0.8],
        ]
    )
    found = convergence_steps(values, steps, 0.8)
    np.testing.assert_array_equal(found, [0, 10, 20, 40, np.nan, 40, 10])


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 5)])
def test_convergence_is_that_of_a_loop(rng, shape):
    for _ in range(20):
        values = rng.choice([0.1, 0.5, 0.9, np.nan], shape, p=[0.2, 0.3, 0.4, 0.1])
        steps = np.cumsum(rng.integers(1, 9, shape[0])).tolist()
        np.testing.assert_array_equal(
            convergence_steps(values, steps, 0.5), slow_convergence(values, steps, 0.5)
        )


@pytest.mark.parametrize(
    ("values", "steps", "threshold", "message"),
    [
        (np.ones(3), [0, 1, 2], 0.5, r"must be \[steps, layers\].*\(3,\)"),
        (np.ones((0, 2)), [], 0.5, r"not empty, got shape \(0, 2\)"),
        (np.ones((2, 0)), [0, 1], 0.5, r"not empty, got shape \(2, 0\)"),
        (np.ones((2, 2)), [0, 1, 2], 0.5, r"2 checkpoints but steps have shape \(3,\)"),
        (np.ones((2, 2)), [1, 1], 0.5, "steps must increase"),
        (np.ones((2, 2)), [0, 1], np.nan, "threshold is NaN"),
    ],
)
def test_bad_similarities_are_named(values, steps, threshold, message):
    with pytest.raises(ValueError, match=message):
        convergence_steps(values, steps, threshold)


def test_perfect_and_reversed_orders():
    up, down = [[1, 2, 3, 4]] * 3, [[4, 3, 2, 1]] * 3
    assert bottom_up_test(up)[:2] == (1.0, pytest.approx(1 / 24**3))
    assert bottom_up_test(down)[:2] == (-1.0, pytest.approx(1.0))
    assert bottom_up_test([[5, 5, 5]]) == (0.0, 1.0, (0.0,))
    # Never settled comes last, and ties with its like.
    assert bottom_up_test([[1, 2, np.nan]]) == bottom_up_test([[1, 2, 9]])
    assert bottom_up_test([[np.nan, np.nan]]) == (0.0, 1.0, (0.0,))
    mixed = bottom_up_test([up[0], down[0], [5, 5, 5, 5], [1, 1, 2, 2]])
    assert mixed.correlations == (1.0, -1.0, 0.0, pytest.approx(4 / 6))
    assert mixed.correlation == pytest.approx(np.mean(mixed.correlations))


@pytest.mark.parametrize("shape", [(1, 2), (1, 6), (2, 5), (3, 4)])
def test_bottom_up_is_that_of_all_orders(rng, shape):
    for case in range(8):
        values = rng.integers(0, 3 + case, shape).astype(float)
        values[rng.random(shape) < 0.2] = np.nan
        found = bottom_up_test(values)
        assert found[:2] == pytest.approx(slow_test(values))
        alone = [slow_test(run[None])[0] for run in values]
        assert found.correlations == pytest.approx(alone)


def test_without_ties_one_run_is_the_textbook_test(rng):
    for layers in (3, 9, 30):
        order = rng.permutation(layers)
        found = bottom_up_test(order[None])
        expected = stats.kendalltau(
            np.arange(layers), order, alternative="greater", method="exact"
        )
        assert found[:2] == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(("runs", "of_walks"), [(1, 0.25), (3, 0.20)])
def test_layers_that_follow_their_neighbours_pass_too_often(rng, runs, of_walks):
    # No layer is earlier than another but by chance, as the docstring says of walks.
    steps = rng.standard_normal((1000, runs, 9))

    def passing(draws: np.ndarray) -> float:
        return float(np.mean([bottom_up_test(each).p_value <= 0.05 for each in draws]))

    assert passing(steps) == pytest.approx(0.035, abs=0.015)
    assert passing(steps.cumsum(axis=2)) == pytest.approx(of_walks, abs=0.035)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 1), (1, 2, 3)])
def test_too_little_to_rank(shape):
    with pytest.raises(ValueError, match="at least 1 run and 2 layers"):
        bottom_up_test(np.ones(shape))
