"""Batches on their devices, of the same shapes in every process at every step.

A program that spans processes must be the same in all of them, but each sees its own
share of a batch alone. So before every step the processes vote, by one small
exchange: on the capacity that all shares fit, on stopping, and on whether one of them
failed to make its share. A vote is cast one step ahead, before the devices start on
the step in between, so that nobody waits for it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32

from e3dsnn_jax.data.clouds import ShapeDataset
from e3dsnn_jax.data.loader import BatchLayout, BatchSource, ShapeBatch, Share, iterate
from e3dsnn_jax.data.plan import expected_voxels
from e3dsnn_jax.training.processes import ProcessError, gather
from e3dsnn_jax.training.steps import DEVICES, shard_batch


class _Cast(NamedTuple):
    """A share of a batch, and the vote on it, which is being counted."""

    step: int
    batch: ShapeBatch | None
    error: Exception | None
    choice: int
    ballot: Int32[Array, "3"]


def device_batches(
    source: BatchSource,
    mesh: Mesh,
    *,
    start: int = 0,
    workers: int = 0,
    prefetch: int = 4,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[ShapeBatch]:
    """Batches `start`, `start + 1`, ... on the devices of a mesh.

    Args:
      source: The batches, or this process's share of them.
      mesh: From `make_mesh`.
      start: First step.
      workers: Worker processes that prepare batches.
      prefetch: Batches kept ready.
      stop: Asked before each batch; the batches end when it says yes in any process.

    Raises:
      ProcessError: If another process could not make its share of a batch.
      Exception: What making a batch raised in this process.
    """
    loaded = iterate(source, start=start, workers=workers, prefetch=prefetch)
    if jax.process_count() > 1:
        yield from _agreed(source, mesh, loaded, start, stop)
        return
    for batch in loaded:
        if stop():
            return
        yield shard_batch(batch, mesh)


def make_share(dataset: ShapeDataset, layout: BatchLayout) -> Share | None:
    """This process's part of every batch; None in a run of one process.

    Raises:
      ValueError: If the processes cannot share the devices equally.
    """
    processes, process = jax.process_count(), jax.process_index()
    if processes == 1:
        return None
    count, rest = divmod(layout.num_devices, processes)
    if rest:
        raise ValueError(
            f"{layout.num_devices} parts of a batch cannot be shared equally by "
            f"{processes} processes: make --devices a multiple of them"
        )
    voxels = expected_voxels(
        dataset, layout.voxel_size, part=process, parts=processes, gather=gather
    )
    return Share(range(process * count, (process + 1) * count), voxels)


def _agreed(
    source: BatchSource,
    mesh: Mesh,
    loaded: Iterator[ShapeBatch],
    start: int,
    stop: Callable[[], bool],
) -> Generator[ShapeBatch]:
    count = _make_ballot(mesh)
    cast: deque[_Cast] = deque()
    error: Exception | None = None
    following = start
    while cast or following < len(source):
        while len(cast) < 2 and following < len(source):
            batch, choice = None, 0
            if error is None:
                try:
                    batch = next(loaded)
                    choice = source.choice_of(batch)
                except Exception as raised:
                    error = raised
            failed = 0 if error is None else jax.process_index() + 1
            ballot = count(choice, int(stop()), failed)
            cast.append(_Cast(following, batch, error, choice, ballot))
            following += 1
        step, batch, own_error, choice, ballot = cast.popleft()
        agreed, stopped, failed = np.asarray(ballot).tolist()
        if own_error is not None:
            raise own_error
        if failed:
            raise ProcessError(
                f"process {failed - 1} of {jax.process_count()} could not make its "
                f"share of the batch of step {step}; what it printed says why"
            )
        if stopped:
            return
        if batch is None or agreed != choice:
            batch = source.padded(step, agreed)
        yield shard_batch(batch, mesh)


def _make_ballot(mesh: Mesh) -> Callable[[int, int, int], Any]:
    """Compiles the exchange: the largest of what each process says, for all of them."""
    split = NamedSharding(mesh, PartitionSpec(DEVICES))
    everywhere = NamedSharding(mesh, PartitionSpec())
    largest = jax.jit(lambda votes: jnp.max(votes, axis=0), out_shardings=everywhere)
    mine = len(mesh.local_devices)

    def count(*vote: int) -> Int32[Array, " questions"]:
        votes = np.tile(np.array(vote, np.int32), (mine, 1))
        return largest(jax.make_array_from_process_local_data(split, votes))

    return count
