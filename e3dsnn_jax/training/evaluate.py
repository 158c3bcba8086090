"""Evaluation: accuracies, the confusion matrix, and how much every layer fires."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from e3dsnn_jax.data.clouds import ShapeDataset
from e3dsnn_jax.data.loader import BatchLayout, BatchSource
from e3dsnn_jax.data.plan import plan_capacities
from e3dsnn_jax.training.config import DataConfig
from e3dsnn_jax.training.datasets import check_classes
from e3dsnn_jax.training.devices import choose_devices
from e3dsnn_jax.training.feed import device_batches, make_share
from e3dsnn_jax.training.metrics import (
    FiringRate,
    FiringTotals,
    add_firing,
    confusion_matrix,
    firing_rates,
    mean_class_accuracy,
    overall_accuracy,
)
from e3dsnn_jax.training.overflow import check_overflow
from e3dsnn_jax.training.processes import gather
from e3dsnn_jax.training.run_folder import write_json
from e3dsnn_jax.training.saved import SavedNetwork
from e3dsnn_jax.training.steps import (
    EvalStep,
    make_eval_step,
    make_mesh,
)

SEED = 0
"""Chooses the random point of each voxel, the same ones in every evaluation."""

_PLANNED_BATCHES = 64


class Evaluation(NamedTuple):
    """What a network makes of a dataset."""

    class_names: tuple[str, ...]
    labels: Int[np.ndarray, " clouds"]
    """True class of each cloud."""
    probabilities: Float[np.ndarray, "clouds classes"]
    """Predicted distribution of each cloud, averaged over the votes."""
    confusion: Int[np.ndarray, "classes classes"]
    """Clouds by true class (row) and predicted class (column)."""
    accuracy: float
    """Share of the clouds whose most probable class is the true one."""
    mean_class_accuracy: float
    """Mean over the classes that occur of the share of their clouds that are right."""
    class_accuracy: Float[np.ndarray, " classes"]
    """That share of each class, NaN for a class that does not occur."""
    loss: float
    """Mean cross-entropy of a cloud and vote, without label smoothing, in nats."""
    firing: dict[str, FiringRate]
    """Activity of every spiking layer over the whole dataset."""
    votes: int
    """Random voxelisations of each cloud."""


def make_evaluation_source(
    dataset: ShapeDataset,
    layout: BatchLayout,
    *,
    votes: int = 1,
    slacks: tuple[float, ...] = DataConfig.capacity_slacks,
) -> BatchSource:
    """The batches of an evaluation: every cloud once for each vote, unchanged.

    Args:
      dataset: The clouds.
      layout: Of a batch.
      votes: Random voxelisations of each cloud.
      slacks: Room of the static shapes above sampled batches, for datasets so large
        that not all batches are looked at.

    Raises:
      ValueError: If the dataset is empty.
    """
    if not len(dataset):
        raise ValueError("the dataset to evaluate has no clouds")
    once = BatchSource(dataset, layout, seed=SEED, share=make_share(dataset, layout))
    # Votes differ in points, not in voxels: shapes planned on every batch of one vote
    # are exact, and need no room. Where that would take long, some batches must do.
    all_of_them = len(once) <= _PLANNED_BATCHES
    capacities = plan_capacities(
        once,
        num_batches=min(len(once), _PLANNED_BATCHES),
        slacks=(1.0,) if all_of_them else slacks,
        gather=gather,
    )
    return dataclasses.replace(once, capacities=capacities, epochs=votes)


def evaluate(
    eval_step: EvalStep,
    variables: dict[str, Any],
    source: BatchSource,
    mesh: Mesh,
    *,
    workers: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Runs a network over a dataset.

    Args:
      eval_step: From `make_eval_step`.
      variables: `{"params": ..., "batch_stats": ...}`.
      source: From `make_evaluation_source`.
      mesh: The mesh of `eval_step`.
      workers: Processes that prepare batches.
      on_batch: Called with the batches done and their number after each one.

    Raises:
      CapacityError: If a batch does not fit the static shapes planned for it.
      ValueError: If a logit is NaN or infinite.
    """
    classes = len(source.dataset.class_names)
    labels = np.full(len(source.dataset), -1, np.int32)
    summed = np.zeros((len(source.dataset), classes))
    firing: dict[str, FiringTotals] = {}
    loss = 0.0
    batches = device_batches(source, mesh, workers=workers)
    for done, batch in enumerate(batches, start=1):
        output = eval_step(variables["params"], variables["batch_stats"], batch)
        check_overflow(output.needed, batch.levels)
        indices = np.asarray(output.indices)
        real = indices >= 0
        logits = np.asarray(output.logits)[real]
        if not np.isfinite(logits).all():
            bad = indices[real][~np.isfinite(logits).all(axis=1)][0]
            raise ValueError(
                f"the logits of cloud {bad} of {len(labels)} are not finite: the "
                "weights are broken or the training has diverged; evaluate the best "
                "checkpoint (--checkpoint best), or train with a lower learning rate"
            )
        labels[indices[real]] = np.asarray(output.labels)[real]
        summed[indices[real]] += _softmax(logits)
        loss += float(output.loss_sum)
        firing = add_firing(firing, output.firing)
        if on_batch is not None:
            on_batch(done, len(source))
    probabilities = summed / source.epochs
    confusion = confusion_matrix(
        labels, probabilities.argmax(axis=1), num_classes=classes
    )
    by_class = mean_class_accuracy(confusion)
    return Evaluation(
        class_names=source.dataset.class_names,
        labels=labels,
        probabilities=probabilities,
        confusion=confusion,
        accuracy=overall_accuracy(confusion),
        mean_class_accuracy=by_class.mean,
        class_accuracy=by_class.per_class,
        loss=loss / (len(labels) * source.epochs),
        # Compiled programs return dictionaries in alphabetical order.
        firing=dict(sorted(firing_rates(firing).items(), key=_place)),
        votes=source.epochs,
    )


def _place(layer: tuple[str, FiringRate]) -> tuple[int, bool, list[int]]:
    """Where a layer stands in the network: stem, then each stage from its `down`."""
    name = layer[0]
    numbers = [int(word) for word in re.findall(r"\d+", name)]
    if name.startswith("stem"):
        return -1, False, numbers
    return numbers[0], "/block" in name, numbers


def _softmax(
    logits: Float[np.ndarray, "clouds classes"],
) -> Float[np.ndarray, "clouds classes"]:
    scores = logits.astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def describe(evaluation: Evaluation, **details: Any) -> dict[str, Any]:
    """The evaluation as JSON: what a table or a later comparison needs.

    Args:
      evaluation: Result of `evaluate`.
      details: Further entries, such as the checkpoint's step.
    """
    named = zip(evaluation.class_names, evaluation.class_accuracy, strict=True)
    return {
        "accuracy": evaluation.accuracy,
        "mean_class_accuracy": evaluation.mean_class_accuracy,
        "loss": evaluation.loss,
        "clouds": len(evaluation.labels),
        "votes": evaluation.votes,
        **details,
        "class_accuracy": {
            name: None if math.isnan(value) else float(value) for name, value in named
        },
        "firing": {
            name: {
                field: None if math.isnan(value) else value
                for field, value in rate._asdict().items()
            }
            for name, rate in evaluation.firing.items()
        },
        "confusion": evaluation.confusion.tolist(),
    }


def write_evaluation(run: Path, evaluation: Evaluation, **details: Any) -> None:
    """Writes `evaluation.json` and the figures of an evaluation into a folder."""
    # Imported late: a training without figures starts faster without it.
    from e3dsnn_jax import figures

    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "evaluation.json", describe(evaluation, **details))
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    figures.draw_confusion(
        evaluation.confusion, evaluation.class_names, folder / "confusion.png"
    )
    if evaluation.firing:
        figures.draw_firing(evaluation.firing, folder / "firing.png")


def format_firing(firing: dict[str, FiringRate]) -> str:
    """A table of the firing rate of every spiking layer."""
    width = max(map(len, firing), default=0)
    lines = [f"{'layer':<{width}}  firing rate  mean spikes  silent channels"]
    lines += [
        f"{name:<{width}}  {rate.firing_rate:>11.1%}  {rate.mean_spikes:>11.3f}  "
        f"{rate.silent_channels:>15d}"
        for name, rate in firing.items()
    ]
    return "\n".join(lines)


def evaluate_network(
    network: SavedNetwork,
    dataset: ShapeDataset,
    *,
    votes: int | None = None,
    workers: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates a trained network on all devices.

    Args:
      network: From `load_run` or `load_weights`.
      dataset: Clouds of the network's classes.
      votes: Voxelisations of each cloud; the network's own number if omitted.
      workers: Processes that prepare batches.
      on_batch: Called with the batches done and their number after each one.

    Raises:
      ValueError: If the dataset is empty, has other classes or lacks the normals that
        the network needs, if `votes` is below 1, or a logit is not finite.
    """
    votes = network.votes if votes is None else votes
    if votes < 1:
        raise ValueError(f"votes must be 1 or more, got {votes}")
    check_classes(dataset, network.class_names, where="the data")
    devices = choose_devices(network.batch_size)
    layout = BatchLayout(
        batch_size=network.batch_size,
        num_devices=devices,
        num_levels=network.model.architecture.num_levels,
        voxel_size=network.data.voxel_size,
        normals=network.data.normals,
        runs=jax.default_backend() == "tpu",
    )
    mesh = make_mesh(devices)
    return evaluate(
        make_eval_step(network.model, mesh),
        network.variables,
        make_evaluation_source(dataset, layout, votes=votes),
        mesh,
        workers=workers,
        on_batch=on_batch,
    )
