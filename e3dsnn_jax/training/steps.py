"""The compiled train and eval steps, data-parallel over one mesh axis.

Each device runs the network on its own clouds; BatchNorm statistics, losses and
gradients are summed over the devices, so that N devices compute what one device would
compute on all the clouds. Voxels never cross devices.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int32

from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.training.freeze import (
    Parts,
    join_parts,
    part_frozen,
    update_trained,
)
from e3dsnn_jax.training.loss import cross_entropy
from e3dsnn_jax.training.metrics import FiringCounts, count_spikes
from e3dsnn_jax.training.overflow import capacity_needed
from e3dsnn_jax.training.state import TrainState, update_averages

DEVICES = "devices"

KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Compiler options without which XLA for CPU finds that what is computed anew was
computed before, and keeps it after all."""


class StepMetrics(NamedTuple):
    """What a train step reports, summed over all devices and micro-batches."""

    loss: Float32[Array, ""]
    """Mean smoothed cross-entropy over the real clouds, in nats; 0 without any."""
    correct: Int32[Array, ""]
    """Clouds whose largest logit is the true class."""
    clouds: Int32[Array, ""]
    """Real clouds."""
    grad_norm: Float32[Array, ""]
    """Global norm of the gradient of `loss` by all parameters that are trained, before
    clipping and weight decay."""
    needed: Int32[Array, "devices levels 3"]
    """Voxels, submanifold blocks and down blocks needed; see `check_overflow`."""


class EvalOutput(NamedTuple):
    """What an eval step reports."""

    logits: Float[Array, "devices clouds classes"]
    """Class scores; rows of padding are meaningless."""
    labels: Int32[Array, "devices clouds"]
    """Those of the batch: every process sees the clouds of all."""
    indices: Int32[Array, "devices clouds"]
    """Those of the batch; -1 for a padding cloud."""
    loss_sum: Float32[Array, ""]
    """Sum of the unsmoothed cross-entropy over the real clouds of all devices."""
    correct: Int32[Array, ""]
    """Clouds of all devices whose largest logit is the true class."""
    clouds: Int32[Array, ""]
    """Real clouds of all devices."""
    firing: dict[str, FiringCounts]
    """Spikes of every spiking layer, with a leading `devices` axis."""
    needed: Int32[Array, "devices levels 3"]
    """Voxels, submanifold blocks and down blocks needed; see `check_overflow`."""


TrainStep = Callable[[TrainState, ShapeBatch], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[dict[str, Any], dict[str, Any], ShapeBatch], EvalOutput]


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh of one axis, "devices"; those of a process lie beside each other.

    Args:
      devices: Number of devices, the same of every process; all of them if omitted.

    Raises:
      ValueError: If there are fewer devices than asked for, or the processes cannot
        share them equally.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise ValueError(
            f"devices={count}, but JAX sees {len(available)} {available[0].platform} "
            f"devices: ask for 1 to {len(available)}"
        )
    processes = jax.process_count()
    if count % processes:
        raise ValueError(
            f"devices={count} cannot be shared equally by {processes} processes: ask "
            "for a multiple"
        )
    chosen = [
        device
        for process in range(processes)
        for device in jax.local_devices(process)[: count // processes]
    ]
    if len(chosen) != count:
        raise ValueError(
            f"devices={count} asks for {count // processes} of each of {processes} "
            f"processes, but one of them has fewer: {len(chosen)} were found"
        )
    return Mesh(np.array(chosen), (DEVICES,))


def shard_batch(batch: ShapeBatch, mesh: Mesh) -> ShapeBatch:
    """Puts each device's part of a host batch on that device.

    Args:
      batch: NumPy arrays with a leading axis over this process's devices of the mesh,
        or, for a step that accumulates gradients, `accumulate` parts for each of them.
      mesh: From `make_mesh`.

    Returns:
      The batch as arrays over the whole mesh. With several processes each passes its
      own part, and the leading axis of the result covers all of them.

    Raises:
      ValueError: If the leading axis cannot be shared by this process's devices.
    """
    local = len(mesh.local_devices)
    parts = batch.labels.shape[0]
    if parts % local:
        raise ValueError(
            f"the batch is laid out for {parts} devices, but the mesh has {local} in "
            "this process: give the loader and the mesh the same number of devices"
        )
    sharding = NamedSharding(mesh, PartitionSpec(DEVICES))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)  # all arrays at once, in half the time
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch
    )


Tree = TypeVar("Tree")


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts the same state, or part of one, on every device of the mesh.

    The result may share memory with `tree`: when a train step consumes the one, the
    other can be gone too. With several processes each must pass the same.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(
            whole, np.asarray(leaf), np.shape(leaf)
        ),
        tree,
    )


class _Sums(NamedTuple):
    """Sums over the real clouds of one device."""

    loss: Float32[Array, ""]
    correct: Int32[Array, ""]
    clouds: Int32[Array, ""]


def _sums(
    logits: Float[Array, "clouds classes"],
    labels: Int32[np.ndarray | Array, " clouds"],
    label_smoothing: float,
) -> _Sums:
    labels = jnp.asarray(labels)
    right = (jnp.argmax(logits, axis=-1) == labels) & (labels >= 0)
    return _Sums(
        jnp.sum(cross_entropy(logits, labels, label_smoothing=label_smoothing)),
        jnp.sum(right, dtype=jnp.int32),
        jnp.sum(labels >= 0, dtype=jnp.int32),
    )


def _add_up(tree: Tree) -> Tree:
    """Sums over the devices of several processes on CPUs, in two exchanges.

    Between processes on CPUs XLA's sum of many large arrays takes seconds (of T's
    gradient among four, 7 s); its two halves, over one vector, take a tenth of one.
    """
    flat, restore = ravel_pytree(tree)
    devices = jax.lax.axis_size(DEVICES)
    parts = jnp.pad(flat, (0, -flat.size % devices)).reshape(devices, -1)
    own = jax.lax.psum_scatter(parts, DEVICES)
    whole = jax.lax.all_gather(own, DEVICES).reshape(-1)
    return restore(whole[: flat.size])


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    label_smoothing: float,
    ema_decay: float | None,
    accumulate: int = 1,
    frozen_blocks: int = 0,
) -> TrainStep:
    """Compiles one optimizer update over all devices of the mesh.

    The loss is the mean over the real clouds of all devices and micro-batches, so a
    half-empty last batch weighs each of its clouds as much as any other.

    Args:
      model: Network called as `model(features, levels, num_clouds=, train=)` that
        returns logits and activations; its `batch_axis` is set here, and its `compute`
        is read.
      optimizer: From `make_optimizer`.
      mesh: From `make_mesh`.
      label_smoothing: Share of the target that is spread over all classes.
      ema_decay: Decay of the moving averages (see `update_averages`); None if the
        state keeps none.
      accumulate: Micro-batches that a device works through, one after the other, for
        an update. The leading axis of the batch is then devices * accumulate: lay it
        out as if there were so many devices. Gradients are exactly those of the whole
        batch but for BatchNorm: each micro-batch (over all devices) is normalised by
        its own statistics, and the running ones move once for each.
      frozen_blocks: Leading blocks of the network that stay as they are; see `freeze`.
        The network must be a `Classifier`. Moving averages move towards them too.

    Returns:
      A jitted function from state and batch to the next state and metrics. The state
      that is passed in is donated: its arrays are gone afterwards. It raises
      ValueError if batch or state do not fit `accumulate` or `ema_decay`.

    Raises:
      ValueError: If `accumulate`, `label_smoothing`, `ema_decay` or `frozen_blocks` is
        out of range.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be None or in [0, 1), got {ema_decay}")
    # A single device needs no exchange of statistics, and XLA would not remove it.
    model = model.clone(batch_axis=DEVICES if mesh.size > 1 else None)
    model, frozen = _freeze(model, frozen_blocks)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    between_cpus = on_cpu and jax.process_count() > 1
    add_up = _add_up if between_cpus else partial(jax.lax.psum, axis_name=DEVICES)

    def device_loss(
        trained: dict[str, Any],
        fixed: dict[str, Any],
        batch_stats: dict[str, Any],
        batch: ShapeBatch,
    ) -> tuple[Float32[Array, ""], tuple[_Sums, dict[str, Any]]]:
        outputs: Any = model.apply(
            {"params": join_parts(Parts(fixed, trained)), "batch_stats": batch_stats},
            batch.features,
            batch.levels,
            num_clouds=batch.labels.shape[0],
            train=True,
            mutable=["batch_stats"],
        )
        (logits, _), updates = outputs
        sums = _sums(logits, batch.labels, label_smoothing)
        return sums.loss, (sums, updates["batch_stats"])

    def micro_step(
        params: Parts, batch_stats: dict[str, Any], batch: ShapeBatch
    ) -> tuple[dict[str, Any], dict[str, Any], _Sums, Int32[Array, "levels 3"]]:
        gradient, (sums, batch_stats) = jax.grad(device_loss, has_aux=True)(
            params.trained, params.fixed, batch_stats, batch
        )
        return batch_stats, gradient, sums, capacity_needed(batch.levels)

    def accumulate_gradient(
        params: Parts, batch_stats: dict[str, Any], batches: ShapeBatch
    ) -> tuple[dict[str, Any], dict[str, Any], _Sums, Int32[Array, "levels 3"]]:
        if accumulate == 1:
            only = jax.tree.map(lambda leaf: leaf[0], batches)
            return micro_step(params, batch_stats, only)

        def body(carry: Any, batch: ShapeBatch) -> tuple[Any, Int32[Array, "levels 3"]]:
            batch_stats, gradient, sums = carry
            batch_stats, new_gradient, new_sums, needed = micro_step(
                params, batch_stats, batch
            )
            added = jax.tree.map(jnp.add, (gradient, sums), (new_gradient, new_sums))
            return (batch_stats, *added), needed

        zeros = jax.tree.map(jnp.zeros_like, params.trained)
        nothing = _Sums(jnp.float32(0), jnp.int32(0), jnp.int32(0))
        carry, needed = jax.lax.scan(body, (batch_stats, zeros, nothing), batches)
        return *carry, jnp.max(needed, axis=0)

    def device_step(
        state: TrainState, batch: ShapeBatch
    ) -> tuple[TrainState, StepMetrics]:
        if (state.ema is None) != (ema_decay is None):
            raise ValueError(
                f"ema_decay is {ema_decay}, but the state was created with "
                f"ema={state.ema is not None}: give both or neither"
            )
        if batch.labels.shape[0] != accumulate:
            raise ValueError(
                f"each device got {batch.labels.shape[0]} parts of the batch, but "
                f"accumulate={accumulate}: the batch needs a leading axis of "
                f"{mesh.size} devices * {accumulate}"
            )
        batch_stats, gradient, sums, needed = accumulate_gradient(
            part_frozen(state.params, frozen), state.batch_stats, batch
        )
        # Each device has differentiated its own share of the summed loss, collectives
        # of BatchNorm included; their sum is the gradient of the whole.
        sums = jax.lax.psum(sums, DEVICES)
        gradient = add_up(gradient)
        clouds = jnp.maximum(sums.clouds, 1).astype(jnp.float32)
        gradient = jax.tree.map(lambda leaf: leaf / clouds.astype(leaf.dtype), gradient)
        params, opt_state = update_trained(
            optimizer, gradient, state.opt_state, state.params, frozen
        )
        ema = state.ema
        if ema is not None and ema_decay is not None:
            current = {"params": params, "batch_stats": batch_stats}
            ema = update_averages(ema, current, state.step, ema_decay)
        metrics = StepMetrics(
            loss=sums.loss / clouds,
            correct=sums.correct,
            clouds=sums.clouds,
            grad_norm=optax.tree.norm(gradient),
            needed=jax.lax.all_gather(needed, DEVICES),
        )
        after = TrainState(
            state.step + 1, params, batch_stats, opt_state, ema, state.last_look
        )
        return after, metrics

    everywhere, split = PartitionSpec(), PartitionSpec(DEVICES)
    rematerialise = getattr(model, "compute", Compute()).rematerialise
    step = jax.shard_map(
        device_step,
        mesh=mesh,
        in_specs=(everywhere, split),
        out_specs=(everywhere, everywhere),
        # Replication is checked by the tests instead: scans inside the network start
        # from constants, which the static check would have to be told vary.
        check_vma=False,
    )
    return jax.jit(
        step,
        in_shardings=(NamedSharding(mesh, everywhere), NamedSharding(mesh, split)),
        donate_argnums=0,
        compiler_options=KEEP_BARRIERS if on_cpu and rematerialise else None,
    )


def _freeze(model: Any, frozen_blocks: int) -> tuple[Any, tuple[str, ...]]:
    """The network with its leading blocks frozen, and their names."""
    if not frozen_blocks:
        return model, ()
    names = model.architecture.block_names
    if not 0 < frozen_blocks <= len(names):
        raise ValueError(
            f"frozen_blocks must lie in 0..{len(names)}, the blocks of the network, "
            f"got {frozen_blocks}"
        )
    return model.clone(frozen_blocks=frozen_blocks), names[:frozen_blocks]


def make_eval_step(model: nn.Module, mesh: Mesh) -> EvalStep:
    """Compiles the network in inference mode over all devices of the mesh.

    Args:
      model: Network called as `model(features, levels, num_clouds=, train=)` that
        returns logits and activations.
      mesh: From `make_mesh`.

    Returns:
      A jitted function from parameters, BatchNorm statistics and batch to the
      outputs.
    """

    def device_step(
        params: dict[str, Any], batch_stats: dict[str, Any], batch: ShapeBatch
    ) -> EvalOutput:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
        outputs: Any = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch.features,
            batch.levels,
            num_clouds=batch.labels.shape[0],
            train=False,
        )
        logits, activations = outputs
        sums = jax.lax.psum(_sums(logits, batch.labels, 0.0), DEVICES)
        firing = count_spikes(activations, batch.levels)
        return EvalOutput(
            **jax.lax.all_gather(
                {
                    "logits": logits,
                    "labels": jnp.asarray(batch.labels),
                    "indices": jnp.asarray(batch.indices),
                    "firing": firing,
                    "needed": capacity_needed(batch.levels),
                },
                DEVICES,
            ),
            loss_sum=sums.loss,
            correct=sums.correct,
            clouds=sums.clouds,
        )

    everywhere, split = PartitionSpec(), PartitionSpec(DEVICES)
    step = jax.shard_map(
        device_step,
        mesh=mesh,
        in_specs=(everywhere, everywhere, split),
        out_specs=everywhere,
        check_vma=False,
    )
    whole = NamedSharding(mesh, everywhere)
    return jax.jit(step, in_shardings=(whole, whole, NamedSharding(mesh, split)))
