"""A layer's spikes as an address-event list: when, where and on which channel.

An integer spike n of a time step with D levels is n events, in the binary steps
`t * D ... t * D + n - 1`, as `spike.unroll_spikes` has it: neuromorphic hardware
receives nothing else. Lists are saved as npz files with these arrays:

| name | type | meaning |
|---|---|---|
| `time` | int32 [events] | binary step, 0 ... time_steps * levels - 1 |
| `voxel` | int32 [events] | row of the voxel |
| `channel` | int32 [events] | channel |
| `sizes` | int64 [4] | time_steps T, levels D, voxels, channels |
| `coords` | int32 [voxels, 1 + axes] | optional: batch index and cell of each voxel |

Events are sorted by (time, voxel, channel) and unique. With `coords` a file alone
drives the event executor. From a run to a file, and from there to a layer's currents:

    _, activations = model.apply(variables, features, levels, num_clouds=2, train=False)
    spikes = activations["stage0/down/spikes"]
    events = events_of_level(spikes, levels[0].coords, levels=model.neuron.levels)
    save_events(events, Path("down.npz"))

    events = load_events(Path("down.npz"))
    kernel = variables["params"]["backbone"]["stage0"]["down"]["conv"]["kernel"]
    geometry = make_kernel(2, stride=2)
    strided_events(events, events.coords, np.asarray(kernel), geometry)

The spikes of a layer are on the level of its inputs, `training.metrics.spike_level`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Real

from e3dsnn_jax.npz import load_npz
from e3dsnn_jax.whole_file import whole_file

_COLUMNS = ("time", "voxel", "channel")
_LARGEST = 2**31 - 1


class Events(NamedTuple):
    """Binary spikes of one layer, sorted by (time, voxel, channel)."""

    time: Int32[np.ndarray, " events"]
    """Binary step of each event: `t * levels + slot`."""
    voxel: Int32[np.ndarray, " events"]
    """Row of the voxel that fired."""
    channel: Int32[np.ndarray, " events"]
    """Channel that fired."""
    time_steps: int
    """Time steps of the network (T)."""
    levels: int
    """Binary steps of a time step (D)."""
    num_voxels: int
    """Voxels of the layer, also those that were silent."""
    num_channels: int
    """Channels of the layer."""
    coords: Int32[np.ndarray, "voxels axes"] | None = None
    """Batch index and cell of each voxel, if they are kept with its spikes."""

    @property
    def binary_steps(self) -> int:
        """Length of the binary spike trains, T times D."""
        return self.time_steps * self.levels


def are_spikes(
    values: Real[np.ndarray | Array, "*shape"], levels: int
) -> Bool[np.ndarray | Array, "*shape"]:
    """Where values are integer spikes: whole numbers 0..levels."""
    return (values >= 0) & (values <= levels) & (values == values.round())


def to_events(
    spikes: Real[np.ndarray, "voxels time channels"], *, levels: int
) -> Events:
    """The events of a layer's integer spikes.

    Args:
      spikes: Whole numbers 0..levels, without padding rows.
      levels: Largest spike of a time step (D).

    Raises:
      ValueError: If a spike is no whole number of that range, with its place, or the
        layer is too large for 32-bit addresses.
    """
    if levels < 1:
        raise ValueError(f"spikes need levels >= 1, got levels={levels}")
    whole = np.asarray(are_spikes(spikes, levels))
    if not whole.all():
        place = tuple(np.argwhere(~whole)[0].tolist())
        raise ValueError(
            f"the spike at (voxel, time, channel) = {place} is {spikes[place]}, but "
            f"events need whole numbers 0..{levels}: is this a layer with real-valued "
            "input, or one with more levels?"
        )
    voxels, time, channels = spikes.shape
    if max(voxels, time * levels, channels) > _LARGEST:
        raise ValueError(
            f"{voxels} voxels, {time * levels} binary steps, {channels} channels: "
            "32-bit addresses end at 2**31 - 1"
        )
    counts = np.moveaxis(spikes, 1, 0).astype(np.int64)
    slots = np.arange(levels)
    trains = counts[:, None] > slots[None, :, None, None]
    step, slot, voxel, channel = np.nonzero(trains)
    return Events(
        (step * levels + slot).astype(np.int32),
        voxel.astype(np.int32),
        channel.astype(np.int32),
        time,
        levels,
        voxels,
        channels,
    )


def events_of_level(
    spikes: Real[np.ndarray | Array, "rows time channels"],
    coords: Int[np.ndarray | Array, "rows axes"],
    *,
    levels: int,
) -> Events:
    """The events of what a layer received in a run, with the voxels' coordinates.

    Args:
      spikes: Of the activations of a run, padding rows included.
      coords: Coordinates of the level of the layer's inputs, -1 in padding rows; these
        rows are cut off.
      levels: Largest spike of a time step (D).

    Raises:
      ValueError: As `to_events`, or if spikes and coordinates are of different levels.
    """
    spikes, coords = np.asarray(spikes), np.asarray(coords)
    if len(spikes) != len(coords):
        raise ValueError(
            f"{len(spikes)} rows of spikes but {len(coords)} of coordinates: take those"
            " of the level of the layer's inputs"
        )
    real = coords[:, 0] >= 0
    events = to_events(spikes[real], levels=levels)
    return events._replace(coords=coords[real].astype(np.int32))


def to_spikes(events: Events) -> Int[np.ndarray, "voxels time channels"]:
    """The integer spikes that a list of events stands for.

    Raises:
      ValueError: As `check_events`.
    """
    check_events(events)
    shape = events.num_voxels, events.time_steps, events.num_channels
    spikes = np.zeros(shape, np.int64)
    step = events.time // events.levels
    np.add.at(spikes, (events.voxel, step, events.channel), 1)
    return spikes


def check_events(events: Events, *, what: str = "the events") -> None:
    """Refuses a list that no layer could have sent.

    Args:
      events: The list.
      what: What the message calls it.

    Raises:
      ValueError: If the arrays differ in length, an event lies outside of the layer,
        the events are not sorted and unique, or the coordinates are those of another
        number of voxels.
    """
    lengths = {name: len(getattr(events, name)) for name in _COLUMNS}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: arrays of one length are needed, got {lengths}")
    sizes = {
        "time": events.binary_steps,
        "voxel": events.num_voxels,
        "channel": events.num_channels,
    }
    if min(events.time_steps, events.levels) < 1 or min(sizes.values()) < 0:
        raise ValueError(
            f"{what}: a layer needs time_steps >= 1 and levels >= 1, got "
            f"{events.time_steps} and {events.levels}, with {sizes}"
        )
    if events.coords is not None and (
        events.coords.ndim != 2 or len(events.coords) != events.num_voxels
    ):
        raise ValueError(
            f"{what}: coordinates of shape [{events.num_voxels} voxels, 1 + axes] are "
            f"needed, got {list(events.coords.shape)}"
        )
    columns = [getattr(events, name) for name in _COLUMNS]
    for name, column in zip(_COLUMNS, columns, strict=True):
        outside = (column < 0) | (column >= sizes[name])
        if outside.any():
            row = int(outside.argmax())
            raise ValueError(
                f"{what}: event {row} has {name} {column[row]}, but the layer ends at "
                f"{sizes[name] - 1}"
            )
    later = np.zeros(max(len(columns[0]) - 1, 0), bool)
    for column in reversed(columns):  # compares the last axis first
        step = np.diff(column)
        later = (step > 0) | ((step == 0) & later)
    if not later.all():
        row = int(np.argmin(later)) + 1
        before, here = ([int(c[at]) for c in columns] for at in (row - 1, row))
        raise ValueError(
            f"{what}: events must be unique and sorted by (time, voxel, channel); "
            f"event {row} is {here} after {before}"
        )


def save_events(events: Events, path: Path) -> None:
    """Writes a list as an npz file, whole or not at all.

    Raises:
      ValueError: As `check_events`.
    """
    check_events(events)
    sizes = events.time_steps, events.levels, events.num_voxels, events.num_channels
    arrays: dict[str, Any] = {
        name: np.asarray(getattr(events, name), np.int32) for name in _COLUMNS
    }
    if events.coords is not None:
        arrays["coords"] = np.asarray(events.coords, np.int32)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, sizes=np.asarray(sizes, np.int64), **arrays)


def load_events(path: Path) -> Events:
    """Reads a list that `save_events` wrote.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file is damaged or holds no list of events, with its path.
    """
    arrays = load_npz(path)
    expected: dict[str, Any] = {"sizes": (np.int64, 1)} | dict.fromkeys(
        _COLUMNS, (np.int32, 1)
    )
    if "coords" in arrays:
        expected["coords"] = (np.int32, 2)
    found = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if found != expected or arrays["sizes"].shape != (4,):
        shapes = {name: f"{a.dtype}{list(a.shape)}" for name, a in arrays.items()}
        raise ValueError(
            f"{path}: no list of events; expected int32 time, voxel and channel and "
            f"int64 sizes [4], perhaps int32 coords [voxels, 1 + axes]; found {shapes}"
        )
    time_steps, levels, voxels, channels = arrays["sizes"].tolist()
    time, voxel, channel = (arrays[name] for name in _COLUMNS)
    sizes = time_steps, levels, voxels, channels
    events = Events(time, voxel, channel, *sizes, arrays.get("coords"))
    check_events(events, what=str(path))
    return events
