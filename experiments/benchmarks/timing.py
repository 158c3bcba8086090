"""Interleaved timing: every case once a round, so that all meet the same machine."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Cases = dict[tuple[str, str], Callable[[], object]]
"""What is timed, by (kind, whose)."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "spconv", "torch")


def interleave(
    cases: Cases, *, repeats: int, warm_up: int = 2
) -> dict[tuple[str, str], list[float]]:
    """Times every case once a round, in turns.

    On a shared machine the same program takes 1.3 to 2 times as long from one minute
    to the next; neighbours in a round see the same minute, so ratios within a round
    mean more than ratios of times taken apart.

    Args:
      cases: What to run. A case returns when its work is done.
      repeats: Rounds that are timed.
      warm_up: Rounds before those.

    Returns:
      Milliseconds of every round, by case.
    """
    times: dict[tuple[str, str], list[float]] = {name: [] for name in cases}
    for round_ in range(warm_up + repeats):
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            elapsed = time.perf_counter() - start
            if round_ >= warm_up:
                times[name].append(1e3 * elapsed)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(np.asarray(values), [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of ours / theirs, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
