"""Accuracies on worked examples, and firing rates against brute force."""

import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.kernel_map import KernelMap
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.training.metrics import (
    FiringTotals,
    add_firing,
    confusion_matrix,
    count_spikes,
    firing_rates,
    mean_class_accuracy,
    overall_accuracy,
    spike_level,
)


def test_confusion_matrix_of_a_worked_example():
    labels = np.array([0, 0, 0, 2, 2, -1, 3])
    predicted = np.array([0, 0, 2, 2, 0, 1, 3])
    confusion = confusion_matrix(labels, predicted, num_classes=4)
    expected = [
        [2, 0, 1, 0],  # true class 0: twice right, once taken for 2
        [0, 0, 0, 0],  # class 1 does not occur, but as the -1 of padding
        [1, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(confusion, expected)
    assert overall_accuracy(confusion) == 4 / 6
    accuracy = mean_class_accuracy(confusion)
    assert accuracy.mean == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    np.testing.assert_allclose(accuracy.per_class, [2 / 3, np.nan, 1 / 2, 1])
    assert accuracy.absent == (1,)


def test_matrices_of_batches_add_up(rng):
    labels, predicted = rng.integers(0, 5, size=(2, 100))
    whole = confusion_matrix(labels, predicted, num_classes=5)
    parts = [
        confusion_matrix(labels[rows], predicted[rows], num_classes=5)
        for rows in (slice(0, 33), slice(33, 100))
    ]
    np.testing.assert_array_equal(whole, sum(parts))
    assert overall_accuracy(whole) == np.mean(labels == predicted)


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([0, 4], [0, 1], "label 4 is not one of 4 classes"),
        ([0, 3], [0, 7], "prediction 7 is not one of 4 classes"),
        ([0, 3], [0, -1], "prediction -1 is not one of 4 classes"),
    ],
)
def test_unknown_classes_are_refused(labels, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels), np.array(predicted), num_classes=4)


@pytest.mark.parametrize("accuracy", [overall_accuracy, mean_class_accuracy])
def test_no_accuracy_without_clouds(accuracy):
    with pytest.raises(ValueError, match="confusion matrix is empty"):
        accuracy(np.zeros((3, 3), np.int64))


@pytest.mark.parametrize(
    ("unit", "level"),
    [
        ("stem/unit1", 0),
        ("stage0/down", 0),
        ("stage0/block0/unit2", 1),
        ("stage3/down", 3),
        ("stage3/block1/unit0", 4),
        ("stage12/block0/unit0", 13),
    ],
)
def test_level_of_each_unit(unit, level):
    assert spike_level(unit) == level


def test_unknown_units_are_refused():
    with pytest.raises(ValueError, match=r"no level is known .* 'decoder0/up'"):
        spike_level("decoder0/up")


def make_level(real, rows):
    coords = np.full((rows, 4), -1, np.int32)
    coords[:real] = 0
    nothing = np.zeros((1, 1), np.int32)
    count = np.int32(real)
    maps = KernelMap(
        nothing, nothing, nothing[0], np.asarray(0, np.int32), np.array([rows, rows])
    )
    return Level(jnp.asarray(coords), jnp.asarray(count), maps, None)


def test_firing_rates_over_batches_and_devices_match_one_count(rng):
    """Two batches of two devices; padding rows hold spikes that must not count."""
    totals: dict[str, FiringTotals] = {}
    fine, coarse = [], []
    for _ in range(2):
        devices = []
        for _ in range(2):
            sizes = rng.integers(1, 9, 2)
            levels = (make_level(sizes[0], 10), make_level(sizes[1], 8))
            stem = rng.integers(0, 5, (10, 2, 3)).astype(np.float32)
            block = rng.integers(0, 2, (8, 2, 4)).astype(np.float32)
            block[: sizes[1], :, 1] = 0
            activations = {
                "stem/unit1/spikes": jnp.asarray(stem),
                "stage0/block0/unit0/spikes": jnp.asarray(block, jnp.bfloat16),
                "stem/unit1": jnp.ones((10, 2, 3)),
            }
            devices.append(count_spikes(activations, levels))
            fine.append(stem[: sizes[0]].reshape(-1, 3))
            coarse.append(block[: sizes[1]].reshape(-1, 4))
        stacked = {
            unit: type(devices[0][unit])(
                *map(jnp.stack, zip(*(device[unit] for device in devices), strict=True))
            )
            for unit in devices[0]
        }
        totals = add_firing(totals, stacked)
    rates = firing_rates(totals)
    assert set(rates) == {"stem/unit1", "stage0/block0/unit0"}
    for unit, parts in (("stem/unit1", fine), ("stage0/block0/unit0", coarse)):
        spikes = np.concatenate(parts)
        assert rates[unit].firing_rate == pytest.approx(np.mean(spikes != 0), rel=1e-12)
        assert rates[unit].mean_spikes == pytest.approx(np.mean(spikes), rel=1e-12)
    assert rates["stem/unit1"].silent_channels == 0
    assert rates["stage0/block0/unit0"].silent_channels == 1


def test_totals_stay_exact_beyond_float32():
    counts = FiringTotals(np.array([2**40 + 1]), np.array([2.0**40 + 1]), 2**41)
    batch = count_spikes(
        {"stem/unit1/spikes": jnp.ones((1, 1, 1))}, (make_level(1, 1),)
    )
    stacked = {
        unit: type(count)(*(jnp.stack([leaf]) for leaf in count))
        for unit, count in batch.items()
    }
    total = add_firing({"stem/unit1": counts}, stacked)["stem/unit1"]
    assert total.nonzero[0] == 2**40 + 2
    assert total.spikes[0] == 2.0**40 + 2
    assert total.sites == 2**41 + 1


def test_a_layer_without_voxels_has_no_rate():
    totals = {"stem/unit1": FiringTotals(np.zeros(3, np.int64), np.zeros(3), 0)}
    rate = firing_rates(totals)["stem/unit1"]
    assert np.isnan(rate.firing_rate)
    assert np.isnan(rate.mean_spikes)
