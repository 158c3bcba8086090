"""What the commands of the command line can be asked.

`train` and `analyse` have theirs in `training.config` and `analysis.options`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluates a trained network: accuracies, confusion matrix, firing rates."""

    run: Positional[Path | None] = None
    """Folder of a training run."""
    weights: Path | None = None
    """Weights file to evaluate instead: .pth in the published layout, or .npz."""
    data: Path | None = None
    """Folder of a data set; that of the run, or the embedded shapes, if omitted."""
    split: Literal["test", "train"] = "test"
    """Part of `data` to evaluate on."""
    checkpoint: Literal["last", "best"] = "last"
    """The run's latest checkpoint, or the most accurate one on the split that the run
    was evaluated on, which flatters its accuracy there."""
    votes: int | None = None
    """Random voxelisations that are averaged; the run's own number if omitted."""
    voxel_size: float = 0.01
    """For weights: edge of a voxel that the network was trained with."""
    workers: int = 0
    """Worker processes that prepare batches."""
    out: Path | None = None
    """Folder for evaluation.json and the figures. If omitted: the run folder, or for
    other data `evaluation_<data>` in it, or `<weights>_evaluation`."""


@dataclass(frozen=True)
class NeuronOptions:
    """Neurons of a weights file, which does not tell them; a run knows its own."""

    levels: int | None = None
    """Largest spike of a time step (D); 4 if omitted."""
    time_steps: int | None = None
    """Time steps (T); 1 if omitted."""
    relu: bool = False
    """ReLU instead of spikes."""


@dataclass(frozen=True)
class EnergyOptions:
    """Counts and prices what a network does: additions, products, memory, energy."""

    source: Positional[Path]
    """Folder of a training run, or a weights file (.pth or .npz)."""
    data: Path | None = None
    """Folder of a data set; that of the run, or the embedded shapes, if omitted."""
    split: Literal["test", "train"] = "test"
    """Part of `data` whose clouds are used."""
    clouds: int | None = 64
    """Clouds of the split, a fixed random choice; `None` for all of them."""
    checkpoint: Literal["last", "best"] = "last"
    """The run's latest checkpoint, or the most accurate one."""
    voxel_size: float = 0.01
    """For a weights file: edge of a voxel that the network was trained with."""
    neuron: NeuronOptions = NeuronOptions()
    """For a weights file: its neurons."""
    head_on_spikes: bool = False
    """Account for the network with a head that takes spikes, too: more additions, and
    no products but those of the first layer."""
    prices: Path | None = None
    """JSON file of what operations and memories cost, as `prices_pj` of an energy.json;
    the constants of 45 nm CMOS if omitted."""
    out: Path | None = None
    """Folder for energy.json and the figure. If omitted: the run folder, or for other
    data `energy_<data>_<split>` in it, or `<weights>_energy`; with --head-on-spikes
    `energy_head_on_spikes`, or such a name behind it."""


@dataclass(frozen=True)
class ReportOptions:
    """Writes report.html, one page on a run that opens without a network."""

    run: Positional[Path]
    """Folder of a training run, finished or not."""
    clouds: int = 400
    """Evaluated clouds, a fixed random choice, among which wrong ones are looked for to
    be shown; 0 leaves clouds out and runs no network."""
    out: Path | None = None
    """The file to write; `report.html` in the run folder if omitted."""


@dataclass(frozen=True)
class PredictOptions:
    """Prints the most probable classes of a cloud in any point or mesh file."""

    run: Positional[Path]
    """Folder of a training run, or a weights file (.pth or .npz)."""
    file: Positional[Path]
    """npz, npy, txt, xyz, csv, off, ply or obj file."""
    top: int = 5
    """Classes to print."""
    checkpoint: Literal["last", "best"] = "last"
    """The run's latest checkpoint, or the most accurate one on the split that the run
    was evaluated on, which flatters its accuracy there."""
    votes: int | None = None
    """Random voxelisations that are averaged; the run's own number if omitted."""
    voxel_size: float = 0.01
    """For a weights file: edge of a voxel that the network was trained with."""


@dataclass(frozen=True)
class ConvertOptions:
    """Converts weights: from a run, .pth (published layout) or .npz to .pth or .npz."""

    source: Positional[Path]
    """Folder of a training run, or a weights file."""
    destination: Positional[Path]
    """File to write; its ending says in which layout."""
    checkpoint: Literal["last", "best"] = "last"
    """The run's latest checkpoint, or the most accurate one on the split that the run
    was evaluated on, which flatters its accuracy there."""


@dataclass(frozen=True)
class PackOptions:
    """Packs a data set into records that are read fast and at random."""

    data: Positional[str]
    """Folder of a data set of any layout, or the word `shapes` for the embedded ones;
    `./shapes` is a folder of that name."""
    out: Positional[Path]
    """New folder for the records; `train --data.path` takes it."""
    voxel_size: float = 0.05
    """Edge of the voxels whose points are stored side by side, in units of the
    normalised cloud; best that of the training run."""
    points_per_voxel: int | None = None
    """Most points that are kept of a voxel, chosen at random; all of them if
    omitted."""
    points_per_cloud: int | None = None
    """Points kept of each cloud, farthest first; all of them if omitted."""
    clouds_per_shard: int = 1024
    """Clouds of a file. A reader keeps 256 files open, so with millions of clouds take
    more."""
    split: Literal["both", "train", "test"] = "both"
    """Part of the data set to pack."""
