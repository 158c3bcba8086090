"""How the layers of a run become what they are at its end.

Each layer at every checkpoint is compared with itself at the end (on voxels of its own
level), and all layers at some checkpoints with all layers at the end (on fine voxels
carried to their parents). Bands are from clouds drawn anew; baselines are similarities
of random activations of the same shapes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

import svcca_jax
from e3dsnn_jax.analysis.activations import Layers
from e3dsnn_jax.analysis.layers import LayerPlace
from svcca_jax.bootstrap import bootstrap, draw_weights, interval
from svcca_jax.measure import Measure

SEED = 0
LEVEL = 0.9
"""Share that a band holds, of a normal distribution."""


class Bands(NamedTuple):
    """Intervals, as wide as similarities over clouds drawn anew spread."""

    low: Float[np.ndarray, "steps layers"]
    high: Float[np.ndarray, "steps layers"]


class Dynamics(NamedTuple):
    """Similarities over training."""

    steps: tuple[int, ...]
    """Steps of the checkpoints; the last is the reference."""
    against_final: Float[np.ndarray, "steps layers"]
    """Each layer with itself at the last step."""
    bands: Bands | None
    baseline: Float[np.ndarray, " layers"]
    """Each layer's similarity if both were random."""
    grid_steps: tuple[int, ...]
    """Steps at which all layers were compared with all."""
    grids: Float[np.ndarray, "grid_steps layers layers"]
    """Layers at that step (rows) with layers at the last step (columns)."""
    grid_baseline: Float[np.ndarray, "layers layers"]


class Settings(NamedTuple):
    """How layers are compared."""

    measure: Measure
    draws: int = 12
    """Draws of clouds for the bands; 0 leaves them out."""
    grids: int = 6
    """Checkpoints at which all layers are compared with all."""


class Pass(NamedTuple):
    """Layers of one network on one set of clouds."""

    own: Layers
    """Each layer on datapoints of its own level."""
    common: Layers
    """All layers on the same datapoints."""


def check_datapoints(layers: Sequence[LayerPlace], count: int, remedy: str) -> None:
    """Refuses comparisons that would find any two layers alike.

    Args:
      layers: What is compared.
      count: Datapoints of each.
      remedy: What the message advises.

    Raises:
      ValueError: If a layer has as many neurons as there are datapoints.
    """
    widest = max(layers, key=lambda layer: layer.neurons)
    if count <= widest.neurons:
        raise ValueError(
            f"{count} datapoints are too few for {widest.name} with {widest.neurons} "
            "neurons: with no more datapoints than neurons any two layers are alike. "
            f"{remedy}"
        )


def compute_dynamics(
    steps: Sequence[int],
    look: Callable[[int], Pass],
    groups: Sequence[Int[np.ndarray, " datapoints"]],
    settings: Settings,
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> Dynamics:
    """Compares the layers of every step with those of the last one.

    Args:
      steps: Steps, ascending; the last is the reference.
      look: Returns the layers at a step.
      groups: For each layer the cloud of each of its own datapoints.
      settings: How they are compared.
      on_step: Called with the checkpoints done and their number after each one.

    Raises:
      ValueError: If there are fewer than 2 steps, or numbers are out of range.
    """
    if len(steps) < 2:
        raise ValueError(f"dynamics need at least 2 steps, got {list(steps)}")
    measure, final = settings.measure, look(steps[-1])
    places = np.linspace(0, len(steps) - 1, min(settings.grids, len(steps)))
    grid_steps = tuple(steps[place] for place in places.round().astype(int).tolist())
    weights = _cloud_weights(groups, settings.draws)
    draws, grids = [], []

    def checkpoints() -> Iterator[Layers]:
        for number, step in enumerate(steps, start=1):
            found = final if step == steps[-1] else look(step)
            yield found.own
            if settings.draws:
                draws.append(_draw(found.own, final.own, weights, measure))
            if step in grid_steps:
                grids.append(_grid(found.common, final.common, measure))
            if on_step is not None:
                on_step(number, len(steps))

    values = svcca_jax.over_checkpoints(checkpoints(), final.own, measure=measure)
    return Dynamics(
        steps=tuple(steps),
        against_final=values,
        bands=_bands(values, draws) if draws else None,
        baseline=svcca_jax.over_checkpoints(
            [random_like(final.own, SEED)],
            random_like(final.own, SEED + 1),
            measure=measure,
        )[0],
        grid_steps=grid_steps,
        grids=np.stack(grids),
        grid_baseline=_grid(
            random_like(final.common, SEED),
            random_like(final.common, SEED + 1),
            measure,
        ),
    )


def _grid(ours: Layers, final: Layers, measure: Measure) -> Float[np.ndarray, "_ _"]:
    return np.asarray(svcca_jax.pairwise(ours, final, measure=measure))


def _cloud_weights(
    groups: Sequence[Int[np.ndarray, " datapoints"]], draws: int
) -> list[Int[np.ndarray, "draws datapoints"]]:
    """How often each datapoint of each layer counts in each draw of clouds."""
    if not draws:
        return []
    clouds = np.unique(np.concatenate(groups))
    key = jax.random.key(SEED)
    weights = np.asarray(draw_weights(len(clouds), draws=draws, key=key))
    return [weights[:, np.searchsorted(clouds, each)] for each in groups]


def _draw(
    ours: Layers,
    final: Layers,
    weights: list[Int[np.ndarray, "draws datapoints"]],
    measure: Measure,
) -> Float[np.ndarray, "draws layers"]:
    found = [
        np.asarray(bootstrap(x, y, each, measure=measure))
        for x, y, each in zip(ours, final, weights, strict=True)
    ]
    return np.stack(found, axis=1)


def _bands(
    values: Float[np.ndarray, "steps layers"],
    draws: list[Float[np.ndarray, "draws layers"]],
) -> Bands:
    return Bands(*interval(values, np.stack(draws, axis=1), level=LEVEL))


def random_like(layers: Layers, seed: int) -> Layers:
    """Normal activations of the same shapes: layers that have nothing in common."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=layer.shape).astype(np.float32) for layer in layers]
