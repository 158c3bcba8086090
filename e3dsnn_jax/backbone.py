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
    """Widths and depths of a network."""

    in_channels: int = 6
    """Channels of the voxel features."""
    embed_channels: int = 16
    """Channels of the stem."""
    stage_channels: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of each stage; each stage halves the resolution first."""
    stage_depths: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks of each stage."""
    decoder_channels: tuple[int, ...] | None = None
    """Channels of the decoder's stages, the finest first; None without a decoder."""

    def __post_init__(self):
        """Raises ValueError if the stages' widths and depths do not pair up."""
        if len(self.stage_channels) != len(self.stage_depths):
            raise ValueError(
                f"stage_channels has {len(self.stage_channels)} entries but "
                f"stage_depths has {len(self.stage_depths)}"
            )
        if self.decoder_channels is None:
            return
        if len(self.decoder_channels) != len(self.stage_channels):
            raise ValueError(
                f"decoder_channels has {len(self.decoder_channels)} entries but "
                f"stage_channels has {len(self.stage_channels)}: the decoder has a "
                "stage for each of the encoder"
            )

    @property
    def encoder(self) -> "Architecture":
        """The same network without its decoder."""
        return dataclasses.replace(self, decoder_channels=None)

    @property
    def num_levels(self) -> int:
        """Resolutions: that of the stem, and one a stage."""
        return 1 + len(self.stage_channels)

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks in their order, as their outputs are named."""
        names = ["stem"]
        for stage, depth in enumerate(self.stage_depths):
            names.append(f"stage{stage}/down")
            names += [f"stage{stage}/block{block}" for block in range(depth)]
        return tuple(names)


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
            x, inner = call_part(
                unit, x, level.submanifold, mask, compute=self.compute, train=train
            )
            if index == 0:
                time = 1 if self.neuron.relu else self.neuron.time_steps
                x = jnp.broadcast_to(x, (x.shape[0], time, self.channels))
            activations |= name_activations(f"unit{index}", x, inner)
        return x, activations


class Block(nn.Module):
    """Membrane shortcuts: `a = x + unit0(x)`, then `a + unit2(unit1(a))`.

    Source: `BasicBlock` in the authors' code.
    """

    channels: int
    neuron: Neuron
    batch_axis: str | None = None
    compute: Compute = Compute()
    input_gradient: bool = True
    """Whether anything before this block learns."""

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
                input_gradient=index > 0 or self.input_gradient,
                name=f"unit{index}",
            )
            x, inner = module(x, level.submanifold, mask, train=train)
            activations.update(name_activations(f"unit{index}", x, inner))
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
    frozen_blocks: int = -1
    """How many blocks here are frozen, `down` first; 0 if only all before them are, and
    less if not even those."""

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
            input_gradient=self.frozen_blocks != 0,
            name="down",
        )
        membrane, inner = call_part(
            down,
            membrane,
            fine.down,
            mask,
            compute=self.compute,
            train=train,
            frozen=self.frozen_blocks > 0,
        )
        activations = name_activations("down", membrane, inner)
        for index in range(self.depth):
            block = Block(
                self.channels,
                self.neuron,
                self.batch_axis,
                self.compute,
                input_gradient=self.frozen_blocks != index + 1,
                name=f"block{index}",
            )
            membrane, inner = call_part(
                block,
                membrane,
                coarse,
                mask,
                compute=self.compute,
                train=train,
                frozen=self.frozen_blocks > index + 1,
            )
            activations |= name_activations(f"block{index}", membrane, inner)
        return membrane, activations


class Backbone(nn.Module):
    """The encoder shared by classification and segmentation.

    Source: `SNN_3dv` in the authors' code.
    """

    architecture: Architecture
    neuron: Neuron = Neuron()
    batch_axis: str | None = None
    compute: Compute = Compute()
    frozen_blocks: int = 0
    """Leading blocks (`Architecture.block_names`) that stay as they are: they normalise
    by their running statistics, training or not, and no gradient passes them."""

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
          ValueError: If the features, the levels or the number of frozen blocks do not
            fit the architecture.
        """
        size = self.architecture
        if size.decoder_channels is not None:
            raise ValueError(
                "this architecture has a decoder, that is of a segmentation network; "
                "the encoder alone is `architecture.encoder`"
            )
        if not 0 <= self.frozen_blocks <= len(size.block_names):
            raise ValueError(
                f"frozen_blocks={self.frozen_blocks}, but the network has "
                f"{len(size.block_names)} blocks: ask for 0 to "
                f"{len(size.block_names)}"
            )
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
        frozen = self.frozen_blocks
        x, inner = stem(features, levels[0], mask, train=train and not frozen)
        x = jax.lax.stop_gradient(x) if frozen else x
        activations = name_activations("stem", x, inner)
        frozen -= 1
        stages = zip(size.stage_channels, size.stage_depths, strict=True)
        for index, (channels, depth) in enumerate(stages):
            stage = Stage(
                channels,
                depth,
                *options,
                frozen_blocks=frozen,
                name=f"stage{index}",
            )
            x, inner = stage(x, levels[index], levels[index + 1], train=train)
            activations |= name_activations(f"stage{index}", x, inner)
            frozen -= 1 + depth
        return x, activations


def call_part(
    part: nn.Module,
    *arguments: Any,
    compute: Compute,
    train: bool,
    frozen: bool = False,
) -> tuple[Array, Activations]:
    """Calls a part of the network; with rematerialisation only its inputs are kept.

    A frozen part runs in inference mode, and no gradient passes it.
    """

    def run(part: Any, *arguments: Any) -> tuple[Array, Activations]:
        return part(*arguments, train=train and not frozen)

    if frozen:
        return jax.lax.stop_gradient(run(part, *arguments))
    return (nn.remat(run) if compute.rematerialise else run)(part, *arguments)


def name_activations(name: str, output: Array, inner: Activations) -> Activations:
    """Activations of a child module under its name, and its output as the name."""
    return {f"{name}/{key}": value for key, value in inner.items()} | {name: output}
