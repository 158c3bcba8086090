"""The quantities of a classifier fixture, computed by our code."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.interop import import_state, to_published
from e3dsnn_jax.parameter_names import architecture_of
from e3dsnn_jax.published import State
from e3dsnn_jax.pyramid import DOWN, Level, build_pyramid
from e3dsnn_jax.voxels import pad_features

# The published classifier makes its grid this much longer than the largest
# coordinate, so that no voxel is dropped on the way down.
_MARGIN = 96


def compute_classifier(
    fixture: Mapping[str, np.ndarray], state: State, *, source: str
) -> dict[str, np.ndarray]:
    """Returns every quantity of a classifier fixture, under the fixture's names.

    Args:
      fixture: The arrays of the fixture; only `input/*` and `cotangent` are read, so
        that nothing of its results can find its way into ours.
      state: Weights by published names.
      source: What errors of the import call the weights.
    """
    variables, _ = import_state(state, source=source)
    architecture, num_classes = architecture_of(variables)
    model = Classifier(architecture, num_classes)
    ends = fixture["input/offset"]
    batch = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    coords = np.column_stack([batch, fixture["input/grid_coord"]]).astype(np.int32)
    order = np.lexsort(coords.T[::-1])
    extent = tuple((coords[:, 1:].max(0) + _MARGIN).tolist())
    levels = build_pyramid(
        coords[order], num_levels=architecture.num_levels, extent=extent
    )
    given = fixture["input/feat"]
    features = pad_features(given[order], rows=len(levels[0].coords))
    inputs = jnp.asarray(features), jax.tree.map(jnp.asarray, levels)
    cotangent = jnp.asarray(fixture["cotangent"])

    @jax.jit
    def evaluate(variables):
        return model.apply(variables, *inputs, num_clouds=len(ends), train=False)

    def train_loss(params, batch_stats):
        (logits, activations), updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            *inputs,
            num_clouds=len(ends),
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(logits * cotangent), (logits, activations, updated)

    logits, activations = evaluate(variables)
    results = {"eval/out": np.asarray(logits)}
    results |= _taps("eval", activations, levels, architecture)
    results |= _grids(levels, extent)
    train = jax.jit(jax.value_and_grad(train_loss, has_aux=True))
    (loss, (logits, activations, updated)), gradients = train(
        variables["params"], variables["batch_stats"]
    )
    results |= {"train/out": np.asarray(logits), "loss": np.asarray(loss)}
    results |= _taps("train", activations, levels, architecture)
    for kind, tree in (("grad", {"params": gradients}), ("after_train", updated)):
        named = to_published(tree, architecture, num_classes=num_classes)
        results |= {f"{kind}/{name}": array for name, array in named.items()}
    return results


def _taps(
    mode: str,
    activations: Mapping[str, Any],
    levels: tuple[Level, ...],
    architecture: Architecture,
) -> dict[str, np.ndarray]:
    """Membranes after the stem and each stage, without padding rows or time axis."""
    stages = [f"stage{index}" for index in range(len(architecture.stage_channels))]
    return {
        f"{mode}/tap/{_published_stage(index)}/feats": np.asarray(
            activations[name][: int(levels[index].voxels_needed), 0]
        )
        for index, name in enumerate(["stem", *stages])
    }


def _grids(levels: tuple[Level, ...], extent: tuple[int, ...]) -> dict[str, np.ndarray]:
    results = {}
    for index, level in enumerate(levels):
        stage = f"eval/tap/{_published_stage(index)}"
        coords = np.asarray(level.coords[: int(level.voxels_needed)])
        results |= {f"{stage}/coords": coords, f"{stage}/spatial_shape": extent}
        extent = DOWN.output_extent(extent)
    return {name: np.asarray(value) for name, value in results.items()}


def _published_stage(level: int) -> str:
    return f"enc{level - 1}" if level else "stem"
