"""Names, shapes and layouts of every array of a network, the published and ours.

Published kernels are [out, k0, k1, k2, in]; ours are [offsets, in, out], the offsets
row-major over (k0, k1, k2), the axes of the coordinates. The head is the trap: the
published stack reads the buffer of its [classes, 1, 1, 1, in] kernel as [in, classes],
which is a reshape, not a transposition. The linear layers of the decoder are
transposed, [out, in] to [in, out].

Source: `SNN_3dv` (classification) and `E_3DSNN_seg` in the authors' code, and spconv
2.3.8, which runs their convolutions.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.published import State, has_decoder

Variables = Mapping[str, Any]
"""`{"params": ..., "batch_stats": ...}`, nested dicts of arrays."""


class Entry(NamedTuple):
    """One array under both names and in both layouts."""

    published: str
    """Name in the published state dict, such as `stem.3.weight`."""
    ours: str
    """Flat name in our variables, such as `params/backbone/stem/unit1/conv/kernel`."""
    published_shape: tuple[int, ...]
    our_shape: tuple[int, ...]


def list_entries(architecture: Architecture, num_classes: int) -> list[Entry]:
    """Returns every array of a network, in the order of the published state dict.

    Args:
      architecture: With `decoder_channels` that of a segmentation network, without
        them that of a classifier.
      num_classes: Outputs of its head.
    """
    entries: list[Entry] = []

    def add_unit(ours: str, conv: str, norm: str, edge: int, c_in: int, c_out: int):
        entries.append(
            Entry(
                f"{conv}.weight",
                f"params/{ours}/conv/kernel",
                (c_out, edge, edge, edge, c_in),
                (edge**3, c_in, c_out),
            )
        )
        add_norm(ours, norm, c_out)

    def add_norm(ours: str, norm: str, channels: int):
        for theirs, place in (
            ("weight", f"params/{ours}/norm/scale"),
            ("bias", f"params/{ours}/norm/bias"),
            ("running_mean", f"batch_stats/{ours}/norm/mean"),
            ("running_var", f"batch_stats/{ours}/norm/var"),
        ):
            shape = (channels,)
            entries.append(Entry(f"{norm}.{theirs}", place, shape, shape))

    def add_linear(ours: str, theirs: str, c_in: int, c_out: int):
        place = f"params/{ours}/conv"
        entries.append(
            Entry(f"{theirs}.weight", f"{place}/kernel", (c_out, c_in), (c_in, c_out))
        )
        entries.append(Entry(f"{theirs}.bias", f"{place}/bias", (c_out,), (c_out,)))

    width = architecture.embed_channels
    for unit, c_in in enumerate((architecture.in_channels, width, width)):
        stem = f"stem.{3 * unit}", f"stem.{3 * unit + 1}"
        add_unit(f"backbone/stem/unit{unit}", *stem, 3, c_in, width)
    skips = [width, *architecture.stage_channels[:-1]]
    stages = zip(architecture.stage_channels, architecture.stage_depths, strict=True)
    for stage, (channels, depth) in enumerate(stages):
        ours, down = f"backbone/stage{stage}", f"enc.{stage}.down"
        add_unit(f"{ours}/down", f"{down}.1", f"{down}.2", 2, width, channels)
        width = channels
        for block in range(depth):
            theirs = f"enc.{stage}.blocks.{block}"
            for unit, (conv, norm) in enumerate(
                (
                    ("block.1", "block.2"),
                    ("voxel_block.1", "voxel_block.2"),
                    ("voxel_block.4", "voxel_block.5"),
                )
            ):
                names = f"{theirs}.{conv}", f"{theirs}.{norm}"
                add_unit(f"{ours}/block{block}/unit{unit}", *names, 3, width, width)
    decoder = architecture.decoder_channels or ()
    for stage, channels in enumerate(decoder):
        # The last stage takes what the encoder ends with, the others the stage below.
        below = [*decoder[1:], width][stage]
        ours, theirs = f"decoder/stage{stage}", f"dec.{stage}"
        up = f"{theirs}.up.1", f"{theirs}.up.2"
        add_unit(f"{ours}/up", *up, 2, below, channels)
        for index, c_in in enumerate((skips[stage] + channels, channels)):
            linear, norm = (f"{theirs}.fuse.{3 * index + place}" for place in (1, 2))
            add_linear(f"{ours}/fuse{index}", linear, c_in, channels)
            add_norm(f"{ours}/fuse{index}", norm, channels)
    width = decoder[0] if decoder else width
    head = (num_classes, 1, 1, 1, width)
    entries += [
        Entry("final.weight", "params/head/kernel", head, (width, num_classes)),
        Entry("final.bias", "params/head/bias", (num_classes,), (num_classes,)),
    ]
    return entries


def to_our_layout(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Returns a published array in our layout."""
    if len(entry.published_shape) == 2:
        return array.T
    if len(entry.our_shape) == 3:
        array = array.transpose(1, 2, 3, 4, 0)
    return array.reshape(entry.our_shape)


def to_published_layout(array: np.ndarray, entry: Entry) -> np.ndarray:
    """Returns an array of ours in the published layout, contiguous."""
    if len(entry.published_shape) == 2:
        return np.ascontiguousarray(array.T)
    if len(entry.our_shape) == 3:
        out, *edges_and_in = entry.published_shape
        array = array.reshape(*edges_and_in, out).transpose(4, 0, 1, 2, 3)
    return np.ascontiguousarray(array).reshape(entry.published_shape)


def infer_architecture(state: State, *, source: str) -> tuple[Architecture, int | None]:
    """Returns the widths and depths that the shapes of a state dict tell.

    Args:
      state: Arrays by unprefixed published names, kernels in the order of spconv 2.x.
      source: What the message calls the file.

    Returns:
      The architecture, with a decoder if there is any `dec`, and the number of classes
      (None if there is no `final`).

    Raises:
      ValueError: If a kernel that tells a width is missing or has no 5-D shape.
    """

    def widths(name: str) -> tuple[int, int]:
        if name not in state or state[name].ndim != 5:
            found = f"has shape {state[name].shape}" if name in state else "is missing"
            raise ValueError(
                f"{source}: {name} {found}, and only its shape [out, k, k, k, in] "
                "tells the width of that layer"
            )
        return state[name].shape[0], state[name].shape[4]

    blocks: dict[int, set[str]] = {}
    for match in map(re.compile(r"enc\.(\d+)\.(?:blocks\.(\d+))?").match, state):
        if match:
            found = blocks.setdefault(int(match[1]), set())
            found.update({match[2]} - {None})
    stages = range(max(blocks, default=-1) + 1)
    embed_channels, in_channels = widths("stem.0.weight")
    architecture = Architecture(
        in_channels=in_channels,
        embed_channels=embed_channels,
        stage_channels=tuple(
            widths(f"enc.{stage}.down.1.weight")[0] for stage in stages
        ),
        stage_depths=tuple(len(blocks[stage]) for stage in stages),
        decoder_channels=tuple(
            widths(f"dec.{stage}.up.1.weight")[0] for stage in stages
        )
        if has_decoder(state)
        else None,
    )
    classes = widths("final.weight")[0] if "final.weight" in state else None
    return architecture, classes


def describe(architecture: Architecture, num_classes: int | None = None) -> str:
    """Returns a phrase such as `variant T (6 input channels, ...; 40 classes)`."""
    names = [name for name, variant in VARIANTS.items() if variant == architecture]
    called = f"variant {names[0]}" if names else "an unnamed variant"
    decoder = ""
    if architecture.decoder_channels is not None:
        called = "a segmentation network"
        decoder = f", decoder {'-'.join(map(str, architecture.decoder_channels))}"
    stages = "-".join(map(str, architecture.stage_channels))
    depths = "-".join(map(str, architecture.stage_depths))
    classes = "" if num_classes is None else f"; {num_classes} classes"
    return (
        f"{called} ({architecture.in_channels} input channels, embed "
        f"{architecture.embed_channels}, stages {stages}, depths {depths}{decoder}"
        f"{classes})"
    )


def flatten_variables(variables: Variables) -> dict[str, Any]:
    """Returns the arrays of nested variables by flat names, joined by `/`."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def architecture_of(variables: Variables) -> tuple[Architecture, int]:
    """Returns the architecture and the number of classes of our variables.

    Raises:
      ValueError: If an array is missing, unknown, or of a shape that does not fit the
        others.
    """
    shapes = {
        name: np.shape(array) for name, array in flatten_variables(variables).items()
    }

    def widths(name: str, axes: int) -> tuple[int, ...]:
        shape = shapes.get(name)
        if shape is None or len(shape) != axes:
            raise ValueError(f"variables: {name} must have {axes} axes, got {shape}")
        return shape

    def count(template: str) -> int:
        number = 0
        while any(name.startswith(template.format(number)) for name in shapes):
            number += 1
        return number

    backbone = "params/backbone"
    _, in_channels, embed = widths(f"{backbone}/stem/unit0/conv/kernel", 3)
    stages = range(count(f"{backbone}/stage{{}}/"))
    architecture = Architecture(
        in_channels=in_channels,
        embed_channels=embed,
        stage_channels=tuple(
            widths(f"{backbone}/stage{stage}/down/conv/kernel", 3)[2]
            for stage in stages
        ),
        stage_depths=tuple(
            count(f"{backbone}/stage{stage}/block{{}}/") for stage in stages
        ),
        decoder_channels=tuple(
            widths(f"params/decoder/stage{stage}/up/conv/kernel", 3)[2]
            for stage in stages
        )
        if any(name.startswith("params/decoder/") for name in shapes)
        else None,
    )
    _, num_classes = widths("params/head/kernel", 2)
    needed = {e.ours: e.our_shape for e in list_entries(architecture, num_classes)}
    for name in sorted(needed.keys() | shapes.keys()):
        if needed.get(name) != shapes.get(name):
            raise ValueError(
                f"variables: {name} has shape {shapes.get(name)}, but "
                f"{describe(architecture, num_classes)} needs {needed.get(name)}"
            )
    return architecture, num_classes
