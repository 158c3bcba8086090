"""Optimizers and schedules against NumPy loops, golden trajectories and torch."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3dsnn_jax.training.optimizer import (
    AdamW,
    Cosine,
    MultiStep,
    OneCycle,
    Sgd,
    make_momentum_schedule,
    make_optimizer,
    make_schedule,
)

# Synthetic: learning rates and trajectories computed by torch in float64.
GOLDEN = Path(__file__).parent / "golden" / "schedules.npz"
CONSTANT = MultiStep(milestones=())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as stored:
        return {name: stored[name] for name in stored}


def run(transformation, params, gradient, steps):
    """Parameters after each of `steps` updates with the gradient of the parameters."""

    def body(carry, _):
        params, state = carry
        updates, state = transformation.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = (params, transformation.init(params))
    return jax.jit(lambda start: jax.lax.scan(body, start, None, length=steps)[1])(
        start
    )


def values(schedule, steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


def quadratic(golden):
    matrix = jnp.asarray(golden["quad/A"], jnp.float32)
    offset = jnp.asarray(golden["quad/b"], jnp.float32)
    start = jnp.asarray(golden["quad/x0"], jnp.float32)
    return start, lambda x: matrix @ x - offset


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_matches_torchs_rule_written_out(rng, nesterov):
    params = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=2)}
    slopes = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=2)}
    sgd = Sgd(0.05, momentum=0.8, weight_decay=0.1, nesterov=nesterov)

    expected = {name: value.copy() for name, value in params.items()}
    buffers = {}
    for _ in range(7):
        for name, value in expected.items():
            gradient = slopes[name] * value + 0.1 * value
            first = name not in buffers
            buffers[name] = gradient if first else 0.8 * buffers[name] + gradient
            step = gradient + 0.8 * buffers[name] if nesterov else buffers[name]
            expected[name] = value - 0.05 * step

    device = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    slopes = device(slopes)
    path = run(
        make_optimizer(sgd, CONSTANT, total_steps=7),
        device(params),
        lambda p: jax.tree.map(jnp.multiply, slopes, p),
        7,
    )
    for name, value in expected.items():
        np.testing.assert_allclose(path[name][-1], value, rtol=2e-6)


def test_sgd_matches_torchs_trajectory(golden):
    start, gradient = quadratic(golden)
    path = run(make_optimizer(Sgd(), CONSTANT, total_steps=10), start, gradient, 10)
    np.testing.assert_allclose(path, golden["quad/sgd_nesterov"], rtol=2e-5, atol=2e-6)


def test_adamw_with_one_cycle_matches_torchs_trajectory(golden):
    """Learning rate and beta1 both cycle, bias correction by the current beta1."""
    start, gradient = quadratic(golden)
    adamw = AdamW(learning_rate=2e-3, weight_decay=5e-3)
    transformation = make_optimizer(adamw, OneCycle(), total_steps=50)
    path = run(transformation, start, gradient, 50)
    # Relative to how far the parameters have moved, not to their size.
    moved = np.asarray(path) - np.asarray(start)
    expected = golden["quad/adamw_onecycle"] - golden["quad/x0"]
    np.testing.assert_allclose(moved, expected, rtol=2e-4, atol=2e-7)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(nesterov=True), ("SGD", {"momentum": 0.9, "nesterov": True})),
        (AdamW(0.1), ("AdamW", {})),
    ],
)
def test_optimizers_match_torch(golden, ours, theirs):
    torch = pytest.importorskip("torch")
    name, options = theirs
    point = torch.tensor(golden["quad/x0"], dtype=torch.float32, requires_grad=True)
    matrix = torch.tensor(golden["quad/A"], dtype=torch.float32)
    offset = torch.tensor(golden["quad/b"], dtype=torch.float32)
    optimizer = getattr(torch.optim, name)(
        [point], lr=0.1, weight_decay=ours.weight_decay, **options
    )
    for _ in range(20):
        optimizer.zero_grad()
        (point @ matrix @ point / 2 - offset @ point).backward()
        optimizer.step()
    start, gradient = quadratic(golden)
    path = run(make_optimizer(ours, CONSTANT, total_steps=20), start, gradient, 20)
    np.testing.assert_allclose(path[-1], point.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_global_norm_before_weight_decay():
    params = {"a": jnp.full(3, 2.0), "b": jnp.full(4, -1.0)}
    gradient = {"a": jnp.full(3, 30.0), "b": jnp.full(4, 40.0)}
    sgd = Sgd(0.5, momentum=0.0, weight_decay=0.1, nesterov=False)
    transformation = make_optimizer(sgd, CONSTANT, total_steps=1, clip_norm=10.0)
    state = transformation.init(params)
    updates: Any = jax.jit(transformation.update)(gradient, state, params)[0]
    norm = math.sqrt(3 * 30.0**2 + 4 * 40.0**2)
    np.testing.assert_allclose(updates["a"], -0.5 * (300 / norm + 0.2), rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.5 * (400 / norm - 0.1), rtol=1e-6)


@pytest.mark.parametrize("total", [200, 333])
def test_one_cycle_matches_torch(golden, total):
    rate = make_schedule(OneCycle(), 2e-3, total)
    beta1 = make_momentum_schedule(OneCycle(), total)
    assert beta1 is not None
    expected = golden[f"onecycle_{total}/lr"]
    np.testing.assert_allclose(values(rate, total), expected, rtol=1e-5)
    expected = golden[f"onecycle_{total}/beta1"]
    np.testing.assert_allclose(values(beta1, total), expected, rtol=1e-6)


def test_one_cycle_can_leave_momentum_alone():
    assert make_momentum_schedule(OneCycle(momentum_range=None), 10) is None
    assert make_momentum_schedule(MultiStep(), 10) is None


def test_one_cycle_cycles_the_momentum_of_sgd():
    """The buffer after two equal gradients shows the momentum of the second update."""
    sgd = Sgd(learning_rate=1.0, weight_decay=0.0, nesterov=False)
    schedule = OneCycle(warmup=0.5)
    transformation = make_optimizer(sgd, schedule, total_steps=8)
    path = run(transformation, jnp.zeros(()), lambda _: jnp.ones(()), 2)
    momentum = make_momentum_schedule(schedule, 8)
    assert momentum is not None
    rate = make_schedule(schedule, 1.0, 8)(1)
    np.testing.assert_allclose(path[0] - path[1], rate * (1 + momentum(1)), rtol=1e-6)


def test_multi_step_matches_torch_where_torch_decays(golden):
    rate = make_schedule(MultiStep(), 0.1, 200)
    np.testing.assert_allclose(values(rate, 200), golden["multistep_200/lr"], rtol=1e-6)


def test_multi_step_decays_where_torch_does_not(golden):
    assert golden["multistep_203/lr"][-1] == 0.1  # 121.8 and 162.4 are no steps
    rate = values(make_schedule(MultiStep(), 0.1, 203), 203)
    np.testing.assert_allclose(
        rate[[0, 121, 122, 162, 163, 202]],
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
        rtol=1e-6,
    )


@pytest.mark.parametrize("total", [2, 3, 4, 5, 7, 11, 99, 1001])
def test_every_milestone_fires_whatever_the_number_of_steps(total):
    rate = values(make_schedule(MultiStep(), 1.0, total), total)
    np.testing.assert_allclose(rate[[0, -1]], [1.0, 0.01], rtol=1e-6)


def test_milestones_ignore_float_rounding():
    assert 0.55 * 100 > 55
    rate = values(make_schedule(MultiStep(milestones=(0.55,)), 1.0, 100), 100)
    np.testing.assert_array_equal(np.flatnonzero(rate < 1), np.arange(55, 100))


def test_cosine_warms_up_and_ends_at_its_final_fraction():
    rate = values(make_schedule(Cosine(warmup=0.1, final=0.02), 0.5, 100), 100)
    np.testing.assert_allclose(rate[:10], 0.5 * np.arange(1, 11) / 11, rtol=1e-6)
    np.testing.assert_allclose(rate[[10, -1]], [0.5, 0.01], rtol=1e-5)
    middle = 0.01 + 0.49 * (1 + math.cos(math.pi * 40 / 89)) / 2
    np.testing.assert_allclose(rate[50], middle, rtol=1e-5)
    assert np.all(np.diff(rate[10:]) < 0)


@pytest.mark.parametrize("schedule", [MultiStep(), OneCycle(), Cosine()])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_shortest_runs_have_finite_positive_rates(schedule, total):
    rate = values(make_schedule(schedule, 0.1, total), total + 2)
    assert np.all(rate > 0)
    assert np.all(rate <= np.float32(0.1))
    # A run that goes on past its plan keeps the last rate.
    np.testing.assert_array_equal(rate[total:], rate[total - 1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_schedule(MultiStep((1.2,)), 0.1, 10), "milestone must be .* 1.2"),
        (lambda: make_schedule(MultiStep(), 0.1, 0), "total_steps must be .* got 0"),
        (lambda: make_schedule(Cosine(warmup=1.0), 0.1, 9), r"warmup must .* got 1\.0"),
        (lambda: make_schedule(OneCycle(div_factor=0.0), 0.1, 9), "div_factor must be"),
        (lambda: make_schedule(Cosine(), -0.1, 9), r"learning_rate .* got -0\.1"),
        (
            lambda: make_optimizer(Sgd(momentum=1.0), Cosine(), total_steps=9),
            r"momentum must be .* got 1\.0",
        ),
        (
            lambda: make_optimizer(Sgd(), Cosine(), total_steps=9, clip_norm=0.0),
            r"clip_norm must be .* got 0\.0",
        ),
    ],
)
def test_errors_name_the_field_and_its_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
