"""SVCCA, PWCCA and CKA against the published method, LAPACK and other packages.

    python -m experiments.benchmarks.similarity
    python -m experiments.benchmarks.similarity --part grid pair --rounds 11
    python -m experiments.benchmarks.similarity --small

Parts: `grid` compares 12 layers with each other, `pair` two layers of 512 neurons,
`checkpoints` 100 checkpoints with the last one, `streaming` accumulates 10 million
datapoints; the last two run in processes of their own and say what memory they took.
All contenders work on the same arrays, once a round in turns, after a first call that
is timed apart (it compiles). The published loops take a minute and run in the first
`--published-rounds` rounds only.

The last line of stdout is one JSON object, the table goes to stderr, and a figure for
each part to `--out`. Errors are the largest over all entries from float64 SVDs.
OpenBLAS's threads and XLA's compete for the cores: `OPENBLAS_NUM_THREADS=1` makes ours
faster where both have several. It is reported, not set.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import svcca_jax as sv
from experiments.benchmarks import similarity_peers as peers
from experiments.benchmarks.report import (
    describe,
    format_table,
    is_ours,
    plot_seconds,
    report,
    summarize,
    timed,
)
from experiments.benchmarks.similarity_memory import Checkpoints, run_in_child
from experiments.benchmarks.similarity_stream import Streaming
from experiments.benchmarks.timing import Timing, Timings, interleave, is_busy

Part = Literal["grid", "pair", "checkpoints", "streaming"]
PARTS: tuple[Part, ...] = get_args(Part)
Cases = dict[tuple[str, str], Callable[[], Any]]


class Sizes(NamedTuple):
    """How large each part is."""

    grid_widths: tuple[int, ...]
    grid_datapoints: int
    pair_width: int
    pair_datapoints: int
    checkpoints: Checkpoints
    streaming: Streaming


FULL = Sizes(
    grid_widths=(64, 128, 256, 512) * 3,
    grid_datapoints=5000,
    pair_width=512,
    pair_datapoints=10_000,
    checkpoints=Checkpoints(),
    streaming=Streaming(),
)
SMALL = Sizes(
    grid_widths=(4, 6, 4),
    grid_datapoints=200,
    pair_width=8,
    pair_datapoints=300,
    checkpoints=Checkpoints(checkpoints=3, widths=(8,), datapoints=100),
    streaming=Streaming(datapoints=5000, batch=500, widths=(8, 4)),
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times similarities of layers and those of other implementations."""

    part: tuple[Part, ...] = PARTS
    """What to measure."""
    rounds: int = 7
    """Timed rounds of `grid` and `pair`; every contender runs once a round."""
    published_rounds: int = 1
    """In how many of them the published loops run, which take the longest."""
    decay: float = 1.0
    """How fast the layers' spectra fall; see `similarity_peers.make_layers`. The fast
    route is taken where they fall slowly."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""
    out: Path = Path("runs/similarity")
    """Folder of the figures."""


def grid_cases(layers: list[np.ndarray]) -> Cases:
    """Everybody's grids of all layers with all layers."""

    def ours(measure: sv.Measure) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(sv.pairwise(layers, measure=measure))

    def theirs(compute: Callable[..., Any], **options: Any) -> Callable[[], Any]:
        return functools.partial(compute, layers, **options)

    return {
        ("svcca", "ours"): ours(sv.MeanSVCCA()),
        ("svcca", "ours_fast"): ours(sv.MeanSVCCA(fast=True)),
        ("svcca", "lapack_svd"): theirs(peers.lapack_svcca, route="svd"),
        ("svcca", "lapack_gram"): theirs(peers.lapack_svcca, route="gram"),
        ("svcca", "numpy_svd"): theirs(peers.lapack_svcca, route="numpy"),
        ("svcca", "published_cached"): theirs(peers.published_svcca, cached=True),
        ("svcca", "published_loop"): theirs(peers.published_svcca),
        ("pwcca", "ours"): ours(sv.MeanPWCCA()),
        ("pwcca", "ours_fast"): ours(sv.MeanPWCCA(fast=True)),
        ("pwcca", "lapack_svd"): theirs(peers.lapack_pwcca, route="svd"),
        ("pwcca", "lapack_gram"): theirs(peers.lapack_pwcca, route="gram"),
        ("pwcca", "numpy_svd"): theirs(peers.lapack_pwcca, route="numpy"),
        ("pwcca", "published_loop"): theirs(peers.published_pwcca),
        ("cka", "ours"): ours(sv.CKA()),
        ("cka", "lapack_products"): theirs(peers.lapack_cka),
    }


def measure_grid(sizes: Sizes, config: Benchmark) -> dict[str, Any]:
    """Grids of layers of several widths."""
    layers = peers.make_layers(
        sizes.grid_widths, datapoints=sizes.grid_datapoints, decay=config.decay
    )
    report("float64 values")
    exact = [layer.astype(np.float64) for layer in layers]
    truths = {
        "svcca": peers.lapack_svcca(exact),
        "pwcca": peers.lapack_pwcca(exact),
        "cka": peers.lapack_cka(exact),
    }
    return {
        "widths": list(sizes.grid_widths),
        "datapoints": sizes.grid_datapoints,
        "decay": config.decay,
        "kept_directions": [len(peers.decompose(x).values) for x in exact],
        "layers_from_covariance": {
            "svcca": _count_fast(sv.MeanSVCCA(fast=True), layers),
            "pwcca": _count_fast(sv.MeanPWCCA(fast=True), layers),
        },
        **measure(grid_cases(layers), truths, config),
    }


def _count_fast(measure: sv.Measure, layers: list[np.ndarray]) -> int:
    """How many layers a fast measure takes from their covariance."""
    prepare = jax.jit(measure.prepare)
    count = 0
    for layer in layers:
        centered = jnp.asarray(layer - layer.mean(axis=0))
        prepared = prepare(centered, jnp.asarray(len(layer)))
        count += int(prepared.from_covariance)
    return count


def measure_pair(sizes: Sizes, config: Benchmark) -> dict[str, Any]:
    """CCA of two wide layers, of a flat and of a falling spectrum.

    The fast route is taken for the flat one; for the other it is tried and given up.
    """
    cases: Cases = {}
    truths = {}
    fast = {}
    for kind, decay in (("cca_flat", 0.0), ("cca_falling", config.decay)):
        x, y = peers.make_layers(
            (sizes.pair_width, sizes.pair_width),
            datapoints=sizes.pair_datapoints,
            decay=decay,
        )
        truths[kind] = peers.lapack_cca(x.astype(np.float64), y.astype(np.float64))
        fast[kind] = bool(sv.cca(x, y, fast=True).from_covariance_x)
        for name, compute in {
            "ours": lambda x, y: np.asarray(sv.cca(x, y).coefficients),
            "ours_fast": lambda x, y: np.asarray(sv.cca(x, y, fast=True).coefficients),
            "lapack_gram": functools.partial(peers.lapack_cca, route="gram"),
            "lapack_cholesky": peers.lapack_cholesky_cca,
            "lapack_qr": peers.lapack_qr_cca,
            "lapack_svd": peers.lapack_cca,
            "numpy_svd": functools.partial(peers.lapack_cca, route="numpy"),
            **{n: f for n, f in peers.PACKAGES.items() if peers.is_installed(n)},
        }.items():
            cases[kind, name] = functools.partial(compute, x, y)
    return {
        "widths": [sizes.pair_width] * 2,
        "datapoints": sizes.pair_datapoints,
        "from_covariance": fast,
        "not_installed": [n for n in peers.PACKAGES if not peers.is_installed(n)],
        **measure(cases, truths, config),
    }


def measure(
    cases: Cases, truths: dict[str, np.ndarray], config: Benchmark
) -> dict[str, Any]:
    """First calls, then rounds of all cases in turns; errors of what they return.

    Args:
      cases: What to run, by (kind, whose).
      truths: What each kind should return, or of which it should return the mean.
      config: How many rounds.

    Returns:
      The fields of `report.summarize`, `first_call_seconds` and `error`.
    """
    values: dict[tuple[str, str], Any] = {}

    def keep(name: tuple[str, str]) -> Callable[[], object]:
        return lambda: values.__setitem__(name, cases[name]())

    once = {name: keep(name) for name in cases}
    rare = {name for name in cases if name[1].startswith("published")}
    first_call: dict[str, dict[str, float]] = {}
    times: Timings = {name: Timing([], []) for name in cases}
    for (kind, whose), run_case in once.items():
        if (kind, whose) in rare:
            continue
        _, seconds = timed(run_case)
        if is_ours(whose):
            first_call.setdefault(kind, {})[whose] = seconds
        report(f"{kind}, {whose}: first call {seconds:.2f} s")
    for round_ in range(config.rounds):
        left_out: Collection[Any] = rare if round_ >= config.published_rounds else ()
        present = {name: once[name] for name in cases if name not in left_out}
        for name, timing in interleave(present, repeats=1, warm_up=0).items():
            times[name].wall.extend(timing.wall)
            times[name].cpu.extend(timing.cpu)
        report(f"round {round_ + 1} of {config.rounds}")

    error: dict[str, dict[str, float]] = {}
    for kind, whose in values:
        value, truth = values[kind, whose], truths[kind]
        if np.ndim(value) == 0:
            truth = truth.mean()
        worst = float(np.abs(np.asarray(value, np.float64) - truth).max())
        error.setdefault(kind, {})[whose] = worst
    ran = {name: timing for name, timing in times.items() if timing.wall}
    return {"first_call_seconds": first_call, "error": error, **summarize(ran)}


def run(config: Benchmark) -> dict[str, Any]:
    """Measures the parts and saves a figure of each.

    Raises:
      ValueError: For a part that there is not, and fewer than one round.
    """
    unknown = sorted(set(config.part) - set(PARTS))
    if unknown:
        raise ValueError(f"parts are {', '.join(PARTS)}; there is no {unknown[0]}")
    if config.rounds < 1:
        raise ValueError(f"at least 1 round must be timed, got {config.rounds}")
    sizes = SMALL if config.small else FULL
    checkpoints = dataclasses.replace(sizes.checkpoints, decay=config.decay)
    measurements: dict[str, Callable[[], dict[str, Any]]] = {
        "grid": lambda: measure_grid(sizes, config),
        "pair": lambda: measure_pair(sizes, config),
        "checkpoints": lambda: run_in_child(checkpoints),
        "streaming": lambda: run_in_child(sizes.streaming),
    }
    machine = describe()
    config.out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {}
    figures = []
    for name in config.part:
        report(f"measuring {name}")
        parts[name] = measurements[name]()
        figures.append(str(config.out / f"{name}.png"))
        plot_seconds(parts[name], title=_title(name, parts[name], machine)).savefig(
            figures[-1], dpi=150
        )
    return {
        "benchmark": "similarity",
        "small": config.small,
        "rounds": config.rounds,
        "published_rounds": config.published_rounds,
        "platform": jax.devices()[0].platform,
        "parts": parts,
        "figures": figures,
        "busy": is_busy(machine["load_average"]),
        "load_average_after": describe()["load_average"],
        **machine,
    }


def _title(name: str, part: dict[str, Any], machine: dict[str, Any]) -> str:
    widths = ", ".join(str(width) for width in sorted(set(part["widths"])))
    return (
        f"{name}: {len(part['widths'])} layers of {widths} neurons, "
        f"{part['datapoints']:,} datapoints; {machine['cores']} cores"
    )


def main() -> None:
    """Runs the benchmark of the command line."""
    result = run(tyro.cli(Benchmark))
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
