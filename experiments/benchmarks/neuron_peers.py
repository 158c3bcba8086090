"""Neurons of other packages, each by its own calls, as the benchmark runs them.

All take the currents `[time, neurons]` and the weights of the spikes, and return a
function that computes spikes and gradient. A package is imported when it is asked for.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3dsnn_jax.training.devices import num_cores

Run = Callable[[], tuple[Any, Any]]
"""Computes spikes and the gradient, and returns when both are there."""
Make = Callable[[np.ndarray, np.ndarray], Run]
"""Prepares one contender for currents and the weights of its spikes."""

DECAY, THRESHOLD, LEVELS = 0.5, 1.0, 4


def jax_run(
    spikes_of: Callable[[jax.Array], jax.Array],
    currents: np.ndarray,
    weights: np.ndarray,
) -> Run:
    """Spikes and gradient as one compiled program."""

    @jax.jit
    def both(x, w):
        spikes, pull = jax.vjp(spikes_of, x)
        return spikes, pull(w)[0]

    arguments = jnp.asarray(currents), jnp.asarray(weights)
    return lambda: jax.block_until_ready(both(*arguments))


def spyx_lif(currents: np.ndarray, weights: np.ndarray) -> Run:
    """`spyx.nn.run` of `spyx.nn.LIF`: soft reset, spikes one step late."""
    import spyx  # pyright: ignore[reportMissingImports]
    from flax import nnx

    neurons = spyx.nn.LIF(
        (currents.shape[1],),
        beta=DECAY,
        threshold=THRESHOLD,
        activation=spyx.axn.boxcar(width=1.0, height=1.0),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(neurons)

    def spikes_of(x):
        return spyx.nn.run(nnx.merge(graph, state), x[:, None])[0][:, 0]

    return jax_run(spikes_of, currents, weights)


def snnax_lif(currents: np.ndarray, weights: np.ndarray) -> Run:
    """A scan of `snnax.snn.SimpleLIF`, as its `StatefulModel` scans: hard reset.

    It weighs its input by 1 - decay, so the threshold and the window shrink alike.
    """
    # The wheel lacks two modules that its packages import and its neurons do not use.
    spec = importlib.util.find_spec("snnax")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (root,) = spec.submodule_search_locations
    for name in ("snnax", "snnax.functional", "snnax.snn", "snnax.snn.layers"):
        bare = importlib.machinery.ModuleSpec(name, None, is_package=True)
        bare.submodule_search_locations = [str(Path(root, *name.split(".")[1:]))]
        sys.modules.setdefault(name, importlib.util.module_from_spec(bare))
    surrogate = importlib.import_module("snnax.functional.surrogate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It calls what equinox calls deprecated.
        layers = importlib.import_module("snnax.snn.layers.lif")
    scale = 1 - DECAY
    neurons = layers.SimpleLIF(
        [DECAY],
        spike_fn=surrogate.piecewise_surrogate(scale / 2),
        threshold=scale * THRESHOLD,
    )

    def spikes_of(x):
        state = neurons.init_state(x.shape[1:], jax.random.key(0))
        # A module of equinox with a list in it has no hash, which `scan` wants.
        return jax.lax.scan(lambda *inputs: neurons(*inputs), state, x)[1]

    return jax_run(spikes_of, currents, weights)


def torch_run(
    spikes_of: Callable[[Any], Any], currents: np.ndarray, weights: np.ndarray
) -> Run:
    """Spikes and gradient by torch's autograd, on all cores."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(num_cores())
    x, w = torch.from_numpy(currents), torch.from_numpy(weights)

    def run():
        leaf = x.detach().requires_grad_()
        spikes = spikes_of(leaf)
        (gradient,) = torch.autograd.grad(spikes, leaf, w)
        return spikes.detach(), gradient

    return run


def snntorch_lif(reset: str, currents: np.ndarray, weights: np.ndarray) -> Run:
    """A loop over `snntorch.Leaky`, as its tutorials have it."""
    import snntorch  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from snntorch import surrogate  # pyright: ignore[reportMissingImports]

    def window(membrane, gradient, spikes):
        del spikes
        return gradient * (membrane.abs() < 0.5)

    neurons = snntorch.Leaky(
        beta=DECAY,
        threshold=THRESHOLD,
        reset_mechanism=reset,
        spike_grad=surrogate.custom_surrogate(window),
    )

    def spikes_of(x):
        membrane, spikes = neurons.reset_mem(), []
        for current in x:
            fired, membrane = neurons(current, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    return torch_run(spikes_of, currents, weights)


def spikingjelly_neurons(kind: str, currents: np.ndarray, weights: np.ndarray) -> Run:
    """`LIFNode` or `ILIFNode` in multi-step mode; equal to ours in all values."""
    from spikingjelly.activation_based import (  # pyright: ignore[reportMissingImports]
        functional,
        neuron,
        surrogate,
    )

    tau = 1 / (1 - DECAY)
    if kind == "ilif":
        rounded = surrogate.MultiLevelSpikeCount(LEVELS)
        neurons = neuron.ILIFNode(tau=tau, surrogate_function=rounded, step_mode="m")
    else:
        # Our hard reset passes no gradient through the spikes.
        hard = kind == "hard"
        neurons = neuron.LIFNode(
            tau=tau,
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=0.0 if hard else None,
            surrogate_function=surrogate.Rect(alpha=1.0),
            detach_reset=hard,
            step_mode="m",
        )

    def spikes_of(x):
        functional.reset_net(neurons)
        return neurons(x)

    return torch_run(spikes_of, currents, weights)


def torch_loop(currents: np.ndarray, weights: np.ndarray) -> Run:
    """What a user of torch alone would write: a loop with hard reset."""
    import torch  # pyright: ignore[reportMissingImports]

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, above):  # pyright: ignore
            ctx.save_for_backward(above.abs() < 0.5)
            return (above >= 0).to(above.dtype)

        @staticmethod
        def backward(ctx, gradient):  # pyright: ignore
            (inside,) = ctx.saved_tensors
            return gradient * inside

    def spikes_of(x):
        carried, spikes = torch.zeros_like(x[0]), []
        for current in x:
            membrane = carried + current
            fired: Any = Spike.apply(membrane - THRESHOLD)
            carried = DECAY * torch.where(fired > 0, 0, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    return torch_run(spikes_of, currents, weights)
