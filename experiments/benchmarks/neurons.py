"""Leaky neurons over time, forward and backward, against other packages' neurons.

    python -m experiments.benchmarks.neurons
    python -m experiments.benchmarks.neurons --steps 4 16 --rounds 11
    python -m experiments.benchmarks.neurons --small

Times the spikes and the gradient of their product with fixed weights with respect to
the currents: ours (LIF with soft and hard reset, I-LIF), the same scans under plain
autodiff, and spyx, snnax, snnTorch and SpikingJelly where they are installed, by their
own calls for many steps. Decay 0.5, threshold 1, a rectangular surrogate of width 1
(slope 1 in 0..D for I-LIF), as far as a package has them: `spike_difference` is the
share of its spikes that are not those of ours. spyx fires one step late; spyx and
snnTorch subtract the threshold after the decay.

All contenders work on the same arrays, once a round in turns, after a first call that
is timed apart (it compiles). Results live in memory that the system hands out anew,
whose pages cost more than the arithmetic from some 32 MB on: `fresh_arrays` writes
two results and does nothing else.

The last line of stdout is one JSON object, the table goes to stderr, and a figure to
`--out`.
"""

import dataclasses
import functools
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from e3dsnn_jax.spike import ResetFn, hard_reset, integer_lif, lif, soft_reset
from experiments.benchmarks.neuron_peers import (
    DECAY,
    LEVELS,
    THRESHOLD,
    Make,
    Run,
    jax_run,
    snnax_lif,
    snntorch_lif,
    spikingjelly_neurons,
    spyx_lif,
    torch_loop,
)
from experiments.benchmarks.report import (
    plot_seconds,
    report,
    summarize,
    timed,
)
from experiments.benchmarks.timing import (
    Cases,
    describe_machine,
    interleave,
    is_busy,
    ratio,
)

PEERS = ("spyx", "snnax", "snntorch", "spikingjelly", "torch")
# They decide whether freed memory returns to the system, to be paged in again.
ENVIRONMENT = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "XLA_FLAGS",
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times neurons over time, forward and backward."""

    steps: tuple[int, ...] = (4, 16, 32)
    """Lengths of the time axis."""
    neurons: int = 1_000_000
    """Neurons, in float32."""
    rounds: int = 7
    """Timed rounds; every contender runs once a round."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""
    out: Path = Path("runs/neurons")
    """Folder of the figure."""


def ours(kind: str, reset: ResetFn) -> Make:
    """Our neurons with a reset, by name `lif` or `ilif`."""

    def spikes_of(x):
        if kind == "ilif":
            return integer_lif(x, levels=LEVELS, decay=DECAY, reset=reset).spikes
        return lif(x, decay=DECAY, threshold=THRESHOLD, reset=reset).spikes

    return functools.partial(jax_run, spikes_of)


def plain(kind: str, reset: ResetFn) -> Make:
    """The same under plain autodiff, which any reset but the two known ones gets."""
    return ours(kind, lambda *arguments: reset(*arguments))


def fresh_arrays(currents: np.ndarray, weights: np.ndarray) -> Run:
    """Two results of the same size, each one operation on one input."""
    both = jax.jit(lambda x, w: (x + 1, w + 1))
    arguments = jnp.asarray(currents), jnp.asarray(weights)
    return lambda: jax.block_until_ready(both(*arguments))


OURS: dict[str, Make] = {
    "ours_soft": ours("lif", soft_reset),
    "ours_hard": ours("lif", hard_reset),
    "ours_ilif": ours("ilif", soft_reset),
}
# What a peer is, which package it needs, and whose spikes it should give.
OTHERS: dict[str, tuple[str | None, str | None, Make]] = {
    "plain_soft": (None, "ours_soft", plain("lif", soft_reset)),
    "plain_hard": (None, "ours_hard", plain("lif", hard_reset)),
    "plain_ilif": (None, "ours_ilif", plain("ilif", soft_reset)),
    "fresh_arrays": (None, None, fresh_arrays),
    "spyx_soft": ("spyx", "ours_soft", spyx_lif),
    "snnax_hard": ("snnax", "ours_hard", snnax_lif),
    "snntorch_soft": (
        "snntorch",
        "ours_soft",
        functools.partial(snntorch_lif, "subtract"),
    ),
    "snntorch_hard": (
        "snntorch",
        "ours_hard",
        functools.partial(snntorch_lif, "zero"),
    ),
    "spikingjelly_soft": (
        "spikingjelly",
        "ours_soft",
        functools.partial(spikingjelly_neurons, "soft"),
    ),
    "spikingjelly_hard": (
        "spikingjelly",
        "ours_hard",
        functools.partial(spikingjelly_neurons, "hard"),
    ),
    "spikingjelly_ilif": (
        "spikingjelly",
        "ours_ilif",
        functools.partial(spikingjelly_neurons, "ilif"),
    ),
    "torch_loop": ("torch", "ours_hard", torch_loop),
}


def measure(steps: int, config: Benchmark) -> dict[str, Any]:
    """Everybody's times for one length of the time axis."""
    rng = np.random.default_rng(0)
    shape = (steps, config.neurons)
    currents = rng.normal(0.5, 1.0, shape).astype(np.float32)
    weights = rng.normal(size=shape).astype(np.float32)
    kind = f"{steps} steps"
    makers = {whose: (None, None, make) for whose, make in OURS.items()} | OTHERS
    runs: Cases = {}
    part: dict[str, Any] = {"first_call": {}, "spike_difference": {}, "error": {}}
    part["not_installed"], values = [], {}
    for whose, (package, like, make) in makers.items():
        if package is not None and importlib.util.find_spec(package) is None:
            if package not in part["not_installed"]:
                part["not_installed"].append(package)
            continue
        report(f"{kind}: {whose}")
        run = make(currents, weights)
        result, part["first_call"][whose] = timed(run)
        runs[kind, whose] = run
        if like is None:
            values |= {whose: result} if whose in OURS else {}
            continue
        spikes, gradient = map(np.asarray, values[like])
        part["spike_difference"][whose] = float(
            np.mean(np.asarray(result[0]) != spikes)
        )
        # Where the surrogate, or what it flows through, is another, so is this.
        part["error"][whose] = float(np.abs(np.asarray(result[1]) - gradient).max())
    values.clear()
    times = interleave(runs, repeats=config.rounds, warm_up=1)
    part |= summarize(times)
    walls = {whose: timing.wall for (_, whose), timing in times.items()}
    peers = [whose for whose in walls if whose in OTHERS and OTHERS[whose][0]]
    if peers:
        fastest = min(peers, key=lambda whose: float(np.median(walls[whose])))
        part["fastest_peer"] = fastest
        part["ratio_to_fastest"] = {
            whose: ratio(walls[whose], walls[fastest]) for whose in OURS
        }
    return part


def run(config: Benchmark) -> dict[str, Any]:
    """Times every length of the time axis.

    Returns:
      Seconds, first calls, ratios of ours to each other contender and to the fastest
      peer in the same rounds, differences in value, and what all this depends on.
    """
    if config.small:
        config = dataclasses.replace(config, steps=(2, 5), neurons=100)
    machine = describe_machine()
    for package in PEERS:
        try:
            machine["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            machine["versions"][package] = None
    parts = {str(steps): measure(steps, config) for steps in config.steps}
    config.out.mkdir(parents=True, exist_ok=True)
    figure = config.out / "neurons.png"
    joined = {
        "seconds": {k: v for p in parts.values() for k, v in p["seconds"].items()}
    }
    title = f"{config.neurons:,} neurons, spikes and gradient"
    plot_seconds(joined, title=title).savefig(figure, dpi=150)
    return {
        "benchmark": "neurons",
        "neurons": config.neurons,
        "rounds": config.rounds,
        "parts": parts,
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "figure": str(figure),
        "busy": is_busy(machine["load_average"]),
        "load_average_after": describe_machine()["load_average"],
    } | machine


def format_table(result: dict[str, Any]) -> str:
    """The times and ratios as lines of text."""
    lines = [
        f"{result['neurons']:,} neurons; {result['cores']} cores, load "
        f"{result['load_average']:.1f} before and {result['load_average_after']:.1f} "
        "after"
    ]
    if result["busy"]:
        lines.append("BUSY: others used the cores. The times are too long.")
    for part in result["parts"].values():
        for kind, rows in part["seconds"].items():
            header = ("first call s", "lower ms", "median", "upper", "CPU ms")
            lines += ["", f"{kind:24}" + "".join(f"{name:>13}" for name in header)]
            for whose, row in rows.items():
                cpu = part["cpu_seconds"][kind][whose]["median"]
                quartiles = ("lower_quartile", "median", "upper_quartile")
                numbers = [1e3 * value for value in (*map(row.get, quartiles), cpu)]
                lines.append(
                    f"  {whose:22}{part['first_call'][whose]:13.2f}"
                    + "".join(f"{number:13.4g}" for number in numbers)
                )
        for whose, row in part.get("ratio_to_fastest", {}).items():
            against = f"{whose} / {part['fastest_peer']}"
            lines.append(f"  {against:48}{row['median']:13.3g}")
        lines += [f"  {package}: not installed" for package in part["not_installed"]]
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line."""
    result = run(tyro.cli(Benchmark))
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
