"""Classification of KiCad40, or of any folder of the same layout.

    python -m experiments.kicad40 --data DIR

trains the T network on `train_*.npz` for 20 epochs (voxels of 0.05, coordinates and
normals, batches of 16) and evaluates the last parameters once on `test_*.npz`. The
published code, trained so with its own recipe, reaches 84.2 +- 0.4 % on KiCad40 over
three seeds; the same recipe is `--recipe paper` here. `--recipe best` was chosen on a
training shard held out of training (`--hold-out train_5.npz`), never on the test split.

The last line of stdout is a JSON object with accuracy, mean_class_accuracy, seed,
epochs, recipe, seconds and run. Running the same command again resumes.
"""

import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.augment import Augment
from e3dsnn_jax.training.config import (
    PAPER_RECIPE,
    DataConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
)
from e3dsnn_jax.training.loop import TrainResult, train
from e3dsnn_jax.training.optimizer import AdamW
from e3dsnn_jax.training.schedule import Cosine
from experiments import smoke

BEST_RECIPE = Recipe(
    optimizer=AdamW(learning_rate=3e-3, weight_decay=0.05),
    schedule=Cosine(),
    label_smoothing=0.1,
    augment=Augment(scale=(0.85, 1.15), anisotropic=True, shift=0.2),
    votes=10,
)
"""The best recipe found for 20 epochs: AdamW with a cosine schedule, one scale an axis,
and ten random voxelisations averaged in the evaluation. Chosen on the held-out shard
train_5.npz, where SGD with the same schedule and augmentation came out equal, and
moving averages of the parameters (0.998) no better."""

RECIPES = {"paper": PAPER_RECIPE, "best": BEST_RECIPE}


@dataclass(frozen=True)
class KiCad40:
    """Trains and evaluates the T network on a folder of npz shards."""

    data: Path | None = None
    """Folder with train_*.npz, test_*.npz and perhaps shape_names.txt."""
    epochs: int = 20
    """Passes over the training clouds."""
    seed: int = 0
    """Seed of parameters, order and augmentation."""
    recipe: Literal["paper", "best"] = "best"
    """The published recipe, or the best one found for 20 epochs."""
    hold_out: str | None = None
    """A training shard, such as train_5.npz, to evaluate on instead of the test split;
    it is then left out of training."""
    run: Path | None = None
    """Folder of the run; one for each setting under runs/ if omitted."""
    workers: int = 0
    """Worker processes that prepare batches."""
    smoke: bool = False
    """Train a tiny network on a few synthetic clouds for one epoch: a test."""


def make_config(options: KiCad40) -> TrainConfig:
    """The training run of these options.

    Raises:
      ValueError: If there is no data folder.
    """
    if options.data is None:
        raise ValueError(
            "--data DIR is needed, a folder with train_*.npz and test_*.npz"
        )
    recipe = dataclasses.replace(RECIPES[options.recipe], epochs=options.epochs)
    name = f"{options.data.resolve().name}_{options.recipe}_{options.epochs}epochs"
    held = f"_without_{Path(options.hold_out).stem}" if options.hold_out else ""
    run = Path("runs") / f"{name}{held}_seed{options.seed}"
    return TrainConfig(
        run=options.run or run,
        data=DataConfig(
            path=options.data,
            voxel_size=0.05,
            hold_out=options.hold_out,
            workers=options.workers,
        ),
        recipe=recipe,
        seed=options.seed,
        # The test split is looked at once, by the last parameters.
        evaluate_every_epochs=options.epochs,
    )


def report(result: TrainResult, options: KiCad40) -> dict[str, object]:
    """The JSON object of a finished run."""
    return {
        "accuracy": result.evaluation.accuracy,
        "mean_class_accuracy": result.evaluation.mean_class_accuracy,
        "seed": options.seed,
        "epochs": options.epochs,
        "recipe": options.recipe,
        "seconds": round(result.seconds, 1),
        "run": str(result.run),
        "evaluated_on": options.hold_out or "test",
        "clouds": len(result.evaluation.labels),
        "programs_compiled": result.programs_compiled,
    }


def run_smoke(options: KiCad40) -> TrainResult:
    """Trains for one epoch on a handful of synthetic clouds, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        data = smoke.write_shards(Path(folder) / "data")
        options = dataclasses.replace(options, data=data, epochs=1)
        config = make_config(dataclasses.replace(options, run=Path(folder) / "run"))
        return train(
            dataclasses.replace(
                config,
                model=ModelConfig(architecture=smoke.ARCHITECTURE),
                data=dataclasses.replace(config.data, voxel_size=smoke.VOXEL_SIZE),
                recipe=dataclasses.replace(config.recipe, batch_size=smoke.BATCH_SIZE),
            )
        )


def run(options: KiCad40) -> None:
    """Trains, evaluates and prints the JSON line."""
    if options.smoke:
        result, options = run_smoke(options), dataclasses.replace(options, epochs=1)
    else:
        result = train(make_config(options))
    print(json.dumps(report(result, options)), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    options = tyro.cli(KiCad40, args=arguments, prog="python -m experiments.kicad40")
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
