"""Random variables with which every layer of a network fires."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_variables(
    model: nn.Module,
    rng: np.random.Generator,
    *inputs: Any,
    deviation: float | None = None,
    mixed_norms: bool = False,
    **options: Any,
) -> Any:
    """Variables of a network whose initialisation, with 0.02, leaves layers silent.

    Nothing is compiled for them.

    Args:
      model: The network.
      rng: Of the numbers.
      *inputs: What it is called with.
      deviation: Of the kernels; one that keeps the size of what passes if omitted.
      mixed_norms: Let BatchNorm and biases do something as well.
      **options: Further arguments of the call.
    """
    init = lambda *inputs: model.init(jax.random.key(0), *inputs, **options)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            size = (8 * leaf.shape[-2]) ** -0.5 if deviation is None else deviation
            return jnp.asarray(size * rng.standard_normal(leaf.shape), jnp.float32)
        if not mixed_norms:
            return jnp.full(leaf.shape, float(name in ("var", "scale")))
        low, high = {"scale": (1, 3), "var": (0.5, 2)}.get(name, (-0.5, 1))
        return jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, *inputs))
