"""Accuracy, operations and energy of each size, with spikes and without.

    python -m experiments.energy_table
    python -m experiments.energy_table --variants T S --epochs 6
    python -m experiments.energy_table --variants L H --epochs 2 --train-fraction 0.25
    python -m experiments.energy_table --smoke

trains each network on the embedded shapes (or on `--data`) with T x D = 1x2, 2x1, 1x4
and 4x1 time steps and levels, and with ReLU instead of spikes; evaluates it; and counts
and prices what it does on the test clouds (`e3dsnn energy`). A command that was killed
goes on: a training from its last checkpoint, and a row that is done is read back from
`energy_row.json` in the folder of its run, if it was asked for with the same options,
and counted and priced by the rules of today. Runs of other options than the ones by
default have folders of their own. `energy_table.md` in the folder of the runs holds all
the rows there; the last line of stdout is a JSON object with an entry for each row that
was asked for.

The published numbers are those of another data set (ModelNet40, voxels of 0.01) and
of other ways of counting: they are there for the order of magnitude.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.energy import ASSUMPTIONS
from e3dsnn_jax.energy_command import run_energy
from e3dsnn_jax.energy_report import describe_account
from e3dsnn_jax.prices import HOROWITZ_45NM, describe_prices
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.config import DataConfig, ModelConfig, TrainConfig, Variant
from e3dsnn_jax.training.config_json import to_json
from e3dsnn_jax.training.loop import train
from e3dsnn_jax.training.run_folder import write_json
from experiments import smoke
from experiments.quickstart import RECIPE

ROW = "energy_row.json"
"""In the folder of a run: its row, and what it was asked for with."""

NEURONS: dict[str, Neuron] = {
    "1x2": Neuron(levels=2, time_steps=1),
    "2x1": Neuron(levels=1, time_steps=2),
    "1x4": Neuron(levels=4, time_steps=1),
    "4x1": Neuron(levels=1, time_steps=4),
    "ReLU": Neuron(relu=True),
}
"""Neurons by time steps x levels."""


class Published(NamedTuple):
    """What others print about a network on ModelNet40."""

    accuracy: float | None
    energy_mj: float | None
    note: str


_ZERO_SHOT = "SVL, table 7: accuracy without training on these classes (zero-shot)"
PUBLISHED: dict[tuple[str, str], Published] = {
    ("T", "1x4"): Published(0.917, None, "E-3DSNN, abstract"),
    ("T", "ReLU"): Published(None, 0.134, "the authors' energy script: stem alone"),
    ("S", "1x2"): Published(0.785, 0.02, _ZERO_SHOT),
    ("S", "2x1"): Published(0.780, 0.03, _ZERO_SHOT),
    ("S", "1x4"): Published(
        0.796,
        0.04,
        f"{_ZERO_SHOT}; another paper (SDT) lists E-3DSNN of this size with 91.7 % and "
        "1.76 mJ",
    ),
    ("S", "4x1"): Published(0.786, 0.10, _ZERO_SHOT),
    ("S", "ReLU"): Published(0.813, 0.13, _ZERO_SHOT),
    ("L", "1x4"): Published(
        0.912,
        0.64,
        "SVL: accuracy from its table 4 less the gain that it states, energy table 1",
    ),
    ("H", "1x4"): Published(None, 0.79, "SVL, table 1"),
}
"""Rows that are printed in the paper, in its energy script, and in the follow-up SVL;
2x2 of S (0.08 mJ, 80.5 % zero-shot) has no row here."""


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
    train_fraction: float = 1.0
    """Part of the training clouds that is used, the same part of every class."""
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


def run_name(options: EnergyTable, variant: str, neuron: str) -> str:
    """Folder of a row's run: runs of other options have others.

    Accounts of other clouds are of the same run.
    """
    words = [f"{variant}_{neuron}", *describe_options(options)]
    return "_".join(words).replace(" ", "")


def describe_options(options: EnergyTable) -> list[str]:
    """What of a training is not as it is by default."""
    words = {
        "data": "" if options.data is None else options.data.name,
        "epochs": f"{options.epochs} epochs",
        "train_fraction": f"{options.train_fraction:g} of the clouds",
        "voxel_size": f"voxels {options.voxel_size:g}",
        "seed": f"seed {options.seed}",
        "smoke": "smoke",
    }
    default = EnergyTable()
    return [
        text
        for name, text in words.items()
        if getattr(options, name) != getattr(default, name)
    ]


def make_config(options: EnergyTable, variant: Variant, neuron: str) -> TrainConfig:
    """The training run of one row."""
    config = TrainConfig(
        run=options.run / run_name(options, variant, neuron),
        data=DataConfig(
            path=options.data,
            voxel_size=options.voxel_size,
            fraction=options.train_fraction,
        ),
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
    """One row: trains, evaluates and counts, unless that is done."""
    config = make_config(options, variant, neuron)
    asked = {"config": to_json(config), "clouds": options.clouds}
    asked = as_read(asked | describe_rules())
    stored = config.run / ROW
    if stored.exists():
        found = read_row(stored)
        if found["asked"] == asked:
            print(f"{variant} with {neuron} neurons is done: {stored}", file=sys.stderr)
            return found["row"]
    print(f"{variant} with {neuron} neurons.", file=sys.stderr)
    accuracy = train(config).evaluation.accuracy
    account, _ = run_energy(config.run, clouds=options.clouds)
    row = describe_row(variant, neuron, accuracy, describe_account(account))
    told = describe_options(options)
    if options.clouds is not None:
        told.append(f"{options.clouds} clouds counted")
    row["options"] = ", ".join(told)
    write_json(stored, {"asked": asked, "row": row})
    return row


def describe_rules() -> dict[str, Any]:
    """What the numbers of a row follow from beside its run."""
    return {
        "assumptions": list(ASSUMPTIONS),
        "prices": describe_prices(HOROWITZ_45NM),
    }


def as_read(content: Any) -> Any:
    """What comes back of it from JSON: tuples become lists."""
    return json.loads(json.dumps(content))


def read_row(path: Path) -> dict[str, Any]:
    """What stands in the file of a row.

    Raises:
      ValueError: If it is damaged.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, remove it: {error}") from error
    if not isinstance(found, dict) or not {"asked", "row"} <= found.keys():
        raise ValueError(f"{path}: no row of a table, remove it")
    return found


def read_rows(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """All rows in a folder of runs, in order, and how many follow older rules.

    Rows of other rules or prices cannot stand beside these, and are left out.
    """
    rules = as_read(describe_rules())
    found = [read_row(path) for path in sorted(folder.glob(f"*/{ROW}"))]
    rows = [
        each["row"]
        for each in found
        if all(each["asked"].get(name) == rule for name, rule in rules.items())
    ]
    place = lambda row: (
        EnergyTable.variants.index(row["variant"]),
        row["options"],
        EnergyTable.neurons.index(row["neuron"]),
    )
    return sorted(rows, key=place), len(found) - len(rows)


def describe_row(
    variant: str, neuron: str, accuracy: float, told: dict[str, Any]
) -> dict[str, Any]:
    """One row from an account as JSON; operations and energies of an average cloud."""
    energies, means = told["energy_mj_per_cloud"], told["operations_per_cloud"]
    exact = energies["exact"]
    published = PUBLISHED.get((variant, neuron))
    return {
        "variant": variant,
        "neuron": neuron,
        "parameters": told["parameters"],
        "accuracy": accuracy,
        "macs": means["macs"],
        "synaptic_operations": means["synaptic_operations"],
        "equivalent_macs": means["equivalent_macs"],
        "compute_mj": exact["compute"],
        "updates_mj": exact["updates"],
        "weights_mj": exact["weights"],
        "other_memory_mj": exact["state"] + exact["spikes"] + exact["addressing"],
        "total_mj": exact["total"],
        "rate_mj": energies["rate"],
        "ann_mj": energies["ann"],
        "paper_compatible_mj": energies["paper_compatible"],
        "published": None if published is None else published._asdict(),
        "notes": told["notes"],
    }


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in markdown, energies in µJ a cloud."""
    columns = {
        "compute": "compute_mj",
        "neurons": "updates_mj",
        "weights": "weights_mj",
        "other memory": "other_memory_mj",
        "total": "total_mj",
        "rate x operations": "rate_mj",
        "without spikes": "ann_mj",
        "script's rule": "paper_compatible_mj",
    }
    titles = ["network", "T x D", "options", "accuracy", "MACs", "additions"]
    titles += columns
    titles += ["published accuracy", "published energy"]
    lines = [
        f"| {' | '.join(titles)} |",
        f"| --- | --- | --- |{' ---: |' * (len(titles) - 3)}",
    ]
    notes: list[str] = []
    for row in rows:
        told, energy = "", ""
        if (published := row["published"]) is not None:
            if published["note"] not in notes:
                notes.append(published["note"])
            mark = f"[{notes.index(published['note']) + 1}]"
            if published["accuracy"] is not None:
                told = f"{published['accuracy']:.1%} {mark}"
            if published["energy_mj"] is not None:
                energy = f"{_micro(published['energy_mj'])} {mark}"
        cells = [
            row["variant"],
            row["neuron"],
            row["options"],
            f"{row['accuracy']:.1%}",
            f"{row['macs']:.3g}",
            f"{row['synaptic_operations']:.3g}",
            *(_micro(row[name]) for name in columns.values()),
            told,
            energy,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Energies in µJ a cloud; memory without any reuse."]
    lines += [f"[{number}] {note}." for number, note in enumerate(notes, start=1)]
    return "\n".join(lines)


def _micro(millijoules: float) -> str:
    """Three digits in µJ, without an exponent up to a joule."""
    return f"{float(f'{1e3 * millijoules:.3g}'):g}"


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
            # After each row: the large networks take hours.
            write_table(options.run)
    print(f"\n{format_table(rows)}\n", file=sys.stderr)
    print(json.dumps({"rows": rows}), flush=True)


def write_table(folder: Path) -> None:
    """Writes the table of all rows in a folder of runs."""
    rows, older = read_rows(folder)
    table = format_table(rows)
    if older:
        table += (
            f"\n\n{older} more were counted by other rules or prices and are left out; "
            "the commands that made them count them again."
        )
    (folder / "energy_table.md").write_text(table + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and measures the table."""
    prog = "python -m experiments.energy_table"
    options = tyro.cli(EnergyTable, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
