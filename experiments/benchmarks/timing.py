"""Interleaved timing: every case once a round, so that all meet the same machine."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from e3dsnn_jax.training.devices import num_cores

Cases = dict[tuple[str, str], Callable[[], object]]
"""What is timed, by (kind, whose)."""

Timings = dict[tuple[str, str], "Timing"]
"""What was measured, by (kind, whose)."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "spconv", "torch")


# Threads of OpenMP and of XLA wait for more work by spinning; for some milliseconds
# they would slow down whoever is timed next.
_PAUSE_SECONDS = 0.01


class Timing(NamedTuple):
    """Milliseconds of every round of one case."""

    wall: list[float]
    """Time that passed."""
    cpu: list[float]
    """Time that all threads of this process computed, or waited by spinning."""


def interleave(cases: Cases, *, repeats: int, warm_up: int = 2) -> Timings:
    """Times every case once a round, in turns, with a pause before each.

    On a shared machine the same program takes 1.3 to 2 times as long from one minute
    to the next; neighbours in a round see the same minute, so ratios within a round
    mean more than ratios of times taken apart. CPU time varies less than wall time.

    Args:
      cases: What to run. A case returns when its work is done.
      repeats: Rounds that are timed.
      warm_up: Rounds before those.

    Returns:
      The times of every round.
    """
    times = {name: Timing([], []) for name in cases}
    for round_ in range(warm_up + repeats):
        for name, run in cases.items():
            time.sleep(_PAUSE_SECONDS)
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if round_ >= warm_up:
                times[name].wall.append(1e3 * wall)
                times[name].cpu.append(1e3 * cpu)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of ours / theirs, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def is_busy(load_average: float | None) -> bool:
    """Whether others keep the cores so busy that times should not be quoted."""
    return load_average is not None and load_average > 0.5 * num_cores()


def describe_machine() -> dict[str, Any]:
    """What a time depends on: cores, load of the last minute, package versions."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cores": num_cores(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }
