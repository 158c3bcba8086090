"""Accuracy, operations and energy of each size, with spikes and without.

    python -m experiments.energy_table
    python -m experiments.energy_table --variants T S --epochs 6
    python -m experiments.energy_table --smoke

trains each network on the embedded shapes (or on `--data`) with T x D = 1x2, 2x1, 1x4
and 4x1 time steps and levels, and with ReLU instead of spikes; evaluates it; and counts
and prices what it does on the test clouds (`e3dsnn energy`). A run that is complete is
not trained again. Writes `energy_table.md` into the folder of the runs; the last line
of stdout is a JSON object with one entry a row.

The published energies are those of another data set (ModelNet40, voxels of 0.01) and
of another way of counting: they are there for the order of magnitude.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.energy_command import run_energy
from e3dsnn_jax.energy_report import describe_account
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.config import DataConfig, ModelConfig, TrainConfig, Variant
from e3dsnn_jax.training.loop import train
from experiments import smoke
from experiments.quickstart import RECIPE

NEURONS: dict[str, Neuron] = {
    "1x2": Neuron(levels=2, time_steps=1),
    "2x1": Neuron(levels=1, time_steps=2),
    "1x4": Neuron(levels=4, time_steps=1),
    "4x1": Neuron(levels=1, time_steps=4),
    "ReLU": Neuron(relu=True),
}
"""Neurons by time steps x levels."""

PUBLISHED: dict[tuple[str, str], float] = {
    ("S", "1x2"): 0.02,
    ("S", "2x1"): 0.03,
    ("S", "1x4"): 0.04,
    ("S", "4x1"): 0.10,
    ("S", "ReLU"): 0.13,
    ("L", "1x4"): 0.64,
    ("H", "1x4"): 0.79,
}
"""Energies in mJ as they are printed in the follow-up paper SVL, tables 7 (S) and 1 (L
and H)."""


@dataclass(frozen=True)
class EnergyTable:
    """Trains networks of every size and prices what they do."""

    variants: tuple[Variant, ...] = ("T", "S", "L", "H")
    """Sizes of the network."""
    neurons: tuple[str, ...] = tuple(NEURONS)
    """Time steps x levels, such as 1x4, or ReLU."""
    data: Path | None = None
    """Folder of a data set; the embedded shapes if omitted."""
    epochs: int = 6
    """Passes over the training clouds."""
    voxel_size: float = 0.07
    """Edge of a voxel, in units of the normalised cloud."""
    clouds: int | None = None
    """Test clouds whose energy is counted; all of them if omitted."""
    seed: int = 0
    """Seed of parameters, order and augmentation."""
    run: Path = Path("runs/energy_table")
    """Folder of the runs."""
    smoke: bool = False
    """Train tiny networks on a few synthetic clouds for one epoch: a test."""


def make_config(options: EnergyTable, variant: Variant, neuron: str) -> TrainConfig:
    """The training run of one row."""
    config = TrainConfig(
        run=options.run / f"{variant}_{neuron}",
        data=DataConfig(path=options.data, voxel_size=options.voxel_size),
        model=ModelConfig(variant=variant, neuron=NEURONS[neuron]),
        recipe=dataclasses.replace(RECIPE, epochs=options.epochs),
        seed=options.seed,
        evaluate_every_epochs=max(options.epochs, 1),
    )
    if not options.smoke:
        return config
    data = smoke.write_shards(options.run / "data")
    return dataclasses.replace(
        config,
        data=DataConfig(path=data, voxel_size=smoke.VOXEL_SIZE),
        model=dataclasses.replace(config.model, architecture=smoke.ARCHITECTURE),
        recipe=dataclasses.replace(
            config.recipe, epochs=1, batch_size=smoke.BATCH_SIZE
        ),
    )


def measure(options: EnergyTable, variant: Variant, neuron: str) -> dict[str, Any]:
    """One row: trains, evaluates and counts."""
    config = make_config(options, variant, neuron)
    print(f"{variant} with {neuron} neurons.", file=sys.stderr)
    accuracy = train(config).evaluation.accuracy
    account, _ = run_energy(config.run, clouds=options.clouds)
    told, clouds = describe_account(account), account.clouds
    energies = told["energy_mj_per_cloud"]
    return {
        "variant": variant,
        "neuron": neuron,
        "parameters": told["parameters"],
        "accuracy": accuracy,
        "macs": told["macs"] / clouds,
        "synaptic_operations": told["synaptic_operations"] / clouds,
        "equivalent_macs": told["equivalent_macs"] / clouds,
        "compute_mj": energies["exact"]["compute"],
        "updates_mj": energies["exact"]["updates"],
        "total_mj": energies["exact"]["total"],
        "rate_mj": energies["rate"],
        "ann_mj": energies["ann"],
        "paper_compatible_mj": energies["paper_compatible"],
        "published_mj": PUBLISHED.get((variant, neuron)),
        "notes": told["notes"],
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in markdown, energies in µJ a cloud."""
    lines = [
        "| network | T x D | accuracy | MACs | additions | compute | with neurons and "
        "memory | rate x operations | without spikes | script's rule | published |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        published = row["published_mj"]
        energies = [
            f"{1e3 * row[name]:.3g}"
            for name in (
                "compute_mj",
                "total_mj",
                "rate_mj",
                "ann_mj",
                "paper_compatible_mj",
            )
        ]
        cells = [
            row["variant"],
            row["neuron"],
            f"{row['accuracy']:.1%}",
            f"{row['macs']:.3g}",
            f"{row['synaptic_operations']:.3g}",
            *energies,
            "" if published is None else f"{1e3 * published:.3g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Energies in µJ a cloud."])


def run(options: EnergyTable) -> None:
    """Measures every row, and prints the table and the JSON line.

    Raises:
      ValueError: If a neuron is not known.
    """
    for neuron in options.neurons:
        if neuron not in NEURONS:
            raise ValueError(
                f"no neuron {neuron!r}; there are {', '.join(NEURONS)} (time steps x "
                "levels)"
            )
    rows = []
    for variant in options.variants:
        for neuron in options.neurons:
            rows.append(measure(options, variant, neuron))
            table = format_table(rows)
            # After each row: the large networks take hours.
            (options.run / "energy_table.md").write_text(table + "\n")
    print(f"\n{format_table(rows)}\n", file=sys.stderr)
    print(json.dumps({"rows": rows}), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and measures the table."""
    prog = "python -m experiments.energy_table"
    options = tyro.cli(EnergyTable, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
