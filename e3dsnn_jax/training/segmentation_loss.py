"""The losses of segmentation: weighted cross-entropy and the Lovász-softmax.

Rows with a negative label take part in neither: points without a class, and padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class LossSums(NamedTuple):
    """A weighted mean before its division, which adds up over batches and devices."""

    total: Float[Array, ""]
    """Weighted sum of the losses, in nats."""
    weight: Float[Array, ""]
    """Sum of the weights."""


def cross_entropy_sums(
    logits: Float[Array, "voxels classes"],
    labels: Int[Array, " voxels"],
    class_weights: Float[Array, " classes"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> LossSums:
    r"""Sums of the class-weighted cross-entropy.

    .. math::
        \text{total} = -\sum_i \Big[(1 - \epsilon)\, w_{y_i} \log p_{i y_i} +
        \frac{\epsilon}{K} \sum_k w_k \log p_{ik}\Big], \qquad
        \text{weight} = \sum_i w_{y_i}

    Args:
      logits: Class scores; any float type, the loss is computed in float32.
      labels: True classes; rows with a negative label are left out.
      class_weights: Weight :math:`w_k` of each class; None weighs all as 1.
      label_smoothing: Share :math:`\epsilon` of the target spread over all K classes.

    Source: `torch.nn.CrossEntropyLoss(weight, ignore_index, label_smoothing)`, with the
    mean it takes by default: the smoothed part is weighted by each class, but both are
    divided by the weights of the targets.
    """
    scores, true = _real_scores(logits, labels)
    log_probabilities = jax.nn.log_softmax(scores)
    classes = scores.shape[1]
    weights = jnp.ones(classes) if class_weights is None else class_weights
    weights = weights.astype(jnp.float32)[None]
    real = (labels >= 0)[:, None]
    # Not by indexing, whose derivative is a scatter.
    share = (1.0 - label_smoothing) * true + label_smoothing / classes
    share = jnp.where(real, share, 0.0)
    total = -jnp.sum(share * weights * log_probabilities)
    return LossSums(total, jnp.sum(true * weights))


def weighted_mean(sums: LossSums) -> Float[Array, ""]:
    """Total over weight; 0 where no row had a class."""
    # Differs from reference: torch gives NaN there, and the step would be lost.
    empty = sums.weight == 0
    return jnp.where(empty, 0.0, sums.total / jnp.where(empty, 1.0, sums.weight))


def weighted_cross_entropy(
    logits: Float[Array, "voxels classes"],
    labels: Int[Array, " voxels"],
    class_weights: Float[Array, " classes"] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Class-weighted cross-entropy, `cross_entropy_sums` divided.

    Args:
      logits: Class scores.
      labels: True classes; rows with a negative label are left out.
      class_weights: Weight of each class; None weighs all as 1.
      label_smoothing: Share of the target spread over all classes.

    Returns:
      The mean over rows, weighted by the weight of their true class, in nats; 0 if no
      row has a class.
    """
    return weighted_mean(
        cross_entropy_sums(
            logits, labels, class_weights, label_smoothing=label_smoothing
        )
    )


def lovasz_softmax(
    logits: Float[Array, "voxels classes"], labels: Int[Array, " voxels"]
) -> Float[Array, ""]:
    r"""The Lovász-softmax loss: a convex stand-in for 1 - mean IoU.

    For each class, errors :math:`e_i = |[y_i = c] - p_{ic}|` in descending order are
    weighted by how much the Jaccard loss grows as each row joins the mistakes. With I
    and U the intersection and union after row i has joined, that is 1 / U for rows of
    the class, and I / (U (U - 1)) for others.

    Args:
      logits: Class scores; any float type, the loss is computed in float32.
      labels: True classes; rows with a negative label are left out.

    Returns:
      The mean over the classes that occur among the labels; 0 if none does. It is a
      loss of the batch as a whole: means over parts of a batch differ from it.

    Source: The Lovász-Softmax loss (CVPR 2018), alg. 1, classes "present", over all
    rows of the batch together.
    """
    scores, true = _real_scores(logits, labels)
    true = true.T
    real = (labels >= 0)[None]
    errors = jnp.where(real, jnp.abs(true - jax.nn.softmax(scores).T), 0.0)
    growth = _jaccard_growth(jax.lax.stop_gradient(errors), true > 0, real)
    losses = jnp.sum(errors * growth, axis=1)
    present = jnp.any(true > 0, axis=1)
    number = jnp.maximum(jnp.sum(present), 1).astype(jnp.float32)
    return jnp.sum(jnp.where(present, losses, 0.0)) / number


def _real_scores(
    logits: Float[Array, "voxels classes"], labels: Int[Array, " voxels"]
) -> tuple[Float[Array, "voxels classes"], Float[Array, "voxels classes"]]:
    """Scores with zeros for rows left out, and the one-hot classes of the others.

    Replaced before the softmax, not after: a NaN there would reach all gradients.
    """
    real = (labels >= 0)[:, None]
    scores = jnp.where(real, logits.astype(jnp.float32), 0.0)
    true = labels[:, None] == jnp.arange(scores.shape[1], dtype=labels.dtype)[None]
    return scores, true.astype(jnp.float32)


def _jaccard_growth(
    errors: Float[Array, "classes voxels"], true: Array, real: Array
) -> Float[Array, "classes voxels"]:
    """How much each row adds to the Jaccard loss when rows join by falling error."""
    # Rows left out come last, and count nowhere.
    keys = jnp.where(real, -errors, 1.0)
    kinds = jnp.where(true, 2, jnp.where(real, 1, 0)).astype(jnp.int32)
    # Row and kind in one number: a sort takes its time by the operand.
    rows = jnp.arange(errors.shape[1], dtype=jnp.int32)[None] * 4 + kinds
    _, rows = jax.lax.sort((keys, rows), dimension=1, is_stable=True, num_keys=1)
    rows, kinds = rows >> 2, rows & 3
    is_true = kinds == 2
    total = jnp.sum(true, axis=1, keepdims=True, dtype=jnp.int32)
    intersection = (total - jnp.cumsum(is_true, axis=1, dtype=jnp.int32)).astype(
        jnp.float32
    )
    union = (total + jnp.cumsum(kinds == 1, axis=1, dtype=jnp.int32)).astype(
        jnp.float32
    )
    # Closed form: the difference of two Jaccard losses, both near 1, has few digits.
    for_true = 1.0 / jnp.maximum(union, 1.0)
    for_others = intersection / jnp.maximum(union * (union - 1.0), 1.0)
    growth = jnp.where(is_true, for_true, for_others)
    classes = jnp.arange(errors.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros_like(growth).at[classes, rows].set(growth, unique_indices=True)
