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
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from e3dsnn_jax.spike import ResetFn, hard_reset, integer_lif, lif, soft_reset
from e3dsnn_jax.training.devices import num_cores
from experiments.benchmarks.similarity_report import (
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

Run = Callable[[], tuple[Any, Any]]
"""Computes spikes and the gradient, and returns when both are there."""
Make = Callable[[np.ndarray, np.ndarray], Run]
"""Prepares one contender for currents and the weights of its spikes."""

DECAY, THRESHOLD, LEVELS = 0.5, 1.0, 4
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


def jax_run(
    spikes_of: Callable[[jax.Array], jax.Array],
    currents: np.ndarray,
    weights: np.ndarray,
) -> Run:
    """Spikes and gradient as one compiled program."""

    @jax.jit
    def both(x, w):
        spikes, pull = jax.vjp(spikes_of, x)
        return spikes, pull(w)[0]

    arguments = jnp.asarray(currents), jnp.asarray(weights)
    return lambda: jax.block_until_ready(both(*arguments))


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


def spyx_lif(currents: np.ndarray, weights: np.ndarray) -> Run:
    """`spyx.nn.run` of `spyx.nn.LIF`: soft reset, spikes one step late."""
    import spyx  # pyright: ignore[reportMissingImports]
    from flax import nnx

    neurons = spyx.nn.LIF(
        (currents.shape[1],),
        beta=DECAY,
        threshold=THRESHOLD,
        activation=spyx.axn.boxcar(width=1.0, height=1.0),
        rngs=nnx.Rngs(0),
    )
    graph, state = nnx.split(neurons)

    def spikes_of(x):
        return spyx.nn.run(nnx.merge(graph, state), x[:, None])[0][:, 0]

    return jax_run(spikes_of, currents, weights)


def snnax_lif(currents: np.ndarray, weights: np.ndarray) -> Run:
    """A scan of `snnax.snn.SimpleLIF`, as its `StatefulModel` scans: hard reset.

    It weighs its input by 1 - decay, so the threshold and the window shrink alike.
    """
    # The wheel lacks two modules that its packages import and its neurons do not use.
    spec = importlib.util.find_spec("snnax")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (root,) = spec.submodule_search_locations
    for name in ("snnax", "snnax.functional", "snnax.snn", "snnax.snn.layers"):
        bare = importlib.machinery.ModuleSpec(name, None, is_package=True)
        bare.submodule_search_locations = [str(Path(root, *name.split(".")[1:]))]
        sys.modules.setdefault(name, importlib.util.module_from_spec(bare))
    surrogate = importlib.import_module("snnax.functional.surrogate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It calls what equinox calls deprecated.
        layers = importlib.import_module("snnax.snn.layers.lif")
    scale = 1 - DECAY
    neurons = layers.SimpleLIF(
        [DECAY],
        spike_fn=surrogate.piecewise_surrogate(scale / 2),
        threshold=scale * THRESHOLD,
    )

    def spikes_of(x):
        state = neurons.init_state(x.shape[1:], jax.random.key(0))
        # A module of equinox with a list in it has no hash, which `scan` wants.
        return jax.lax.scan(lambda *inputs: neurons(*inputs), state, x)[1]

    return jax_run(spikes_of, currents, weights)


def torch_run(
    spikes_of: Callable[[Any], Any], currents: np.ndarray, weights: np.ndarray
) -> Run:
    """Spikes and gradient by torch's autograd, on all cores."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(num_cores())
    x, w = torch.from_numpy(currents), torch.from_numpy(weights)

    def run():
        leaf = x.detach().requires_grad_()
        spikes = spikes_of(leaf)
        (gradient,) = torch.autograd.grad(spikes, leaf, w)
        return spikes.detach(), gradient

    return run


def snntorch_lif(reset: str, currents: np.ndarray, weights: np.ndarray) -> Run:
    """A loop over `snntorch.Leaky`, as its tutorials have it."""
    import snntorch  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from snntorch import surrogate  # pyright: ignore[reportMissingImports]

    def window(membrane, gradient, spikes):
        del spikes
        return gradient * (membrane.abs() < 0.5)

    neurons = snntorch.Leaky(
        beta=DECAY,
        threshold=THRESHOLD,
        reset_mechanism=reset,
        spike_grad=surrogate.custom_surrogate(window),
    )

    def spikes_of(x):
        membrane, spikes = neurons.reset_mem(), []
        for current in x:
            fired, membrane = neurons(current, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    return torch_run(spikes_of, currents, weights)


def spikingjelly_neurons(kind: str, currents: np.ndarray, weights: np.ndarray) -> Run:
    """`LIFNode` or `ILIFNode` in multi-step mode; equal to ours in all values."""
    from spikingjelly.activation_based import (  # pyright: ignore[reportMissingImports]
        functional,
        neuron,
        surrogate,
    )

    tau = 1 / (1 - DECAY)
    if kind == "ilif":
        rounded = surrogate.MultiLevelSpikeCount(LEVELS)
        neurons = neuron.ILIFNode(tau=tau, surrogate_function=rounded, step_mode="m")
    else:
        # Our hard reset passes no gradient through the spikes.
        hard = kind == "hard"
        neurons = neuron.LIFNode(
            tau=tau,
            decay_input=False,
            v_threshold=THRESHOLD,
            v_reset=0.0 if hard else None,
            surrogate_function=surrogate.Rect(alpha=1.0),
            detach_reset=hard,
            step_mode="m",
        )

    def spikes_of(x):
        functional.reset_net(neurons)
        return neurons(x)

    return torch_run(spikes_of, currents, weights)


def torch_loop(currents: np.ndarray, weights: np.ndarray) -> Run:
    """What a user of torch alone would write: a loop with hard reset."""
    import torch  # pyright: ignore[reportMissingImports]

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, above):  # pyright: ignore
            ctx.save_for_backward(above.abs() < 0.5)
            return (above >= 0).to(above.dtype)

        @staticmethod
        def backward(ctx, gradient):  # pyright: ignore
            (inside,) = ctx.saved_tensors
            return gradient * inside

    def spikes_of(x):
        carried, spikes = torch.zeros_like(x[0]), []
        for current in x:
            membrane = carried + current
            fired: Any = Spike.apply(membrane - THRESHOLD)
            carried = DECAY * torch.where(fired > 0, 0, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    return torch_run(spikes_of, currents, weights)


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
