"""The classifier's programs for a TPU topology, compiled without a TPU.

libtpu holds the whole compiler and knows its chips by name, so a program is compiled
for them on any machine; nothing can run there.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.kernel_map import KernelMap, Runs
from e3dsnn_jax.kernel_runs import run_length
from e3dsnn_jax.layers import Compute
from e3dsnn_jax.pyramid import (
    DOWN,
    SUBMANIFOLD,
    Capacity,
    Level,
    LevelCounts,
    MapCapacity,
    count_levels,
    find_levels,
    fit_counts,
)
from e3dsnn_jax.training.optimizer import MultiStep, Sgd, make_optimizer
from e3dsnn_jax.training.state import create_state
from e3dsnn_jax.training.steps import DEVICES, make_eval_step, make_train_step
from e3dsnn_jax.voxels import join_clouds
from experiments.benchmarks.clouds import surface_clouds
from experiments.benchmarks.our_network import NUM_CLASSES

Kind = Literal["train", "infer"]
VOXEL_SIZE = 0.05
# Clouds whose voxels and pairs stand for those of any number of clouds.
_SAMPLE = 16
_SLACK = 1.1

# libtpu reads these when it is loaded; they describe a host that has no TPU.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # No chip is opened, so that several processes may compile at a time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class OutOfMemory(RuntimeError):
    """The compiler's refusal of a program that does not fit the chip's memory."""


def prepare_compiler() -> None:
    """Makes this process able to compile for TPUs, and compute on its CPU.

    Must run before JAX's first computation.

    Raises:
      ModuleNotFoundError: If libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "libtpu, which holds the compiler for TPUs, is not installed (it needs no "
            "TPU): pip install -e '.[tpu]'"
        )
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def make_topology(name: str) -> Mesh:
    """A mesh over the chips of a topology such as "v5e:2x2"; nothing runs on it."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return Mesh(np.array(topology.devices), (DEVICES,))


def count_sample(voxels: int) -> tuple[LevelCounts, ...]:
    """Voxels and pairs of a batch of surfaces of so many voxels each."""
    clouds = surface_clouds(_SAMPLE, voxels=voxels, voxel_size=VOXEL_SIZE)
    coords, _ = join_clouds(clouds)
    num_levels = VARIANTS["T"].num_levels
    return count_levels(find_levels(coords, num_levels=num_levels))


def plan_capacity(sample: tuple[LevelCounts, ...], clouds: int) -> Capacity:
    """Static shapes of a chip's share of a batch, as a run would plan them."""
    share = clouds / _SAMPLE

    def scale(count: np.ndarray) -> np.ndarray:
        return np.ceil(count[None] * share).astype(np.int64)

    return fit_counts(jax.tree.map(scale, sample), slack=_SLACK)


def abstract_batch(
    capacity: Capacity, clouds: int, mesh: Mesh, *, with_runs: bool = True
) -> ShapeBatch:
    """Shapes of a batch over the mesh, each chip's part on that chip.

    Args:
      capacity: Static shapes of a chip's part.
      clouds: Clouds of a chip's part.
      mesh: From `make_topology`.
      with_runs: The maps carry their runs, as `add_runs_to_levels` makes them.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DEVICES))

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((mesh.size, *shape), dtype, sharding=sharding)

    def pairs(size: MapCapacity) -> KernelMap:
        blocks = array(size.blocks, size.pairs)
        return KernelMap(blocks, blocks, array(size.blocks), array(), array(2))

    levels = []
    for level, coarse in zip(capacity, (*capacity[1:], None), strict=True):
        rows, same, down = level.voxels, pairs(level.submanifold), None
        if level.down is not None and coarse is not None:
            down = pairs(level.down)
        if with_runs:
            steps = SUBMANIFOLD.num_offsets // run_length(SUBMANIFOLD.num_offsets)
            runs = Runs(array(steps, rows), None, array(rows + 1), None)
            same = same._replace(runs=runs)
        if with_runs and down is not None and coarse is not None:
            steps = DOWN.num_offsets // run_length(DOWN.num_offsets)
            ahead, back = array(steps, coarse.voxels), array(steps, rows)
            runs = Runs(ahead, back, array(rows + 1), array(coarse.voxels + 1))
            down = down._replace(runs=runs)
        levels.append(Level(array(rows, 4), array(), same, down))
    features = array(capacity[0].voxels, 6, dtype=np.float32)
    return ShapeBatch(features, tuple(levels), array(clouds), array(clouds))


class Lowered(NamedTuple):
    """A program before it is compiled, and the sizes that its exchanges follow from."""

    program: jax.stages.Lowered
    parameters: int
    norm_channels: list[int]
    """Channels of each BatchNorm layer."""


def lower_program(
    variant: str,
    kind: Kind,
    batch: ShapeBatch,
    mesh: Mesh,
    compute: Compute | None = None,
) -> Lowered:
    """The train step with the paper's SGD, or the eval step, for a batch's shapes."""
    model = Classifier(VARIANTS[variant], NUM_CLASSES, compute=compute or Compute())
    optimizer = make_optimizer(Sgd(), MultiStep(), total_steps=1000)
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch
    )
    state = jax.eval_shape(
        lambda key: create_state(model, optimizer, one, key), jax.random.key(0)
    )
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state
    )
    step: Any
    if kind == "train":
        step = make_train_step(
            model, optimizer, mesh, label_smoothing=0.2, ema_decay=None
        )
        program = step.lower(state, batch)
    else:
        step = make_eval_step(model, mesh)
        program = step.lower(state.params, state.batch_stats, batch)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    scales = [leaf for path, leaf in leaves if path[-1].key == "scale"]
    return Lowered(
        program,
        sum(math.prod(leaf.shape) for _, leaf in leaves),
        [math.prod(scale.shape) for scale in scales],
    )


class Compiled(NamedTuple):
    """A program and how long it took to compile."""

    program: jax.stages.Compiled
    seconds: float


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles for the chips that a program was lowered for.

    Raises:
      OutOfMemory: If the compiler finds that it does not fit their memory.
    """
    began = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # "... Used 20.11G of 15.75G hbm ...", among a page of allocations.
        said = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+", str(error))
        raise OutOfMemory(said[0] if said else str(error)[:200]) from error
    return Compiled(program, time.perf_counter() - began)


class Largest(NamedTuple):
    """Where a chip's memory ends."""

    fits: int
    """Most clouds a chip that were compiled."""
    refused: int | None
    """Fewest that the compiler refused; None if it refused none."""
    said: str
    """What it said then."""


def find_largest(
    try_clouds: Callable[[int], int],
    *,
    start: int,
    memory: int,
    nearness: float = 1.25,
    most: int = 2**17,
) -> Largest:
    """Searches the most clouds a chip that a program fits with.

    Args:
      try_clouds: Compiles for so many clouds; returns the bytes that the program takes,
        or raises `OutOfMemory`.
      start: Clouds that fit.
      memory: Bytes of the chip, from which the next number to try is guessed.
      nearness: Ratio of the refused and the fitting number at which the search ends.
      most: Where the search ends in any case.
    """
    fits, refused, said = start, None, ""
    used = try_clouds(start)
    while refused is None or refused > nearness * fits:
        low, high = fits + 1, most if refused is None else refused - 1
        if refused is None:
            # The compiler makes room by computing anew, so memory is only a hint: a
            # step that ends the search if it is refused, or a longer one.
            guess = int(fits * max(memory / max(used, 1), nearness))
        else:
            guess = int((fits * refused) ** 0.5)
        guess = min(max(guess, low), high)
        try:
            used, fits = try_clouds(guess), guess
        except OutOfMemory as error:
            refused, said = guess, str(error)
        if fits >= most:
            break
    return Largest(fits, refused, said)
