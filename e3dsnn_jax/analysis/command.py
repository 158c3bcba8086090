"""`e3dsnn analyse`: how the layers of a run learned, on one set of clouds."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import threadpoolctl

import svcca_jax
from e3dsnn_jax.analysis.activations import Layers, cloud_labels, make_collect
from e3dsnn_jax.analysis.checkpoints import open_series, read_step, shapes_of
from e3dsnn_jax.analysis.class_information import compute_class_information
from e3dsnn_jax.analysis.datapoints import carry_voxels, choose_voxels
from e3dsnn_jax.analysis.dynamics import (
    Pass,
    Settings,
    check_datapoints,
    compute_dynamics,
)
from e3dsnn_jax.analysis.layers import LayerPlace, find_layers
from e3dsnn_jax.analysis.options import AnalyseOptions, MeasureName
from e3dsnn_jax.analysis.record import Analysis, write_analysis
from e3dsnn_jax.analysis.streamed import compare_streamed
from e3dsnn_jax.data.clouds import choose_clouds
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.training.datasets import open_split
from e3dsnn_jax.training.one_device import open_batches, open_model
from e3dsnn_jax.training.saved import load_run
from svcca_jax.measure import Measure

_SAMPLE = 2000
"""Voxels of the grids and baselines where every voxel is compared otherwise."""

_CLOUDS_A_NEURON = 2
"""Clouds for each neuron of the widest layer, below which no class is looked for."""


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
        compared, pooled = view.look(read(step))
        passes.append(pooled)
        return compared

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

    def look(self, variables: dict[str, Any]) -> tuple[Pass, Layers]:
        """The layers of a network to compare, and all of them as means over clouds."""
        found = self._collect(variables)
        pooled = found.pooled
        compared = (pooled, pooled) if self._by_clouds else found.by_choice
        return Pass(*compared), pooled


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
