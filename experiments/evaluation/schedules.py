"""Learning rates, momenta and the trajectories of the optimizers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from e3dsnn_jax.training.detector_optimizer import (
    DetectorAdam,
    detector_learning_rate,
    detector_momentum,
    make_detector_optimizer,
)
from e3dsnn_jax.training.optimizer import AdamW, Sgd, make_optimizer
from e3dsnn_jax.training.schedule import (
    MultiStep,
    OneCycle,
    Schedule,
    make_momentum_schedule,
    make_schedule,
)
from experiments.evaluation.contract import Case

_CONSTANT = MultiStep(milestones=())


def compute_schedules(case: Case) -> dict[str, np.ndarray]:
    """Every schedule and trajectory of a case; N is part of the name of some."""
    constants = case.constants
    found: dict[str, np.ndarray] = {}
    for name in case.shapes:
        schedule, _, _ = name.partition("/")
        family, _, steps = schedule.rpartition("_")
        if family == "onecycle" and f"{schedule}/lr" not in found:
            rate, beta1 = _one_cycle(constants["onecycle"], int(steps))
            found |= {f"{schedule}/lr": rate, f"{schedule}/beta1": beta1}
        elif family == "multistep":
            rules = constants["multistep"]
            ours = MultiStep(factor=rules["gamma"])
            found[name] = _values(
                make_schedule(ours, rules["lr"], int(steps)), int(steps)
            )
    return found | _detector(case) | _quadratic(case)


def _values(value: Callable[[Any], jax.Array], steps: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(value))(jnp.arange(steps)), np.float64)


def _cycle_of(rules: dict[str, Any]) -> Schedule:
    return OneCycle(
        warmup=rules["pct_start"],
        div_factor=rules["div_factor"],
        final_div_factor=rules["final_div_factor"],
        momentum_range=(rules["base_momentum"], rules["max_momentum"]),
    )


def _one_cycle(rules: dict[str, Any], steps: int) -> tuple[np.ndarray, np.ndarray]:
    ours = _cycle_of(rules)
    momentum = make_momentum_schedule(ours, steps)
    assert momentum is not None
    rate = make_schedule(ours, rules["max_lr"], steps)
    return _values(rate, steps), _values(momentum, steps)


def _detector(case: Case) -> dict[str, np.ndarray]:
    rules = case.constants["pcdet"]
    config = DetectorAdam(
        learning_rate=rules["lr_max"],
        weight_decay=rules["weight_decay"],
        momentum_range=(min(rules["moms"]), max(rules["moms"])),
        b2=rules["beta2"],
        eps=rules["eps"],
        warmup=rules["pct_start"],
        div_factor=rules["div_factor"],
        clip_norm=rules["grad_clip"],
    )
    steps = case.shapes["pcdet_onecycle/lr"][0]
    params = _below(case, "pcdet_adam/param0/")
    gradients = _below(case, "pcdet_adam/grad/")
    optimizer = make_detector_optimizer(config, total_steps=steps)
    path = _trajectory(optimizer, params, lambda _, given: given, gradients)
    return {
        "pcdet_onecycle/lr": _values(detector_learning_rate(config, steps), steps),
        "pcdet_onecycle/mom": _values(detector_momentum(config, steps), steps),
        "pcdet_adam/grad_norm": np.asarray(jax.vmap(_norm)(gradients)),
        **{f"pcdet_adam/traj/{name}": np.asarray(rows) for name, rows in path.items()},
    }


def _norm(gradients: dict[str, jax.Array]) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(g**2) for g in gradients.values()))


def _quadratic(case: Case) -> dict[str, np.ndarray]:
    # In the precision of the case; the schedules stay in float32 all the same.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        return _quadratic_paths(case)


def _quadratic_paths(case: Case) -> dict[str, np.ndarray]:
    rules = case.constants["quad"]
    matrix, offset, start = (
        jnp.asarray(case.inputs[f"quad/{name}"]) for name in ("A", "b", "x0")
    )

    def slope(x: jax.Array, _: None) -> jax.Array:
        return matrix @ x - offset

    sgd = Sgd(
        learning_rate=rules["sgd"]["lr"],
        momentum=rules["sgd"]["momentum"],
        weight_decay=rules["sgd"]["weight_decay"],
        nesterov=rules["sgd"]["nesterov"],
    )
    cycle = case.constants["onecycle"]
    adamw = AdamW(
        learning_rate=cycle["max_lr"],
        weight_decay=rules["adamw"]["weight_decay"],
        b2=rules["adamw"]["beta2"],
        eps=rules["adamw"]["eps"],
    )
    steps = {name: rules[name]["steps"] for name in ("sgd", "adamw")}
    rate, beta1 = _one_cycle(cycle, steps["adamw"])
    optimizers = {
        "sgd": make_optimizer(sgd, _CONSTANT, total_steps=steps["sgd"]),
        "adamw": make_optimizer(adamw, _cycle_of(cycle), total_steps=steps["adamw"]),
    }
    path = {
        name: np.asarray(_trajectory(optimizer, start, slope, length=steps[name]))
        for name, optimizer in optimizers.items()
    }
    return {
        "quad/sgd_nesterov": path["sgd"],
        "quad/adamw_onecycle": path["adamw"],
        f"quad/onecycle{steps['adamw']}_lr": rate,
        f"quad/onecycle{steps['adamw']}_beta1": beta1,
    }


def _below(case: Case, folder: str) -> dict[str, jax.Array]:
    return {
        name.removeprefix(folder): jnp.asarray(array, jnp.float32)
        for name, array in case.inputs.items()
        if name.startswith(folder)
    }


def _trajectory(
    optimizer: optax.GradientTransformation,
    start: Any,
    gradient: Callable[[Any, Any], Any],
    given: Any = None,
    *,
    length: int | None = None,
) -> Any:
    """Parameters after each update, the gradient being a function of them."""

    def update(carry: tuple[Any, Any], given: Any) -> tuple[tuple[Any, Any], Any]:
        params, state = carry
        updates, state = optimizer.update(gradient(params, given), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda carry, given: jax.lax.scan(update, carry, given, length)[1])
    return run((start, optimizer.init(start)), given)
