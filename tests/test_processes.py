"""Runs of several processes: they find each other, agree, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from tiny_run import make_data, same_trees, share_compilations

from e3dsnn_jax.training.checkpoints import restore_variables
from e3dsnn_jax.training.launch import free_port
from e3dsnn_jax.training.processes import (
    LOST,
    Launch,
    broadcast,
    find_launch,
    first_does,
    gather,
    told_by_first,
)
from e3dsnn_jax.training.run_folder import read_metrics

SCRIPT = Path(__file__).with_name("tiny_run.py")


class Process(NamedTuple):
    """One process of a run, and the file that its stderr goes to."""

    popen: subprocess.Popen[bytes]
    log: Path


def started(
    folder: Path,
    run: str,
    cache: Path,
    *,
    processes: int,
    devices: int,
    kill: tuple[int, int] | None = None,
) -> list[Process]:
    """Starts the processes of a tiny run; `kill`: which one dies at which step."""
    port = free_port()
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])
    found = []
    for process in range(processes):
        environ = os.environ | {
            "PYTHONPATH": paths,
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
            "JAX_NUM_CPU_DEVICES": str(devices // processes),
        }
        kill_at = kill[1] if kill is not None and kill[0] == process else 0
        words = [SCRIPT, folder / run, folder / "data", kill_at, cache, devices]
        # A pipe that nobody reads would fill up and hold the process.
        log = folder / f"{run}-{port}-{process}.log"
        with log.open("wb") as file:
            command = [sys.executable, *map(str, words)]
            popen = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
        found.append(Process(popen, log))
    return found


def ended(processes: list[Process], *, within: float) -> list[str]:
    """What each has said, once all have ended; kills them if they do not."""
    deadline = time.monotonic() + within
    try:
        for process in processes:
            process.popen.wait(timeout=max(deadline - time.monotonic(), 0.1))
    finally:
        for process in processes:
            process.popen.kill()
            process.popen.wait()
    return [process.log.read_text(errors="replace") for process in processes]


def codes(processes: list[Process]) -> list[int]:
    return [process.popen.returncode for process in processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_compilations(tmp_path_factory)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]


def test_two_processes_train_what_one_trains(folder: Path, cache: Path):
    alone = started(folder, "alone", cache, processes=1, devices=2)
    ended(alone, within=120)
    together = started(folder, "together", cache, processes=2, devices=2)
    told = ended(together, within=120)
    assert codes(alone + together) == [0, 0, 0], told
    # Sums of two devices are the same however they are spread over processes, and
    # clouds are dealt alike here.
    one, two = folder / "alone", folder / "together"
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-6)
    assert len(losses(two)) == 3
    evaluations = [
        json.loads((run / "evaluation.json").read_text()) for run in (one, two)
    ]
    assert evaluations[0]["confusion"] == evaluations[1]["confusion"]
    ours, theirs = (restore_variables(run).variables for run in (one, two))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        ours,
        theirs,
    )
    # One process alone speaks and writes.
    assert "6/6" in told[0]
    assert "6/6" not in told[1]
    assert not list(two.glob("**/*tmp*"))
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == ["4", "6"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_killed_process_ends_the_others_and_another_number_resumes(
    killed: int, folder: Path, cache: Path
):
    run = f"killed_{killed}"
    broken = started(folder, run, cache, processes=4, devices=4, kill=(killed, 4))
    broken[killed].popen.wait(timeout=240)
    died = time.monotonic()
    told = ended(broken, within=60)
    assert time.monotonic() - died < 30
    assert codes(broken)[killed] == -signal.SIGKILL
    for number, (code, text) in enumerate(zip(codes(broken), told, strict=True)):
        if number != killed:
            named = f"process {killed} of 4 (host " in text
            # Without process 0, JAX may be faster to end the others.
            assert named or (killed == 0 and "the leader" in text), text
            assert code == LOST or killed == 0
    resumed = started(folder, run, cache, processes=2, devices=2)
    told = ended(resumed, within=240)
    assert codes(resumed) == [0, 0], told
    # That of step 4 is not begun, that of step 3 complete when it is evaluated.
    assert "Resuming after step 3." in told[0]
    assert "used 4 devices and goes on with 2" in told[0]
    assert len(losses(folder / run)) == 3


@pytest.mark.slow
def test_processes_stopped_and_resumed_end_with_the_same_bits(
    folder: Path, cache: Path
):
    whole = started(folder, "whole", cache, processes=2, devices=2)
    ended(whole, within=240)
    stopped = started(folder, "stopped", cache, processes=2, devices=2)
    log = folder / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped[1].popen.send_signal(
        signal.SIGTERM
    )  # one of them is told, and tells the other
    told = ended(stopped, within=60)
    assert codes(stopped) == [1, 1], told  # the script prints the error as a traceback
    again = started(folder, "stopped", cache, processes=2, devices=2)
    ended(again, within=240)
    ours, theirs = (
        restore_variables(folder / run).variables for run in ("whole", "stopped")
    )
    assert same_trees(ours, theirs)


LAUNCHES = {
    "nothing": ({}, None),
    "one process": ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a"}, None),
    "JAX": (
        {
            "JAX_COORDINATOR_ADDRESS": "a:1",
            "JAX_NUM_PROCESSES": "3",
            "JAX_PROCESS_ID": "2",
        },
        Launch("JAX", 2, 3, "a:1", None),
    ),
    "torchrun": (
        {
            "MASTER_ADDR": "a",
            "MASTER_PORT": "9",
            "RANK": "5",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
        },
        Launch("torchrun", 5, 8, "a:10", None),
    ),
    "torchrun, several a host": (
        {
            "MASTER_ADDR": "a",
            "RANK": "5",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "4",
        },
        Launch("torchrun", 5, 8, "a:29501", 1),
    ),
    "torchrun, several a host, each with a GPU of its own": (
        {
            "MASTER_ADDR": "a",
            "RANK": "5",
            "WORLD_SIZE": "8",
            "LOCAL_RANK": "1",
            "LOCAL_WORLD_SIZE": "4",
            "CUDA_VISIBLE_DEVICES": "3",
        },
        Launch("torchrun", 5, 8, "a:29501", None),
    ),
    "an address of something else": ({"MASTER_ADDR": "a"}, None),
    "JAX finds all": (
        {"JAX_COORDINATOR_ADDRESS": "auto"},
        Launch("JAX", None, None, None, None),
    ),
    "Kubeflow": (
        {"COORDINATOR_ADDRESS": "a:1", "PROCESS_ID": "1", "NUM_PROCESSES": "2"},
        Launch("Kubeflow", 1, 2, "a:1", None),
    ),
    "Slurm with PMI": (
        {
            "PMI_RANK": "1",
            "PMI_SIZE": "2",
            "SLURM_PROCID": "1",
            "SLURM_STEP_NUM_TASKS": "2",
        },
        Launch("Slurm", 1, 2, None, None),
    ),
    "Open MPI": (
        {
            "OMPI_COMM_WORLD_RANK": "0",
            "OMPI_COMM_WORLD_SIZE": "2",
            "JAX_COORDINATOR_ADDRESS": "a:1",
        },
        Launch("Open MPI", 0, 2, "a:1", None),
    ),
    "Slurm step": (
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"},
        Launch("Slurm", 1, 2, None, None),
    ),
    "batch script of Slurm": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),
    "one TPU host": ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    "TPU pod": (
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        Launch("a TPU pod", None, None, None, None),
    ),
}


@pytest.mark.parametrize(("environ", "found"), LAUNCHES.values(), ids=LAUNCHES)
def test_find_launch(environ: dict[str, str], found: Launch | None):
    assert find_launch(environ) == found


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must be .* below WORLD_SIZE=2"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' must be a number"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "set JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "process 0 is at a:1, but the number"),
    ],
)
def test_find_launch_refuses(environ: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        find_launch(environ)


def test_one_process_needs_no_exchange():
    tree = {"a": np.arange(3), "b": np.float32(1)}
    assert gather(tree) is tree
    assert broadcast(tree) is tree
    assert told_by_first(lambda: [1, None]) == [1, None]
    assert first_does(lambda: 7) == 7
