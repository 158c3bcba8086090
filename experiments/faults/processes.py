"""Processes that may be killed, and the smallest training run to do it to.

They are forked from a server that has imported everything but has computed nothing,
so that each is as good as new and starts in a fraction of a second.
"""

import json
import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from e3dsnn_jax.training.config import DataConfig, ModelConfig, Recipe, TrainConfig
from experiments.faults.outcomes import (
    CRASH,
    HANG,
    LOST,
    SAME,
    describe_error,
    judge_error,
)
from experiments.smoke import ARCHITECTURE, BATCH_SIZE, VOXEL_SIZE

PATIENCE = 90.0
"""Seconds after which a training run that says nothing counts as hanging."""

# Fields of a line of metrics that no two runs share.
_TIMES = ("clouds_per_second", "fetching_batches")
_PRELOADED = [
    "e3dsnn_jax.training.loop",
    "e3dsnn_jax.figures",
    "matplotlib.pyplot",
    "experiments.faults.kills",
    "experiments.faults.mutations",
]


def start_process(
    target: Callable[..., None], *arguments: Any
) -> tuple[BaseProcess, Any]:
    """Starts `target(connection, *arguments)` in a process of its own.

    Returns:
      The process, and the end of the connection that receives from it.
    """
    # The server reads them once, when it starts.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("MPLBACKEND", "Agg")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sending, *arguments), daemon=True)
    process.start()
    sending.close()
    return process, receiving


def silence_stderr() -> None:
    """Sends what this process writes to stderr nowhere, libraries in C included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def tiny_config(run: Path, data: Path, *, epochs: int = 4) -> TrainConfig:
    """Three updates an epoch of a network with one stage, each followed by a save."""
    return TrainConfig(
        run=run,
        data=DataConfig(path=data, voxel_size=VOXEL_SIZE),
        model=ModelConfig(architecture=ARCHITECTURE),
        recipe=Recipe(epochs=epochs, batch_size=BATCH_SIZE, ema_decay=0.9),
        devices=2,
        evaluate_every_epochs=1,
        checkpoint_every_steps=1,
        log_every_steps=1,
    )


def train_here(
    answers: Connection,
    config: TrainConfig,
    compilations: Path,
    largest_file: int | None = None,
) -> None:
    """Trains in this process; answers None, or the outcome and message of an error.

    Args:
      answers: Where the answer goes.
      config: The run.
      compilations: Folder where processes share compiled programs.
      largest_file: Bytes beyond which every write to a file fails.
    """
    import jax

    from e3dsnn_jax.training.loop import train

    silence_stderr()
    jax.config.update("jax_compilation_cache_dir", str(compilations))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if largest_file is not None:
        limit_file_size(largest_file)
    try:
        train(config)
    except Exception as error:
        answers.send(judge_error(error, config.run))
    else:
        answers.send(None)


def finish(
    config: TrainConfig, compilations: Path, largest_file: int | None = None
) -> tuple[str, str] | None:
    """Trains to the end in a process of its own, with the arguments of `train_here`.

    Returns:
      None, or the outcome of what went wrong and a message.
    """
    process, answers = start_process(train_here, config, compilations, largest_file)
    return wait_for(process, answers)


def wait_for(process: BaseProcess, answers: Any) -> tuple[str, str] | None:
    """Waits for a training to end by itself; returns as `finish`."""
    if not answers.poll(PATIENCE):
        process.kill()
        process.join()
        return HANG, f"no end within {PATIENCE:.0f} s"
    try:
        answer = answers.recv()
    except EOFError:
        process.join()
        return CRASH, f"the process ended with exit code {process.exitcode}"
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        return HANG, "the training had ended, but its process has not"
    return answer


def limit_file_size(largest: int) -> None:
    """Makes writes that grow a file beyond `largest` bytes fail; -1 allows all."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, most))


def result_of(run: Path) -> dict[str, Any]:
    """What a finished run has to show, but for times: comparable to that of another."""
    import jax

    from e3dsnn_jax.training.checkpoints import restore_variables
    from e3dsnn_jax.training.run_folder import read_metrics

    restored = restore_variables(run)
    meta = run / "checkpoints" / str(restored.step) / "meta" / "metadata"
    best = restore_variables(run, which="best")
    evaluation = json.loads((run / "evaluation.json").read_text())
    return {
        "step": restored.step,
        "variables": [
            np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored.variables)
        ],
        "best": (
            best.step,
            [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(best.variables)],
        ),
        # With the checksums of the optimizer's state too.
        "meta": json.loads(meta.read_text()),
        "metrics": [
            {name: value for name, value in line.items() if name not in _TIMES}
            for line in read_metrics(run)
        ],
        "evaluation": {key: evaluation[key] for key in ("accuracy", "loss", "step")},
    }


def compare_results(run: Path, expected: dict[str, Any]) -> tuple[str, str]:
    """The outcome of a run that has ended, and how its result differs."""
    try:
        found = result_of(run)
    except Exception as error:
        return LOST, describe_error(error)
    differing = [key for key in expected if found[key] != expected[key]]
    return (LOST, f"its {', '.join(differing)} differ") if differing else (SAME, "")
