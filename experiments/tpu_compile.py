"""The classifier's programs compiled for TPUs, without a TPU: memory, work, exchanges.

    pip install -e '.[tpu]'
    python -m experiments.tpu_compile
    python -m experiments.tpu_compile --quick

Each network's train step (the paper's SGD) and inference are compiled by the compiler
of libtpu for whole slices of chips, on clouds of 2048 voxels at 0.05; and the train
step for ever more clouds until the compiler refuses. Numbers are the compiler's own, or
counted in the program that it made. A program compiles in one to ten minutes, all of
them in hours: `--variants`, `--topologies` and `--no-search` choose. Every row is
written when it is done, as JSON and as a table in markdown, to `--out`.
"""

import dataclasses
import functools
import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from e3dsnn_jax.backbone import VARIANTS
from experiments.benchmarks.report import report
from experiments.scaling import CHIPS, first_programs, format_scaling
from experiments.tpu.hlo import parse_program
from experiments.tpu.programs import (
    Compiled,
    Kind,
    OutOfMemory,
    abstract_batch,
    compile_program,
    count_sample,
    find_largest,
    lower_program,
    make_topology,
    plan_capacity,
    prepare_compiler,
)
from experiments.tpu.schedule import scheduled_cycles
from experiments.tpu.tables import format_tables
from experiments.tpu.work import count_work, find_collectives


@dataclasses.dataclass(frozen=True)
class Config:
    """Compiles the classifier for TPUs."""

    variants: tuple[str, ...] = ("T", "S", "L", "H")
    """Networks."""
    topologies: tuple[str, ...] = ("v5e:2x2", "v5e:16x16", "v5p:4x4x4")
    """Slices of chips, by the names that libtpu has for them."""
    kinds: tuple[Kind, ...] = ("train", "infer")
    """Programs; further slices of the same chips differ in their exchanges alone, and
    get the first of these only."""
    clouds: int = 16
    """Clouds a chip."""
    voxels: int = 2048
    """Voxels of each."""
    search: bool = True
    """Search the most clouds a chip of each train step, on the first topology of each
    kind of chip."""
    quick: bool = False
    """T on four chips, two clouds each, and no search."""
    runs: bool = True
    """The maps carry their runs (`kernel_runs`); without, each step makes tables of
    their pairs."""
    keep_text: bool = False
    """Write the optimised programs' text too."""
    out: Path = Path("runs/tpu")
    """Folder of what is written."""


def describe(compiled: Compiled) -> dict[str, Any]:
    """Memory and work of a program on each chip, and its exchanges."""
    plan: Any = compiled.program.memory_analysis()
    costs: Any = compiled.program.cost_analysis()
    program = parse_program(compiled.program.as_text() or "")
    work = count_work(program)
    return {
        "compile_seconds": round(compiled.seconds, 1),
        "argument_bytes": plan.argument_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
        "output_bytes": plan.output_size_in_bytes,
        "donated_bytes": plan.alias_size_in_bytes,
        "program_bytes": plan.generated_code_size_in_bytes,
        "total_bytes": total_bytes(plan),
        "cost_analysis": {
            name: costs.get(name) for name in ("flops", "bytes accessed")
        },
        "work": work._asdict(),
        "scheduled_cycles": scheduled_cycles(work),
        "collectives": [found._asdict() for found in find_collectives(program)],
    }


def total_bytes(plan: Any) -> int:
    """Bytes that a program takes, from the compiler's memory analysis.

    The parts are not all live at once: programs whose sum is above a chip's memory by
    some percent still fit.
    """
    return (
        plan.argument_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.generated_code_size_in_bytes
    )


class Compiler:
    """Compiles programs of one topology.

    Args:
      topology: Its name.
      config: Sizes of the clouds.
    """

    def __init__(self, topology: str, config: Config):
        self.topology, self.config = topology, config
        self.mesh = make_topology(topology)
        self.sample = count_sample(config.voxels)

    def describe(self, variant: str, kind: Kind, clouds: int) -> dict[str, Any]:
        """Compiles a program and describes it.

        Raises:
          OutOfMemory: If the compiler refuses it.
        """
        name = f"{variant}-{kind}-{self.topology}-{clouds}"
        report(f"compiling {name}")
        capacity = plan_capacity(self.sample, clouds)
        batch = abstract_batch(capacity, clouds, self.mesh, with_runs=self.config.runs)
        lowered = lower_program(variant, kind, batch, self.mesh)
        compiled = compile_program(lowered.program)
        row = {
            "variant": variant,
            "kind": kind,
            "topology": self.topology,
            "chips": self.mesh.size,
            "clouds": clouds,
            "voxels": capacity[0].voxels,
            "parameters": lowered.parameters,
            "norm_channels": lowered.norm_channels,
            "levels": len(capacity),
        }
        if self.config.keep_text:
            path = self.config.out / f"{name.replace(':', '-')}.txt"
            path.write_text(compiled.program.as_text() or "")
        return row | describe(compiled)


def find_row(
    compiler: Compiler, row: dict[str, Any], write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Searches the most clouds a chip of a train step that fits with fewer."""
    sizes = {row["clouds"]: row["total_bytes"]}

    def try_clouds(clouds: int) -> int:
        if clouds not in sizes:
            found = compiler.describe(row["variant"], "train", clouds)
            write(found)
            sizes[clouds] = found["total_bytes"]
        return sizes[clouds]

    chip = CHIPS[row["topology"].partition(":")[0]]
    largest = find_largest(try_clouds, start=row["clouds"], memory=chip.hbm_bytes)
    return {
        "variant": row["variant"],
        "chip": chip.name,
        "fits": largest.fits,
        "fits_bytes": sizes[largest.fits],
        "refused": largest.refused,
        "said": largest.said,
    }


def run(config: Config) -> dict[str, Any]:
    """Compiles every program of the configuration.

    Returns:
      The rows of the programs, and the most clouds a chip.
    """
    if config.quick:
        config = dataclasses.replace(
            config, variants=("T",), topologies=("v5e:2x2",), clouds=2, search=False
        )
    for variant in config.variants:
        if variant not in VARIANTS:
            raise ValueError(f"variants are {sorted(VARIANTS)}, got {variant!r}")
    result: dict[str, Any] = {
        "libtpu": importlib.metadata.version("libtpu"),
        "jax": jax.__version__,
        "voxels": config.voxels,
        "programs": [],
        "largest": [],
    }
    config.out.mkdir(parents=True, exist_ok=True)

    def write(key: str, row: dict[str, Any]) -> None:
        result[key].append(row)
        (config.out / "programs.json").write_text(json.dumps(result, indent=1))
        (config.out / "programs.md").write_text(format_tables(result) + "\n")

    compilers = {name: Compiler(name, config) for name in config.topologies}
    seen, searched = set(), set()
    for topology, compiler in compilers.items():
        chip = topology.partition(":")[0]
        kinds = config.kinds if chip not in seen else config.kinds[:1]
        seen.add(chip)
        for variant in config.variants:
            for kind in kinds:
                try:
                    row = compiler.describe(variant, kind, config.clouds)
                except OutOfMemory as error:
                    report(f"{variant} {kind} does not fit {topology}: {error}")
                    continue
                write("programs", row)
                wanted = config.search and kind == "train"
                if wanted and (variant, chip) not in searched:
                    searched.add((variant, chip))
                    more = functools.partial(write, "programs")
                    write("largest", find_row(compiler, row, more))
    return result


def main() -> None:
    """Compiles the programs of the command line."""
    config = tyro.cli(Config)
    try:
        prepare_compiler()
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    result = run(config)
    print(format_tables(result), file=sys.stderr)
    print(format_scaling(first_programs(result["programs"])), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
