"""Event lists: against a loop over every neuron, there and back, files and damage."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.event_executor import submanifold_events
from e3dsnn_jax.events import (
    Events,
    are_spikes,
    check_events,
    events_of_level,
    load_events,
    save_events,
    to_events,
    to_spikes,
)
from e3dsnn_jax.kernel_map import make_kernel
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike import unroll_spikes
from tests import oracles
from tests.clouds_of_voxels import random_coords


def events_by_loops(spikes, levels):
    """Every event in order, one neuron and one slot at a time."""
    voxels, time, channels = spikes.shape
    found = []
    for t in range(time):
        for slot in range(levels):
            for voxel in range(voxels):
                for channel in range(channels):
                    if spikes[voxel, t, channel] > slot:
                        found.append((t * levels + slot, voxel, channel))
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.float64])
@pytest.mark.parametrize(
    ("shape", "levels"),
    [((5, 3, 4), 4), ((1, 1, 1), 1), ((7, 2, 3), 2), ((0, 2, 3), 4), ((3, 1, 5), 127)],
)
def test_events_are_those_of_the_loops(rng, shape, levels, dtype):
    spikes = rng.integers(0, levels + 1, shape).astype(dtype)
    events = to_events(spikes, levels=levels)
    rows = np.stack([events.time, events.voxel, events.channel], 1).tolist()
    assert [tuple(row) for row in rows] == events_by_loops(spikes, levels)
    assert events[3:] == (shape[1], levels, shape[0], shape[2], None)
    np.testing.assert_array_equal(to_spikes(events), spikes)


def test_slots_are_those_of_the_unrolling(rng):
    spikes = rng.integers(0, 5, (6, 3, 2)).astype(np.float32)
    events = to_events(spikes, levels=4)
    trains = np.zeros((12, 6, 2))
    trains[events.time, events.voxel, events.channel] = 1
    unrolled = np.asarray(unroll_spikes(jnp.asarray(spikes).swapaxes(0, 1), levels=4))
    by_time = np.moveaxis(unrolled, 0, 1).reshape(12, 6, 2)
    np.testing.assert_array_equal(trains, by_time)


@pytest.mark.parametrize("wrong", [0.5, -1, 5, np.nan, np.inf])
def test_what_is_no_spike_is_refused_with_its_place(wrong):
    spikes = np.zeros((3, 2, 2))
    spikes[2, 1, 0] = wrong
    with pytest.raises(ValueError, match=r"\(2, 1, 0\) is .*whole numbers 0\.\.4"):
        to_events(spikes, levels=4)


def test_levels_below_one_are_refused():
    with pytest.raises(ValueError, match="levels >= 1, got levels=0"):
        to_events(np.zeros((1, 1, 1)), levels=0)


def test_files_keep_everything(tmp_path, rng):
    for spikes in (rng.integers(0, 3, (6, 2, 3)), np.zeros((4, 1, 2), int)):
        events = to_events(spikes, levels=2)
        save_events(events, tmp_path / "layer.npz")
        again = load_events(tmp_path / "layer.npz")
        check_same(again, events)
        assert again.coords is None
        assert again.time.dtype == np.int32


def check_same(found, expected):
    for name, one, other in zip(Events._fields, found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_a_file_of_a_run_drives_the_executor_alone(tmp_path, rng):
    coords = random_coords(rng)
    (level,) = build_pyramid(coords, num_levels=1)
    rows = len(level.coords)
    assert rows > len(coords)
    # Padding rows hold anything: they must not be looked at.
    spikes = np.full((rows, 2, 3), 0.5, np.float32)
    spikes[: len(coords)] = rng.integers(0, 4, (len(coords), 2, 3))
    events = events_of_level(jnp.asarray(spikes), level.coords, levels=3)
    save_events(events, tmp_path / "layer.npz")
    loaded = load_events(tmp_path / "layer.npz")
    check_same(loaded, events)
    kernel = rng.standard_normal((27, 3, 4))
    result = submanifold_events(loaded, loaded.coords, kernel, make_kernel(3))
    np.testing.assert_array_equal(result.coords, coords)
    expected = np.zeros((len(coords), 2, 4))
    for offset, receiver, sender in oracles.submanifold_pairs(coords, make_kernel(3)):
        expected[receiver] += spikes[sender].astype("f8") @ kernel[offset]
    np.testing.assert_allclose(result.currents, expected, atol=1e-12)
    with pytest.raises(ValueError, match=f"{rows} rows of spikes but {rows - 1} of"):
        inspect.unwrap(events_of_level)(spikes, level.coords[1:], levels=3)
    cut = events._replace(coords=coords[1:])
    with pytest.raises(ValueError, match=rf"\[{len(coords)} voxels, 1 \+ axes\] are"):
        save_events(cut, tmp_path / "cut.npz")


def test_spikes_are_whole_numbers_up_to_their_levels():
    values = np.array([0, 1, 2.5, 3, 4, 5, -1, -0.5, np.nan, np.inf, -np.inf])
    expected = [value in (0, 1, 3, 4) for value in values]
    np.testing.assert_array_equal(are_spikes(values, 4), expected)
    np.testing.assert_array_equal(are_spikes(jnp.asarray(values, "f4"), 4), expected)
    whole = np.arange(-2, 7, dtype=np.int8)
    np.testing.assert_array_equal(are_spikes(whole, 4), (whole >= 0) & (whole < 5))


def make_events(**changes):
    rows = np.array([[0, 0, 1], [0, 2, 0], [3, 0, 1]], np.int32)
    events = Events(*rows.T, time_steps=2, levels=2, num_voxels=3, num_channels=2)
    return events._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": np.array([0, 0, 4], np.int32)}, "event 2 has time 4, .* ends at 3"),
        ({"voxel": np.array([0, 3, 0], np.int32)}, "event 1 has voxel 3, .* at 2"),
        ({"channel": np.array([-1, 0, 1], np.int32)}, "event 0 has channel -1"),
        ({"time": np.array([0, 0], np.int32)}, "arrays of one length"),
        ({"time": np.array([1, 0, 3], np.int32)}, r"event 1 is \[0, 2, 0\] after \[1,"),
        ({"voxel": np.array([0, 0, 0], np.int32)}, r"\[0, 0, 0\] after \[0, 0, 1\]"),
        ({"levels": 0}, "levels >= 1, got 2 and 0"),
    ],
)
def test_lists_of_no_layer_are_refused(tmp_path, changes, message):
    check_events(make_events())
    for action in (check_events, lambda e: save_events(e, tmp_path / "a.npz")):
        with pytest.raises(ValueError, match=message):
            action(make_events(**changes))
    assert not list(tmp_path.iterdir())


def test_one_event_twice_is_refused():
    rows = np.zeros((2, 3), np.int32)
    events = Events(*rows.T, time_steps=1, levels=1, num_voxels=1, num_channels=1)
    with pytest.raises(ValueError, match=r"event 1 is \[0, 0, 0\] after \[0, 0, 0\]"):
        check_events(events)


def test_damaged_files_are_refused_by_name(tmp_path, rng):
    path = tmp_path / "layer.npz"
    save_events(to_events(rng.integers(0, 3, (60, 2, 30)), levels=2), path)
    content = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        load_events(tmp_path / "absent.npz")
    for damaged in (content[:-200], b"", content[:100] + b"\0" * 50 + content[150:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"layer\.npz"):
            load_events(path)
    columns = {name: np.zeros(1, np.int32) for name in ("time", "voxel", "channel")}
    np.savez(path, **columns)
    with pytest.raises(ValueError, match=r"layer\.npz: no list of events.*int32\[1\]"):
        load_events(path)
    np.savez(path, sizes=np.ones(4, np.int32), **columns)
    with pytest.raises(ValueError, match=r"sizes': 'int32\[4\]"):
        load_events(path)
    np.savez(path, sizes=np.zeros(4, np.int64), **columns)
    with pytest.raises(ValueError, match=r"layer\.npz: a layer needs time_steps"):
        load_events(path)
    columns["voxel"][0] = 7
    np.savez(path, sizes=np.ones(4, np.int64), **columns)
    with pytest.raises(ValueError, match=r"layer\.npz: event 0 has voxel 7"):
        load_events(path)
