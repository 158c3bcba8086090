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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax.sharding import PartitionSpec

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch, deal, stack
from e3dsnn_jax.interop import to_published
from e3dsnn_jax.pyramid import Capacity, find_levels, fit_capacity, pack_levels
from e3dsnn_jax.training.compilations import programs_compiled, seconds_compiling
from e3dsnn_jax.training.optimizer import MultiStep, Sgd, make_optimizer
from e3dsnn_jax.training.overflow import check_overflow
from e3dsnn_jax.training.state import create_state
from e3dsnn_jax.training.steps import (
    DEVICES,
    make_mesh,
    make_train_step,
    replicate,
    shard_batch,
)
from e3dsnn_jax.voxels import VoxelCloud, join_clouds
from experiments.benchmarks.clouds import dataset_clouds, surface_clouds
from experiments.benchmarks.timing import (
    describe_machine,
    interleave,
    num_cores,
    ratio,
    spread,
)

_NUM_CLASSES = 40


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
    repeats: int = 20
    """Timed rounds; every case runs once a round."""
    devices: int | None = None
    """Devices that share a batch. If omitted: all accelerators, or on a CPU as many
    virtual devices as there are cores and as divide the batch."""
    data: Path | None = None
    """Dataset whose clouds are used instead of the embedded surfaces."""
    peer: bool = True
    """Time spconv too, where it is installed."""


class Ours:
    """Our network with one batch, and what is timed of it.

    Args:
      clouds: The batch.
      labels: Class of each cloud.
      config: Sizes of the benchmark.
    """

    def __init__(self, clouds: list[VoxelCloud], labels: np.ndarray, config: Benchmark):
        self.architecture = VARIANTS[config.variant]
        self.mesh = make_mesh(_num_devices(config))
        self.clouds, self.labels = clouds, labels
        self.hands = deal([len(cloud.coords) for cloud in clouds], self.mesh.size)
        self.capacity: Capacity = fit_capacity(
            [self._find(hand)[1] for hand in self.hands]
        )
        self.host_batch = self.build_maps()
        self.batch = shard_batch(self.host_batch, self.mesh)
        model = Classifier(self.architecture, num_classes=_NUM_CLASSES)
        # The rate stays constant: the milestone lies beyond every step that is timed.
        optimizer = make_optimizer(Sgd(), MultiStep((0.999,)), total_steps=10**6)
        one = jax.tree.map(lambda leaf: leaf[0], self.host_batch)
        state = create_state(model, optimizer, one, jax.random.key(0))
        self.state = replicate(state, self.mesh)
        self._train_step = make_train_step(
            model, optimizer, self.mesh, label_smoothing=0.2, ema_decay=None
        )

        def logits(variables: dict[str, Any], batch: ShapeBatch) -> jax.Array:
            batch = jax.tree.map(lambda leaf: leaf[0], batch)
            clouds = batch.labels.shape[0]
            return model.apply(
                variables, batch.features, batch.levels, num_clouds=clouds, train=False
            )[0]  # pyright: ignore[reportReturnType]

        split = PartitionSpec(DEVICES)
        self._forward = jax.jit(
            jax.shard_map(
                logits,
                mesh=self.mesh,
                in_specs=(PartitionSpec(), split),
                out_specs=split,
                check_vma=False,
            )
        )

    def _find(self, hand: list[int]):
        coords, features = join_clouds([self.clouds[member] for member in hand])
        num_levels = self.architecture.num_levels
        return features, find_levels(coords, num_levels=num_levels)

    def build_maps(self) -> ShapeBatch:
        """The batch on the host, its maps built anew by one thread a device."""
        with ThreadPoolExecutor(len(self.hands)) as threads:
            found = list(threads.map(self._find, self.hands))
        features = np.zeros((len(found), self.capacity[0].voxels, 6), np.float32)
        for rows, (filled, _) in zip(features, found, strict=True):
            rows[: len(filled)] = filled
        levels = stack([pack_levels(levels, self.capacity) for _, levels in found])
        indices = np.array(self.hands, np.int32)
        return ShapeBatch(features, levels, self.labels[indices], indices)

    def forward(self, batch: ShapeBatch) -> jax.Array:
        """Logits in inference mode, waited for."""
        variables = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        return jax.block_until_ready(self._forward(variables, batch))

    def train_step(self, batch: ShapeBatch) -> float:
        """One update; returns the loss before it."""
        self.state, metrics = self._train_step(self.state, batch)
        jax.block_until_ready(self.state)
        check_overflow(metrics.needed, self.host_batch.levels)
        return float(metrics.loss)

    def cases(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name."""

        def with_maps(run: Callable[[ShapeBatch], object]) -> Callable[[], object]:
            return lambda: run(shard_batch(self.build_maps(), self.mesh))

        return {
            "maps": self.build_maps,
            "forward": lambda: self.forward(self.batch),
            "forward_with_maps": with_maps(self.forward),
            "train_step": lambda: self.train_step(self.batch),
            "train_step_with_maps": with_maps(self.train_step),
        }


def _num_devices(config: Benchmark) -> int:
    if config.devices is not None:
        return config.devices
    cores = len(jax.devices())
    return max(n for n in range(1, cores + 1) if config.clouds % n == 0)


def make_peer(ours: Ours) -> tuple[dict[str, Callable[[], object]], float]:
    """The cases of spconv, and how far its first loss is from ours, relatively.

    Both start from the same parameters. Our state is one step further afterwards.
    """
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.benchmarks.spconv_peer import Classifier as Peer
    from experiments.benchmarks.spconv_peer import Trainer

    sizes = ours.architecture
    model = Peer(
        in_channels=sizes.in_channels,
        embed_channels=sizes.embed_channels,
        stage_channels=sizes.stage_channels,
        stage_depths=sizes.stage_depths,
        num_classes=_NUM_CLASSES,
    )
    variables = {"params": ours.state.params, "batch_stats": ours.state.batch_stats}
    published = to_published(variables, sizes, num_classes=_NUM_CLASSES)
    state = {name: torch.tensor(array) for name, array in published.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"spconv's network lacks {missing} and leaves {unexpected}")
    trainer = Trainer(model)
    coords, features = join_clouds(ours.clouds)
    features = features.astype(np.float32)
    clouds = len(ours.clouds)

    torch.set_num_threads(1)
    theirs = trainer.train_step(features, coords, ours.labels)
    difference = abs(ours.train_step(ours.batch) - theirs) / theirs
    torch.set_num_threads(num_cores())
    cases = {
        "maps": lambda: trainer.index_pairs(coords, num_clouds=clouds),
        "forward_with_maps": lambda: trainer.forward(
            features, coords, num_clouds=clouds
        ),
        "train_step_with_maps": lambda: trainer.train_step(
            features, coords, ours.labels
        ),
    }
    return cases, difference


def run(config: Benchmark) -> dict[str, Any]:
    """Times every case.

    Args:
      config: Sizes of the benchmark.

    Returns:
      Times in milliseconds, ratios ours / spconv of the same round, and what they
      depend on.
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
    labels = (np.arange(len(clouds)) % _NUM_CLASSES).astype(np.int32)
    coords, _ = join_clouds(clouds)
    compiled, compiling = programs_compiled(), seconds_compiling()
    ours = Ours(clouds, labels, config)
    levels = find_levels(coords, num_levels=ours.architecture.num_levels)
    cases = {f"ours {name}": case for name, case in ours.cases().items()}
    difference = None
    if config.peer and importlib.util.find_spec("spconv"):
        peer, difference = make_peer(ours)
        # In turns with ours of the same name.
        for name, case in peer.items():
            cases[f"spconv {name}"] = case
        cases = dict(sorted(cases.items(), key=lambda item: item[0].split(" ")[1]))
    start = time.perf_counter()
    times = interleave(cases, repeats=config.repeats)
    result = {
        "benchmark": "training_step",
        "config": dataclasses.asdict(config)
        | {"data": None if config.data is None else str(config.data)},
        "platform": jax.devices()[0].platform,
        "devices": ours.mesh.size,
        "voxels": [len(level.coords) for level in levels],
        "pairs_per_voxel": [
            round(int(level.submanifold.counts.sum()) / len(level.coords), 2)
            for level in levels
        ],
        "milliseconds": {name: spread(values) for name, values in times.items()},
        "ratio": {
            name: ratio(times[f"ours {name}"], times[f"spconv {name}"])
            for name in ("maps", "forward_with_maps", "train_step_with_maps")
            if f"spconv {name}" in times
        },
        "loss_difference": difference,
        "programs_compiled": programs_compiled() - compiled,
        "seconds_compiling": round(seconds_compiling() - compiling, 2),
        "seconds_timing": round(time.perf_counter() - start, 2),
        "load_average_after": describe_machine()["load_average"],
    }
    return result | machine


def format_table(result: dict[str, Any]) -> str:
    """The times and ratios as lines of text."""
    lines = [
        f"{result['config']['clouds']} clouds, voxels of the levels "
        f"{result['voxels']}, pairs per voxel {result['pairs_per_voxel']}",
        f"{result['devices']} {result['platform']} devices, {result['cores']} cores, "
        f"load {result['load_average']} before and {result['load_average_after']} "
        f"after, {result['programs_compiled']} programs compiled in "
        f"{result['seconds_compiling']} s",
        f"{'milliseconds':32}{'lower':>10}{'median':>10}{'upper':>10}",
    ]
    rows = result["milliseconds"] | {
        f"ratio ours/spconv {name}": values for name, values in result["ratio"].items()
    }
    lines += [
        f"{name:32.44}{row['lower_quartile']:10.3g}{row['median']:10.3g}"
        f"{row['upper_quartile']:10.3g}"
        for name, row in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark of the command line."""
    config = tyro.cli(Benchmark)
    # Before JAX starts its CPU: one loop of a convolution uses one core, so the second
    # core works through the second half of the batch.
    jax.config.update("jax_num_cpu_devices", config.devices or num_cores())
    result = run(config)
    print(format_table(result), file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
