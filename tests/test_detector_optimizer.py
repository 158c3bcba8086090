"""The detector's optimizer against its rule written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from e3dsnn_jax.training.detector_optimizer import (
    DetectorAdam,
    detector_learning_rate,
    detector_momentum,
    make_detector_optimizer,
)


def half_cosine(start, end, fraction):
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


def cycle(total, warmup, start, top, end):
    rising = int(total * warmup)
    return [
        half_cosine(start, top, i / rising)
        if i < rising
        else half_cosine(top, end, (i - rising) / (total - rising))
        for i in range(total)
    ]


def values(function, steps):
    return np.asarray(jax.jit(jax.vmap(function))(jnp.arange(steps)), np.float64)


@pytest.mark.parametrize("total", [1, 2, 7, 250])
def test_rate_and_momentum_follow_their_rule(total):
    config = DetectorAdam()
    rate = values(detector_learning_rate(config, total), total)
    np.testing.assert_allclose(rate, cycle(total, 0.4, 1e-3, 0.01, 1e-7), rtol=1e-4)
    beta1 = values(detector_momentum(config, total), total)
    np.testing.assert_allclose(beta1, cycle(total, 0.4, 0.95, 0.85, 0.95), rtol=1e-6)


def test_updates_follow_the_rule_written_out(rng):
    steps, config = 30, DetectorAdam(clip_norm=2.0)
    start = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=2)}
    gradients = {name: rng.normal(size=(steps, *p.shape)) for name, p in start.items()}
    for gradient in gradients.values():
        gradient[::2] /= 10  # every other one is not clipped

    rates = cycle(steps, 0.4, 1e-3, 0.01, 1e-7)
    betas = cycle(steps, 0.4, 0.95, 0.85, 0.95)
    params = {name: p.copy() for name, p in start.items()}
    first = {name: np.zeros_like(p) for name, p in start.items()}
    second = {name: np.zeros_like(p) for name, p in start.items()}
    clipped = 0
    for i, (rate, beta) in enumerate(zip(rates, betas, strict=True)):
        norm = math.sqrt(sum((g[i] ** 2).sum() for g in gradients.values()))
        clipped += norm > 2
        for name, p in params.items():
            g = gradients[name][i] * min(1.0, 2 / norm)
            first[name] = beta * first[name] + (1 - beta) * g
            second[name] = 0.99 * second[name] + 0.01 * g**2
            m = first[name] / (1 - beta ** (i + 1))
            v = second[name] / (1 - 0.99 ** (i + 1))
            params[name] = p * (1 - rate * 0.01) - rate * m / (np.sqrt(v) + 1e-8)
    assert 0 < clipped < steps

    optimizer = make_detector_optimizer(config, total_steps=steps)
    device = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    def update(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    state = (device(start), optimizer.init(device(start)))
    (ours, _), _ = jax.jit(lambda s, g: jax.lax.scan(update, s, g))(
        state, device(gradients)
    )
    for name, expected in params.items():
        moved = np.abs(expected - start[name]).max()
        assert moved > 0.02
        np.testing.assert_allclose(ours[name], expected, atol=1e-4 * moved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("div_factor", 0.0),
        ("momentum_range", (0.9, 0.8)),
        ("weight_decay", -1.0),
        ("b2", 1.0),
        ("warmup", 1.0),
        ("clip_norm", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        make_detector_optimizer(DetectorAdam(**{field: value}), total_steps=10)


def test_a_run_has_at_least_one_step():
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        detector_momentum(DetectorAdam(), 0)
