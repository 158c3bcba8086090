"""How many devices share a batch, and all the cores of a CPU as devices."""

import os

import jax

from e3dsnn_jax.training.processes import find_launch


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
      batch_size: Clouds in a batch, which the devices of all processes share equally.
      devices: Number of devices of all processes; if omitted, the largest divisor of
        the batch that is not above the number of cores.
    """
    launch = find_launch(os.environ)
    processes = 1 if launch is None else launch.processes or 1
    chosen_outside = "JAX_NUM_CPU_DEVICES" in os.environ or (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if chosen_outside:
        return
    share = max(batch_size // processes, 1)
    count = largest_divisor(share, at_most=num_cores())
    if devices is not None:
        count = max(devices // processes, 1)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return  # the devices exist already and keep their number


def choose_devices(batch_size: int, devices: int | None = None) -> int:
    """Devices to use: those asked for, else as many as can share the batch equally.

    Raises:
      ValueError: If the processes of the run cannot share the batch equally.
    """
    processes = jax.process_count()
    if batch_size % processes:
        raise ValueError(
            f"{batch_size} clouds at a time cannot be shared equally by {processes} "
            "processes: make --recipe.batch-size (over --recipe.accumulate) a multiple"
        )
    if devices is not None:
        return devices
    share = batch_size // processes
    # Hosts may differ; every process counts those of all.
    fewest = min(len(jax.local_devices(process)) for process in range(processes))
    return processes * largest_divisor(share, at_most=fewest)
