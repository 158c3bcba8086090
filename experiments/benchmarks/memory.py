"""Peak memory of a training step, by network, batch and rematerialisation.

    python -m experiments.benchmarks.memory
    python -m experiments.benchmarks.memory --variants T --batch-sizes 16 64

Every row is measured in a process of its own on clouds of 2048 voxels at 0.05, one
device: what XLA planned for the step (`training.memory`), the process before the step
(the runtime: Python, JAX, the compiled program), and the peak while steps run. spconv's
T is measured likewise where it is installed (`pip install -e '.[peers]'`).

The last line of stdout is one JSON object, the table goes to stderr, and a figure to
`--out`.
"""

import dataclasses
import importlib.util
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.training.memory import step_memory
from e3dsnn_jax.voxels import join_clouds
from experiments.benchmarks.clouds import surface_clouds
from experiments.benchmarks.our_network import NUM_CLASSES, Ours
from experiments.benchmarks.report import memory_now, peak_memory, report, reset_peak
from experiments.benchmarks.timing import describe_machine, is_busy

VOXEL_SIZE = 0.05


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Measures the memory of training steps."""

    variants: tuple[str, ...] = ("T", "S", "L")
    """Networks."""
    batch_sizes: tuple[int, ...] = (4, 16, 64)
    """Clouds of a batch."""
    voxels: int = 2048
    """Voxels of each cloud."""
    steps: int = 5
    """Steps that run."""
    peer: bool = True
    """Measure spconv's T too, where it is installed."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""
    out: Path = Path("runs/memory")
    """Folder of the figure."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One training step, measured in the process that is started for it."""

    variant: str
    """Network, or "spconv" for spconv's T."""
    batch_size: int
    voxels: int
    steps: int
    rematerialise: bool = False


def measure_in_child(row: Row) -> dict[str, Any]:
    """Measures a row in a new process, whose memory is all due to it."""
    arguments = [f"--{'' if row.rematerialise else 'no-'}rematerialise"]
    for name in ("variant", "batch_size", "voxels", "steps"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(row, name))]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.memory", "row", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(row: Row) -> dict[str, Any]:
    """Runs a row in this process; bytes, and milliseconds of the median step."""
    clouds = surface_clouds(row.batch_size, voxels=row.voxels, voxel_size=VOXEL_SIZE)
    labels = (np.arange(row.batch_size) % NUM_CLASSES).astype(np.int32)
    plan = {}
    if row.variant == "spconv":
        from experiments.benchmarks.training_step import make_trainer

        trainer = make_trainer(VARIANTS["T"])
        coords, features = join_clouds(clouds)

        def step() -> None:
            trainer.train_step(features, coords, labels)
    else:
        ours = Ours(
            clouds,
            labels,
            VARIANTS[row.variant],
            devices=1,
            slack=1.1,
            compute=Compute(rematerialise=row.rematerialise),
        )
        compiled = ours.jitted_step.lower(ours.state, ours.batch).compile()
        planned = step_memory(compiled)
        assert planned is not None
        plan = {
            "working_bytes": planned.working,
            "arguments_bytes": planned.arguments,
        }

        def step() -> None:
            ours.state, _ = compiled(ours.state, ours.batch)
            jax.block_until_ready(ours.state)

    before = memory_now()
    reset_peak()
    times = []
    for _ in range(row.steps):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return {
        **dataclasses.asdict(row),
        **plan,
        "before_bytes": before,
        "peak_bytes": peak_memory(),
        "milliseconds": 1e3 * float(np.median(times)),
    }


def run(config: Benchmark) -> dict[str, Any]:
    """Measures every row.

    Returns:
      The rows, and what they depend on.
    """
    if config.small:
        config = dataclasses.replace(
            config, variants=("T",), batch_sizes=(2,), voxels=60, steps=1, peer=False
        )
    machine = describe_machine()
    kinds = list(itertools.product(config.variants, (False, True)))
    if config.peer and importlib.util.find_spec("spconv") is not None:
        kinds.append(("spconv", False))
    rows = [
        Row(variant, batch_size, config.voxels, config.steps, rematerialise=anew)
        for variant, anew in kinds
        for batch_size in config.batch_sizes
    ]
    measured = []
    for row in rows:
        anew = ", rematerialised" if row.rematerialise else ""
        report(f"{row.variant}, {row.batch_size} clouds{anew}")
        measured.append(measure_in_child(row))
    config.out.mkdir(parents=True, exist_ok=True)
    figure = config.out / "memory.png"
    plot_memory(measured).savefig(figure, dpi=150)
    return {
        "benchmark": "memory",
        "rows": measured,
        "voxels": config.voxels,
        "figure": str(figure),
        "busy": is_busy(machine["load_average"]),
    } | machine


def plot_memory(rows: list[dict[str, Any]]) -> Figure:
    """What a step takes beside state and batch, against the clouds of its batch."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    planned = [row for row in rows if "working_bytes" in row]
    for index, variant in enumerate(dict.fromkeys(row["variant"] for row in planned)):
        for anew, style in ((False, "-"), (True, "--")):
            mine = [
                (row["batch_size"], row["working_bytes"] / 1e6)
                for row in planned
                if row["variant"] == variant and row["rematerialise"] == anew
            ]
            label = f"{variant}, rematerialised" if anew else variant
            axes.plot(
                *zip(*mine, strict=True),
                style,
                marker="o",
                color=f"C{index}",
                label=label,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("clouds of a batch")
    axes.set_ylabel("MB beside state and batch")
    axes.set_title("memory of a training step, as planned by XLA", loc="left")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def format_table(result: dict[str, Any]) -> str:
    """The rows as lines of text, in MB."""
    columns = ("planned", "before", "peak", "step takes", "ms")
    lines = [f"{'':34}" + "".join(f"{name:>12}" for name in columns)]
    for row in result["rows"]:
        anew = ", rematerialised" if row["rematerialise"] else ""
        numbers = [
            row["working_bytes"] / 1e6 if "working_bytes" in row else float("nan"),
            row["before_bytes"] / 1e6,
            row["peak_bytes"] / 1e6,
            (row["peak_bytes"] - row["before_bytes"]) / 1e6,
            row["milliseconds"],
        ]
        name = f"{row['variant']}, {row['batch_size']} clouds{anew}"
        lines.append(f"{name:34}" + "".join(f"{number:12.4g}" for number in numbers))
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line, or one row of it."""
    if sys.argv[1:2] == ["row"]:
        print(json.dumps(measure(tyro.cli(Row, args=sys.argv[2:]))))
        return
    result = run(tyro.cli(Benchmark))
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
