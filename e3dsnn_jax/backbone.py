"""The E-3DSNN encoder: a stem, and stages of membrane-shortcut blocks."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from e3dsnn_jax.layers import Activations, Compute, Unit, strided_init
from e3dsnn_jax.pooling import voxel_mask
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.spike import Neuron


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Widths and depths of the encoder."""

    in_channels: int = 6
    """Channels of the voxel features."""
    embed_channels: int = 16
    """Channels of the stem."""
    stage_channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of each stage; each stage halves the resolution first."""
    stage_depths: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks of each stage."""

    def __post_init__(self):
        """Raises ValueError if the stages' widths and depths do not pair up."""
        if len(self.stage_channels) != len(self.stage_depths):
            raise ValueError(
                f"stage_channels has {len(self.stage_channels)} entries but "
                f"stage_depths has {len(self.stage_depths)}"
            )

    @property
    def num_levels(self) -> int:
        """Resolutions: that of the stem, and one a stage."""
        return 1 + len(self.stage_channels)


VARIANTS: dict[str, Architecture] = {
    "T": Architecture(6, 16, (16, 32, 64, 128), (1, 1, 1, 1)),
    "S": Architecture(6, 24, (24, 48, 96, 160), (1, 1, 1, 1)),
    "L": Architecture(6, 64, (64, 128, 128, 256), (2, 2, 2, 2)),
    "H": Architecture(6, 64, (96, 192, 288, 384), (2, 2, 2, 2)),
}
"""The published sizes, with coordinates and normals as features."""


class Stem(nn.Module):
    """Spike voxel coding: real features to membranes, by three convolutions."""

    channels: int
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "voxels c_in"],
        level: Level,
        mask: Bool[Array, " voxels"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels time channels"], Activations]:
        """Encodes once; every time step receives the same current (direct coding)."""
        activations: Activations = {}
        x = features[:, None]
        for index in range(3):
            unit = Unit(
                self.channels,
                self.neuron if index else None,
                batch_axis=self.batch_axis,
                compute=self.compute,
                name=f"unit{index}",
            )
            x, inner = _call(
                unit, x, level.submanifold, mask, compute=self.compute, train=train
            )
            if index == 0:
                time = 1 if self.neuron.relu else self.neuron.time_steps
                x = jnp.broadcast_to(x, (x.shape[0], time, self.channels))
            activations |= _named(f"unit{index}", x, inner)
        return x, activations


class Block(nn.Module):
    """Membrane shortcuts: `a = x + unit0(x)`, then `a + unit2(unit1(a))`.

    Source: `BasicBlock` in the authors' code.
    """

    channels: int
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        membrane: Float[Array, "voxels time channels"],
        level: Level,
        mask: Bool[Array, " voxels"],
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels time channels"], Activations]:
        """Returns the new membrane and what its three units did."""
        activations: Activations = {}

        def unit(index, x):
            module = Unit(
                self.channels,
                self.neuron,
                batch_axis=self.batch_axis,
                compute=self.compute,
                name=f"unit{index}",
            )
            x, inner = module(x, level.submanifold, mask, train=train)
            activations.update(_named(f"unit{index}", x, inner))
            return x

        membrane = membrane + unit(0, membrane)
        return membrane + unit(2, unit(1, membrane)), activations


class Stage(nn.Module):
    """Strided convolution on spikes to half the resolution, then blocks."""

    channels: int
    depth: int
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        membrane: Float[Array, "voxels_in time c_in"],
        fine: Level,
        coarse: Level,
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels_out time channels"], Activations]:
        """Takes membranes on the fine level to membranes on the coarse one."""
        if fine.down is None:
            raise ValueError("the finer level has no map to the next: too few levels")
        mask = voxel_mask(coarse.coords)
        down = Unit(
            self.channels,
            self.neuron,
            num_offsets=8,
            kernel_init=strided_init,
            batch_axis=self.batch_axis,
            compute=self.compute,
            name="down",
        )
        membrane, inner = _call(
            down, membrane, fine.down, mask, compute=self.compute, train=train
        )
        activations = _named("down", membrane, inner)
        for index in range(self.depth):
            block = Block(
                self.channels,
                self.neuron,
                self.batch_axis,
                self.compute,
                name=f"block{index}",
            )
            membrane, inner = _call(
                block, membrane, coarse, mask, compute=self.compute, train=train
            )
            activations |= _named(f"block{index}", membrane, inner)
        return membrane, activations


class Backbone(nn.Module):
    """The encoder shared by classification and segmentation.

    Source: `SNN_3dv` in the authors' code.
    """

    architecture: Architecture
    neuron: Neuron = Neuron()
    batch_axis: str | None = None
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "voxels in_channels"],
        levels: tuple[Level, ...],
        *,
        train: bool,
    ) -> tuple[Float[Array, "voxels_out time channels"], Activations]:
        """Returns the membranes of the last stage, and every activation by name.

        Raises:
          ValueError: If the features or the levels do not fit the architecture.
        """
        size = self.architecture
        if features.shape[-1] != size.in_channels:
            raise ValueError(
                f"features have {features.shape[-1]} channels but the network takes "
                f"{size.in_channels}"
            )
        if features.shape[0] != levels[0].coords.shape[0]:
            raise ValueError(
                f"features have {features.shape[0]} rows but the finest level has room "
                f"for {levels[0].coords.shape[0]} voxels: see `pad_features`"
            )
        if len(levels) != size.num_levels:
            raise ValueError(
                f"the batch has {len(levels)} levels but the network needs "
                f"{size.num_levels}: one for the stem and one a stage"
            )
        levels = jax.tree.map(jnp.asarray, levels)  # host arrays are welcome too
        options = (self.neuron, self.batch_axis, self.compute)
        mask = voxel_mask(levels[0].coords)
        stem = Stem(size.embed_channels, *options, name="stem")
        x, inner = stem(features, levels[0], mask, train=train)
        activations = _named("stem", x, inner)
        stages = zip(size.stage_channels, size.stage_depths, strict=True)
        for index, (channels, depth) in enumerate(stages):
            stage = Stage(channels, depth, *options, name=f"stage{index}")
            x, inner = stage(x, levels[index], levels[index + 1], train=train)
            activations |= _named(f"stage{index}", x, inner)
        return x, activations


def _call(
    part: nn.Module, *arguments: Any, compute: Compute, train: bool
) -> tuple[Array, Activations]:
    """Calls a part of the network; with rematerialisation only its inputs are kept."""

    def run(part: Any, *arguments: Any) -> tuple[Array, Activations]:
        return part(*arguments, train=train)

    return (nn.remat(run) if compute.rematerialise else run)(part, *arguments)


def _named(name: str, output: Array, inner: Activations) -> Activations:
    """Activations of a child module under its name, and its output as the name."""
    return {f"{name}/{key}": value for key, value in inner.items()} | {name: output}
