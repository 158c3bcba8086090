"""Freeze training of E-3DSNN: accuracy, overfitting and computation.

    python -m experiments.freeze_training
    python -m experiments.freeze_training --data DIR --epochs 20
    python -m experiments.freeze_training --smoke

trains the T network on the embedded shapes (or on `--data`, a folder such as KiCad40's)
without freezing, with blocks frozen from below at evenly spaced steps, as in SVCCA
(NIPS 2017), and with blocks frozen once SVCCA says that they have settled; each with
`--seeds` seeds. For each run: accuracy on the test split, how much higher it is on the
training split (without augmentation, measured in the same way), and the part of the
computation that is left; and the time of a training step for each number of frozen
blocks.

Computation is counted in two ways. Products are exact, of one batch: one for each pair
of voxels of a kernel map and each pair of channels, once forward, and backward once for
the weights and once for the inputs, where something below learns. All products include
the passes in which a guide looks at its clouds, though not SVCCA itself. The compiler's
operations are what XLA says of the compiled step; it counts the body of a loop once,
and a convolution on a CPU is a loop over blocks of pairs.

`--seeds 0` times the stages alone (a minute): on two quiet cores a step with 0, 2, 4, 6
and 9 of the 9 blocks frozen took 45, 37, 33, 28 and 14 ms, with 100, 69, 46, 22 and 0 %
of the products backward.

Measured with `--epochs 3` (375 steps), mean and standard deviation of three seeds:

            test accuracy    gap            backward products   all products
    none    85.7 +- 1.3 %    2.5 +- 0.4 %   100 %               100 %
    linear  83.0 +- 1.1 %    2.6 +- 0.7 %   59.3 %              73.1 %
    guided  85.9 +- 1.6 %    2.1 +- 0.4 %   89.9 +- 2.1 %       105.0 +- 1.4 %

Linear freezing saves a quarter and costs 2.7 points; neither schedule changes the gap
by more than its spread. The guide keeps the accuracy, and freezes 2 blocks after 275 or
300 steps and 4 after 325 or 350; but its 13 looks at 160 clouds cost 11.7 %, more than
that saves. Fewer clouds (`--guided.clouds`) or looks (`--guided.every`) cost less.

A row that is complete is not computed again; one of other options is refused. The time
of a run that was interrupted is not known. Writes `freeze_training.md` into the folder
of the runs; the last line of stdout is a JSON object with the rows and stages.
"""

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.training.checkpoints import LATEST
from e3dsnn_jax.training.config import (
    FREE_FIELDS,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from e3dsnn_jax.training.config_json import differing_fields, to_json
from e3dsnn_jax.training.datasets import open_data
from e3dsnn_jax.training.devices import use_all_cores
from e3dsnn_jax.training.evaluate import evaluate_network
from e3dsnn_jax.training.freeze import Freeze, GuidedFreeze, LinearFreeze
from e3dsnn_jax.training.loop import train
from e3dsnn_jax.training.run_folder import write_json
from e3dsnn_jax.training.saved import load_run
from e3dsnn_jax.training.setup import RunSetup, make_setup
from e3dsnn_jax.training.steps import shard_batch
from experiments import kicad40, quickstart, smoke
from experiments.freeze_products import (
    Products,
    add_computation,
    count_look,
    count_looks,
    count_products,
)

REGIMES = ("none", "linear", "guided")


@dataclass(frozen=True)
class FreezeTraining:
    """Trains without freezing, on a linear schedule, and guided by SVCCA."""

    data: Path | None = None
    """Folder of a data set; the embedded shapes if omitted."""
    epochs: int = 6
    """Passes over the training clouds."""
    seeds: int = 3
    """Runs of each regime, with seeds 0, 1, ..."""
    linear: LinearFreeze = field(default_factory=LinearFreeze)
    """The linear schedule."""
    guided: GuidedFreeze = field(default_factory=GuidedFreeze)
    """The guide."""
    rounds: int = 15
    """Steps timed in each stage of freezing, in turn; 0 leaves the timing out."""
    run: Path = Path("runs/freeze_training")
    """Folder of the runs."""
    smoke: bool = False
    """Train tiny networks on a few synthetic clouds for two epochs: a test."""


def make_config(options: FreezeTraining, regime: str, seed: int) -> TrainConfig:
    """The training run of one row."""
    freeze: dict[str, Freeze | None] = {
        "none": None,
        "linear": options.linear,
        "guided": options.guided,
    }
    recipe = quickstart.RECIPE if options.data is None else kicad40.BEST_RECIPE
    voxel_size = quickstart.Quickstart.voxel_size if options.data is None else 0.05
    data = None if options.data is None else options.data.resolve()
    config = TrainConfig(
        run=options.run / f"{regime}_seed{seed}",
        data=DataConfig(path=data, voxel_size=voxel_size),
        recipe=dataclasses.replace(
            recipe, epochs=options.epochs, freeze=freeze[regime]
        ),
        seed=seed,
        evaluate_every_epochs=options.epochs,
        checkpoint_every_epochs=options.epochs,
    )
    if not options.smoke:
        return config
    tiny = {
        "none": None,
        "linear": LinearFreeze(groups=3),
        "guided": GuidedFreeze(threshold=0.1, every=1, groups=3, clouds=12),
    }
    recipe = dataclasses.replace(
        config.recipe, epochs=2, batch_size=smoke.BATCH_SIZE, freeze=tiny[regime]
    )
    shards = smoke.write_shards((options.run / "data").resolve())
    return dataclasses.replace(
        config,
        data=DataConfig(path=shards, voxel_size=smoke.VOXEL_SIZE),
        model=ModelConfig(architecture=smoke.ARCHITECTURE),
        recipe=recipe,
    )


def time_stages(
    setup: RunSetup, state: Any, rounds: int
) -> list[dict[str, float | int]]:
    """Compiles a training step for each stage, and times them in turn.

    Other work on the machine slows all stages alike that way; medians are over rounds.
    """
    batch = shard_batch(setup.source[0], setup.mesh)
    everywhere = NamedSharding(setup.mesh, PartitionSpec())
    compiled, operations, times = {}, {}, {}
    for frozen, step in setup.train_steps.items():
        compiled[frozen] = step.lower(state, batch).compile()
        operations[frozen] = (compiled[frozen].cost_analysis() or {}).get("flops", 0)
        times[frozen] = []
    for turn in range(rounds + 2):
        for frozen, step in compiled.items():
            # A copy: a step takes the memory of the state that it is given.
            own = jax.device_put(jax.tree.map(np.array, state), everywhere)
            jax.block_until_ready(own)
            began = time.perf_counter()
            jax.block_until_ready(step(own, batch))
            if turn > 1:
                times[frozen].append(time.perf_counter() - began)
    whole = statistics.median(times[0])
    return [
        {
            "frozen_blocks": frozen,
            "seconds": statistics.median(times[frozen]),
            "of_unfrozen": statistics.median(times[frozen]) / whole,
            "fastest_seconds": min(times[frozen]),
            "operations_by_compiler": operations[frozen],
        }
        for frozen in compiled
    ]


def measure(options: FreezeTraining, regime: str, seed: int) -> dict[str, Any]:
    """One row: trains, and evaluates on both splits; read back if it is there.

    Raises:
      ValueError: If the row there is damaged, or of other options.
    """
    config = make_config(options, regime, seed)
    asked = as_read(to_json(config))
    done = options.run / "rows" / f"{regime}_{seed}.json"
    found = read_row(done, asked) if done.exists() else None
    if found is not None:
        return found
    print(f"Freezing: {regime}, seed {seed}.", file=sys.stderr)
    # From a checkpoint a call trains, times and compiles only what was left.
    resumed = (config.run / LATEST).exists()
    result = train(config)
    network = load_run(config.run)
    training = open_dataset(config.data.path, "train")
    on_training = evaluate_network(network, training).accuracy
    accuracy = result.evaluation.accuracy
    row = {
        "regime": regime,
        "seed": seed,
        "accuracy": accuracy,
        "training_accuracy": on_training,
        "gap": on_training - accuracy,
        "seconds": None if resumed else result.seconds,
        "programs_compiled": None if resumed else result.programs_compiled,
        "steps": result.step,
        "freezings": result.freezings,
        "options": asked,
    }
    done.parent.mkdir(parents=True, exist_ok=True)
    write_json(done, row)
    return row


def read_row(path: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The row in a file; None for one of earlier versions, which kept no options.

    Args:
      path: The file.
      asked: The configuration that the row must be of.

    Raises:
      ValueError: If the file is damaged, or its row of another configuration.
    """
    try:
        row = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, remove it: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}: no row of freeze training, remove it")
    if "options" not in row:
        return None
    differing = [
        f"{name} is {was!r} there and {now!r} now"
        for name, was, now in differing_fields(row["options"], asked)
        if name not in FREE_FIELDS
    ]
    if differing:
        raise ValueError(
            f"the row {path} is of other options: {'; '.join(differing)}. Give the "
            "same options, or name another folder with --run"
        )
    return row


def as_read(content: Any) -> Any:
    """What comes back of it from JSON: tuples become lists."""
    return json.loads(json.dumps(content))


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of each regime, in markdown."""
    lines = [
        "| freezing | seeds | test accuracy | training accuracy | gap | backward "
        "products | all products | seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for regime in REGIMES:
        own = [row for row in rows if row["regime"] == regime]
        if not own:
            continue

        def spread(name: str, own: list[dict[str, Any]] = own) -> str:
            values = [100 * row[name] for row in own]
            more = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.1f}{more} %"

        names = ("accuracy", "training_accuracy", "gap", "backward_products")
        cells = [regime, str(len(own)), *map(spread, (*names, "products"))]
        seconds = [row["seconds"] for row in own if row["seconds"] is not None]
        known = "" if len(seconds) == len(own) else f" ({len(seconds)} of {len(own)})"
        cells.append(f"{statistics.mean(seconds):.0f}{known}" if seconds else "unknown")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_stages(stages: list[dict[str, Any]], products: Products) -> str:
    """The stages of freezing as a table in markdown."""
    lines = [
        "| frozen blocks | a step | of unfrozen | backward products | compiler's "
        "operations |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for stage in stages:
        frozen = stage["frozen_blocks"]
        share = products.of_step(frozen)[1] / products.of_step(0)[1]
        operations = stage["operations_by_compiler"]
        lines.append(
            f"| {frozen} | {1e3 * stage['seconds']:.0f} ms | "
            f"{stage['of_unfrozen']:.2f} | {share:.1%} | {operations / 1e6:.0f} M |"
        )
    return "\n".join(lines)


def run(options: FreezeTraining) -> None:
    """Trains every row, times the stages, and prints the JSON line."""
    began = time.monotonic()
    rows = [
        measure(options, regime, seed)
        for seed in range(options.seeds)
        for regime in REGIMES
    ]
    config = make_config(options, "linear", 0)
    use_all_cores(config.recipe.batch_size, devices=config.devices)
    setup, state = make_setup(config, open_data(config.data))
    # Of one batch, over all devices.
    batch, classes = setup.source[0], len(setup.source.dataset.class_names)
    shares = [
        count_products(config, jax.tree.map(itemgetter(part), batch), classes)
        for part in range(len(batch.labels))
    ]
    forward = [sum(layer) for layer in zip(*(s.forward for s in shares), strict=True)]
    products = shares[0]._replace(forward=forward)
    looking = {}
    for regime in REGIMES:
        of_regime = make_config(options, regime, 0)
        look = count_look(of_regime, setup.source.dataset, setup.source.layout)
        looks = count_looks(of_regime.recipe.freeze, total=setup.total)
        looking[regime] = looks * look
    rows = [
        add_computation(row, products, looking=looking[row["regime"]]) for row in rows
    ]
    stages = time_stages(setup, state, options.rounds) if options.rounds else []
    table = f"{format_rows(rows)}\n\n{format_stages(stages, products)}"
    options.run.mkdir(parents=True, exist_ok=True)
    (options.run / "freeze_training.md").write_text(table + "\n")
    print(f"\n{table}\n", file=sys.stderr)
    answer = {
        "rows": rows,
        "stages": stages,
        "seconds": round(time.monotonic() - began, 1),
        "run": str(options.run),
    }
    print(json.dumps(answer), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    options = tyro.cli(
        FreezeTraining, args=arguments, prog="python -m experiments.freeze_training"
    )
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
