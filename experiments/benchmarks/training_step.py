"""A training step of the T classifier, ours and spconv's, in the same minutes.

    python -m experiments.benchmarks.training_step
    python -m experiments.benchmarks.training_step --data ../shared/data/kicad40

Times what a batch costs: its kernel maps, the network's forward pass, and a step of
training (16 clouds of 2048 voxels of 0.05 by default). spconv's network is timed in
turns with ours where it is installed (`pip install -e '.[peers]'`); the last line of
stdout is one JSON object, the table goes to stderr. Values of spconv on more than one
CPU thread are wrong (see `spconv_peer`), so they are compared on one, before timing.

Our maps are built ahead by the loader while a step runs; `train_step_with_maps` does
one after the other instead, as a run that never overlaps them would.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.interop import export_state
from e3dsnn_jax.pyramid import find_levels
from e3dsnn_jax.training.compilations import programs_compiled, seconds_compiling
from e3dsnn_jax.training.devices import use_all_cores
from e3dsnn_jax.voxels import join_clouds
from experiments.benchmarks.clouds import dataset_clouds, surface_clouds
from experiments.benchmarks.our_network import NUM_CLASSES, Ours
from experiments.benchmarks.timing import (
    Cases,
    Timings,
    describe_machine,
    interleave,
    is_busy,
    ratio,
    spread,
)

_LARGEST_DIFFERENCE = 0.01


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times a training step of the classifier, and spconv's where it is installed."""

    clouds: int = 16
    """Clouds of a batch."""
    voxels: int = 2048
    """Voxels of each cloud; with --data, clouds keep the voxels they have."""
    voxel_size: float = 0.05
    """Edge of a voxel, where a cloud's radius is near 1."""
    variant: Literal["T", "S", "L", "H"] = "T"
    """Size of the network."""
    slack: float = 1.1
    """Static shapes over what the batch needs, as a training run plans them."""
    repeats: int = 20
    """Timed rounds; every case runs once a round."""
    devices: int | None = None
    """Devices that share a batch. If omitted: all accelerators, or on a CPU as many
    virtual devices as there are cores and as divide the batch."""
    data: Path | None = None
    """Dataset whose clouds are used instead of the embedded surfaces."""
    peer: bool = True
    """Time spconv too, where it is installed."""


def make_trainer(sizes: Architecture) -> Any:
    """The peer's network of these sizes with the published recipe around it."""
    from experiments.benchmarks import spconv_peer

    model = spconv_peer.Classifier(
        in_channels=sizes.in_channels,
        embed_channels=sizes.embed_channels,
        stage_channels=sizes.stage_channels,
        stage_depths=sizes.stage_depths,
        num_classes=NUM_CLASSES,
    )
    return spconv_peer.Trainer(model)


def make_peer(ours: Ours) -> tuple[Cases, float]:
    """The cases of spconv, and how far its first loss is from ours, relatively.

    Both start from the same parameters. In a large batch rounding flips a spike or
    two in the stem, which statistics and thresholds amplify layer by layer: below a
    percent the two agree, and in a small batch the difference is 0. Our state is one
    step further afterwards.

    Raises:
      ValueError: If the losses differ by more than that.
    """
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks import spconv_peer

    trainer = make_trainer(ours.architecture)
    variables = {"params": ours.state.params, "batch_stats": ours.state.batch_stats}
    state = export_state(jax.device_get(variables))
    trainer.model.load_state_dict({name: torch.tensor(state[name]) for name in state})
    coords, features = join_clouds(ours.clouds)
    clouds = len(ours.clouds)

    torch.set_num_threads(1)
    theirs = trainer.train_step(features, coords, ours.labels)
    difference = abs(ours.train_step(ours.batch) - theirs) / theirs

    if not difference <= _LARGEST_DIFFERENCE:
        raise ValueError(
            f"spconv's first loss differs from ours by {difference:.1%}, more than "
            f"{_LARGEST_DIFFERENCE:.0%}: times of other results are not compared"
        )
    runs: dict[str, Callable[[], object]] = {
        "maps": lambda: trainer.index_pairs(coords, num_clouds=clouds),
        "forward_with_maps": lambda: trainer.forward(
            features, coords, num_clouds=clouds
        ),
        "train_step_with_maps": lambda: trainer.train_step(
            features, coords, ours.labels
        ),
    }

    cases = {
        (kind, whose): timed
        for kind, run in runs.items()
        for whose, timed in spconv_peer.on_threads(run).items()
    }
    return cases, difference


def run(config: Benchmark) -> dict[str, Any]:
    """Times every case.

    Args:
      config: Sizes of the benchmark.

    Returns:
      Times in milliseconds by kind and by whose they are; ratios of ours and the
      faster spconv's in the same round; and what all this depends on.
    """
    machine = describe_machine()
    if config.data is None:
        clouds = surface_clouds(
            config.clouds, voxels=config.voxels, voxel_size=config.voxel_size
        )
    else:
        clouds = dataset_clouds(
            config.data, config.clouds, voxel_size=config.voxel_size
        )
    labels = (np.arange(len(clouds)) % NUM_CLASSES).astype(np.int32)
    compiled, compiling = programs_compiled(), seconds_compiling()
    ours = Ours(
        clouds,
        labels,
        VARIANTS[config.variant],
        devices=config.devices,
        slack=config.slack,
    )
    cases, difference = ours.cases(), None
    if config.peer and importlib.util.find_spec("spconv"):
        peer, difference = make_peer(ours)
        cases |= peer
    # Neighbours in a round are compared, so cases of one kind follow each other.
    cases = {case: cases[case] for case in sorted(cases)}
    times = interleave(cases, repeats=config.repeats)

    coords, _ = join_clouds(clouds)
    levels = find_levels(coords, num_levels=ours.architecture.num_levels)
    result = {
        "benchmark": "training_step",
        "clouds": config.clouds,
        "variant": config.variant,
        "voxel_size": config.voxel_size,
        "data": "embedded" if config.data is None else str(config.data),
        "voxels": [len(level.coords) for level in levels],
        "pairs_per_voxel": [
            round(int(level.submanifold.counts.sum()) / len(level.coords), 2)
            for level in levels
        ],
        "slack": config.slack,
        "repeats": config.repeats,
        "platform": jax.devices()[0].platform,
        "devices": ours.mesh.size,
        "milliseconds": {},
        "cpu_milliseconds": {},
        "ratio": _ratios(times),
        "loss_difference": difference,
        "programs_compiled": programs_compiled() - compiled,
        "seconds_compiling": seconds_compiling() - compiling,
        "busy": is_busy(machine["load_average"]),
        "load_average_after": describe_machine()["load_average"],
    }
    for (kind, whose), timing in times.items():
        result["milliseconds"].setdefault(kind, {})[whose] = spread(timing.wall)
        result["cpu_milliseconds"].setdefault(kind, {})[whose] = spread(timing.cpu)
    return result | machine


def _ratios(times: Timings) -> dict[str, dict[str, Any]]:
    """Wall time of ours over the faster spconv's, for every kind that both have."""
    ratios = {}
    for kind in sorted({kind for kind, _ in times}):
        peers = {
            whose: timing.wall
            for (other, whose), timing in times.items()
            if other == kind and whose != "ours"
        }
        if peers:
            against = min(peers, key=lambda whose: float(np.median(peers[whose])))
            values = ratio(times[kind, "ours"].wall, peers[against])
            ratios[kind] = values | {"against": against}
    return ratios


def format_table(result: dict[str, Any]) -> str:
    """The times and ratios as lines of text."""
    lines = [
        f"{result['clouds']} clouds; voxels of the levels {result['voxels']}, "
        f"pairs per voxel {result['pairs_per_voxel']}",
        f"{result['devices']} {result['platform']} devices, {result['cores']} cores; "
        f"{result['programs_compiled']} programs compiled in "
        f"{result['seconds_compiling']:.1f} s",
    ]
    if result["busy"]:
        lines.append(
            f"BUSY: the load was {result['load_average']:.1f} before this benchmark "
            "began. The times are too long, and the ratios uncertain."
        )
    lines.append(f"{'':48}{'lower':>10}{'median':>10}{'upper':>10}")
    rows = [
        (f"{kind}, {whose}, {unit}", values)
        for unit, times in (
            ("ms", result["milliseconds"]),
            ("CPU ms", result["cpu_milliseconds"]),
        )
        for kind, by_whom in times.items()
        for whose, values in by_whom.items()
    ] + [
        (f"{kind}, ours / {values['against']}", values)
        for kind, values in result["ratio"].items()
    ]
    lines += [
        f"{name:48}{row['lower_quartile']:10.4g}{row['median']:10.4g}"
        f"{row['upper_quartile']:10.4g}"
        for name, row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line."""
    config = tyro.cli(Benchmark)
    # One loop of a convolution uses one core, so the second core works through the
    # second half of the batch.
    use_all_cores(config.clouds, devices=config.devices)
    result = run(config)
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
