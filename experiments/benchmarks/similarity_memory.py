"""What `similarity` measures in a process of its own, for the memory that it takes.

    python -m experiments.benchmarks.similarity_memory checkpoints
    python -m experiments.benchmarks.similarity_memory streaming

`checkpoints` compares every layer of every checkpoint with the last one in one call;
`streaming` accumulates the moments of 10 million datapoints that are made on the fly,
and compares them with sums in float64. One JSON line goes to stdout.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import svcca_jax as sv
from experiments.benchmarks.report import (
    peak_memory,
    report,
    summarize,
    timed,
)
from experiments.benchmarks.similarity_peers import (
    correlations,
    decompose,
    make_layers,
)
from experiments.benchmarks.similarity_stream import Streaming, measure_streaming
from experiments.benchmarks.timing import interleave


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """SVCCA of every checkpoint's layers with those of the last, in one call."""

    checkpoints: int = 100
    """How many, the last included."""
    widths: tuple[int, ...] = (64, 128, 256, 512) * 3
    """Neurons of each layer."""
    datapoints: int = 600
    """Rows of each layer: all checkpoints together are 0.7 GB."""
    decay: float = 1.0
    """See `similarity_peers.make_layers`."""
    rounds: int = 1
    """How often all of it is timed."""


def run_in_child(settings: Checkpoints | Streaming) -> dict[str, Any]:
    """Measures in a new process, whose memory is all due to the measurement."""
    arguments = [type(settings).__name__.lower()]
    for name, value in dataclasses.asdict(settings).items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name}", *(str(v) for v in values)]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.similarity_memory", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_checkpoints(settings: Checkpoints) -> dict[str, Any]:
    """Times `over_checkpoints` on both routes and LAPACK, and checks their values."""
    at_start = peak_memory()
    sizes = {"datapoints": settings.datapoints, "decay": settings.decay}
    first = make_layers(settings.widths, seed=1, **sizes)
    last = make_layers(settings.widths, seed=2, **sizes)
    number = settings.checkpoints

    def make(count: int) -> Iterator[list[np.ndarray]]:
        for step in range(number - count + 1, number + 1):
            share = np.float32(step / number)
            yield [
                share * b + (1 - share) * a for a, b in zip(first, last, strict=True)
            ]

    def ours(checkpoints: Any, *, fast: bool) -> np.ndarray:
        measure = sv.MeanSVCCA(fast=fast)
        return sv.over_checkpoints(checkpoints, last, measure=measure)

    def lapack(checkpoints: list[list[np.ndarray]]) -> np.ndarray:
        final = [decompose(layer) for layer in last]
        rows = [
            [
                correlations(decompose(layer), reference).mean()
                for layer, reference in zip(layers, final, strict=True)
            ]
            for layers in checkpoints
        ]
        return np.asarray(rows)

    few = max(2, number // 10)
    first_call = {}
    for name, fast in (("ours", False), ("ours_fast", True)):
        _, first_call[name] = timed(lambda fast=fast: ours(make(few), fast=fast))
    one_at_a_time = peak_memory()

    report(f"first calls: {', '.join(f'{t:.1f} s' for t in first_call.values())}")
    held = list(make(number))
    values: dict[str, np.ndarray] = {}
    peaks: dict[str, int] = {}

    def keep(name: str, compute: Callable[[], np.ndarray]) -> Callable[[], None]:
        def case() -> None:
            values[name] = compute()
            peaks.setdefault(name, peak_memory())
            report(f"all checkpoints, {name}")

        return case

    times = interleave(
        {
            ("svcca", "ours"): keep("ours", lambda: ours(held, fast=False)),
            ("svcca", "ours_fast"): keep("ours_fast", lambda: ours(held, fast=True)),
            ("svcca", "lapack_svd"): keep("lapack_svd", lambda: lapack(held)),
        },
        repeats=settings.rounds,
        warm_up=0,
    )
    shown = sorted({0, number // 2, number - 1})
    last = [layer.astype(np.float64) for layer in last]
    truth = lapack([[x.astype(np.float64) for x in held[step]] for step in shown])
    return {
        **dataclasses.asdict(settings),
        "input_bytes": sum(layer.nbytes for layers in held for layer in layers),
        "memory_at_start_bytes": at_start,
        "peak_memory_one_at_a_time_bytes": one_at_a_time,
        "peak_memory_bytes": peaks["ours"],
        "first_call_seconds": {"svcca": first_call},
        "error": {
            "svcca": {
                name: float(np.abs(grid[shown] - truth).max())
                for name, grid in values.items()
            }
        },
        **summarize(times),
    }


def main() -> None:
    """Runs what the command line names."""
    settings = tyro.cli(Checkpoints | Streaming)  # pyright: ignore[reportArgumentType]
    if isinstance(settings, Checkpoints):
        result = measure_checkpoints(settings)
    else:
        result = measure_streaming(settings)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
