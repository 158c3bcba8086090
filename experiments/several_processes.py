"""One, two and four processes on this machine train the same network.

    python -m experiments.several_processes [--out runs/processes]

trains T on the embedded shapes with the quickstart's recipe in 1, 2 and 4 processes and
compares the losses of the steps, the final accuracies (beside other seeds of one
process) and the bytes that went from process to process with those predicted. Then it
kills one of four processes with SIGKILL, times the end of the others, and resumes with
two. Sums over other numbers of devices are rounded differently, a membrane near a
threshold falls to its other side, and a spiking network's losses part after a few steps
at a high learning rate; so the same is shown for the twin with ReLU, and the spikes
that differ are counted on the first batches, from the same parameters.

The last line of stdout is a JSON object; every number of it is also in the table on
stderr. Bytes are those of the loopback interface (Linux): keep it quiet otherwise.
"""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.training.run_folder import read_metrics
from experiments.scaling import sent_bytes, step_exchanges

RECIPE = (
    *("--data.voxel-size", "0.07", "--recipe.label-smoothing", "0.1"),
    *("--recipe.augment.rotate-z-degrees", "180", "--recipe.augment.shift", "0.1"),
    *("--log-every-steps", "1", "--checkpoint-every-steps", "20"),
    "recipe.schedule:cosine",
)
COUNTS = (1, 2, 4)


@dataclass(frozen=True)
class SeveralProcesses:
    """Trains in 1, 2 and 4 processes, kills one, and resumes with another number."""

    out: Path = Path("runs/processes")
    """Folder of the runs; those that are finished there are not trained again."""
    epochs: int = 6
    """Passes over the training clouds."""
    fraction: float = 1.0
    """Part of the training clouds."""
    seeds: int = 3
    """Seeds of one process, from 0, whose accuracies show the noise."""
    compared_steps: int = 20
    """Steps at the start whose losses are compared."""


class Trained(NamedTuple):
    """How a training run went."""

    losses: list[float]
    accuracy: float
    seconds: float
    step_bytes: float | None
    """Median bytes of a step through the loopback interface."""


def train(options: SeveralProcesses, name: str, processes: int, *words: str) -> Trained:
    """Trains in a number of processes, or reads a run that is finished."""
    run = options.out / name
    began, found = time.monotonic(), []
    if not (run / "evaluation.json").exists():
        print(f"training {name}", file=sys.stderr)
        with start(options, run, processes, *words) as process:
            while process.poll() is None:
                found.append((last_step(run), loopback_bytes()))
                time.sleep(0.02)
        if process.returncode:
            raise ValueError(f"{name} ended with exit code {process.returncode}")
        measured = {
            "seconds": time.monotonic() - began,
            "step_bytes": median_step_bytes(found),
        }
        (run / "measured.json").write_text(json.dumps(measured))
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    return Trained(
        losses=[line["loss"] for line in lines],
        accuracy=json.loads((run / "evaluation.json").read_text())["accuracy"],
        **json.loads((run / "measured.json").read_text()),
    )


def start(
    options: SeveralProcesses, run: Path, processes: int, *words: str
) -> subprocess.Popen[bytes]:
    """Starts `e3dsnn train`; what it says goes to a file beside the run."""
    command = [sys.executable, "-m", "e3dsnn_jax", "train", "--run", str(run)]
    command += ["--processes", str(processes), "--recipe.epochs", str(options.epochs)]
    command += ["--data.fraction", str(options.fraction)]
    command += ["--evaluate-every-epochs", str(options.epochs), *words, *RECIPE]
    options.out.mkdir(parents=True, exist_ok=True)
    environ = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str((options.out / "compilations").absolute()),
        # One device a process, so that their number is that of the processes.
        "JAX_NUM_CPU_DEVICES": "1",
    }
    with (options.out / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environ)


def last_step(run: Path) -> int:
    """The last step that a run has logged; 0 before."""
    lines = read_metrics(run)
    return lines[-1]["step"] if lines else 0


def loopback_bytes() -> int:
    """Bytes that the loopback interface has carried since the system started."""
    table = Path("/proc/net/dev")
    if not table.exists():
        return 0
    for line in table.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def median_step_bytes(found: list[tuple[int, int]]) -> float | None:
    """Median bytes between two steps, from samples of (last step, bytes so far)."""
    first = {}
    for step, sent in found:
        first.setdefault(step, sent)
    steps = sorted(first)[1:]  # the first one compiles
    each = [(first[b] - first[a]) / (b - a) for a, b in itertools.pairwise(steps)]
    return float(np.median(each)) if each else None


def predict_step_bytes(processes: int) -> float:
    """Bytes that all processes together send in a step of T, as scaling reckons."""
    from e3dsnn_jax.classifier import Classifier
    from e3dsnn_jax.pyramid import build_pyramid

    architecture = dataclasses.replace(VARIANTS["T"], in_channels=6)
    model = Classifier(architecture, num_classes=16)
    coords = np.zeros((1, 4), np.int32)
    levels = build_pyramid(coords, num_levels=architecture.num_levels)
    rows = np.zeros((len(levels[0].coords), 6), np.float32)

    def init(key: Any) -> Any:
        return model.init(key, rows, levels, num_clouds=1, train=False)

    variables: Any = jax.eval_shape(init, jax.random.key(0))
    sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"])]
    paths = jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
    exchanges = step_exchanges(
        parameters=sum(sizes),
        norm_channels=[leaf.shape[0] for path, leaf in paths if "mean" in str(path)],
        levels=architecture.num_levels,
        devices=processes,
    )
    kinds = {"gather": "all-gather", "sum": "all-reduce"}
    return processes * sum(
        sent_bytes(kinds[each.kind.split()[0]], each.result_bytes, processes)
        for each in exchanges
    )


def kill_and_resume(options: SeveralProcesses) -> dict[str, Any]:
    """Kills one of four processes with SIGKILL, and goes on with two."""
    run = options.out / "killed"
    with start(options, run, 4) as launcher:
        while last_step(run) < 50 and launcher.poll() is None:
            time.sleep(0.1)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
        victim = sorted(map(int, children.read_text().split()))[2]
        reached = last_step(run)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        launcher.wait(timeout=60)
        seconds = time.monotonic() - began
    log = options.out / "killed.log"
    (message,) = re.findall(r"^process 2 of 4 \(pid.*$", log.read_text(), re.MULTILINE)
    length = log.stat().st_size
    resumed = train(options, "killed", 2)
    told = re.search(r"Resuming after step (\d+)", log.read_text()[length:])
    return {
        "message": message,
        "seconds_until_all_ended": seconds,
        "killed_after_step": reached,
        "resumed_after_step": int(told[1]) if told else None,
        "accuracy": resumed.accuracy,
    }


def count_flips(run: Path) -> dict[int, float]:
    """Share of the spikes that differ by devices, counted by a process of its own."""
    command = [sys.executable, "-m", "experiments.flipped_spikes", str(run)]
    command += ["--devices", *map(str, COUNTS)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    shares = json.loads(told.stdout.splitlines()[-1])
    return {int(devices): share for devices, share in shares.items()}


def largest_difference(one: list[float], other: list[float], steps: int) -> float:
    """The largest relative difference of the losses of the first steps."""
    a, b = np.array(one[:steps]), np.array(other[:steps])
    return float(np.max(np.abs(a - b) / np.abs(a)))


def count_equal(one: list[float], other: list[float]) -> int:
    """Steps from the first one on whose losses agree to 1e-6 of them."""
    a, b = np.array(one), np.array(other)
    differs = np.abs(a - b) > 1e-6 * np.abs(a)
    return int(differs.argmax()) if differs.any() else len(a)


def run(options: SeveralProcesses) -> None:
    """Runs everything, and prints the table and the JSON line."""
    spiking = {n: train(options, f"spiking_{n}", n) for n in COUNTS}
    seeds = {
        seed: train(options, f"seed_{seed}", 1, "--seed", str(seed))
        for seed in range(1, options.seeds)
    }
    short = dataclasses.replace(options, epochs=1)
    relu = {n: train(short, f"relu_{n}", n, "--model.neuron.relu") for n in COUNTS}
    answer: dict[str, Any] = {"processes": {}}
    steps = options.compared_steps
    for n in COUNTS:
        predicted = predict_step_bytes(n)
        answer["processes"][n] = {
            "accuracy": spiking[n].accuracy,
            "seconds": spiking[n].seconds,
            "first_losses": spiking[n].losses[:steps],
            "equal_steps": count_equal(spiking[1].losses, spiking[n].losses),
            "relu_equal_steps": count_equal(relu[1].losses, relu[n].losses),
            f"loss_difference_of_{steps}_steps": largest_difference(
                spiking[1].losses, spiking[n].losses, steps
            ),
            f"relu_loss_difference_of_{steps}_steps": largest_difference(
                relu[1].losses, relu[n].losses, steps
            ),
            "step_bytes": spiking[n].step_bytes,
            "predicted_step_bytes": predicted,
        }
    answer["accuracy_of_seeds_of_one_process"] = [
        spiking[1].accuracy,
        *(trained.accuracy for trained in seeds.values()),
    ]
    answer["flipped_spikes"] = count_flips(options.out / "spiking_1")
    answer["kill"] = kill_and_resume(options)
    print(format_table(answer, steps), file=sys.stderr)
    print(json.dumps(answer), flush=True)


def format_table(answer: dict[str, Any], steps: int) -> str:
    """The answer in markdown."""
    lines = [
        "| processes | accuracy | steps of equal loss | largest difference in the "
        f"first {steps} | the same with ReLU | spikes that differ "
        "| MB a step (predicted) |",
        "|---|---|---|---|---|---|---|",
    ]
    for n, row in answer["processes"].items():
        sent = row["step_bytes"]
        lines.append(
            f"| {n} | {row['accuracy']:.2%} | {row['equal_steps']} "
            f"| {row[f'loss_difference_of_{steps}_steps']:.1e} "
            f"| {row['relu_equal_steps']}, "
            f"{row[f'relu_loss_difference_of_{steps}_steps']:.1e} "
            f"| {answer['flipped_spikes'][n]:.1e} "
            f"| {'?' if sent is None else f'{sent / 1e6:.1f}'} "
            f"({row['predicted_step_bytes'] / 1e6:.1f}) |"
        )
    kill = answer["kill"]
    seeds = ", ".join(f"{a:.2%}" for a in answer["accuracy_of_seeds_of_one_process"])
    lines += [
        "",
        f"Seeds of one process: {seeds}.",
        f"Killed after step {kill['killed_after_step']}: all had ended "
        f"{kill['seconds_until_all_ended']:.1f} s later; two processes resumed after "
        f"step {kill['resumed_after_step']} and reached {kill['accuracy']:.2%}.",
        kill["message"],
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and runs the experiment."""
    prog = "python -m experiments.several_processes"
    options = tyro.cli(SeveralProcesses, args=arguments, prog=prog)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
