"""What the fixtures of classification and segmentation have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from e3dsnn_jax.interop import to_published
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.pyramid import DOWN, Level, build_pyramid
from e3dsnn_jax.voxels import pad_features


class Batch(NamedTuple):
    """The inputs of a fixture, as our networks take them."""

    features: Float[Array, "voxels channels"]
    levels: tuple[Level, ...]
    extent: tuple[int, ...]
    """Cells of the finest grid."""
    order: Int[np.ndarray, " voxels"]
    """Which row of the fixture each of our voxels is."""
    clouds: int


class Stage(NamedTuple):
    """A stage whose membranes the fixture holds."""

    theirs: str
    """Name in the fixture, such as `enc0`."""
    ours: str
    """Name of our activation, such as `stage0`."""
    level: int


def make_batch(
    fixture: Mapping[str, np.ndarray], *, num_levels: int, margin: int
) -> Batch:
    """Returns the inputs of a fixture, voxels sorted.

    Args:
      fixture: The arrays of the fixture; only `input/*` is read.
      num_levels: Levels of the network.
      margin: How many cells longer than the largest coordinate the published grid is.
    """
    ends = fixture["input/offset"]
    batch = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    coords = np.column_stack([batch, fixture["input/grid_coord"]]).astype(np.int32)
    order = np.lexsort(coords.T[::-1])
    extent = tuple((coords[:, 1:].max(0) + margin).tolist())
    levels = build_pyramid(coords[order], num_levels=num_levels, extent=extent)
    given = fixture["input/feat"]
    features = pad_features(given[order], rows=len(levels[0].coords))
    on_device = jax.tree.map(jnp.asarray, levels)
    return Batch(jnp.asarray(features), on_device, extent, order, len(ends))


def compute_network(
    model: nn.Module,
    variables: dict[str, Any],
    batch: Batch,
    cotangent: np.ndarray,
    stages: Sequence[Stage],
    *,
    rows: Int[np.ndarray, " voxels"] | None = None,
) -> dict[str, np.ndarray]:
    """Returns every quantity of a fixture, under the fixture's names.

    Args:
      model: The network.
      variables: Its variables.
      batch: The inputs.
      cotangent: Of the outputs; the loss is the sum of their products.
      stages: What the fixture holds of the stages.
      rows: Which of our rows each row of the fixture's outputs is; None: all, in order.
    """

    def run(variables: Any, *, train: bool) -> Any:
        (logits, activations), updated = model.apply(
            variables,
            batch.features,
            batch.levels,
            num_clouds=batch.clouds,
            train=train,
            mutable=["batch_stats"],
        )
        return logits if rows is None else logits[rows], activations, updated

    def train_loss(params, batch_stats):
        given = {"params": params, "batch_stats": batch_stats}
        out, activations, updated = run(given, train=True)
        return jnp.sum(out * cotangent), (out, activations, updated)

    out, activations, _ = jax.jit(lambda given: run(given, train=False))(variables)
    results = {"eval/out": np.asarray(out)}
    results |= _taps("eval", activations, batch.levels, stages)
    results |= _grids(batch, stages)
    train = jax.jit(jax.value_and_grad(train_loss, has_aux=True))
    (loss, (out, activations, updated)), gradients = train(
        variables["params"], variables["batch_stats"]
    )
    results |= {"train/out": np.asarray(out), "loss": np.asarray(loss)}
    results |= _taps("train", activations, batch.levels, stages)
    architecture, num_classes = architecture_of(variables)
    for kind, tree in (("grad", {"params": gradients}), ("after_train", updated)):
        named = to_published(tree, architecture, num_classes=num_classes)
        results |= {f"{kind}/{name}": array for name, array in named.items()}
    return results


def _taps(
    mode: str,
    activations: Mapping[str, Any],
    levels: tuple[Level, ...],
    stages: Sequence[Stage],
) -> dict[str, np.ndarray]:
    """Membranes after each stage, without padding rows or time axis."""
    return {
        f"{mode}/tap/{stage.theirs}/feats": np.asarray(
            activations[stage.ours][: int(levels[stage.level].voxels_needed), 0]
        )
        for stage in stages
    }


def _grids(batch: Batch, stages: Sequence[Stage]) -> dict[str, np.ndarray]:
    extents = [batch.extent]
    for _ in batch.levels[1:]:
        extents.append(DOWN.output_extent(extents[-1]))
    results = {}
    for stage in stages:
        level, name = batch.levels[stage.level], f"eval/tap/{stage.theirs}"
        results[f"{name}/coords"] = level.coords[: int(level.voxels_needed)]
        results[f"{name}/spatial_shape"] = extents[stage.level]
    return {name: np.asarray(value) for name, value in results.items()}
