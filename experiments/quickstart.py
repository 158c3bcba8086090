"""Trains and evaluates on the embedded shapes; nothing to download.

    python -m experiments.quickstart

trains the T network on 2,000 procedural clouds of 16 classes, and once more on a tenth
of them, with at least 90 % on the test split, in about four minutes on two CPU cores,
analysis and report included. Writes figures, a table (`results.md`) and a page to look
at (`report.html`) into the run folder. The last line of stdout is a JSON object with
accuracy, seconds, programs_compiled, run, report and more.
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from e3dsnn_jax.analysis.command import AnalyseOptions, run_analysis
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.data.augment import Augment, normalize
from e3dsnn_jax.figures import draw_clouds
from e3dsnn_jax.report.command import run_report
from e3dsnn_jax.training.config import (
    DataConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
)
from e3dsnn_jax.training.datasets import open_evaluation
from e3dsnn_jax.training.loop import TrainResult, train
from e3dsnn_jax.training.optimizer import Sgd
from e3dsnn_jax.training.schedule import Cosine
from experiments import smoke

RECIPE = Recipe(
    optimizer=Sgd(learning_rate=0.1, weight_decay=1e-3),
    schedule=Cosine(),
    label_smoothing=0.1,
    augment=Augment(rotate_z_degrees=180.0, shift=0.1),
)
"""Shapes of the embedded data are turned about z by any angle, so training ones too."""


@dataclass(frozen=True)
class Quickstart:
    """Trains and evaluates on the embedded shapes."""

    epochs: int = 6
    """Passes over all training clouds."""
    tenth_epochs: int = 15
    """Passes over a tenth of the training clouds; 0 leaves that run out."""
    voxel_size: float = 0.07
    """Edge of a voxel, in units of the normalised cloud."""
    seed: int = 0
    """Seed of parameters, order and augmentation."""
    run: Path | None = None
    """Folder of the runs; a new one under runs/ if omitted."""
    smoke: bool = False
    """Train a tiny network on a few synthetic clouds for one epoch: a test."""


def make_configs(options: Quickstart, run: Path) -> dict[str, TrainConfig]:
    """The training runs by the part of the data that they use."""
    whole = TrainConfig(
        run=run / "all_data",
        data=DataConfig(voxel_size=options.voxel_size),
        recipe=dataclasses.replace(RECIPE, epochs=options.epochs),
        seed=options.seed,
        evaluate_every_epochs=max(options.epochs // 2, 1),
        checkpoints=20,
    )
    configs = {"all": whole}
    if options.tenth_epochs:
        configs["a tenth"] = dataclasses.replace(
            whole,
            run=run / "tenth_of_data",
            data=dataclasses.replace(whole.data, fraction=0.1),
            recipe=dataclasses.replace(whole.recipe, epochs=options.tenth_epochs),
            checkpoints=None,
            evaluate_every_epochs=options.tenth_epochs,
        )
    if options.smoke:
        data = smoke.write_shards(run / "data")
        return {
            part: dataclasses.replace(
                config,
                data=DataConfig(path=data, voxel_size=smoke.VOXEL_SIZE),
                model=ModelConfig(architecture=smoke.ARCHITECTURE),
                recipe=dataclasses.replace(
                    config.recipe, epochs=1, batch_size=smoke.BATCH_SIZE
                ),
            )
            for part, config in configs.items()
        }
    return configs


def format_table(
    results: dict[str, TrainResult], configs: dict[str, TrainConfig]
) -> str:
    """The results as a table in markdown."""
    lines = [
        "| training clouds | epochs | test accuracy | mean of the classes | seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for part, result in results.items():
        evaluation = result.evaluation
        lines.append(
            f"| {part} | {configs[part].recipe.epochs} | {evaluation.accuracy:.1%} "
            f"| {evaluation.mean_class_accuracy:.1%} | {result.seconds:.0f} |"
        )
    clouds = len(next(iter(results.values())).evaluation.labels)
    return "\n".join([*lines, "", f"{clouds} test clouds."])


def draw_sample(config: TrainConfig, result: TrainResult) -> None:
    """Draws test clouds, one or two a class, with what the network says of them."""
    evaluation = result.evaluation
    dataset = open_evaluation(config.data, evaluation.class_names)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(dataset))[:24]
    chosen = chosen[np.argsort(evaluation.labels[chosen], kind="stable")]
    draw_clouds(
        [normalize(dataset[index]) for index in chosen.tolist()],
        evaluation.probabilities[chosen],
        evaluation.class_names,
        result.run / "figures" / "clouds.png",
    )


def write_page(result: TrainResult) -> Path:
    """Analyses a run that has just been trained; writes its page, returns its path."""
    run_analysis(AnalyseOptions(result.run))
    return run_report(result.run, evaluation=result.evaluation).path


def run(options: Quickstart) -> None:
    """Trains on all data and on a tenth, and prints the JSON line."""
    started = time.monotonic()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = options.run or Path("runs") / f"quickstart-{stamp}"
    configs = make_configs(options, folder)
    results = {}
    for part, config in configs.items():
        print(f"Training on {part} of the data.", file=sys.stderr)
        results[part] = train(config)
    draw_sample(configs["all"], results["all"])
    table = format_table(results, configs)
    (folder / "results.md").write_text(table + "\n")
    print(f"\n{table}\n\nFigures are in {folder}/*/figures.\n", file=sys.stderr)
    whole, tenth = results["all"], results.get("a tenth")
    report = write_page(whole)
    answer = {
        "accuracy": whole.evaluation.accuracy,
        "seconds": round(time.monotonic() - started, 1),
        "programs_compiled": whole.programs_compiled,
        "run": str(whole.run),
        "report": str(report),
        "mean_class_accuracy": whole.evaluation.mean_class_accuracy,
        "accuracy_on_a_tenth": tenth and tenth.evaluation.accuracy,
    }
    print(json.dumps(answer), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    options = tyro.cli(
        Quickstart, args=arguments, prog="python -m experiments.quickstart"
    )
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
