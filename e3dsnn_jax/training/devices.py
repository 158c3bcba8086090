"""How many devices share a batch, and all the cores of a CPU as devices."""

import os

import jax


def largest_divisor(number: int, *, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most`."""
    return next(d for d in range(max(at_most, 1), 0, -1) if number % d == 0)


def num_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    # Containers and batch systems restrict a process to some of the cores.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_all_cores(batch_size: int, *, devices: int | None = None) -> None:
    """Makes the CPU appear as several devices, so that all cores work on a batch.

    Must run before JAX's first computation; afterwards it does nothing. Accelerators
    are unaffected, and so is a number that `XLA_FLAGS` or `JAX_NUM_CPU_DEVICES` sets.

    Args:
      batch_size: Clouds in a batch, which the devices share equally.
      devices: Number of devices; if omitted, the largest divisor of the batch that is
        not above the number of cores.
    """
    chosen_outside = "JAX_NUM_CPU_DEVICES" in os.environ or (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if chosen_outside:
        return
    count = devices or largest_divisor(batch_size, at_most=num_cores())
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # the devices exist already and keep their number


def choose_devices(batch_size: int, devices: int | None = None) -> int:
    """Devices to use: those asked for, else as many as can share the batch equally."""
    if devices is not None:
        return devices
    return largest_divisor(batch_size, at_most=jax.device_count())
