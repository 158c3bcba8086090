"""What `e3dsnn analyse` can be asked; nothing heavy is imported to say it."""

import dataclasses
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Values = Literal["membranes", "spikes"]
Datapoints = Literal["voxels", "clouds"]
MeasureName = Literal["svcca", "pwcca", "cca", "cka", "procrustes"]

Statistics = Literal["batch", "running"]
"""What BatchNorm divides by: the running averages that the network has saved, or those
of each batch of the clouds. Running averages need hundreds of updates to follow: early
in training they leave most layers silent that were not silent while they learned."""


@dataclasses.dataclass(frozen=True)
class AnalyseOptions:
    """Compares the layers of a run over its checkpoints, and with its classes."""

    run: Positional[Path]
    """Folder of a training run with several checkpoints (`train --analyse`)."""
    data: Path | None = None
    """Folder of a data set; that of the run, or the embedded shapes, if omitted."""
    split: Literal["test", "train"] = "test"
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
