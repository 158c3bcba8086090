"""Training of the digit networks, with checkpoints and with frozen layers."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from experiments.digits.networks import Activations, Edit, Network, unchanged

BATCH_SIZE = 128
_OPTIMIZER = optax.adam(1e-3)
_IMAGES_AT_ONCE = 1000

Variables = dict[str, Any]


class TrainState(NamedTuple):
    """Where a training stands."""

    variables: Variables
    """Parameters by layer, and batch statistics where the network has them."""
    optimizer: dict[str, Any]
    """Adam's state by name of what learns: frozen layers have none."""
    step: Int[Array, ""]
    """Number of batches seen."""
    key: Key[Array, ""]
    """The batch of a step is drawn from it and the step's number."""


def init_training(
    network: Network, images: ArrayLike, *, key: Key[Array, ""]
) -> TrainState:
    """Returns the state before the first step.

    Args:
      network: The network to train.
      images: Some images, for their size.
      key: The key is consumed.
    """
    init_key, batch_key = jax.random.split(key)
    made = jax.jit(network.init)(init_key, jnp.asarray(images)[:1])
    variables = cast(Variables, made)
    optimizer = {name: _OPTIMIZER.init(p) for name, p in variables["params"].items()}
    return TrainState(variables, optimizer, jnp.zeros((), jnp.int32), batch_key)


def freeze(network: Network, state: TrainState, frozen: int) -> TrainState:
    """Drops the optimizer's state of the lowest layers, which then no longer learn."""
    fixed = network.layer_names()[:frozen]
    # A layer owns what is named after it as well, such as conv1_norm.
    kept = {k: v for k, v in state.optimizer.items() if k.split("_")[0] not in fixed}
    return state._replace(optimizer=kept)


def train_step(
    network: Network,
    state: TrainState,
    images: Array,
    labels: Array,
    *,
    frozen: int = 0,
) -> tuple[TrainState, Float[Array, ""]]:
    """One step of Adam on a random batch of 128 images, and its loss.

    Layers without a state of the optimizer have no gradient; what only their gradient
    would need is not in the program.

    Args:
      network: The network to train.
      state: Where the training stands; after `freeze` where layers are frozen.
      images: All training images.
      labels: Their labels.
      frozen: Number of layers that are frozen, whose batch statistics stay.
    """
    key = jax.random.fold_in(state.key, state.step)
    batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(labels))
    parameters = state.variables["params"]
    learning = {name: parameters[name] for name in state.optimizer}
    fixed = {name: p for name, p in parameters.items() if name not in learning}
    rest = {k: v for k, v in state.variables.items() if k != "params"}

    def loss(learning: Variables) -> tuple[Array, Variables]:
        variables = {"params": {**fixed, **learning}, **rest}
        (logits, _), updated = network.apply(
            variables, images[batch], train=True, frozen=frozen, mutable=list(rest)
        )
        updated = cast(Variables, updated)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch])
        return jnp.mean(losses), updated

    (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(learning)
    optimizer, stepped = {}, {}
    for name, own in gradient.items():
        updates, optimizer[name] = _OPTIMIZER.update(own, state.optimizer[name])
        stepped[name] = optax.apply_updates(learning[name], updates)
    variables = {"params": {**fixed, **stepped}, **rest, **updated}
    return TrainState(variables, optimizer, state.step + 1, state.key), value


@functools.partial(jax.jit, static_argnames=("network", "frozen"))
def advance(
    network: Network,
    state: TrainState,
    images: Array,
    labels: Array,
    until: Int[Array, ""],
    *,
    frozen: int = 0,
) -> TrainState:
    """Trains up to a step: any number of them is one program."""

    def body(state: TrainState) -> TrainState:
        return train_step(network, state, images, labels, frozen=frozen)[0]

    return jax.lax.while_loop(lambda state: state.step < until, body, state)


def train(
    network: Network,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    steps: Sequence[int],
    key: Key[Array, ""],
) -> list[Variables]:
    """Trains a network and returns its variables at the given steps, in order.

    Args:
      network: The network to train.
      images: Training images [images, height, width, 1].
      labels: Their labels [images].
      steps: Numbers of batches after which to take the variables; 0 is the beginning.
      key: The key is consumed.
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    state = init_training(network, images, key=key)
    taken = []
    for step in steps:
        state = advance(network, state, images, labels, jnp.asarray(step))
        taken.append(state.variables)
    return taken


@functools.partial(jax.jit, static_argnames=("network",))
def activations(network: Network, variables: Variables, images: Array) -> Activations:
    """Activations of every layer on images, in inference mode."""
    return _apply(network, variables, images)[1]


@functools.partial(jax.jit, static_argnames=("network",))
def _logits(network: Network, variables: Variables, images: Array) -> Array:
    return _apply(network, variables, images)[0]


def _apply(
    network: Network, variables: Variables, images: Array, edit: Edit = unchanged
) -> tuple[Array, Activations]:
    return cast(tuple[Array, Activations], network.apply(variables, images, edit))


@functools.partial(jax.jit, static_argnames=("network", "name"))
def logits_above(
    network: Network,
    variables: Variables,
    images: Array,
    name: str,
    activation: Array,
) -> Float[Array, "images classes"]:
    """Logits on images if the layer of this name had the given activation on them."""

    def replace(layer: str, own: Array) -> Array:
        return activation if layer == name else own

    # What lies below the layer is not in the program: nothing reads it.
    return _apply(network, variables, images, replace)[0]


def step_flops(
    network: Network, images: ArrayLike, *, frozen: int = 0
) -> tuple[float, float]:
    """Floating-point operations of a training step, and of its forward pass alone.

    They are the compiler's count for a batch of 128: the difference is what gradients
    and the optimizer cost.

    Args:
      network: The network.
      images: Some images, for their size.
      frozen: Number of layers that are frozen.
    """
    some = jnp.asarray(images)[:BATCH_SIZE]
    labels = jnp.zeros(len(some), jnp.int32)
    state = freeze(network, init_training(network, some, key=jax.random.key(0)), frozen)

    def step(state: TrainState) -> tuple[TrainState, Array]:
        return train_step(network, state, some, labels, frozen=frozen)

    def forward(state: TrainState) -> Array:
        batch = jax.random.randint(state.key, (BATCH_SIZE,), 0, len(some))
        return network.apply(
            state.variables,
            some[batch],
            train=True,
            frozen=frozen,
            mutable=["batch_stats"],
        )[0][0]

    whole, part = (count_flops(program, state) for program in (step, forward))
    return whole, part


def count_flops(program: Callable[..., Any], *arguments: Any) -> float:
    """The compiler's count of a program's floating-point operations."""
    cost = jax.jit(program).lower(*arguments).compile().cost_analysis()
    return float((cost or {}).get("flops", math.nan))


def accuracy(
    network: Network, variables: Variables, images: ArrayLike, labels: ArrayLike
) -> float:
    """Share of images, between 0 and 1, that a network classifies correctly."""
    pixels, truth = np.asarray(images), np.asarray(labels)
    right = 0
    for start in range(0, len(truth), _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        found = np.asarray(_logits(network, variables, jnp.asarray(pixels[part])))
        right += int((found.argmax(axis=1) == truth[part]).sum())
    return right / len(truth)
