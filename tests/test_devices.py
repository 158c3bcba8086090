"""How many devices share a batch."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from e3dsnn_jax.training.devices import (
    choose_devices,
    largest_divisor,
    num_cores,
    use_all_cores,
)


@pytest.mark.parametrize(
    ("number", "at_most", "expected"),
    [(16, 2, 2), (16, 3, 2), (16, 64, 16), (7, 4, 1), (12, 8, 6), (5, 0, 1)],
)
def test_largest_divisor(number: int, at_most: int, expected: int):
    assert largest_divisor(number, at_most=at_most) == expected


def test_devices_share_the_batch_equally():
    assert jax.device_count() == 4  # from conftest.py
    assert choose_devices(16) == 4
    assert choose_devices(6) == 3
    assert choose_devices(16, 2) == 2
    assert num_cores() >= 1


def test_nothing_changes_once_devices_exist():
    before = jax.devices()
    use_all_cores(3)
    assert jax.devices() == before


def test_number_from_the_environment_is_respected(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(jax.config, "update", refuse)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")
    use_all_cores(16)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    flag = "--xla_force_host_platform_device_count=4"
    monkeypatch.setenv("XLA_FLAGS", flag)
    use_all_cores(16)


def test_cores_become_devices_of_a_new_process():
    script = (
        "import jax; from e3dsnn_jax.training.devices import use_all_cores;"
        "use_all_cores(16, devices=3); print(jax.device_count())"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "3\n"
