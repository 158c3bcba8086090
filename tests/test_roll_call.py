"""A process that dies or fails is named by the others, which end too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e3dsnn_jax.training.launch import free_port
from e3dsnn_jax.training.processes import LOST
from e3dsnn_jax.training.roll_call import roll_call

SCRIPT = """
import contextlib, os, signal, socket, sys, time
from e3dsnn_jax.training.processes import join_processes, wait_for_all
from e3dsnn_jax.training.roll_call import roll_call

coordinator = join_processes()
action = sys.argv[1]
with roll_call(coordinator):
    wait_for_all("start")
    print("started", flush=True)
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "port":  # knock at every port that somebody listens at
        lines = open("/proc/net/tcp6").readlines() + open("/proc/net/tcp").readlines()
        for fields in map(str.split, lines):
            if fields[3] == "0A":
                port = int(fields[1].rpartition(":")[2], 16)
                for words in (b"", b"GET / HTTP/1.1\\r\\n\\r\\n", b"[]\\n{}\\n7\\n"):
                    with contextlib.suppress(OSError):
                        with socket.create_connection(("127.0.0.1", port), 1) as s:
                            s.sendall(words)
        time.sleep(60)
    if action == "die late":
        time.sleep(8)
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fail":
        raise ValueError("the third cloud is broken\\nand more")
    if action == "fail late":
        time.sleep(1)
        raise ValueError("the third cloud is broken")
    if action == "hang":
        time.sleep(60)
print("left", flush=True)
"""


def run(folder: Path, *actions: str) -> tuple[list[int], list[str], float]:
    """Exit codes and words of processes that do these things; seconds of the last."""
    port, started = free_port(), []
    logs = [folder / f"{process}.log" for process in range(len(actions))]
    for process, (action, log) in enumerate(zip(actions, logs, strict=True)):
        environ = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(len(actions)),
            "JAX_PROCESS_ID": str(process),
            "JAX_NUM_CPU_DEVICES": "1",
        }
        command = [sys.executable, "-c", SCRIPT, action]
        with log.open("wb") as file:
            popen = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
        started.append(popen)
    try:
        deadline = time.monotonic() + 60
        while not all("started" in log.read_text() for log in logs):
            assert time.monotonic() < deadline, [log.read_text() for log in logs]
            time.sleep(0.05)
        began = time.monotonic()
        codes = [process.wait(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return codes, [log.read_text() for log in logs], time.monotonic() - began


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_killed_process_is_named(victim: int, tmp_path: Path):
    actions = ["hang", "hang", "hang"]
    actions[victim] = "die"
    codes, told, seconds = run(tmp_path, *actions)
    assert seconds < 10
    for process in range(3):
        if process == victim:
            assert codes[process] == -signal.SIGKILL
        else:
            # Without process 0, JAX may be faster to end the others.
            assert codes[process] == LOST or victim == 0
            if codes[process] != LOST:
                continue
            assert f"process {victim} of 3 (host " in told[process]
            assert "is gone: it was killed or has crashed" in told[process]


@pytest.mark.parametrize("victim", [0, 1])
def test_failed_process_is_named_with_its_reason(victim: int, tmp_path: Path):
    actions = ["hang", "hang"]
    actions[victim] = "fail"
    codes, told, seconds = run(tmp_path, *actions)
    assert seconds < 30
    other = 1 - victim
    assert codes[other] == LOST
    assert codes[victim] != 0  # JAX ends it, while it waits for the other
    assert f"process {victim} of 2 (host " in told[other]
    assert "has failed: the third cloud is broken. Process" in told[other]
    assert "ValueError: the third cloud is broken" in told[victim]


def test_strangers_do_no_harm(tmp_path: Path):
    codes, told, _ = run(tmp_path, "port", "die late")
    assert codes == [LOST, -signal.SIGKILL]
    assert "process 1 of 2 (host " in told[0]


def test_all_fail_by_themselves(tmp_path: Path):
    codes, told, _ = run(tmp_path, "fail", "fail late")
    assert codes == [1, 1]
    for text in told:
        assert "ValueError: the third cloud is broken" in text
        assert "has failed" not in text


def test_leaving_in_order_says_nothing(tmp_path: Path):
    codes, told, _ = run(tmp_path, "leave", "leave")
    assert codes == [0, 0]
    for text in told:
        assert text.endswith("started\nleft\n")
        assert "process" not in text.lower().replace("processes", "")


def test_one_process_alone():
    with roll_call():
        pass
