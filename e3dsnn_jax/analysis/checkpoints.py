"""The checkpoints of a run as a series of networks, from the initial values on."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.training.checkpoints import CheckpointError, restore_step, saved_steps
from e3dsnn_jax.training.run_folder import read_config
from e3dsnn_jax.training.setup import initial_key

HOW_TO_KEEP = "train with --analyse, or with --checkpoints N"


class Series(NamedTuple):
    """What can be read of a run, step by step."""

    run: Path
    steps: tuple[int, ...]
    """Ascending; 0 stands for the initial values, which are computed again."""


def open_series(run: Path, *, most: int | None = None) -> Series:
    """Lists the checkpoints of a run, and its initial values before them.

    Args:
      run: Folder of the run.
      most: Evenly spaced steps are left out above this number; the first and the last
        stay.

    Raises:
      CheckpointError: If there are no checkpoints to compare with the initial values.
      ValueError: If `most` is below 2.
    """
    if most is not None and most < 2:
        raise ValueError(f"a series needs at least 2 steps, got most={most}")
    saved = saved_steps(run)
    if not [step for step in saved if step]:
        raise CheckpointError(
            f"{run} has no checkpoints to analyse: train it first, and to see how it "
            f"learns {HOW_TO_KEEP}"
        )
    steps = sorted({0, *saved})
    if most is not None and len(steps) > most:
        chosen = np.linspace(0, len(steps) - 1, most).round().astype(int)
        steps = [steps[place] for place in chosen.tolist()]
    return Series(run, tuple(steps))


def shapes_of(model: Classifier, batch: ShapeBatch) -> Any:
    """The variables of a network as shapes, which tracing takes half a second for."""
    num_clouds = batch.labels.shape[0]
    init = functools.partial(model.init, num_clouds=num_clouds, train=False)
    return jax.eval_shape(init, jax.random.key(0), batch.features, batch.levels)


def read_step(
    series: Series,
    step: int,
    model: Classifier,
    batch: ShapeBatch,
    *,
    expected: Any = None,
) -> dict[str, Any]:
    """Variables of a step: from its checkpoint, or computed again for step 0.

    Args:
      series: From `open_series`.
      step: One of its steps.
      model: The network of the run.
      batch: Any batch of one device; only its shapes matter.
      expected: `shapes_of` the two, for a caller that reads many steps.

    Raises:
      CheckpointError: If the checkpoint cannot be read, or is that of another network.
    """
    num_clouds = batch.labels.shape[0]
    init = functools.partial(model.init, num_clouds=num_clouds, train=False)
    key = initial_key(read_config(series.run).seed)
    if step == 0 and 0 not in saved_steps(series.run):
        initial: Any = jax.jit(init)(key, batch.features, batch.levels)
        return {name: initial[name] for name in ("params", "batch_stats")}
    found = restore_step(series.run, step)
    expected = shapes_of(model, batch) if expected is None else expected
    differing = _first_difference(found, expected)
    if differing is not None:
        raise CheckpointError(
            f"the checkpoint of step {step} in {series.run} is that of another "
            f"network than its config.json describes: {differing}; were checkpoints of "
            "several runs mixed? Analyse each run in its own folder"
        )
    return found


def _first_difference(found: Any, expected: Any) -> str | None:
    shapes = [
        {
            jax.tree_util.keystr(path): np.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (found, expected)
    ]
    for name in sorted(shapes[0] | shapes[1]):
        ours, theirs = (each.get(name) for each in shapes)
        if ours != theirs:
            return f"{name} is {ours or 'missing'} there, {theirs or 'missing'} here"
    return None
