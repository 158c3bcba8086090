"""The classification loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "clouds classes"],
    labels: Int[Array, " clouds"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, " clouds"]:
    r"""Cross-entropy of each cloud against a smoothed one-hot target.

    .. math::
        \ell = -(1 - \epsilon) \log p_y - \frac{\epsilon}{K} \sum_k \log p_k

    Args:
      logits: Class scores; any float type, the loss is computed in float32.
      labels: True classes; clouds with a negative label are padding.
      label_smoothing: Share :math:`\epsilon` of the target that is spread evenly
        over all K classes, the true one included.

    Returns:
      The loss of each cloud in nats; exactly 0 for padding.

    Source: `torch.nn.CrossEntropyLoss(label_smoothing=...)`, which the reference's
    ModelNet40 configs use with 0.2.
    """
    real = labels >= 0
    # Padding logits are replaced before the logarithm, not after: a NaN there would
    # reach the gradients of every cloud.
    scores = jnp.where(real[:, None], logits.astype(jnp.float32), 0.0)
    log_probabilities = jax.nn.log_softmax(scores)
    # Not by indexing, whose derivative is a scatter.
    true = labels[:, None] == jnp.arange(scores.shape[1])[None]
    target = jnp.sum(jnp.where(true, log_probabilities, 0), axis=1)
    spread = jnp.mean(log_probabilities, axis=1)
    losses = -(1.0 - label_smoothing) * target - label_smoothing * spread
    return jnp.where(real, losses, 0.0)
