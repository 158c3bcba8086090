"""The losses of classification and segmentation, and their gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3dsnn_jax.training.segmentation_loss import (
    lovasz_softmax,
    weighted_cross_entropy,
)
from experiments.evaluation.contract import Case


def compute_losses(case: Case) -> dict[str, np.ndarray]:
    """Loss and gradient of every scenario that the constants describe."""
    weights = jnp.asarray(case.constants["class_weights"], jnp.float32)
    found: dict[str, np.ndarray] = {}
    for name in case.inputs:
        scenario, _, last = name.partition("/")
        if last != "logits":
            continue
        logits = jnp.asarray(case.inputs[name], jnp.float32)
        labels = jnp.asarray(case.inputs[f"{scenario}/target"], jnp.int32)
        rules = case.constants["cases"][scenario]
        loss, gradient = _evaluate(logits, labels, weights, rules)
        found[f"{scenario}/loss"] = np.asarray(loss, np.float64)
        found[f"{scenario}/grad"] = np.asarray(gradient)
    return found


def _evaluate(
    logits: jax.Array, labels: jax.Array, weights: jax.Array, rules: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
    if rules["loss"] == "lovasz_softmax":

        def loss(logits: jax.Array) -> jax.Array:
            return rules["loss_weight"] * lovasz_softmax(logits, labels)
    else:

        def loss(logits: jax.Array) -> jax.Array:
            return weighted_cross_entropy(
                logits,
                labels,
                weights if rules["weighted"] else None,
                label_smoothing=rules["smoothing"],
            )

    return jax.jit(jax.value_and_grad(loss))(logits)
