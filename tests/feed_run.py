"""One process of several that feed batches to their devices; see test_feed.py.

`python tests/feed_run.py` prints, under a launcher's environment variables, one JSON
object: what became of each case in this process.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, SupportsIndex

import jax
import numpy as np

from e3dsnn_jax.capacity import Capacity, CapacityError
from e3dsnn_jax.data.clouds import PointCloud
from e3dsnn_jax.data.loader import BatchLayout, BatchSource
from e3dsnn_jax.data.plan import plan_capacities
from e3dsnn_jax.training.feed import device_batches, make_share
from e3dsnn_jax.training.overflow import capacity_needed, check_overflow
from e3dsnn_jax.training.processes import (
    ProcessError,
    broadcast,
    first_does,
    gather,
    is_first,
    join_processes,
    told_by_first,
)
from e3dsnn_jax.training.steps import make_mesh

CLOUDS, BATCH = 24, 4


@dataclasses.dataclass(frozen=True)
class Clusters:
    """Clouds of 20 to 43 points; one of them is broken if asked for."""

    broken: int | None = None
    class_names: tuple[str, ...] = ("only",)

    def __len__(self) -> int:
        return CLOUDS

    def __getitem__(self, index: SupportsIndex, /) -> PointCloud:
        number = int(index)
        if number == self.broken:
            raise ValueError(f"cloud {number} is broken")
        rng = np.random.default_rng(number)
        points = rng.standard_normal((20 + number, 3)).astype(np.float32)
        return PointCloud(points, None, 0, f"cloud {number}")


def make_source(dataset: Clusters, *, devices: int, shared: bool = True) -> BatchSource:
    layout = BatchLayout(BATCH, devices, num_levels=2, voxel_size=0.1, normals=False)
    share = make_share(Clusters(), layout) if shared else None
    return BatchSource(dataset, layout, seed=0, shuffle=True, share=share)


def plan(source: BatchSource, *slacks: float) -> tuple[Capacity, ...]:
    return plan_capacities(source, num_batches=6, slacks=slacks, gather=gather)


def attempt(action: Callable[[], Any]) -> str:
    try:
        return str(action())
    except (CapacityError, ProcessError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    join_processes()
    devices, process = jax.device_count(), jax.process_index()
    mesh = make_mesh()
    whole = make_source(Clusters(), devices=devices)
    fitted = plan(whole, 1.0)
    answer: dict[str, Any] = {"process": process, "capacity": repr(fitted)}

    # Every cloud of an epoch once, over all processes; the same shapes in all.
    source = dataclasses.replace(whole, capacities=fitted)
    seen, rows = [], []
    for batch in device_batches(source, mesh):
        local = [np.asarray(s.data) for s in batch.indices.addressable_shards]
        seen += np.concatenate(local).ravel().tolist()
        rows.append(batch.features.shape)
    answer["seen"], answer["shapes"] = seen, rows

    # A capacity that the share of one process fits and that of the other does not.
    counts = [
        max(len(levels[0].coords) for levels in whole.shards(step).levels)
        for step in range(len(whole))
    ]
    answer["largest"] = counts
    tight = dataclasses.replace(fitted[0][0], voxels=int(np.median(gather_all(counts))))
    small = (tight, *fitted[0][1:])
    source = dataclasses.replace(whole, capacities=(small, *fitted))
    answer["agreed"] = [b.features.shape[1] for b in device_batches(source, mesh)]
    answer["small"] = tight.voxels

    # Too small everywhere: all processes learn of it.
    source = dataclasses.replace(whole, capacities=(small,))
    needed = jax.jit(
        jax.vmap(capacity_needed),
        out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    )

    def overflow() -> None:
        for batch in device_batches(source, mesh):
            check_overflow(needed(batch.levels), batch.levels)

    answer["overflow"] = attempt(overflow)

    # Process 1 cannot read a cloud: it says so, and the others that it did.
    broken = make_source(Clusters(broken=mine(whole, process=1)), devices=devices)
    source = dataclasses.replace(broken, capacities=fitted)
    answer["broken"] = attempt(lambda: list(device_batches(source, mesh)))

    # One process is asked to stop: all stop after the same batch.
    source = dataclasses.replace(whole, capacities=fitted)
    asked = iter([False, False, *[process == 0] * 99])
    stopped = device_batches(source, mesh, stop=lambda: next(asked))
    answer["stopped_after"] = len(list(stopped))

    tree = {"a": np.arange(3) + process, "b": -np.zeros(2), "c": np.float32(process)}
    answer["broadcast"] = str(broadcast(tree))
    answer["gathered"] = gather(np.array([process])).tolist()
    answer["told"] = told_by_first(lambda: {"process": process})
    answer["first"] = first_does(lambda: process)

    def refuse() -> None:
        raise ValueError("no such folder")

    answer["refused"] = attempt(lambda: told_by_first(refuse))
    answer["speaks"] = is_first()
    print(json.dumps(answer), flush=True)


def gather_all(counts: list[int]) -> np.ndarray:
    return gather(np.array(counts))


def mine(source: BatchSource, *, process: int) -> int:
    """A cloud of the third batch that a process makes."""
    indices = gather(source.shards(2).indices)
    return int(indices[process * len(indices) // jax.process_count(), 0])


if __name__ == "__main__":
    main()
