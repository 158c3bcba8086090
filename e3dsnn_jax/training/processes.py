"""Several processes as one run: how they find each other, and what they exchange.

Every process runs the same program on its own devices. Launchers (Slurm, Open MPI,
MPICH, torchrun, TPU pods, Kubernetes) tell a process its number through environment
variables; `join_processes` reads them and hands over to `jax.distributed`. The
functions below it work alike in a run of one process, where they return what they got.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

HEARTBEAT_SECONDS = 20
"""A process that is not heard of for so long is taken for dead; the others end then."""

_FIND_SECONDS = 300
# Number of this process, of all, and of this one on its host; whose variables they are.
_LAUNCHERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", None, "JAX"),
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "torchrun"),
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "Open MPI",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPICH"),
    # Of a step that srun started: a batch script alone has SLURM_NTASKS too.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "Slurm"),
)

Tree = TypeVar("Tree")


class ProcessError(RuntimeError):
    """Another process of the run has failed or is gone; the message says which."""


class Launch(NamedTuple):
    """What a launcher told this process."""

    launcher: str
    process: int | None
    """Number of this process; None if JAX is to find it."""
    processes: int | None
    coordinator: str | None
    """host:port of process 0; None if JAX is to find it."""
    device: int | None
    """The one GPU of its host that is this process's; None: all of them."""


def find_launch(environ: Mapping[str, str]) -> Launch | None:
    """Reads a launcher's environment variables; None without one, or for one process.

    Raises:
      ValueError: If the variables contradict each other, or nobody names process 0.
    """
    coordinator = environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None and "MASTER_ADDR" in environ:
        coordinator = f"{environ['MASTER_ADDR']}:{environ.get('MASTER_PORT', '29500')}"
    for rank, size, local, launcher in _LAUNCHERS:
        if rank not in environ or size not in environ:
            continue
        try:
            process, processes = int(environ[rank]), int(environ[size])
        except ValueError:
            raise ValueError(
                f"{rank}={environ[rank]!r} and {size}={environ[size]!r} must be numbers"
            ) from None
        if not 0 <= process < processes:
            raise ValueError(
                f"{rank}={process} must be at least 0 and below {size}={processes}"
            )
        if processes == 1:
            return None
        if coordinator is None and launcher != "Slurm":  # Slurm lists the hosts
            raise ValueError(
                f"{size}={processes}, but no variable tells where process 0 is: set "
                "JAX_COORDINATOR_ADDRESS=HOST:PORT, the same for all processes, or "
                f"unset {size} to train in one process"
            )
        device = None if local is None else environ.get(local)
        return Launch(
            launcher,
            process,
            processes,
            coordinator,
            None if device is None else int(device),
        )
    if coordinator is not None:
        sizes = " or ".join(f"{rank} and {size}" for rank, size, *_ in _LAUNCHERS[:2])
        raise ValueError(
            f"process 0 is at {coordinator}, but the number of this process and of all "
            f"are not told: set {sizes}"
        )
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts and "," in hosts:
        return Launch("a TPU pod", None, None, None, None)
    return None


def join_processes(environ: Mapping[str, str] = os.environ) -> str | None:
    """Joins the other processes of a launcher; does nothing without one.

    Must come before JAX's first computation. A caller that has called
    `jax.distributed.initialize` itself keeps what it set up.

    Returns:
      host:port of process 0, if a launcher has named it.

    Raises:
      ValueError: As `find_launch`.
      ProcessError: If the others cannot be reached.
    """
    launch = find_launch(environ)
    if launch is None or jax.distributed.is_initialized():
        return None if launch is None else launch.coordinator
    where = launch.coordinator or "an address that JAX finds"
    number = "a process" if launch.process is None else f"process {launch.process}"
    if not launch.process:
        print(
            f"Waiting for {launch.processes or 'all'} processes of {launch.launcher} "
            f"at {where}.",
            file=sys.stderr,
        )
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process,
            local_device_ids=launch.device,
            initialization_timeout=_FIND_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:
        raise ProcessError(
            f"{number} of {launch.processes or 'several'} ({launch.launcher}) could "
            f"not reach the others at {where} within {_FIND_SECONDS} s: "
            f"{str(error).splitlines()[0]}. Was every process started, and is the port "
            "free and open?"
        ) from error
    return launch.coordinator


def is_first() -> bool:
    """Whether this is process 0, which alone writes, prints and draws."""
    return jax.process_index() == 0


def say(message: str) -> None:
    """Prints a message on stderr, once for all processes."""
    if is_first():
        print(message, file=sys.stderr)


def wait_for_all(what: str) -> None:
    """Returns when every process has come this far."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gather(tree: Tree) -> Tree:
    """Arrays of all processes, concatenated along their first axis in their order.

    Shapes must be the same in every process.
    """
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def broadcast(tree: Tree) -> Tree:
    """The arrays of process 0, bit for bit, as host arrays in every process."""
    if jax.process_count() == 1:
        return tree
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    # As bytes and in one piece: one program, and no rounding of any kind.
    parts = [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]
    sent: UInt8[np.ndarray, " bytes"] = np.concatenate(parts)
    sent = multihost_utils.broadcast_one_to_all(sent)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    received = [
        np.frombuffer(part.tobytes(), leaf.dtype).reshape(leaf.shape).copy()
        for part, leaf in zip(np.split(sent, ends), leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), received)


def told_by_first(action: Callable[[], Any]) -> Any:
    """What an action returns in process 0, as JSON, in every process.

    Raises:
      ProcessError: In the other processes, if it raised in process 0.
    """
    if jax.process_count() == 1:
        return action()
    error, answer = None, b""
    if is_first():
        try:
            answer = json.dumps({"is": action()}).encode()
        except Exception as caught:
            error = caught
            answer = json.dumps({"error": str(caught)}).encode()
    length = int(broadcast(np.array(len(answer))))
    padded = np.frombuffer(answer.ljust(length, b" "), np.uint8)
    told = json.loads(broadcast(padded).tobytes())
    if error is not None:
        raise error
    if "error" in told:
        raise ProcessError(f"process 0: {told['error']}")
    return told["is"]


def first_does(action: Callable[[], Any]) -> Any:
    """Runs an action in process 0 and then in the others, when it is done there.

    For what the first caller leaves behind for all later ones, such as a cache. If it
    fails in process 0, the others find out for themselves.
    """
    if jax.process_count() == 1:
        return action()
    error, result = None, None
    if is_first():
        try:
            result = action()
        except Exception as caught:
            error = caught
    wait_for_all("first_does")
    if error is not None:
        raise error
    return result if is_first() else action()


@contextmanager
def waiting_for_the_roll_call() -> Iterator[None]:
    """Holds back the errors of an exchange whose partner is gone.

    They know no more of it than an address; the roll call, and after a heartbeat JAX,
    end this process meanwhile with the name of the one that is gone.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        marks = ("Gloo", "Connection closed", "UNAVAILABLE", "NCCL")
        if jax.process_count() > 1 and any(mark in str(error) for mark in marks):
            time.sleep(HEARTBEAT_SECONDS + 5)
        raise
