"""`e3dsnn analyse`: how the layers of a run learned, on one set of clouds."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import numpy as np
import threadpoolctl
from tyro.conf import Positional

import svcca_jax
from e3dsnn_jax.analysis.activations import (
    Layers,
    Statistics,
    cloud_labels,
    make_collect,
)
from e3dsnn_jax.analysis.checkpoints import open_series, read_step, shapes_of
from e3dsnn_jax.analysis.class_information import compute_class_information
from e3dsnn_jax.analysis.datapoints import carry_voxels, choose_voxels
from e3dsnn_jax.analysis.dynamics import (
    Pass,
    Settings,
    check_datapoints,
    compute_dynamics,
)
from e3dsnn_jax.analysis.layers import LayerPlace, Values, find_layers
from e3dsnn_jax.analysis.record import Analysis, write_analysis
from e3dsnn_jax.analysis.streamed import compare_streamed
from e3dsnn_jax.data.clouds import Split, choose_clouds
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.training.datasets import open_split
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.saved import load_run
from svcca_jax.measure import Measure

_SAMPLE = 2000
"""Voxels of the grids and baselines where every voxel is compared otherwise."""

_CLOUDS_A_NEURON = 2
"""Clouds for each neuron of the widest layer, below which no class is looked for."""

Datapoints = Literal["voxels", "clouds"]
MeasureName = Literal["svcca", "pwcca", "cca", "cka", "procrustes"]


class NamedMeasure(NamedTuple):
    """A similarity and what figures call it."""

    title: str
    measure: Measure


MEASURES: dict[MeasureName, NamedMeasure] = {
    "svcca": NamedMeasure("SVCCA, 99 % of the variance", svcca_jax.MeanSVCCA()),
    "pwcca": NamedMeasure("PWCCA", svcca_jax.MeanPWCCA()),
    "cca": NamedMeasure("mean CCA", svcca_jax.MeanCCA()),
    "cka": NamedMeasure("linear CKA", svcca_jax.CKA()),
    "procrustes": NamedMeasure("Procrustes", svcca_jax.ProcrustesSimilarity()),
}


@dataclasses.dataclass(frozen=True)
class AnalyseOptions:
    """Compares the layers of a run over its checkpoints, and with its classes."""

    run: Positional[Path]
    """Folder of a training run with several checkpoints (`train --analyse`)."""
    data: Path | None = None
    """Folder of a data set; that of the run, or the embedded shapes, if omitted."""
    split: Split = "test"
    """Part of `data` whose clouds are used."""
    clouds: int | None = 256
    """Clouds of the split, a fixed random choice; `None` for all of them."""
    values: Values = "membranes"
    """What of a layer: its membranes (what a unit or block puts out), or the spikes
    that its neurons send; over several time steps their mean, the firing rate."""
    datapoints: Datapoints = "voxels"
    """Voxels: places matter, a layer is compared on voxels of its own level, and layers
    of other levels through the parents of fine voxels. Clouds: layers are averaged over
    each cloud first, so that only what they know of whole clouds counts."""
    most: int | None = 2000
    """Voxels that are drawn for each layer, at most. More cost time in proportion;
    `None` for every voxel: each layer is then compared with its final self by streamed
    moments, in any number of clouds, without intervals."""
    measure: MeasureName = "svcca"
    """Similarity. SVCCA keeps 99 % of the variance of each layer; PWCCA weighs all
    directions by what they hold; CKA is led by the strongest directions."""
    statistics: Statistics = "batch"
    """What BatchNorm takes: the statistics of each batch of these clouds, as in
    training, or the running ones that are saved, which lag hundreds of updates behind,
    so that early networks are nearly silent."""
    threshold: float = 0.9
    """Similarity with the end of training from which on a layer counts as converged."""
    checkpoints: int | None = None
    """Checkpoints at most, evenly spaced; all of them if omitted."""
    grids: int = 6
    """Checkpoints at which all layers are compared with all."""
    draws: int = 12
    """Times that the clouds are drawn anew for the intervals; 0 leaves them out."""
    out: Path | None = None
    """Folder for analysis.json and the figures. If omitted: the run folder, or for
    other data `analysis_<data>_<split>` in it."""


def run_analysis(
    options: AnalyseOptions, *, on_step: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], Path]:
    """Analyses a run; writes `analysis.json` and figures.

    Args:
      options: What is compared.
      on_step: Called with the checkpoints done and their number after each one.

    Returns:
      The analysis as JSON, and the folder.

    Raises:
      CheckpointError: If the run has no checkpoints that can be compared.
      ValueError: If an option is out of range, the data cannot be read, or there are
        too few datapoints for the widest layer.
    """
    _check_options(options)
    network = load_run(options.run)
    series = open_series(options.run, most=options.checkpoints)
    chosen = open_split(network.data, network.class_names, options.data, options.split)
    model, dataset = open_model(network), choose_clouds(chosen.dataset, options.clouds)
    batches = list(open_batches(network, dataset).batches)
    layers = find_layers(model, network.variables, batches[0], options.values)
    view = _View(options, layers, model, batches)
    passes: list[Layers] = []
    read = functools.partial(
        read_step,
        series,
        model=model,
        batch=batches[0],
        expected=shapes_of(model, batches[0]),
    )

    def look(step: int) -> Pass:
        found = view.look(read(step))
        passes.append(found.pooled)
        return Pass(*found.compared)

    settings = Settings(
        MEASURES[options.measure].measure,
        draws=0 if options.most is None else options.draws,
        grids=options.grids,
    )
    # Threads of OpenBLAS and of XLA compete for the cores: a grid takes ten times as
    # long with both.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        dynamics = compute_dynamics(
            series.steps, look, view.groups, settings, on_step=on_step
        )
        datapoints = tuple(map(len, view.groups))
        if options.most is None:
            final = read(series.steps[-1])
            streamed = [
                compare_streamed(
                    model,
                    batches,
                    view.compared,
                    read(step),
                    final,
                    measure=settings.measure,
                    statistics=options.statistics,
                )
                for step in series.steps
            ]
            dynamics = dynamics._replace(against_final=np.stack(streamed))
            datapoints = tuple(
                sum(
                    int((batch.levels[layer.level or 0].coords[:, 0] >= 0).sum())
                    for batch in batches
                )
                for layer in view.compared
            )
        pooled = [*passes[1:], passes[0]]  # the last step is looked at first
        labels, _ = cloud_labels(batches)
        widest = max(layer.neurons for layer in layers)
        too_few = len(labels) < _CLOUDS_A_NEURON * widest
        classes = None
        if not too_few:
            classes = compute_class_information(pooled, labels, settings.measure)
    details = {
        "measure": MEASURES[options.measure].title,
        "values": options.values,
        "datapoints": options.datapoints,
        "statistics": options.statistics,
        "clouds": len(dataset),
        "split": options.split,
        "data": str(options.data or network.data.path or "embedded shapes"),
        "source": network.source,
        "notes": [
            f"No class information: {len(labels)} clouds are too few for layers of "
            f"{widest} neurons, which would follow any labels; give "
            f"{_CLOUDS_A_NEURON * widest} clouds or more (--clouds)"
        ]
        if too_few
        else [],
    }
    folder = options.out or (
        options.run / f"analysis_{chosen.name}" if chosen.name else options.run
    )
    analysis = Analysis(
        details=details,
        layers=layers,
        datapoints=datapoints,
        dynamics=dynamics,
        classes=classes,
        class_names=network.class_names,
        threshold=options.threshold,
    )
    return write_analysis(folder, analysis), folder


class _View:
    """Layers of a network on the datapoints that were asked for."""

    def __init__(
        self,
        options: AnalyseOptions,
        layers: tuple[LayerPlace, ...],
        model: nn.Module,
        batches: Sequence[ShapeBatch],
    ):
        self._by_clouds = options.datapoints == "clouds"
        if self._by_clouds:
            _, clouds = cloud_labels(batches)
            self.groups = [clouds] * len(layers)
            self.compared = layers
            choices = []
            remedy = "Give more clouds (--clouds), or compare voxels (--datapoints)"
            check_datapoints(layers, len(clouds), remedy)
        else:
            most = options.most or _SAMPLE
            own = choose_voxels(batches, most=most)
            choices = [own, carry_voxels(batches, most=most)]
            on_voxels = tuple(layer for layer in layers if layer.level is not None)
            self.compared = on_voxels
            self.groups = [own.clouds[layer.level or 0] for layer in on_voxels]
            remedy = (
                "Give more clouds (--clouds) or draw more voxels of them (--most); the "
                "coarsest level has the fewest"
            )
            for choice in choices:
                check_datapoints(on_voxels, choice.size, remedy)
        self._collect = make_collect(
            model,
            batches,
            layers,
            choices,
            clouds=True,
            statistics=options.statistics,
        )

    def look(self, variables: dict[str, Any]) -> "_Look":
        """The layers of a network with these variables."""
        found = self._collect(variables)
        compared = (found.pooled,) * 2 if self._by_clouds else found.by_choice
        return _Look(compared, found.pooled)


class _Look(NamedTuple):
    compared: tuple[Layers, ...]
    """On their own and on common datapoints."""
    pooled: Layers


def _check_options(options: AnalyseOptions) -> None:
    least = {"most": 1, "grids": 1, "draws": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name} must be {smallest} or more, got {value}")
    if options.most is None and options.datapoints == "clouds":
        raise ValueError("--most None is for voxels: clouds are few, and all compared")
    if options.draws == 1:
        raise ValueError("--draws must be 0, or 2 or more for a spread, got 1")
    if not 0 < options.threshold <= 1:
        raise ValueError(f"--threshold must lie in (0, 1], got {options.threshold}")
