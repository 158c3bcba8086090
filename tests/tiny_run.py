"""The smallest training run: six updates of a network with one stage.

`python tests/tiny_run.py RUN DATA KILL_AT CACHE [DEVICES]` trains it and kills itself
with SIGKILL when it logs step KILL_AT; 0 lets it finish. Under a launcher's environment
variables it is one of the processes of a run.
"""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.training.checkpoints import Checkpoints, Position
from e3dsnn_jax.training.config import DataConfig, ModelConfig, Recipe, TrainConfig
from e3dsnn_jax.training.run_folder import MetricsLog, open_run
from e3dsnn_jax.training.state import TrainState
from experiments.smoke import ARCHITECTURE, CLASS_NAMES, VOXEL_SIZE, write_shards


def tiny_config(folder: Path, *, run: str = "run", **recipe: Any) -> TrainConfig:
    """Six updates: two epochs of three batches of four clouds on two devices."""
    return TrainConfig(
        run=folder / run,
        data=DataConfig(path=folder / "data", voxel_size=VOXEL_SIZE),
        model=ModelConfig(architecture=ARCHITECTURE),
        recipe=Recipe(**{"epochs": 2, "batch_size": 4, "ema_decay": 0.9} | recipe),
        devices=2,
        evaluate_every_epochs=1,
        checkpoint_every_steps=2,
        log_every_steps=2,
    )


def make_data(folder: Path) -> Path:
    """Writes the shards that `tiny_config` expects, and returns the folder."""
    write_shards(folder / "data")
    return folder


def share_compilations(factory: pytest.TempPathFactory) -> Path:
    """Lets tests compile each program once, in whatever process; returns the cache."""
    base = factory.getbasetemp()
    # Parallel test processes have a folder each, below one.
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    cache = base / "compilations"
    use_compilation_cache(cache)
    return cache


def use_compilation_cache(cache: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def same_trees(one: Any, other: Any) -> bool:
    """Whether two trees have the same structure and the same bits."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def write_run(folder: Path) -> Path:
    """Writes the folder of a run whose network has random variables; trains nothing."""
    config = open_run(tiny_config(folder, ema_decay=None), CLASS_NAMES, {})
    model = Classifier(ARCHITECTURE, len(CLASS_NAMES))
    coords = np.array([[0, 0, 0, 0]], np.int32)
    levels = build_pyramid(coords, num_levels=ARCHITECTURE.num_levels)
    shapes = jax.eval_shape(
        lambda key: model.init(
            key,
            jnp.zeros((len(levels[0].coords), 6)),
            levels,
            num_clouds=1,
            train=False,
        ),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(leaf.dtype), shapes
    )
    # Small enough that no class has all the probability.
    head = variables["params"]["head"]
    head["kernel"] = 0.1 * rng.standard_normal(head["kernel"].shape).astype("f4")
    step: Any = np.asarray(6, np.int32)
    state = TrainState(step, **variables, opt_state=(), ema=None)
    with Checkpoints(config.run, keep=1) as checkpoints:
        checkpoints.save(state, Position(6, 0, 2, []))
    return config.run


def main() -> None:
    from e3dsnn_jax.training.loop import train

    run, data, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    use_compilation_cache(Path(sys.argv[4]))
    # As in conftest.py: other optimisations round differently.
    jax.config.update("jax_disable_most_optimizations", True)
    write = MetricsLog.write

    def write_or_die(log: MetricsLog, kind: str, step: int, **numbers: float) -> None:
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(log, kind, step, **numbers)

    MetricsLog.write = write_or_die  # pyright: ignore[reportAttributeAccessIssue]
    devices = int(sys.argv[5]) if len(sys.argv) > 5 else 2
    train(dataclasses.replace(tiny_config(data.parent), run=run, devices=devices))


if __name__ == "__main__":
    main()
