"""Several processes as one run: how they find each other, and what they exchange.

Every process runs the same program on its own devices. Launchers (Slurm, Open MPI,
MPICH, torchrun, Kubeflow, GKE's TPU pods) tell a process its number through environment
variables; `join_processes` reads them and hands over to `jax.distributed`. With
JAX_COORDINATOR_ADDRESS=auto JAX finds the others by itself (Cloud TPU). The functions
below it work alike in a run of one process, where they return what they got.
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

LOST = 76
"""Exit code of a process that ends because another one has."""

_FIND_SECONDS = 300


class _Variables(NamedTuple):
    """The environment variables by which a launcher speaks."""

    launcher: str
    process: str
    processes: str
    local_process: str | None = None
    """Number of this process among those of its host."""
    local_processes: str | None = None


_LAUNCHERS = (
    _Variables("JAX", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    _Variables("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Variables(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    # Of a step that srun started: a batch script alone has SLURM_NTASKS too. Before
    # MPICH, whose variables srun may set as well.
    _Variables("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    _Variables("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Variables("Kubeflow", "PROCESS_ID", "NUM_PROCESSES"),
)

Tree = TypeVar("Tree")


class ProcessError(RuntimeError):
    """Another process of the run has failed or is gone; the message says which."""

    exit_code = LOST


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
    named = environ.get("JAX_COORDINATOR_ADDRESS")
    if named == "auto":
        return Launch("JAX", None, None, None, None)
    for names in _LAUNCHERS:
        if names.process not in environ or names.processes not in environ:
            continue
        process = _read_number(environ, names.process)
        processes = _read_number(environ, names.processes)
        if not 0 <= process < processes:
            raise ValueError(
                f"{names.process}={process} must be at least 0 and below "
                f"{names.processes}={processes}"
            )
        if processes == 1:
            return None
        coordinator = named or _coordinator_of(names.launcher, environ)
        if coordinator is None and names.launcher != "Slurm":  # Slurm lists the hosts
            raise ValueError(
                f"{names.processes}={processes}, but no variable tells where process 0 "
                "is: set JAX_COORDINATOR_ADDRESS=HOST:PORT, the same for all of them, "
                f"or unset {names.processes} to train in one process"
            )
        device = _find_device(names, environ)
        return Launch(names.launcher, process, processes, coordinator, device)
    if named is not None:
        raise ValueError(
            f"process 0 is at {named}, but the number of this process and of all are "
            "not told: set JAX_PROCESS_ID and JAX_NUM_PROCESSES"
        )
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts and "," in hosts:
        return Launch("a TPU pod", None, None, None, None)
    return None


def _read_number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ValueError(f"{name}={environ[name]!r} must be a number") from None


def _coordinator_of(launcher: str, environ: Mapping[str, str]) -> str | None:
    if launcher == "Kubeflow":
        return environ.get("COORDINATOR_ADDRESS")
    if launcher == "torchrun" and "MASTER_ADDR" in environ:
        # torchrun itself listens on MASTER_PORT.
        port = _read_number({"MASTER_PORT": "29500", **environ}, "MASTER_PORT")
        return f"{environ['MASTER_ADDR']}:{port + 1}"
    return None


def _find_device(names: _Variables, environ: Mapping[str, str]) -> int | None:
    """The GPU of a process that shares its host with others; None: all it can see."""
    if names.local_process is None or names.local_processes is None:
        return None
    if names.local_process not in environ or names.local_processes not in environ:
        return None
    alone = _read_number(environ, names.local_processes) == 1
    visible = environ.get("CUDA_VISIBLE_DEVICES", "all, of several").split(",")
    if alone or len(visible) == 1:
        return None
    return _read_number(environ, names.local_process)


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
