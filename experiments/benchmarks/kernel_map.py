"""Building kernel maps on the host and on the device, against searches and spconv.

    python -m experiments.benchmarks.kernel_map
    python -m experiments.benchmarks.kernel_map --scan ../shared/data/.../000000.bin
    python -m experiments.benchmarks.kernel_map --data ../shared/data/kicad40

Times the maps of all levels of a batch of the T classifier (16 clouds of 2048 voxels of
0.05 by default), which must not take longer than 20 ms of one thread, and the 3x3x3
submanifold map and the strided one of LiDAR scans of several sizes. Of a scan, `ours`
are the pairs as the host finds them, with one thread, and `ours_packed` cuts them into
blocks too; of a batch, `ours` does both. `ours_device` builds the blocks under `jit`.
`naive` makes 27 binary searches among the numbers of all cells. spconv is timed where
it is installed (`pip install -e '.[peers]'`), with one thread and with all; of a
submanifold map it lists one half, which mirrors the other. All contenders must find as
many pairs.

The last line of stdout is one JSON object, the table goes to stderr, and a figure of
the scaling to `--out`.
"""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from e3dsnn_jax.training.compilations import programs_compiled, seconds_compiling
from e3dsnn_jax.voxels import join_clouds
from experiments.benchmarks.clouds import dataset_clouds, surface_clouds
from experiments.benchmarks.kernel_map_cases import Scan, batch_cases, scan_cases
from experiments.benchmarks.report import is_ours, peak_memory, report, summarize
from experiments.benchmarks.scans import scan_coords, street_coords
from experiments.benchmarks.timing import (
    Timings,
    describe_machine,
    interleave,
    is_busy,
)

LIMIT_MILLISECONDS = 20.0
VOXEL_SIZE = 0.05


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times the building of kernel maps, and spconv's where it is installed."""

    clouds: int = 16
    """Clouds of a batch of the classifier."""
    voxels: int = 2048
    """Voxels of each cloud; with --data, clouds keep the voxels they have."""
    data: Path | None = None
    """Dataset whose clouds are used instead of the embedded surfaces."""
    slack: float = 1.1
    """Static shapes over what the batch needs, as a training run plans them."""
    scaling: tuple[int, ...] = (5_000, 20_000, 50_000, 100_000, 200_000)
    """Voxels of the scans whose time per voxel is compared."""
    scan: Path | None = None
    """A real scan (.bin of SemanticKITTI or KITTI) instead of the simulated ones; sizes
    for which it has too few points are left out."""
    repeats: int = 9
    """Timed rounds; every case runs once a round."""
    peer: bool = True
    """Time spconv too, where it is installed."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""
    out: Path = Path("runs/kernel_map")
    """Folder of the figure."""


def run(config: Benchmark) -> dict[str, Any]:
    """Times every case.

    Returns:
      Seconds, ratios in the same rounds, nanoseconds a voxel by number of voxels, and
      what all this depends on.
    """
    if config.small:
        config = dataclasses.replace(
            config, clouds=2, voxels=60, scaling=(300, 600), repeats=2
        )
    machine = describe_machine()
    compiled, compiling = programs_compiled(), seconds_compiling()
    peer = config.peer and importlib.util.find_spec("spconv") is not None
    if config.data is None:
        clouds = surface_clouds(
            config.clouds, voxels=config.voxels, voxel_size=VOXEL_SIZE
        )
    else:
        clouds = dataset_clouds(config.data, config.clouds, voxel_size=VOXEL_SIZE)
    report(f"{config.clouds} clouds")
    cases, levels = batch_cases(join_clouds(clouds)[0], slack=config.slack, peer=peer)
    times = interleave(cases, repeats=config.repeats, warm_up=1)
    scaling, left_out = measure_scaling(config, times, peer=peer)
    config.out.mkdir(parents=True, exist_ok=True)
    figure = config.out / "scaling.png"
    if scaling:
        plot_scaling(scaling).savefig(figure, dpi=150)
    median = float(np.median(times["levels", "ours"].wall))
    return {
        "benchmark": "kernel_map",
        "clouds": len(clouds),
        "voxels": levels,
        "voxel_size": VOXEL_SIZE,
        "batch_data": "embedded" if config.data is None else str(config.data),
        "data": "simulated" if config.scan is None else str(config.scan),
        "slack": config.slack,
        "repeats": config.repeats,
        "platform": jax.devices()[0].platform,
        "levels_milliseconds": median,
        "limit_milliseconds": LIMIT_MILLISECONDS,
        "within_limit": median <= LIMIT_MILLISECONDS,
        **summarize(times),
        "scaling": scaling,
        "left_out": left_out,
        "figure": str(figure) if scaling else None,
        "peak_bytes": peak_memory(),
        "programs_compiled": programs_compiled() - compiled,
        "seconds_compiling": seconds_compiling() - compiling,
        "busy": is_busy(machine["load_average"]),
        "load_average_after": describe_machine()["load_average"],
    } | machine


def measure_scaling(
    config: Benchmark, times: Timings, *, peer: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Nanoseconds a voxel for scans of each size, by kind of map and contender.

    Args:
      config: Sizes, scan and rounds.
      times: Where the times themselves are added.
      peer: Time spconv too.

    Returns:
      The scaling, and why sizes that a real scan does not have were left out.

    Raises:
      ValueError: If it has none of the sizes, or contenders find different maps.
    """
    scaling: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for voxels in config.scaling:
        report(f"{voxels} voxels")
        try:
            if config.scan is None:
                coords = street_coords(voxels)
            else:
                coords = scan_coords(config.scan, voxels)
        except ValueError as error:
            left_out[str(voxels)] = str(error)
            continue
        scan = Scan(coords)
        for kind in ("submanifold", "strided"):
            cases, pairs = scan_cases(kind, scan, peer=peer)
            found = interleave(cases, repeats=config.repeats, warm_up=1)
            times |= found
            for (_, whose), timing in found.items():
                nanoseconds = 1e6 * float(np.median(timing.wall))
                scaling.setdefault(kind, {}).setdefault(whose, {})[str(voxels)] = {
                    "pairs": pairs,
                    "nanoseconds_per_voxel": nanoseconds / voxels,
                }
    if left_out and not scaling:
        raise ValueError("; ".join(left_out.values()))
    return scaling, left_out


def plot_scaling(scaling: dict[str, dict[str, Any]]) -> Figure:
    """Time per voxel against the number of voxels, a panel for each kind of map."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(scaling), squeeze=False)[0]
    everybody = list(dict.fromkeys(w for by_whom in scaling.values() for w in by_whom))
    for axes, (kind, by_whom) in zip(panels, scaling.items(), strict=True):
        for whose, rows in by_whom.items():
            axes.plot(
                [int(voxels) for voxels in rows],
                [row["nanoseconds_per_voxel"] for row in rows.values()],
                "o-" if is_ours(whose) else "s--",
                color=f"C{everybody.index(whose)}",
                label=whose.replace("_", " "),
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("voxels of a scan")
        axes.set_title(f"{kind} map", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("nanoseconds a voxel")
    largest = max(panels, key=lambda axes: len(axes.lines))
    figure.legend(handles=largest.lines, loc="outside right upper", frameon=False)
    return figure


def format_table(result: dict[str, Any]) -> str:
    """The times and ratios as lines of text."""
    verdict = "within" if result["within_limit"] else "ABOVE"
    lines = [
        f"{result['cores']} cores, load {result['load_average']:.1f} before and "
        f"{result['load_average_after']:.1f} after; device {result['platform']}; "
        f"{result['programs_compiled']} programs compiled in "
        f"{result['seconds_compiling']:.1f} s",
        f"{result['clouds']} clouds, voxels of the levels {result['voxels']}: "
        f"{result['levels_milliseconds']:.1f} ms, {verdict} the limit of "
        f"{result['limit_milliseconds']:.0f} ms",
    ]
    if result["busy"]:
        lines.append("BUSY: others used the cores. The times are too long.")
    lines.append(f"{'':52}{'lower':>9}{'median':>9}{'upper':>9} ms")
    quartiles = ("lower_quartile", "median", "upper_quartile")
    for kind, rows in result["seconds"].items():
        for whose, row in rows.items():
            numbers = "".join(f"{1e3 * row[name]:9.4g}" for name in quartiles)
            lines.append(f"{kind + ', ' + whose:52}{numbers}")
        for whose, row in result["ratio"].get(kind, {}).get("ours", {}).items():
            numbers = "".join(f"{row[name]:9.3g}" for name in quartiles)
            lines.append(f"{'    ours / ' + whose:52}{numbers}")
    for kind, by_whom in result["scaling"].items():
        voxels = list(next(iter(by_whom.values())))
        header = "".join(f"{number:>9}" for number in voxels)
        lines.append(f"{f'{kind} map, nanoseconds a voxel':52}{header} voxels")
        for whose, rows in by_whom.items():
            numbers = [row["nanoseconds_per_voxel"] for row in rows.values()]
            lines.append(f"{'    ' + whose:52}" + "".join(f"{n:9.4g}" for n in numbers))
    for voxels, problem in result["left_out"].items():
        lines.append(f"{voxels} voxels were left out: {problem}")
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line."""
    result = run(tyro.cli(Benchmark))
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
