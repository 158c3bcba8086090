"""Our classifier with one batch: what the benchmarks time of it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Int

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch, deal
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.pyramid import find_levels, fit_capacity, pack_levels
from e3dsnn_jax.training.devices import choose_devices
from e3dsnn_jax.training.optimizer import MultiStep, Sgd, make_optimizer
from e3dsnn_jax.training.overflow import check_overflow
from e3dsnn_jax.training.state import create_state
from e3dsnn_jax.training.steps import (
    DEVICES,
    make_mesh,
    make_train_step,
    replicate,
    shard_batch,
)
from e3dsnn_jax.voxels import VoxelCloud, join_clouds, pad_features
from experiments.benchmarks.timing import Cases

NUM_CLASSES = 40


class Ours:
    """Our network with one batch, and what is timed of it.

    Args:
      clouds: The batch.
      labels: Class of each cloud.
      architecture: Sizes of the network.
      devices: Devices that share the batch. None: as many as there are and as divide
        the batch.
      slack: Static shapes over what the batch needs.
      compute: How the network is computed; in float32 if omitted.
    """

    def __init__(
        self,
        clouds: list[VoxelCloud],
        labels: Int[np.ndarray, " clouds"],
        architecture: Architecture,
        *,
        devices: int | None,
        slack: float,
        compute: Compute | None = None,
    ):
        self.architecture = architecture
        self.mesh = make_mesh(choose_devices(len(clouds), devices))
        self.clouds, self.labels = clouds, labels
        self.hands = deal([len(cloud.coords) for cloud in clouds], self.mesh.size)
        self.capacity = fit_capacity(
            [self._find(hand)[1] for hand in self.hands], slack=slack
        )
        self.host_batch = self.build_maps()
        self.batch = shard_batch(self.host_batch, self.mesh)
        model = Classifier(self.architecture, NUM_CLASSES, compute=compute or Compute())
        # The rate stays constant: the milestone lies beyond every step that is timed.
        optimizer = make_optimizer(Sgd(), MultiStep((0.999,)), total_steps=10**6)
        one = jax.tree.map(lambda leaf: leaf[0], self.host_batch)
        state = create_state(model, optimizer, one, jax.random.key(0))
        self.state = replicate(state, self.mesh)
        self.jitted_step: Any = make_train_step(
            model, optimizer, self.mesh, label_smoothing=0.2, ema_decay=None
        )

        def logits(variables: dict[str, Any], batch: ShapeBatch) -> jax.Array:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
            clouds = batch.labels.shape[0]
            return model.apply(
                variables, batch.features, batch.levels, num_clouds=clouds, train=False
            )[0]  # pyright: ignore[reportReturnType]

        split = PartitionSpec(DEVICES)
        self._forward = jax.jit(
            jax.shard_map(
                logits,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), split),
                out_specs=split,
                check_vma=False,
            )
        )

    def _find(self, hand: list[int]):
        coords, features = join_clouds([self.clouds[member] for member in hand])
        num_levels = self.architecture.num_levels
        return features, find_levels(coords, num_levels=num_levels)

    def build_maps(self) -> ShapeBatch:
        """The batch on the host, its maps built anew by one thread."""
        # A thread a device takes longer: they wait for the interpreter's lock.
        found = [self._find(hand) for hand in self.hands]
        rows = self.capacity[0].voxels
        features = np.stack([pad_features(filled, rows=rows) for filled, _ in found])
        packed = [pack_levels(levels, self.capacity) for _, levels in found]
        levels = jax.tree.map(lambda *leaves: np.stack(leaves), *packed)
        indices = np.array(self.hands, np.int32)
        return ShapeBatch(features, levels, self.labels[indices], indices)

    def forward(self, batch: ShapeBatch) -> jax.Array:
        """Logits in inference mode, waited for."""
        variables = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        return jax.block_until_ready(self._forward(variables, batch))

    def train_step(self, batch: ShapeBatch) -> float:
        """One update; returns the loss before it."""
        self.state, metrics = self.jitted_step(self.state, batch)
        jax.block_until_ready(self.state)
        check_overflow(metrics.needed, self.host_batch.levels)
        return float(metrics.loss)

    def cases(self) -> Cases:
        """What is timed, by name."""

        def with_maps(run: Callable[[ShapeBatch], object]) -> Callable[[], object]:
            return lambda: run(shard_batch(self.build_maps(), self.mesh))

        return {
            ("maps", "ours"): self.build_maps,
            ("forward", "ours"): lambda: self.forward(self.batch),
            ("forward_with_maps", "ours"): with_maps(self.forward),
            ("train_step", "ours"): lambda: self.train_step(self.batch),
            ("train_step_with_maps", "ours"): with_maps(self.train_step),
        }
