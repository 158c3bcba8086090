"""One submanifold convolution, forward and backward, against spconv's and a floor.

    python -m experiments.benchmarks.sparse_conv
    python -m experiments.benchmarks.sparse_conv --scan ../shared/data/.../000000.bin
    python -m experiments.benchmarks.sparse_conv --channels 64 --scaling ''

Times a 3x3x3 convolution of integer spikes on the voxels of a LiDAR scan (a simulated
one if none is given), maps excluded, and how the time per pair grows from small scans
to large ones. spconv is timed in turns with ours where it is installed
(`pip install -e '.[peers]'`), on one thread and on all; its values on several threads
are wrong (see `spconv_peer`), so errors are taken on one. Our loop keeps more than one
core busy in its matrix products alone, so `ours_N_devices` deals the output voxels to
one virtual device a core (see `dealt_conv`). `floor` is the same number of products as
one matrix product for each block of the map, with nothing gathered, scattered or
converted.

The last line of stdout is one JSON object, the table goes to stderr, and a figure of
the scaling to `--out`.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from e3dsnn_jax.training.compilations import programs_compiled, seconds_compiling
from e3dsnn_jax.training.devices import num_cores, use_all_cores
from e3dsnn_jax.training.steps import make_mesh
from experiments.benchmarks.dealt_conv import DealtConv
from experiments.benchmarks.one_conv import Layer
from experiments.benchmarks.report import peak_memory, report, summarize
from experiments.benchmarks.scans import scan_coords, street_coords
from experiments.benchmarks.timing import Cases, describe_machine, interleave, is_busy

# Of the largest value; sums in another order differ by less than 1e-6.
_LARGEST_ERROR = 1e-5


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times a submanifold convolution, and spconv's where it is installed."""

    voxels: int = 50_000
    """Voxels of the scan."""
    channels: tuple[int, ...] = (16, 32, 64, 128)
    """Widths, of inputs and outputs alike."""
    scaling: tuple[int, ...] = (5_000, 20_000, 50_000, 100_000, 200_000)
    """Voxels of the simulated scans whose time per pair is compared."""
    scaling_channels: int = 64
    """Width for those."""
    scan: Path | None = None
    """A real scan (.bin of SemanticKITTI or KITTI) instead of the simulated one."""
    repeats: int = 15
    """Timed rounds; every case runs once a round."""
    peer: bool = True
    """Time spconv too, where it is installed."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""
    out: Path = Path("runs/sparse_conv")
    """Folder of the figure."""


def make_peer(layer: Layer) -> tuple[dict[str, Callable[[], object]], float]:
    """The peer's layer with the same weights, and its largest error to ours.

    Raises:
      ValueError: If that is no rounding error.
    """
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks.spconv_peer import Convolution

    torch.set_num_threads(1)
    peer = Convolution(layer.coords, layer.spikes, layer.weights, layer.cotangent)
    errors = []
    for ours, theirs in zip(layer.both(), peer.both(), strict=True):
        ours = np.asarray(ours)
        errors.append(float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    if not max(errors) <= _LARGEST_ERROR:
        raise ValueError(
            f"spconv's values differ from ours by {max(errors)} of the largest, more "
            f"than {_LARGEST_ERROR}: times of other results are not compared"
        )
    return {"forward": peer.forward, "forward and backward": peer.both}, max(errors)


def make_dealt(layer: Layer) -> DealtConv:
    """The layer on all devices.

    Raises:
      ValueError: If its values are not those of the layer on one device.
    """
    arrays = layer.spikes, layer.weights, layer.cotangent
    dealt = DealtConv(layer.pairs, *arrays, make_mesh())
    outputs, *gradients = dealt.both()
    for ours, alone in zip(
        (dealt.join(outputs), *gradients), layer.both(), strict=True
    ):
        error = np.abs(np.asarray(ours) - np.asarray(alone)).max()
        largest = np.abs(np.asarray(alone)).max()
        if not error <= 1e-5 * largest:
            raise ValueError(
                f"dealt to {jax.device_count()} devices, values of up to {largest} "
                f"differ by {error}"
            )
    return dealt


def add_cases(cases: Cases, name: str, layer: Layer, *, peer: bool) -> float | None:
    """Adds what is timed of a layer; returns the peer's largest relative error."""
    cases[f"{name} forward", "floor"] = layer.floor
    cases[f"{name} forward", "ours"] = layer.forward
    cases[f"{name} forward and backward", "ours"] = layer.both
    if jax.device_count() > 1:
        dealt = make_dealt(layer)
        whose = f"ours_{jax.device_count()}_devices"
        cases[f"{name} forward", whose] = dealt.forward
        cases[f"{name} forward and backward", whose] = dealt.both
    if not peer:
        return None
    from experiments.benchmarks.spconv_peer import on_threads

    runs, error = make_peer(layer)
    for kind, run in runs.items():
        for whose, timed in on_threads(run).items():
            cases[f"{name} {kind}", whose] = timed
    return error


def run(config: Benchmark) -> dict[str, Any]:
    """Times every case.

    Returns:
      Seconds, ratios in the same rounds, nanoseconds a pair by number of voxels, and
      what all this depends on.
    """
    if config.small:
        config = dataclasses.replace(
            config, voxels=500, channels=(4, 16), scaling=(300, 600), repeats=2
        )
    machine = describe_machine()
    compiled, compiling = programs_compiled(), seconds_compiling()
    peer = config.peer and importlib.util.find_spec("spconv") is not None
    if config.scan is None:
        coords = street_coords(config.voxels)
    else:
        coords = scan_coords(config.scan, config.voxels)
    cases: Cases = {}
    errors: dict[str, float | None] = {}
    pairs_per_voxel = 0.0
    for channels in config.channels:
        report(f"{channels} channels")
        layer = Layer(coords, channels)
        pairs_per_voxel = layer.num_pairs / len(coords)
        name = f"{channels} channels"
        errors[name] = add_cases(cases, name, layer, peer=peer)
    times = interleave(cases, repeats=config.repeats)
    scaling = measure_scaling(config)
    config.out.mkdir(parents=True, exist_ok=True)
    figure = config.out / "scaling.png"
    if scaling:
        plot_scaling(scaling, channels=config.scaling_channels).savefig(figure, dpi=150)
    return {
        "benchmark": "sparse_conv",
        "voxels": len(coords),
        "pairs_per_voxel": round(pairs_per_voxel, 2),
        "data": "simulated" if config.scan is None else str(config.scan),
        "repeats": config.repeats,
        **summarize(times),
        "peer_error": errors,
        "scaling": scaling,
        "scaling_channels": config.scaling_channels,
        "figure": str(figure) if scaling else None,
        "peak_bytes": peak_memory(),
        "programs_compiled": programs_compiled() - compiled,
        "seconds_compiling": seconds_compiling() - compiling,
        "busy": is_busy(machine["load_average"]),
        "load_average_after": describe_machine()["load_average"],
    } | machine


def measure_scaling(config: Benchmark) -> dict[str, Any]:
    """Nanoseconds a pair for scans of each size, by kind."""
    layers = {}
    for voxels in config.scaling:
        report(f"{voxels} voxels")
        layers[voxels] = Layer(street_coords(voxels), config.scaling_channels)
    cases: Cases = {}
    for voxels, layer in layers.items():
        cases["forward", str(voxels)] = layer.forward
        cases["forward and backward", str(voxels)] = layer.both
    times = interleave(cases, repeats=config.repeats)
    found: dict[str, Any] = {}
    for (kind, voxels), timing in times.items():
        pairs = layers[int(voxels)].num_pairs
        found.setdefault(kind, {})[voxels] = {
            "pairs": pairs,
            "nanoseconds_per_pair": float(np.median(timing.wall)) * 1e6 / pairs,
        }
    return found


def plot_scaling(scaling: dict[str, Any], *, channels: int) -> Figure:
    """Time per pair against the number of voxels."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for kind, rows in scaling.items():
        times = [row["nanoseconds_per_pair"] for row in rows.values()]
        axes.plot([int(voxels) for voxels in rows], times, marker="o", label=kind)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("voxels of a scan")
    axes.set_ylabel("nanoseconds a pair")
    axes.set_title(f"submanifold convolution, {channels} channels", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def format_table(result: dict[str, Any]) -> str:
    """The times and ratios as lines of text."""
    lines = [
        f"{result['voxels']} voxels, {result['pairs_per_voxel']} pairs a voxel; "
        f"{result['cores']} cores, load {result['load_average']:.1f} before and "
        f"{result['load_average_after']:.1f} after; {result['programs_compiled']} "
        f"programs compiled in {result['seconds_compiling']:.1f} s"
    ]
    if result["busy"]:
        lines.append("BUSY: others used the cores. The times are too long.")
    errors = [error for error in result["peer_error"].values() if error is not None]
    if errors:
        lines.append(f"spconv on one thread differs by at most {max(errors):.1e}")
    lines.append(f"{'':52}{'lower':>9}{'median':>9}{'upper':>9} ms")
    quartiles = ("lower_quartile", "median", "upper_quartile")
    for kind, rows in result["seconds"].items():
        for whose, row in rows.items():
            numbers = "".join(f"{1e3 * row[name]:9.4g}" for name in quartiles)
            lines.append(f"{kind + ', ' + whose:52}{numbers}")
        for ours, by_peer in result["ratio"].get(kind, {}).items():
            for whose, row in by_peer.items():
                numbers = "".join(f"{row[name]:9.3g}" for name in quartiles)
                lines.append(f"{f'    {ours} / {whose}':52}{numbers}")
    for kind, rows in result["scaling"].items():
        for voxels, row in rows.items():
            name = f"{kind}, {voxels} voxels, {row['pairs']} pairs"
            lines.append(f"{name:61}{row['nanoseconds_per_pair']:9.4g} ns a pair")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line."""
    config = tyro.cli(Benchmark)
    use_all_cores(num_cores())
    result = run(config)
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
